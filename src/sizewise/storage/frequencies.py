"""How often symbols occur, in few bytes, by integers only: what an encoder and every decoder must agree on to the last unit.

A weight is 2^(-v / 16) of the commonest symbol's, with v a whole number from 0 to 255. Rounding v costs 1.1e-4 bits per symbol
(half the variance of an error spread over +-2.2 %), so that one byte per symbol says what counts of any size would. Codes of weights
mostly fall off like a Laplacian or a normal density, for which v is a parabola in the distance from the peak: three numbers for any
alphabet. Symbols are coded in groups, as pairs or longer words, since a step of the decoder costs the same for one as for eight; the
frequencies of groups are products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_WORDS", "TOTAL", "Curve", "Model", "Table", "fitted", "grouped", "weights_of"]

TOTAL = 1 << 16  # frequencies add up to it
MOST_WORDS = 1 << 12
MOST_GROUP = 8
FAR = 255  # octaves / 16 at most
_UNIT = 31
# 2^31 * 2^(-i / 16), rounded; literals, since pow() may differ between machines
_OCTAVE = (
    2147483648, 2056437387, 1969251188, 1885761398, 1805811301, 1729250827, 1655936265, 1585730000,
    1518500250, 1454120821, 1392470869, 1333434672, 1276901417, 1222764986, 1170923762, 1121280436,
)  # fmt: skip
_OCTAVES = np.array(_OCTAVE, np.uint64)
_FINE = 256  # units of a curve's bends, per unit of v
_IRLS = 12  # turns of the fit
_LOSS = 1.002  # of the bits per symbol, for longer groups


@dataclass(frozen=True)
class Table:
    """One v per symbol."""

    values: bytes

    def octaves(self, symbols: int) -> NDArray[np.int64]:
        """The v of every symbol."""
        return np.frombuffer(self.values, np.uint8).astype(np.int64)

    def dump(self) -> bytes:
        """As it is stored."""
        return self.values


@dataclass(frozen=True)
class Curve:
    """A parabola of v on both sides of the peak.

    Attributes:
        peak: index of a symbol, whose v is 0.
        gap: v of its neighbours; less than 0 where they are commoner.
        slope: growth of v per further symbol, in 1 / 256.
        bend: of v, times the squared distance from the neighbours, in 1 / 256.
    """

    peak: int
    gap: int
    slope: int
    bend: int

    SIZE = 6

    def octaves(self, symbols: int) -> NDArray[np.int64]:
        """The v of every symbol."""
        far = np.abs(np.arange(symbols, dtype=np.int64) - self.peak) - 1
        v = (_FINE * self.gap + self.slope * far + self.bend * far * far) >> 8
        v[far < 0] = 0
        clipped: NDArray[np.int64] = np.clip(v - v.min(), 0, FAR)
        return clipped

    def dump(self) -> bytes:
        """As it is stored: a byte, a signed byte, a signed and an unsigned number of two bytes, little-endian."""
        return bytes([self.peak, self.gap & 255]) + self.slope.to_bytes(2, "little", signed=True) + self.bend.to_bytes(2, "little")

    @staticmethod
    def read(data: bytes) -> "Curve":
        """What `dump` gave."""
        gap = int.from_bytes(data[1:2], "little", signed=True)
        return Curve(data[0], gap, int.from_bytes(data[2:4], "little", signed=True), int.from_bytes(data[4:6], "little"))


Model = Table | Curve


def weights_of(models: Sequence[Model], symbols: int) -> NDArray[np.uint64]:
    """Weights of the symbols, [models, symbols], each model's of which add up to at most 2^31."""
    v = np.stack([model.octaves(symbols) for model in models])
    weights = _OCTAVES[v & 15] >> (v >> 4).astype(np.uint64)
    shares: NDArray[np.uint64] = (weights << np.uint64(_UNIT)) // weights.sum(1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Words:
    """Groups of symbols and how often they occur.

    Attributes:
        symbols: in the alphabet.
        group: symbols per word; the first one counts most in a word's number.
        frequency: of every word, at least 1; they add up to `TOTAL`.
    """

    symbols: int
    group: int
    frequency: NDArray[np.uint64]

    @cached_property
    def first(self) -> NDArray[np.uint64]:
        """The sum of the frequencies of the words before each."""
        return np.cumsum(self.frequency) - self.frequency

    @cached_property
    def digits(self) -> NDArray[np.uint8]:
        """The symbols of every word, [words, group]."""
        return digits(self.symbols, self.group)

    def bits(self, share: NDArray[np.float64]) -> float:
        """Per symbol, where symbols occur with these shares, independent of one another."""
        shares = share
        for _ in range(self.group - 1):
            shares = np.multiply.outer(shares, share).ravel()
        return float(shares @ (np.log2(TOTAL) - np.log2(self.frequency))) / self.group


