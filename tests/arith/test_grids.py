"""Grids of weights, against loops over single blocks."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.grids import Grid, Method, Steps, dequantize, find_steps, hqq, pack_int4, quantize, unpack_int4
from sizewise.errors import PreconditionError, UnknownName, UsageError

GRIDS = st.builds(
    Grid, bits=st.integers(2, 8), symmetric=st.booleans(), block=st.sampled_from([None, 1, 3, 4, 7, 99]), narrow=st.booleans()
)


def weights(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator).exp2()


def blocks_of(weight: Tensor, grid: Grid) -> list[list[Tensor]]:
    return [list(torch.split(row, grid.block or len(row))) for row in weight]


def error(weight: Tensor, steps: Steps, grid: Grid, importance: Tensor | None = None, power: float = 2.0) -> Tensor:
    far = (dequantize(quantize(weight, steps, grid), steps, grid) - weight).double().abs() ** power
    far = far if importance is None else far * importance.double()
    return torch.stack([torch.stack([part.sum() for part in row]) for row in blocks_of(far, grid)])


def test_codes_of_a_grid() -> None:
    assert (Grid(8).low, Grid(8).high) == (-127, 127)
    assert (Grid(4, narrow=False).low, Grid(4, narrow=False).high) == (-8, 7)
    assert (Grid(4, symmetric=False).low, Grid(4, symmetric=False).high) == (-8, 7)
    assert [Grid(4, block=32).blocks(n) for n in (1, 32, 33, 144)] == [1, 1, 2, 5]


@given(seed=st.integers(0, 99), grid=GRIDS, method=st.sampled_from(["absmax", "mse"]))
@settings(max_examples=25, deadline=None)
def test_every_code_is_on_the_grid_and_the_nearest(seed: int, grid: Grid, method: str) -> None:
    weight = weights(seed, 3, 11)
    steps = find_steps(weight, grid, cast(Method, method))
    assert steps.scale.shape == steps.zero.shape == (3, grid.blocks(11))
    assert steps.scale.dtype == torch.float32
    codes = quantize(weight, steps, grid)
    values = dequantize(codes, steps, grid)
    every = torch.arange(grid.low, grid.high + 1)
    for row in range(3):
        for column in range(11):
            place = 0 if grid.block is None else column // grid.block
            choices = (every - steps.zero[row, place]) * steps.scale[row, place]
            best = float((choices - weight[row, column]).abs().min())
            assert abs(float(values[row, column] - weight[row, column])) == pytest.approx(best, abs=1e-6)
    assert bool((steps.zero == steps.zero.round()).all()), "zero is worth zero"
    assert bool(((steps.zero >= grid.low) & (steps.zero <= grid.high)).all())
    assert not grid.symmetric or not steps.zero.any()


@given(seed=st.integers(0, 99), grid=GRIDS)
@settings(max_examples=20, deadline=None)
def test_absmax_clips_nothing(seed: int, grid: Grid) -> None:
    weight = weights(seed, 2, 9)
    steps = find_steps(weight, grid)
    far = (dequantize(quantize(weight, steps, grid), steps, grid) - weight).abs()
    # the zero point is rounded, so that an asymmetric range may end half a step early
    half = steps.scale * (0.5 if grid.symmetric else 1.0)
    assert bool((far <= half.repeat_interleave(grid.block or 9, 1)[:, :9] * 1.001).all())


@given(seed=st.integers(0, 99), grid=GRIDS, weighted=st.booleans())
@settings(max_examples=20, deadline=None)
def test_mse_is_never_worse_than_absmax(seed: int, grid: Grid, weighted: bool) -> None:
    weight = weights(seed, 3, 11)
    importance = torch.rand(11, generator=torch.Generator().manual_seed(seed)) if weighted else None
    plain, clipped = (find_steps(weight, grid, method, importance) for method in ("absmax", "mse"))
    assert bool((error(weight, clipped, grid, importance) <= error(weight, plain, grid, importance) * (1 + 1e-5) + 1e-12).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("block", [None, 32])
def test_mse_finds_nearly_the_best_symmetric_scale(bits: int, block: int | None) -> None:
    weight, grid = weights(1, 4, 64), Grid(bits, block=block)
    importance = torch.rand(64, generator=torch.Generator().manual_seed(0))
    found = error(weight, find_steps(weight, grid, "mse", importance), grid, importance)
    whole = find_steps(weight, grid)
    tried = [error(weight, Steps(whole.scale * f / 400, whole.zero), grid, importance) for f in range(20, 441)]
    best = torch.stack(tried).amin(0)
    if bits < 8:
        assert bool((found <= 1.02 * best).all())
    assert float(found.sum()) <= 1.08 * float(best.sum()), "with 8 bits the error jumps up and down from one scale to the next"


@pytest.mark.parametrize("bits", [2, 4])
def test_mse_finds_nearly_the_best_asymmetric_range(bits: int) -> None:
    weight, grid = weights(2, 3, 48).relu() - 0.2, Grid(bits, symmetric=False)
    found = error(weight, find_steps(weight, grid, "mse"), grid)
    whole = find_steps(weight, grid)
    tried = [
        error(weight, Steps(whole.scale * f / 60, torch.full_like(whole.zero, float(zero))), grid)
        for f in range(5, 67)
        for zero in range(grid.low, grid.high + 1)
    ]
    assert bool((found <= 1.05 * torch.stack(tried).amin(0)).all())


def test_groups_are_matrices_of_their_own() -> None:
    weight, grid = weights(3, 2, 3, 10), Grid(4, symmetric=False, block=4)
    importance = torch.rand(2, 10)
    both = find_steps(weight, grid, "mse", importance)
    for group in range(2):
        alone = find_steps(weight[group], grid, "mse", importance[group])
        assert torch.equal(both.scale[group], alone.scale)
        assert torch.equal(quantize(weight, both, grid)[group], quantize(weight[group], alone, grid))


@pytest.mark.parametrize("groups", [(), (3,)])
def test_many_outputs_are_looked_at_some_at_a_time_and_get_the_same_steps(groups: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(*groups, 7, 10, generator=torch.Generator().manual_seed(0))
    grid = Grid(4, symmetric=False, block=4)

    def both() -> list[Steps]:
        return [find_steps(weight, grid, "mse"), hqq(weight, grid)]

    codes = quantize(weight, both()[0], grid)

    whole = both()
    monkeypatch.setattr("sizewise.arith.grids.PART", 2 * weight[..., 0, :].numel())
    for one, other in zip(whole, both(), strict=True):
        assert torch.equal(one.scale, other.scale)
        assert torch.equal(one.zero, other.zero)
    assert torch.equal(quantize(weight, whole[0], grid), codes)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["absmax", "mse"])
def test_odd_weights_are_no_trouble(symmetric: bool, method: str) -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [1e-42, 0.0, -1e-40], [1e30, -3e37, 2.0], [5.0, 5.0, 5.0]])
    grid = Grid(4, symmetric)
    steps = find_steps(weight, grid, cast(Method, method))
    values = dequantize(quantize(weight, steps, grid), steps, grid)
    assert bool((steps.scale > 0).all())
    assert bool(values.isfinite().all())
    assert values[0].tolist() == [0.0, 0.0, 0.0]
    assert values[3].tolist() == pytest.approx([5.0, 5.0, 5.0])
    assert float(values[2, 1]) == pytest.approx(-3e37, rel=0.1)


def test_what_cannot_be_meant() -> None:
    weight = torch.ones(2, 3)
    for bits in (1, 9):
        with pytest.raises(UsageError, match="bits"):
            Grid(bits)
    with pytest.raises(UsageError, match="block"):
        Grid(4, block=0)
    with pytest.raises(UnknownName, match="'max'"):
        find_steps(weight, Grid(), cast(Method, "max"))
    with pytest.raises(PreconditionError, match="not finite"):
        find_steps(torch.tensor([[1.0, float("nan")]]), Grid())
    with pytest.raises(UsageError, match="every input"):
        find_steps(weight, Grid(), "mse", torch.ones(2))
    with pytest.raises(UsageError, match="not negative"):
        find_steps(weight, Grid(), "mse", torch.tensor([1.0, -1.0, 1.0]))


# --- half-quadratic


@given(seed=st.integers(0, 99), grid=GRIDS, whole=st.booleans())
@settings(max_examples=20, deadline=None)
def test_hqq_is_never_worse_than_absmax_in_its_own_measure(seed: int, grid: Grid, whole: bool) -> None:
    weight = weights(seed, 3, 11)
    found = error(weight, hqq(weight, grid, whole_zeros=whole), grid, power=0.7)
    assert bool((found <= error(weight, find_steps(weight, grid), grid, power=0.7) * (1 + 1e-4) + 1e-4).all())


@pytest.mark.parametrize(("grid", "share"), [(Grid(4, block=64), 0.96), (Grid(4, symmetric=False, block=64), 0.96)])
def test_hqq_lowers_the_error_of_most_weights(grid: Grid, share: float) -> None:
    weight = weights(4, 8, 256)
    weight[:, ::50] *= 3
    found = error(weight, hqq(weight, grid), grid, power=0.7)
    assert float(found.sum()) < share * float(error(weight, find_steps(weight, grid), grid, power=0.7).sum())


def test_hqq_zero_points_are_codes_unless_any_will_do() -> None:
    weight, grid = weights(5, 4, 64), Grid(4, symmetric=False, block=16)
    whole, free = hqq(weight, grid), hqq(weight, grid, whole_zeros=False)
    assert torch.equal(whole.zero, whole.zero.round())
    assert not torch.equal(free.zero, free.zero.round())
    assert float(error(weight, free, grid).sum()) < float(error(weight, whole, grid).sum())
    assert not hqq(weight, Grid(4, block=16)).zero.any()


# --- packing


@given(codes=st.lists(st.integers(-8, 7), max_size=9))
def test_packed_codes_come_back(codes: list[int]) -> None:
    packed = pack_int4(torch.tensor(codes, dtype=torch.int8))
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [(codes[i] & 15) | ((codes[i + 1] & 15) << 4 if i + 1 < len(codes) else 0) for i in range(0, len(codes), 2)]
    assert unpack_int4(packed, len(codes)).tolist() == codes
    unsigned = torch.tensor(codes, dtype=torch.int8) + 8
    assert torch.equal(unpack_int4(pack_int4(unsigned), len(codes), signed=False), unsigned)


def test_packing_refuses_what_does_not_fit() -> None:
    for codes in ([8, -1], [16], [-9]):
        with pytest.raises(UsageError, match="4 bits"):
            pack_int4(torch.tensor(codes, dtype=torch.int8))
    with pytest.raises(UsageError, match="bytes"):
        unpack_int4(torch.zeros(2, dtype=torch.uint8), 5)
