"""Matrices of codes whose rows are spread differently: rows of like spread are a class, and have frequencies of their own.

Weights that share one step per tensor differ from row to row, as channels do. On ResNet-56 and MiniLM, rounded to 1 to 4 bits, classes
save 1 to 2 % of the bytes, what they are told by included. Rows are ordered by what their codes cost under the frequencies of all, and
cut into equal parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sizewise.errors import UsageError
from sizewise.storage.rans import Symbols, bytes_of_counts, encode_symbols, opened

__all__ = ["Rows", "encode_rows", "opened_rows"]

CLASSES = (2, 4, 8)
MOST_CLASSES = 16
_COST = 12  # bytes of a class: its length and its head
_NARROW = 8  # columns that cannot pay for a row's class
_FIRST = 9  # bytes before the rows' classes


def encode_rows(matrix: NDArray[np.uint8], *, signed: bool, below: int) -> bytes | None:
    """A matrix by classes of its rows, or None where that does not take fewer than `below` bytes."""
    rows, columns = matrix.shape
    if columns < _NARROW:
        return None
    counts = np.bincount(matrix.reshape(-1), minlength=256)
    bits = np.log2(matrix.size / np.maximum(counts, 1)).astype(np.float32)
    order = np.argsort(bits[matrix].mean(1), kind="stable")
    best, found = float(below), None
    for classes in CLASSES:
        if rows < 2 * classes:
            break
        parts = [np.sort(part) for part in np.array_split(order, classes)]
        each = sum(bytes_of_counts(np.bincount(matrix[part].reshape(-1), minlength=256)) for part in parts)
        size = _FIRST + rows * np.log2(classes) / 8 + each + _COST * classes
        if size < best:
            best, found = size, parts
    coded = None if found is None else _written(matrix, found, signed)
    return coded if coded is not None and len(coded) < below else None


@dataclass(frozen=True, eq=False)
class Rows:
    """A coded matrix whose head was read.

    Attributes:
        columns: of the matrix.
        which: the class of every row, coded.
        pieces: the rows of each class, coded.
    """

    columns: int
    which: Symbols
    pieces: tuple[bytes | memoryview, ...]

    def members(self, which: NDArray[np.uint8]) -> list[Symbols]:
        """The rows of each class, still coded, once the classes are known.

        Raises:
            UsageError: classes that there are not, or without rows.
        """
        held = np.bincount(which, minlength=len(self.pieces))
        if len(held) != len(self.pieces) or not held.all():
            raise _broken()
        return [opened(piece, int(rows) * self.columns) for piece, rows in zip(self.pieces, held, strict=True)]

    def ordered(self, which: NDArray[np.uint8], members: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """All rows in the matrix' order, of those of each class."""
        matrix = np.empty((len(which), self.columns), np.uint8)
        for index, rows in enumerate(members):
            matrix[which == index] = rows.reshape(-1, self.columns)
        return matrix.reshape(-1)


def opened_rows(data: bytes | memoryview, count: int) -> Rows:
    """What `encode_rows` gave, to be decoded; so many bytes.

    Raises:
        UsageError: data that cannot hold as many.
    """
    columns, classes = int.from_bytes(data[:4], "little"), data[4] if len(data) > 4 else 0
    if not columns or count % columns or not 2 <= classes <= MOST_CLASSES:
        raise _broken()
    pieces, at = [], 5
    for _ in range(1 + classes):
        piece, at = _piece(data, at)
        pieces.append(piece)
    if at != len(data):
        raise _broken()
    return Rows(columns, opened(pieces[0], count // columns), tuple(pieces[1:]))


def _written(matrix: NDArray[np.uint8], parts: list[NDArray[np.int64]], signed: bool) -> bytes:
    """The number of columns and of classes, then pieces with their lengths: every row's class, and the rows of each class."""
    which = np.zeros(len(matrix), np.uint8)
    for index, part in enumerate(parts):
        which[part] = index
    pieces: list[bytes] = [
        encode_symbols(which, signed=False),
        *(encode_symbols(matrix[part].reshape(-1), signed=signed) for part in parts),
    ]
    head = int(matrix.shape[1]).to_bytes(4, "little") + bytes([len(parts)])
    return head + b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)


def _piece(data: bytes | memoryview, at: int) -> tuple[bytes | memoryview, int]:
    end = at + 4 + int.from_bytes(data[at : at + 4], "little")
    if end > len(data):
        raise _broken()
    return data[at + 4 : end], end


def _broken() -> UsageError:
    return UsageError("the coded rows are damaged")
