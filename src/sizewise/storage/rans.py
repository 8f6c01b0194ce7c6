"""Codes of weights to bytes and back: a model of how often each occurs, and words of them coded by it."""

import numpy as np
from numpy.typing import NDArray

from sizewise.errors import UsageError
from sizewise.storage.ans import FEW, decode_words, encode_words
from sizewise.storage.frequencies import MOST_WORDS, Curve, Model, Table, Words, fitted, grouped

__all__ = ["bytes_of_counts", "decode_symbols", "encode_symbols"]

MOST_LANES = 12  # powers of two
_BYTES_PER_LANE, _BYTES_PER_CHEAP_LANE = 512, 256  # of the stream; up to `FEW` lanes, one costs 3, else 1
_WORDS_PER_LANE = 1 << 13  # at most, or a stream of next to no bytes would take long
_MOST_WORDS_PER_LANE = 1 << 17  # that a reader accepts
_HEAD = 3  # bytes before the model


def bytes_of_counts(counts: NDArray[np.integer] | NDArray[np.floating]) -> float:
    """What `encode_symbols` will need, nearly, of how often every code occurs: their entropy, and a table."""
    seen = np.asarray(counts, np.float64)
    seen = seen[seen > 0]
    if not len(seen):
        return 0.0
    total = seen.sum()
    bits = float(seen @ (np.log2(total) - np.log2(seen)))
    return 1.004 * bits / 8 + _HEAD + min(len(seen), Curve.SIZE) + 2


def encode_symbols(plain: NDArray[np.uint8], *, signed: bool) -> bytes:
    """Bytes, at least one, taken as signed numbers or not: a smaller alphabet, if the right way.

    They become a byte each for the least symbol, the size of the alphabet less 1, and kind, group and lanes; the model; the words.
    """
    low = int(plain.view(np.int8).min() if signed else plain.min())
    indices = plain - np.uint8(low & 255)  # modulo 256
    model, words = fitted(np.bincount(indices))
    numbers = _numbered(indices, words)
    share = np.bincount(numbers, minlength=len(words.frequency)).astype(np.float64)
    bits = float(share @ (16 - np.log2(words.frequency)))
    lanes = _lanes(bits / 8, len(numbers))
    how = isinstance(model, Curve) << 7 | words.group - 1 << 4 | lanes
    return bytes([low & 255, words.symbols - 1, how]) + model.dump() + encode_words(numbers, words, 1 << lanes)


def _lanes(size: float, words: int) -> int:
    """Binary logarithm of the number of lanes for so many bytes."""
    cheap = 2 * FEW * _BYTES_PER_CHEAP_LANE
    wanted = max(int(size / (_BYTES_PER_CHEAP_LANE if size >= cheap else _BYTES_PER_LANE)), -(-words // _WORDS_PER_LANE), 1)
    return min(MOST_LANES, wanted.bit_length() - 1)


def _numbered(indices: NDArray[np.uint8], words: Words) -> NDArray[np.uint16]:
    """Words of symbols; the last one is filled up with the commonest symbol."""
    common = int(words.digits[int(np.argmax(words.frequency))][0])
    short = -len(indices) % words.group
    rows = np.concatenate([indices, np.full(short, common, np.uint8)]).reshape(-1, words.group)
    numbers = np.zeros(len(rows), np.uint16)
    for column in rows.T:
        numbers = numbers * np.uint16(words.symbols) + column
    return numbers


def decode_symbols(data: bytes | memoryview, count: int) -> NDArray[np.uint8]:
    """So many bytes.

    Raises:
        UsageError: data that do not hold as many.
    """
    head = bytes(data[:_HEAD])
    if len(head) < _HEAD:
        raise UsageError("the coded symbols are damaged")
    low, symbols, how = head[0], head[1] + 1, head[2]
    group, lanes = (how >> 4 & 7) + 1, 1 << (how & 15)
    size = Curve.SIZE if how >> 7 else symbols
    known = bytes(data[_HEAD : _HEAD + size])
    if len(known) < size or symbols**group > MOST_WORDS or lanes > 1 << MOST_LANES:
        raise UsageError("the coded symbols are damaged")
    model: Model = Curve.read(known) if how >> 7 else Table(known)
    if isinstance(model, Curve) and model.peak >= symbols:
        raise UsageError("the coded symbols are damaged")
    total = -(-count // group)
    if total > _MOST_WORDS_PER_LANE * lanes and lanes < 1 << MOST_LANES:
        raise UsageError("the coded symbols are damaged")
    indices = decode_words(data[_HEAD + size :], total, grouped(model, symbols, group), lanes)[:count]
    return indices + np.uint8(low)
