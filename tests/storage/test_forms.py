"""Forms decode to the bits that their definitions say, and the shortest one loses nothing."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sizewise.errors import UsageError
from sizewise.storage.entropy import encode
from sizewise.storage.forms import (
    Codebook,
    Constant,
    Form,
    Integers,
    Product,
    Raw,
    Sparse,
    attach_forms,
    attached_forms,
    coded_parts,
    same_bits,
    shortest,
    stored_bytes,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix_of(value: Tensor, axis: int) -> Tensor:
    return value.movedim(axis, 0).reshape(value.shape[axis], -1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16]),
    st.integers(0, 99),
)
def test_integers_are_codes_times_scales(shape: list[int], axis: int, block: int, per_row: bool, kind: torch.dtype, seed: int) -> None:
    axis %= len(shape)
    rows = shape[axis]
    columns = int(np.prod(shape)) // rows
    codes = torch.randint(-128, 128, (rows, columns), generator=generator(seed)).to(torch.int8)
    scales = torch.randn(rows if per_row else 1, -(-columns // block), generator=generator(seed)).to(kind)
    form = Integers(codes, scales, tuple(shape), axis, block)
    value = form.decode()
    assert value.shape == tuple(shape)
    matrix = matrix_of(value, axis)
    for row in range(rows):
        for column in range(columns):
            exact = np.float32(int(codes[row, column])) * np.float32(float(scales[row if per_row else 0, column // block]))
            assert matrix[row, column].item() == exact


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 7), st.booleans(), st.integers(0, 99))
def test_codebooks_look_up(shape: list[int], axis: int, count: int, per_row: bool, seed: int) -> None:
    axis %= len(shape)
    rows = shape[axis]
    columns = int(np.prod(shape)) // rows
    codes = torch.randint(0, count, (rows, columns), generator=generator(seed)).to(torch.uint8)
    levels = torch.randn(rows if per_row else 1, count, generator=generator(seed))
    matrix = matrix_of(Codebook(codes, levels, tuple(shape), axis).decode(), axis)
    assert matrix.tolist() == [[float(levels[row if per_row else 0, int(code)]) for code in codes[row]] for row in range(rows)]


def test_products_are_rounded_once_whatever_the_threads() -> None:
    left, right = torch.randn(70, 9, generator=generator(1)), torch.randn(9, 30, generator=generator(2))
    value = (
        Product(Raw(left), Raw(right), (30, 7, 10), axis=1, dtype=torch.float32) if False else Product(Raw(left), Raw(right), (70, 5, 6))
    )
    exact = (left.double() @ right.double()).float().view(70, 5, 6)
    decoded = value.decode()
    assert torch.allclose(decoded, exact, rtol=1e-6, atol=1e-7)
    assert same_bits(decoded, value.decode())
    moved = Product(Raw(left), Raw(right), (5, 70, 6), axis=1).decode()
    assert same_bits(matrix_of(moved, 1), matrix_of(decoded, 0))


ELEMENTS = st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn"])


@settings(max_examples=120, deadline=None)
@given(ELEMENTS, st.lists(st.integers(0, 7), max_size=4), st.sampled_from(["bits", "few", "zeros", "one"]), st.integers(0, 999))
def test_the_shortest_form_keeps_every_bit(name: str, shape: list[int], how: str, seed: int) -> None:
    dtype: torch.dtype = getattr(torch, name)
    count = int(np.prod(shape))
    rng = np.random.default_rng(seed)
    plain = rng.integers(0, 2 if name == "bool" else 256, (count, dtype.itemsize)).astype(np.uint8)
    if how == "few" and count:
        plain = plain[rng.integers(0, min(3, count), count)]
    if how == "zeros":
        plain[rng.random(count) < 0.8] = 0
    if how == "one" and count:
        plain[:] = plain[0]
    value = (torch.from_numpy(plain.reshape(-1)).view(dtype) if count else torch.empty(0, dtype=dtype)).view(shape)
    form = shortest(value)
    assert form.shape == tuple(shape)
    assert form.dtype == dtype
    assert same_bits(form.decode(), value)
    assert stored_bytes(form) <= max(1, count) * dtype.itemsize


def test_what_is_short() -> None:
    weight = torch.randn(200, 50, generator=generator())
    assert isinstance(shortest(weight), Raw)
    assert isinstance(shortest(torch.ones(64)), Constant)
    assert isinstance(shortest(torch.tensor(3.0)), Constant)
    assert isinstance(shortest(torch.empty(0, 3)), Raw)
    coded = shortest((weight * 4).round() / 4)
    assert isinstance(coded, Codebook)
    assert stored_bytes(coded) < 200 * 50 * 4.5 / 8
    pruned = shortest(torch.where(weight.abs() > 1.5, weight, 0.0))
    assert isinstance(pruned, Sparse)
    mask = torch.ones(100, 100).tril().bool()
    assert stored_bytes(shortest(mask)) < 1200
    assert torch.equal(shortest(weight.t()).decode(), weight.t())
    assert stored_bytes(Constant(torch.tensor(1.0), (1000,))) == 0


def test_tensors_that_torch_has_not_written_out() -> None:
    value = torch.randn(6, 5, dtype=torch.complex64, generator=generator())
    for view in (value.conj(), value.conj().imag, value.t(), value[::2, 1:]):
        assert same_bits(shortest(view).decode(), view.clone().resolve_conj().resolve_neg())
    with pytest.raises(UsageError, match="cannot be stored"):
        shortest(torch.empty(3, device="meta"))
    with pytest.raises(UsageError, match="cannot be stored"):
        shortest(torch.eye(3).to_sparse())


def test_zero_and_its_negative_are_two() -> None:
    value = torch.tensor([0.0, -0.0] * 500)
    assert not same_bits(value, torch.zeros(1000))
    assert same_bits(shortest(value).decode(), value)
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))


CODES = torch.zeros(2, 3, dtype=torch.int8)
SCALES = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Integers, (CODES, SCALES, (3, 2))),
        (Integers, (CODES, SCALES, (2, 3), 2)),
        (Integers, (CODES, SCALES, (2, 3), -1)),
        (Integers, (CODES.short(), SCALES, (2, 3))),
        (Integers, (CODES, SCALES, (2, 3), 0, 2)),
        (Integers, (CODES, SCALES, (2, 3), 0, 0)),
        (Integers, (CODES, SCALES * torch.nan, (2, 3))),
        (Integers, (CODES, SCALES * torch.inf, (2, 3))),
        (Integers, (CODES, SCALES.double(), (2, 3))),
        (Integers, (CODES, SCALES, (2, 3), 0, None, torch.int8)),
        (Integers, (torch.zeros(0, 3, dtype=torch.int8), SCALES, (0, 3))),
        (Codebook, (CODES.byte() + 2, torch.ones(1, 2), (2, 3))),
        (Codebook, (CODES.byte(), torch.ones(3, 2), (2, 3))),
        (Codebook, (CODES.byte(), torch.ones(1, 257), (2, 3))),
        (Codebook, (CODES.byte(), torch.ones(1, 2, dtype=torch.complex64), (2, 3))),
        (Sparse, (torch.ones(6, dtype=torch.bool), torch.ones(5), (2, 3))),
        (Sparse, (torch.ones(2, 3, dtype=torch.bool), torch.ones(6), (2, 3))),
        (Product, (Raw(torch.ones(2, 1)), Raw(torch.ones(2, 3)), (2, 3))),
        (Product, (Raw(torch.ones(2, 9)), Raw(torch.ones(9, 3)), (2, 3))),
        (Product, (Raw(torch.ones(2, 1).double()), Raw(torch.ones(1, 3)), (2, 3))),
        (Constant, (torch.ones(2), (2,))),
        (Raw, (torch.ones(2, device="meta"),)),
    ],
)
def test_forms_of_nothing_are_refused(kind: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        kind(*arguments)


def test_modules_hold_forms_and_their_copies_do() -> None:
    model = nn.Linear(3, 2)
    assert attached_forms(model) == {}
    form: Form = Integers(CODES, SCALES, (2, 3))
    attach_forms(model, {"weight": form})
    assert set(model.state_dict()) == {"weight", "bias"}
    assert attached_forms(copy.deepcopy(model))["weight"] is form
    with pytest.raises(UsageError, match="not a form"):
        attach_forms(model, {"weight": torch.ones(2)})  # type: ignore[dict-item]


def test_codes_are_encoded_once_and_a_modules_own_arrays_each_time() -> None:
    codes = Integers(torch.randint(-3, 4, (40, 50)).to(torch.int8), torch.ones(1, 1), (40, 50))
    assert coded_parts(codes) is coded_parts(codes)
    both = Product(Raw(torch.ones(60, 40)), codes, (60, 50))
    assert coded_parts(both)[1] is coded_parts(codes)[0]
    value = torch.zeros(100)
    plain = Raw(value)
    before = stored_bytes(plain)
    value.normal_()
    assert stored_bytes(plain) > before
    assert [part.data for part in coded_parts(both)] == [encode(part).data for part in both.parts().values()]
