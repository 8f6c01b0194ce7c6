"""Arrays come back from every coder, codes cost about their entropy, and damage is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sizewise.errors import UsageError
from sizewise.storage import ans
from sizewise.storage.entropy import Wanted, decode, decode_all, encode, estimated_bytes
from sizewise.storage.frequencies import TOTAL, Curve, Table, fitted, grouped
from sizewise.storage.lanes import Stream, decode_words
from sizewise.storage.rans import encode_symbols
from sizewise.storage.rows import encode_rows


def laplacian(count: int, step: float, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).laplace(size=count)
    return torch.from_numpy(np.clip(np.rint(values / step), -127, 127).astype(np.int8))


def entropy_bytes(codes: Tensor) -> float:
    _, counts = np.unique(codes.numpy(), return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def slow_decode(data: bytes, count: int) -> NDArray[np.uint8]:
    """The coder of few lanes by its definition, one symbol after another."""
    low, symbols, how = data[0], data[1] + 1, data[2]
    group, lanes = (how >> 4 & 7) + 1, 1 << (how & 15)
    size = 6 if how >> 7 else symbols
    model = Curve.read(data[3:9]) if how >> 7 else Table(data[3 : 3 + symbols])
    frequency = grouped([(model, symbols, group)])[0].frequency.tolist()
    rest = data[3 + size :]
    states = [int.from_bytes(rest[4 * lane : 4 * lane + 4], "little") for lane in range(lanes)]
    stream = [int.from_bytes(rest[at : at + 2], "little") for at in range(4 * lanes, len(rest), 2)]
    found: list[int] = []
    for index in range(-(-count // group)):
        x = states[index % lanes]
        word, begin = 0, 0
        while begin + frequency[word] <= x % TOTAL:
            begin += frequency[word]
            word += 1
        x = frequency[word] * (x // TOTAL) + x % TOTAL - begin
        states[index % lanes] = x if x >= TOTAL else x * TOTAL + stream.pop(0)
        found += [(low + word // symbols**place % symbols) % 256 for place in reversed(range(group))]
    return np.array(found[:count], np.uint8)


ARRAYS = st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 300), st.integers(1, 256), st.integers(0, 2**32 - 1))
TYPES = {1: torch.int8, 2: torch.float16, 4: torch.float32, 8: torch.int64}


@settings(max_examples=60, deadline=None)
@given(ARRAYS)
def test_arrays_come_back(case: tuple[int, int, int, int]) -> None:
    size, count, alphabet, seed = case
    plain = np.random.default_rng(seed).integers(0, alphabet, count * size).astype(np.uint8)
    array = torch.from_numpy(plain).view(TYPES[size]) if count else torch.empty(0, dtype=TYPES[size])
    coded = encode(array)
    back = decode(coded.coder, coded.data, array.dtype, count)
    assert back.dtype == array.dtype
    assert back.view(torch.uint8).tolist() == plain.tolist()
    assert len(coded.data) <= count * size


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.floats(0.02, 30), st.integers(0, 1000), st.booleans())
def test_symbols_come_back_and_agree_with_the_definition(count: int, step: float, seed: int, signed: bool) -> None:
    plain = laplacian(count, step, seed).numpy().view(np.uint8)
    coded = encode_symbols(plain, signed=signed)
    assert decode("rans", coded, torch.uint8, count).tolist() == plain.tolist()
    assert np.array_equal(slow_decode(coded, count), plain)


@pytest.mark.parametrize("lanes", [1, 2, 16, 32, 512, 4096])
@pytest.mark.parametrize("count", [1, 15, 1000, 70_000])
def test_every_number_of_lanes(lanes: int, count: int) -> None:
    _, words = fitted(np.array([5, 900, 60, 3]))
    numbers = np.random.default_rng(0).integers(0, len(words.frequency), count).astype(np.uint16)
    coded = ans.encode_words(numbers, words, lanes)
    assert np.array_equal(decode_words([Stream(coded, count, words, lanes)])[0], numbers)


STREAM = st.tuples(
    st.sampled_from([1, 2, 3, 15, 256]), st.integers(1, 2000), st.sampled_from([1, 2, 8, 16, 32, 64, 512]), st.integers(0, 99)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STREAM, min_size=1, max_size=12), st.data())
def test_streams_decode_beside_others_as_alone_and_damage_is_found(cases: list[tuple[int, int, int, int]], data: st.DataObject) -> None:
    streams, expected = [], []
    for symbols, count, lanes, seed in cases:
        generator = np.random.default_rng(seed)
        _, words = fitted(np.maximum(1, (1000 * generator.random(symbols) ** 4).astype(np.int64)))
        share = words.frequency / TOTAL
        numbers = generator.choice(len(share), count, p=share).astype(np.uint16)
        streams.append(Stream(ans.encode_words(numbers, words, lanes), count, words, lanes))
        expected.append(numbers)
    for found, alone, numbers in zip(decode_words(streams), streams, expected, strict=True):
        assert np.array_equal(found, numbers)
        assert np.array_equal(decode_words([alone])[0], numbers)
    index = data.draw(st.integers(0, len(streams) - 1))
    coded = bytes(streams[index].data)
    for changed in (coded[:-2], coded + b"\0\0", coded[:-1]):
        streams_now = [replace(each, data=changed) if place == index else each for place, each in enumerate(streams)]
        with pytest.raises(UsageError, match="damaged"):
            decode_words(streams_now)


def test_arrays_of_every_coder_decode_together_as_alone() -> None:
    spread = torch.linspace(0.3, 3.0, 64)[:, None]
    arrays = [
        laplacian(9, 0.5),
        (torch.randn(64, 500, generator=torch.Generator().manual_seed(1)) * spread).round().to(torch.int8),
        torch.arange(1000.0),
        torch.empty(0, dtype=torch.int64),
        laplacian(300_000, 0.7),
        *(laplacian(500 * size, 1.0 / (size + 1), size).view(-1, 50) for size in range(1, 160)),
        (torch.randn(64, 700, generator=torch.Generator().manual_seed(2)) * spread).round().to(torch.int8),
        torch.randint(0, 256, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    ]
    coded = [encode(array) for array in arrays]
    assert {each.coder for each in coded} == {"raw", "zstd", "rans", "rows"}
    wanted = [Wanted(each.coder, each.data, array.dtype, array.numel()) for each, array in zip(coded, arrays, strict=True)]
    for found, each, array in zip(decode_all(wanted), wanted, arrays, strict=True):
        assert torch.equal(found, array.flatten())
        assert torch.equal(decode(each.coder, each.data, each.dtype, each.count), found)


@pytest.mark.parametrize("step", [4.0, 1.5, 0.8, 0.4, 0.1])
def test_small_arrays_pay_few_bytes_over_their_entropy(step: float) -> None:
    codes = laplacian(2000, step)
    excess = len(encode(codes).data) - entropy_bytes(codes)
    assert excess < 20 + 0.01 * entropy_bytes(codes)


@pytest.mark.parametrize("step", [4.0, 1.5, 0.8, 0.4, 0.1])
def test_large_arrays_are_within_a_hundredth_of_their_entropy(step: float) -> None:
    codes = laplacian(400_000, step)
    size = len(encode(codes).data)
    assert entropy_bytes(codes) <= size < 1.01 * entropy_bytes(codes) + 16
    assert abs(estimated_bytes(codes) - size) < 0.01 * size + 16


def test_codes_that_do_not_occur_or_hardly_vary() -> None:
    for codes in (torch.zeros(100_000, dtype=torch.int8), torch.tensor([-128, 127] * 50, dtype=torch.int8)):
        coded = encode(codes)
        assert len(coded.data) <= 30
        assert torch.equal(decode(coded.coder, coded.data, torch.int8, len(codes)), codes)
    rare = torch.zeros(1_000_000, dtype=torch.uint8)
    rare[::100_000] = 1
    assert torch.equal(decode("rans", encode_symbols(rare.numpy(), signed=False), torch.uint8, len(rare)), rare)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=256), st.integers(1, 8))
def test_frequencies_are_positive_and_whole(counts: list[int], group: int) -> None:
    counts = [counts[0] + 1, *counts[1:]]
    model, _ = fitted(np.array(counts))
    if len(counts) ** group <= 4096 or group == 1:
        frequency = grouped([(model, len(counts), group)])[0].frequency
        assert int(frequency.sum()) == TOTAL
        assert int(frequency.min()) >= 1
    assert len(model.dump()) <= len(counts)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=6, max_size=6), st.integers(1, 256))
def test_any_curve_gives_frequencies(data: bytes, symbols: int) -> None:
    curve = Curve.read(data)
    if curve.peak < symbols:
        assert int(grouped([(curve, symbols, 1)])[0].frequency.sum()) == TOTAL
    assert curve.dump() == data


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_symbols_are_refused_or_of_the_right_number(data: st.DataObject) -> None:
    codes = laplacian(data.draw(st.sampled_from([50, 3000, 40_000])), 0.3)
    coded = bytearray(encode(codes).data)
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, min(len(coded), 60) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 4))
    try:
        back = decode("rans", bytes(coded[: len(coded) - cut]), torch.int8, len(codes))
    except UsageError:
        return
    assert back.shape == codes.shape


def test_what_does_not_hold_the_elements_is_refused() -> None:
    floats = torch.arange(1000.0)
    coded = encode(floats)
    assert coded.coder == "zstd"
    for count in (0, 999, 1001, 10**12):
        with pytest.raises(UsageError):
            decode("zstd", coded.data, torch.float32, count)
        with pytest.raises(UsageError):
            decode("raw", bytes(4000), torch.float32, count)
    for broken in (b"", coded.data[:-1], coded.data + b"x", b"\x00" * 40):
        with pytest.raises(UsageError):
            decode("zstd", broken, torch.float32, 1000)
    with pytest.raises(UsageError, match="no such coder"):
        decode("rans", coded.data, torch.float32, 1000)
    with pytest.raises(UsageError, match="no such coder"):
        decode("lzma", coded.data, torch.int8, 1000)
    with pytest.raises(UsageError):
        decode("rans", encode(laplacian(2000, 1.0)).data, torch.int8, 10**12)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 60), st.integers(8, 200), st.booleans(), st.integers(0, 99))
def test_rows_come_back(rows: int, columns: int, signed: bool, seed: int) -> None:
    matrix = laplacian(rows * columns, 0.5, seed).numpy().view(np.uint8).reshape(rows, columns)
    coded = encode_rows(matrix, signed=signed, below=10**9)
    assert coded is not None
    assert np.array_equal(decode("rows", coded, torch.uint8, matrix.size), matrix.reshape(-1))


def test_rows_that_differ_take_fewer_bytes_in_classes() -> None:
    spread = torch.linspace(0.3, 3.0, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    codes = (torch.randn(64, 500, generator=torch.Generator().manual_seed(1)) * spread[:, None]).round().to(torch.int8)
    coded = encode(codes)
    assert coded.coder == "rows"
    assert len(coded.data) < 0.95 * len(encode(codes.flatten()).data)
    assert torch.equal(decode("rows", coded.data, torch.int8, codes.numel()).view(codes.shape), codes)
    assert encode(laplacian(32_000, 0.5).view(64, 500)).coder == "rans"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_rows_are_refused_or_of_the_right_number(data: st.DataObject) -> None:
    matrix = laplacian(4000, 0.5).numpy().view(np.uint8).reshape(40, 100)
    coded = bytearray(encode_rows(matrix, signed=True, below=10**9) or b"")
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, 80))] = data.draw(st.integers(0, 255))
    try:
        back = decode("rows", bytes(coded[: len(coded) - data.draw(st.integers(0, 4))]), torch.uint8, 4000)
    except UsageError:
        return
    assert back.shape == (4000,)
