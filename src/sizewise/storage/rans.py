"""Codes of weights to bytes and back: a model of how often each occurs, and words of them coded by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sizewise.storage.ans import FEW, encode_words
from sizewise.storage.frequencies import MOST_WORDS, Curve, Model, Table, Words, digits, fitted, grouped
from sizewise.storage.lanes import Stream, batches, broken, decode_words

__all__ = ["Symbols", "bytes_of_counts", "decode_symbols", "encode_symbols", "opened"]

MOST_LANES = 12  # powers of two
_ROWS = 256  # words per lane at least: a step of a decoder costs the same for one lane as for hundreds
_SHARE, _ENOUGH = 0.01, 64  # of the stream for lanes, at most: a hundredth, or so many bytes and half a hundredth
_CARRYING = 14  # bytes of what states carry, besides
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
    """Binary logarithm of the number of lanes for so many words in so many bytes."""
    most = min(max(words // _ROWS, 1).bit_length() - 1, MOST_LANES)
    allowed = min(_SHARE * size, _ENOUGH + _SHARE / 2 * size)
    paid = [lanes for lanes in range(most + 1) if _cost(1 << lanes) <= allowed]
    return max([*paid, min(MOST_LANES, (-(-words // _WORDS_PER_LANE)).bit_length() - 1)])


def _cost(lanes: int) -> int:
    """Bytes of more lanes than one, about."""
    return 3 * (lanes - 1) if lanes <= FEW else _CARRYING + lanes


def _numbered(indices: NDArray[np.uint8], words: Words) -> NDArray[np.uint16]:
    """Words of symbols; the last one is filled up with the commonest symbol."""
    common = int(words.digits[int(np.argmax(words.frequency))][0])
    short = -len(indices) % words.group
    rows = np.concatenate([indices, np.full(short, common, np.uint8)]).reshape(-1, words.group)
    numbers = np.zeros(len(rows), np.uint16)
    for column in rows.T:
        numbers = numbers * np.uint16(words.symbols) + column
    return numbers


@dataclass(frozen=True, eq=False)
class Symbols:
    """Coded bytes whose head was read.

    Attributes:
        count: of bytes.
        low: what the first symbol stands for.
        model, symbols, group: what frequencies follow from.
        lanes: of the stream.
        data: the stream.
    """

    count: int
    low: int
    model: Model
    symbols: int
    group: int
    lanes: int
    data: bytes | memoryview

    @property
    def words(self) -> int:
        """Words of the stream; the last one may be longer than what is left."""
        return -(-self.count // self.group)


def opened(data: bytes | memoryview, count: int) -> Symbols:
    """What `encode_symbols` gave, to be decoded; so many bytes.

    Raises:
        UsageError: data that cannot hold as many.
    """
    head = bytes(data[:_HEAD])
    if len(head) < _HEAD:
        raise broken()
    low, symbols, how = head[0], head[1] + 1, head[2]
    group, lanes = (how >> 4 & 7) + 1, 1 << (how & 15)
    size = Curve.SIZE if how >> 7 else symbols
    known = bytes(data[_HEAD : _HEAD + size])
    if len(known) < size or symbols**group > MOST_WORDS or lanes > 1 << MOST_LANES:
        raise broken()
    model: Model = Curve.read(known) if how >> 7 else Table(known)
    if isinstance(model, Curve) and model.peak >= symbols:
        raise broken()
    found = Symbols(count, low, model, symbols, group, lanes, data[_HEAD + size :])
    if found.words > _MOST_WORDS_PER_LANE * lanes and lanes < 1 << MOST_LANES:
        raise broken()
    return found


def decode_symbols(coded: Sequence[Symbols]) -> list[NDArray[np.uint8]]:
    """The bytes of each; of many together in less time than one by one.

    Raises:
        UsageError: data that do not hold as many.
    """
    found: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(coded)
    for batch in batches([(some.words, some.lanes) for some in coded]):
        some = [coded[index] for index in batch]
        for index, numbers in zip(batch, decode_words(_streams(some)), strict=True):
            found[index] = _spelled(numbers, coded[index])
    return found


def _streams(coded: Sequence[Symbols]) -> list[Stream]:
    words = grouped([(some.model, some.symbols, some.group) for some in coded])
    return [Stream(some.data, some.words, each, some.lanes) for some, each in zip(coded, words, strict=True)]


def _spelled(numbers: NDArray[np.uint16], coded: Symbols) -> NDArray[np.uint8]:
    """The symbols of words, which are looked up as whole numbers of 1, 2, 4 or 8 bytes."""
    spelled = _spellings(coded.symbols, coded.group).take(numbers).view(np.uint8)
    size = 1 << (coded.group - 1).bit_length()
    if size != coded.group:
        spelled = spelled.reshape(-1, size)[:, : coded.group].reshape(-1)
    spelled += np.uint8(coded.low)
    return spelled[: coded.count]


@lru_cache(maxsize=256)
def _spellings(symbols: int, group: int) -> NDArray[np.unsignedinteger]:
    size = 1 << (group - 1).bit_length()
    wide = np.zeros((symbols**group, size), np.uint8)
    wide[:, :group] = digits(symbols, group)
    return wide.view(f"u{size}").ravel()
