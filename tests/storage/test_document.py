"""A second reader, written after docs/swz.md alone, with plain Python and numpy; it imports nothing of the package that it checks."""

import json
import zlib
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from numpy.typing import NDArray

from sizewise.storage.forms import Codebook, Constant, Form, Integers, Product, Raw, Sparse
from sizewise.storage.swz import write_swz

Array = NDArray[Any]
OCTAVE = """
2147483648 2056437387 1969251188 1885761398 1805811301 1729250827 1655936265 1585730000
1518500250 1454120821 1392470869 1333434672 1276901417 1222764986 1170923762 1121280436
"""


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


class Reader:
    def __init__(self, data: bytes) -> None:
        assert data[:8] == bytes.fromhex("89 53 57 5A 0D 0A 1A 0A")
        assert number(data[8:12]) == 1
        end = 20 + number(data[12:16])
        assert zlib.crc32(data[8:16] + data[20:end]) == number(data[16:20])
        self.header = json.loads(zstandard.ZstdDecompressor().decompress(data[20:end]))
        self.data, self.at = data, end
        self.tensors: dict[str, Array] = {}
        for names, crc, form in self.header["tensors"]:
            self.seen = b""
            value = self.form(form)
            assert zlib.crc32(self.seen) == crc
            self.tensors.update(dict.fromkeys(names, value))
        assert self.at == len(data)

    def part(self, part: list[Any], dtype: str, count: int) -> Array:
        coder, size = part
        if coder == "raw" and size >= 4096:
            begin = ceil(self.at / 64) * 64
            assert not any(self.data[self.at : begin])
            self.at = begin
        data = self.data[self.at : self.at + size]
        self.at += size
        self.seen += data
        width = np.dtype(dtype).itemsize
        if coder == "zstd":
            planes = zstandard.ZstdDecompressor().decompress(data)
            data = bytes(planes[plane * count + index] for index in range(count) for plane in range(width))
        elif coder == "rans":
            data = rans(data, count)
        elif coder == "rows":
            data = by_rows(data, count)
        return np.frombuffer(data, dtype, count)

    def form(self, form: list[Any]) -> Array:
        kind, dtype, shape, *rest = form
        if kind == "raw":
            return self.part(rest[0], dtype, prod(shape)).reshape(shape)
        if kind == "constant":
            return np.full(shape, np.frombuffer(bytes.fromhex(rest[0]), dtype)[0])
        if kind == "sparse":
            value_dtype, count, mask, values = rest
            flat = np.zeros(prod(shape), dtype)
            where = self.part(mask, "bool", prod(shape))
            flat[where] = self.part(values, value_dtype, count)
            return flat.reshape(shape)
        axis = rest[0]
        rows, columns = shape[axis], prod(shape) // shape[axis]
        matrix = getattr(self, kind)(rows, columns, dtype, *rest[1:])
        others = [*shape[:axis], *shape[axis + 1 :]]
        return np.moveaxis(matrix.reshape(rows, *others), 0, axis)

    def integers(self, rows: int, columns: int, dtype: str, block: int, kind: str, scale_rows: int, *parts: list[Any]) -> Array:
        size = block or columns
        wide = ceil(columns / size)
        codes = self.part(parts[0], "int8", rows * columns).reshape(rows, columns)
        scales = self.part(parts[1], kind, scale_rows * wide).reshape(scale_rows, wide).astype(np.float32)
        value = [[np.float32(codes[i, j]) * scales[i if scale_rows > 1 else 0, j // size] for j in range(columns)] for i in range(rows)]
        return np.array(value, np.float32).astype(dtype)

    def codebook(self, rows: int, columns: int, dtype: str, kind: str, level_rows: int, count: int, *parts: list[Any]) -> Array:
        codes = self.part(parts[0], "uint8", rows * columns).reshape(rows, columns)
        levels = self.part(parts[1], kind, level_rows * count).reshape(level_rows, count).astype(dtype)
        return np.array([[levels[i if level_rows > 1 else 0, codes[i, j]] for j in range(columns)] for i in range(rows)], dtype)

    def product(self, rows: int, columns: int, dtype: str, left: list[Any], right: list[Any]) -> Array:
        one, other = self.form(left), self.form(right)
        value = np.zeros((rows, columns))
        for i in range(rows):
            for j in range(columns):
                for r in range(one.shape[1]):
                    value[i, j] += float(one[i, r]) * float(other[r, j])
        return value.astype(np.float32).astype(dtype)


def by_rows(data: bytes, count: int) -> bytes:
    columns, classes, rest = number(data[:4]), data[4], data[5:]
    pieces = []
    while rest:
        end = 4 + number(rest[:4])
        pieces.append(rest[4:end])
        rest = rest[end:]
    assert len(pieces) == 1 + classes
    which = rans(pieces[0], count // columns)
    held = [rans(piece, which.count(index) * columns) for index, piece in enumerate(pieces[1:])]
    at, found = [0] * classes, b""
    for index in which:
        found += held[index][at[index] : at[index] + columns]
        at[index] += columns
    return found


def rans(data: bytes, count: int) -> bytes:
    low, symbols, how = data[0], data[1] + 1, data[2]
    group, lanes = (how >> 4 & 7) + 1, 1 << (how & 15)
    if how >> 7:
        peak, gap, slope, bend = data[3], np.int8(data[4:5][0] - 256 * (data[4] > 127)), data[5:7], data[7:9]
        steep = int.from_bytes(slope, "little", signed=True)
        u = []
        for i in range(symbols):
            d = abs(i - peak) - 1
            u.append(0 if i == peak else (256 * int(gap) + steep * d + number(bend) * d * d) >> 8)
        v = [min(each - min(u), 255) for each in u]
        rest = data[9:]
    else:
        v, rest = list(data[3 : 3 + symbols]), data[3 + symbols :]
    octave = [int(text) for text in OCTAVE.split()]
    w = [octave[each % 16] >> each // 16 for each in v]
    p = [each * 2**31 // sum(w) for each in w]
    weights = p
    for _ in range(group - 1):
        weights = [weight * each >> 31 for weight in weights for each in p]
    frequency = [1 + weight * (65536 - len(weights)) // sum(weights) for weight in weights]
    frequency[frequency.index(max(frequency))] += 65536 - sum(frequency)
    found = bytearray()
    for word in words(rest, ceil(count / group), frequency, lanes):
        found += bytes((low + word // symbols**place % symbols) % 256 for place in reversed(range(group)))
    return bytes(found[:count])


def words(data: bytes, count: int, frequency: list[int], lanes: int) -> list[int]:
    tail = length = 0
    if lanes > 16:
        tail, length, data = number(data[:4]), number(data[4:8]), data[8:]
    owner = np.repeat(np.arange(len(frequency)), frequency).tolist()
    first = [sum(frequency[:word]) for word in range(len(frequency))]
    states = [number(data[4 * lane : 4 * lane + 4]) for lane in range(lanes)]
    stream = iter([number(data[at : at + 2]) for at in range(4 * lanes, len(data), 2)])
    found = []
    for index in range(count - tail):
        x = states[index % lanes]
        word = owner[x % 65536]
        x = frequency[word] * (x >> 16) + x % 65536 - first[word]
        states[index % lanes] = x if x >= 65536 else x * 65536 + next(stream)
        found.append(word)
    assert next(stream, None) is None
    if lanes <= 16:
        assert set(states) == {65536}
        return found
    carried = b"".join((state - 65536).to_bytes(2, "little") for state in states)
    assert not any(carried[length:])
    return found + words(carried[:length], tail, frequency, lanes // 16)


def forms() -> dict[str, Form]:
    generator = torch.Generator().manual_seed(0)

    def codes(*shape: int, spread: float = 1.5) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * spread).round().clamp(-127, 127).to(torch.int8)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "few codes": Integers(codes(6, 20), floats(1, 1), (2, 6, 10), 1),
        "many codes": Integers(codes(60, 1000), floats(60, 1).half(), (60, 1000)),
        "wide codes": Integers(codes(8, 500, spread=30.0), floats(8, 6), (8, 500), 0, 90),
        "hardly any": Integers(codes(8, 500, spread=0.3), floats(1, 1), (8, 500), dtype=torch.float16),
        "uneven codes": Integers((floats(24, 200) * torch.linspace(0.2, 4, 24)[:, None]).round().to(torch.int8), floats(1, 1), (24, 200)),
        "levels": Codebook(codes(5, 30).abs().byte(), floats(5, 9).half(), (5, 3, 10)),
        "one list": Codebook(codes(30, 5).abs().byte(), torch.arange(8)[None], (5, 30), 1, torch.int64),
        "sparse": Sparse(torch.arange(60) % 7 == 0, floats(9).half(), (3, 20)),
        "product": Product(Integers(codes(7, 3), floats(7, 1), (7, 3)), Raw(floats(3, 10)), (5, 7, 2), 1),
        "constant": Constant(torch.tensor(-1.5), (3, 1, 2)),
        "scalar": Raw(torch.tensor(7, dtype=torch.int64)),
        "nothing": Raw(torch.empty(0, 4)),
        "mask": Raw(torch.ones(40, 40).tril().bool()),
        "floats": Raw(floats(50, 50)),
        "mapped": Raw(torch.randint(-(2**62), 2**62, (700,), generator=generator)),
        "random": Raw(torch.randint(0, 256, (5000,), generator=generator).byte()),
    }


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    path: Path = tmp_path_factory.mktemp("swz") / "weights.swz"
    write_swz(path, [([name, f"{name}'"] if name == "levels" else [name], form) for name, form in forms().items()], {"made": "in a test"})
    return Reader(path.read_bytes())


@pytest.mark.parametrize("name", list(forms()))
def test_another_reader_finds_the_same_tensors(name: str, read: Reader) -> None:
    expected = forms()[name].decode().numpy()
    assert read.tensors[name].dtype == expected.dtype
    assert read.tensors[name].shape == expected.shape
    assert np.ascontiguousarray(read.tensors[name]).tobytes() == expected.tobytes()


def test_it_finds_names_text_and_every_coder(read: Reader) -> None:
    assert read.tensors["levels'"] is read.tensors["levels"]
    assert read.header["metadata"] == {"made": "in a test"}
    text = json.dumps(read.header)
    assert all(f'["{coder}", ' in text for coder in ("raw", "zstd", "rans", "rows"))