def digits(symbols: int, group: int) -> NDArray[np.uint8]:
    """The symbols of every word, [words, group]."""
    numbers = np.arange(symbols**group)[:, None] // symbols ** np.arange(group - 1, -1, -1)
    return (numbers % symbols).astype(np.uint8)


def grouped(wanted: Sequence[tuple[Model, int, int]]) -> list[Words]:
    """Frequencies of words by model, symbols and group; those of as many symbols and groups are computed together."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index, (_, symbols, group) in enumerate(wanted):
        alike.setdefault((symbols, group), []).append(index)
    found: dict[int, Words] = {}
    for (symbols, group), places in alike.items():
        rows = _grouped([wanted[index][0] for index in places], symbols, group)
        found.update((index, Words(symbols, group, row)) for index, row in zip(places, rows, strict=True))
    return [found[index] for index in range(len(wanted))]


def _grouped(models: Sequence[Model], symbols: int, group: int) -> NDArray[np.uint64]:
    """Products, scaled so that none is 0; the commonest one gets what is left. [models, words]."""
    single = weights_of(models, symbols)
    weights = single
    for _ in range(group - 1):
        weights = (weights[:, :, None] * single[:, None, :]).reshape(len(models), -1) >> np.uint64(_UNIT)
    frequency: NDArray[np.uint64] = np.uint64(1) + weights * np.uint64(TOTAL - weights.shape[1]) // weights.sum(1, keepdims=True)
    frequency[np.arange(len(models)), frequency.argmax(1)] += np.uint64(TOTAL) - frequency.sum(1)
    return frequency


def fitted(counts: NDArray[np.int64]) -> tuple[Model, Words]:
    """The model that takes least room together with what it codes, and how many symbols to group.

    Args:
        counts: of every symbol of the alphabet, the first and the last of which occur.
    """
    models: list[Model] = [_table(counts)]
    if len(counts) > Curve.SIZE:
        models.append(_curve(counts))
    total, share = int(counts.sum()), counts / counts.sum()
    words = [_best_group(model, share) for model in models]
    sizes = [len(model.dump()) + total * word.bits(share) / 8 for model, word in zip(models, words, strict=True)]
    best = int(np.argmin(sizes))
    return models[best], words[best]


def _best_group(model: Model, share: NDArray[np.float64]) -> Words:
    lengths = [group for group in range(1, MOST_GROUP + 1) if len(share) ** group <= MOST_WORDS]
    words = grouped([(model, len(share), group) for group in lengths])
    bits = [word.bits(share) for word in words]
    return next(word for word, some in zip(reversed(words), reversed(bits), strict=True) if some <= _LOSS * min(bits))


def _table(counts: NDArray[np.int64]) -> Table:
    with np.errstate(divide="ignore"):
        v = np.round(16 * np.log2(counts.max() / counts))
    return Table(np.minimum(v, FAR).astype(np.uint8).tobytes())


def _curve(counts: NDArray[np.int64]) -> Curve:
    """The likeliest curve: a Poisson regression of the counts on 1, the distance and its square, by Newton's steps."""
    peak = int(np.argmax(counts))
    far = np.abs(np.arange(len(counts)) - peak)[np.arange(len(counts)) != peak] - 1.0
    seen = np.delete(counts, peak).astype(np.float64)
    size = max(1.0, far.max())
    basis = np.stack([np.ones_like(far), far / size, (far / size) ** 2], 1)
    log = np.log(seen + 0.5)
    for turn in range(_IRLS):
        mean = np.exp(np.clip(log, -30, 30)) if turn else seen + 0.5
        aim = log + (seen - mean) / mean if turn else log
        root = np.sqrt(mean)
        solved = np.linalg.lstsq(basis * root[:, None], aim * root, rcond=None)[0]
        log = basis @ solved
    unit = -16 / np.log(2.0)
    gap = round(np.clip(unit * (solved[0] - np.log(counts[peak])), -128, 127))
    slope = round(np.clip(unit * _FINE * solved[1] / size, -32768, 32767))
    bend = round(np.clip(unit * _FINE * solved[2] / size**2, 0, 65535))
    return Curve(peak, int(gap), int(slope), int(bend))
