"""Arrays to bytes and back, without loss and in as few bytes as one of four coders needs.

"raw" is the array itself, little-endian. "zstd" is Zstandard, of arrays of more than one byte per element with all first bytes before
all second bytes and so on (exponents then stand together). "rans" is an entropy coder for arrays of one byte per element: codes of
weights. It comes within a hundredth and a score of bytes of their entropy, also below a bit per symbol. "rows" is the same for
matrices whose rows differ in how spread their codes are: each class of rows has frequencies of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from sizewise.errors import UsageError
from sizewise.storage.rans import Symbols, bytes_of_counts, decode_symbols, encode_symbols, opened
from sizewise.storage.rows import Rows, encode_rows, opened_rows

__all__ = ["Coded", "Coder", "Wanted", "bytes_of_counts", "decode", "decode_all", "encode", "estimated_bytes", "raw"]

Coder = Literal["raw", "zstd", "rans", "rows"]
LEVEL = 9  # of Zstandard; 19 takes ten times as long for about 1 %
_HOPELESS = 1.1  # times the best size, at the fastest level


@dataclass(frozen=True)
class Coded:
    """An array's bytes and what made them."""

    coder: Coder
    data: bytes


def raw(array: Tensor) -> Coded:
    """The array as it is."""
    return Coded("raw", _plain(array).tobytes())


def encode(array: Tensor) -> Coded:
    """The shortest of the coders that can hold the array."""
    plain = _plain(array)
    best = Coded("raw", plain.tobytes())
    if not len(plain):
        return best
    if array.element_size() == 1:
        signed = array.dtype == torch.int8
        best = min(best, Coded("rans", encode_symbols(plain, signed=signed)), key=_size)
        matrix = plain.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
        if array.ndim > 1 and (rows := encode_rows(matrix, signed=signed, below=len(best.data))) is not None:
            best = Coded("rows", rows)
    shuffled = _shuffled(plain, array.element_size())
    if best.coder != "raw" and len(zstandard.ZstdCompressor(level=1).compress(shuffled)) > _HOPELESS * len(best.data):
        return best  # codes without any order, as those of weights
    return min(best, Coded("zstd", zstandard.ZstdCompressor(level=LEVEL).compress(shuffled)), key=_size)


@dataclass(frozen=True)
class Wanted:
    """Coded bytes and the array that they should hold: the elements' type and number."""

    coder: str
    data: bytes | memoryview
    dtype: torch.dtype
    count: int


def decode(coder: str, data: bytes | memoryview, dtype: torch.dtype, count: int) -> Tensor:
    """One array, as `decode_all`."""
    return decode_all([Wanted(coder, data, dtype, count)])[0]


def decode_all(wanted: Sequence[Wanted]) -> list[Tensor]:
    """Arrays; entropy coded ones of many together in less time than one by one.

    Nothing larger than the arrays and the coders' tables is allocated before the data are known to hold them.

    Raises:
        UsageError: an unknown coder, or data that do not hold exactly as many elements.
    """
    plain: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(wanted)
    coded: dict[int, Symbols | Rows] = {}
    for index, each in enumerate(wanted):
        size = each.dtype.itemsize
        if each.coder == "raw":
            plain[index] = _copied(each.data, each.count * size)
        elif each.coder == "zstd":
            plain[index] = _unshuffled(_decompressed(each.data, each.count * size), size)
        elif each.coder in ("rans", "rows") and size == 1:
            coded[index] = (opened if each.coder == "rans" else opened_rows)(each.data, each.count)
        else:
            raise UsageError("no such coder for these elements", got=f"{each.coder} of {each.dtype}")
    for index, found in zip(coded, _symbols(list(coded.values())), strict=True):
        plain[index] = found
    return [torch.from_numpy(found).view(each.dtype) for found, each in zip(plain, wanted, strict=True)]


def _symbols(coded: list[Symbols | Rows]) -> list[NDArray[np.uint8]]:
    """First the classes of all rows, then everything else."""
    tables = [each for each in coded if isinstance(each, Rows)]
    classes = decode_symbols([rows.which for rows in tables])
    left = iter(classes)
    members = [[each] if isinstance(each, Symbols) else each.members(next(left)) for each in coded]
    found = iter(decode_symbols([each for some in members for each in some]))
    left = iter(classes)
    parts = [[next(found) for _ in some] for some in members]
    return [each.ordered(next(left), some) if isinstance(each, Rows) else some[0] for each, some in zip(coded, parts, strict=True)]


def estimated_bytes(codes: Tensor) -> float:
    """What `encode` will need for codes of one byte, nearly, in a small part of its time: their entropy, and a table."""
    return bytes_of_counts(np.bincount(_plain(codes), minlength=256))


def _copied(data: bytes | memoryview, size: int) -> NDArray[np.uint8]:
    if len(data) != size:
        raise UsageError("not as many bytes as the elements take", got=str(len(data)), wanted=str(size))
    return np.frombuffer(bytearray(data), np.uint8)


def _size(coded: Coded) -> int:
    return len(coded.data)


def _plain(array: Tensor) -> NDArray[np.uint8]:
    flat = array.detach().cpu().contiguous().reshape(-1)
    plain: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return plain


def _shuffled(plain: NDArray[np.uint8], size: int) -> bytes:
    return plain.reshape(-1, size).T.tobytes()


def _unshuffled(data: bytes, size: int) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(data), np.uint8).reshape(size, -1).T.reshape(-1)


def _decompressed(data: bytes | memoryview, size: int) -> bytes:
    """The frame says how long its content is: another length is refused before anything is allocated.

    Raises:
        UsageError: not one whole frame of that content.
    """
    try:
        if zstandard.frame_content_size(data) != size:
            raise UsageError("the compressed bytes do not hold as many elements")
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise UsageError("the compressed bytes are damaged", got=str(error)) from error
    if len(content) != size:
        raise UsageError("the compressed bytes are damaged")
    return content
