"""The range of an activation on a quantization grid, from values seen batch by batch that are not kept."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sizewise.errors import PreconditionError, UnknownName, UsageError

__all__ = ["BINS", "METHODS", "Method", "RangeStatistics", "expected_error", "find_range"]

Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
BINS = 2048
CHUNK = 2**20  # values looked at together: they stay in the processor's cache
FINEST = 24  # bins are never finer than 2^-24 of the largest value, the resolution of float32
SMALLEST = -100  # nor than 2^-100


@dataclass
class RangeStatistics:
    """A histogram of all values seen, with exact ends.

    Bins are as wide as a power of two and begin at multiples of their width, so that twice as wide ones each hold two of the
    old ones exactly. The width is the smallest with which `BINS` bins reach from the minimum to the maximum; half of them or
    more are in use, and neither the order of the batches nor how they were cut makes a difference.

    Attributes:
        low, high: least and largest finite value; infinities of the other sign as long as there is none.
        n: finite values.
        nans, infinities: values that are in no bin.
        exponent: of the width, 2^exponent.
        first: which multiple of the width the first bin begins at.
        counts: values per bin.

    Source: the histogram observers of TensorRT (Migacz, 8-bit inference with TensorRT, GTC 2017) and torch, which widen by
    rescaling and so smear what they hold. Deviation: powers of two.
    """

    low: float = math.inf
    high: float = -math.inf
    n: int = 0
    nans: int = 0
    infinities: int = 0
    exponent: int = SMALLEST
    first: int = 0
    counts: Int[Tensor, " bins"] = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> Float[Tensor, " edges"]:
        """Where bins begin and the last one ends, in double precision."""
        return (torch.arange(BINS + 1, dtype=torch.float64) + self.first) * self.width

    def add(self, values: Float[Tensor, "..."]) -> None:
        """Take in values of any shape; what is not finite is counted apart."""
        for part in torch.split(values.detach().flatten(), CHUNK):
            if part.numel():
                self._add(part if part.dtype in (torch.float32, torch.float64) else part.float())

    def merge(self, other: "RangeStatistics") -> None:
        """Take in all that another one has seen."""
        self.nans, self.infinities = self.nans + other.nans, self.infinities + other.infinities
        if other.n:
            self._widen(other.low, other.high)
            self.counts += _moved(other.counts, other.first, self.exponent - other.exponent, self.first)
            self.n += other.n

    def _add(self, part: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(part))
        if not (math.isfinite(low) and math.isfinite(high)):
            part = self._finite(part)
            if not part.numel():
                return
            low, high = (float(end) for end in torch.aminmax(part))
        self._widen(low, high)
        bins = (part * math.ldexp(1.0, -self.exponent)).floor_().long().sub_(self.first)  # exact: only exponents change
        self.counts += torch.bincount(bins, minlength=BINS).cpu()
        self.n += part.numel()

    def _finite(self, part: Tensor) -> Tensor:
        self.nans += int(part.isnan().sum())
        self.infinities += int(part.isinf().sum())
        return part[part.isfinite()]

    def _widen(self, low: float, high: float) -> None:
        """Let the bins reach from the least to the largest value, with these two."""
        low, high = min(low, self.low), max(high, self.high)
        exponent = _exponent(low, high)
        first = math.floor(math.ldexp(low, -exponent))
        if self.n:
            self.counts = _moved(self.counts, self.first, exponent - self.exponent, first)
        self.low, self.high, self.exponent, self.first = low, high, exponent, first


def _exponent(low: float, high: float) -> int:
    """The smallest with which the bins reach from one value to the other."""
    largest = max(-low, high)
    exponent = max(math.frexp(largest)[1] - FINEST, SMALLEST) if largest else SMALLEST
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


def _moved(counts: Tensor, first: int, doublings: int, begin: int) -> Tensor:
    """The same counts in bins that are 2^doublings times as wide, the first of them number `begin`."""
    used = counts.nonzero()[:, 0]
    return torch.zeros_like(counts).index_add_(0, ((used + first) >> doublings) - begin, counts[used])


def find_range(statistics: RangeStatistics, method: Method, levels: int = 256, percentile: float = 99.99) -> tuple[float, float]:
    """Ends (low, high) of the values that a grid of equal steps should hold; low <= 0 <= high.

    "minmax" clips nothing. "percentile" lets each end cut off what the percentile leaves, to the resolution of a bin. "mse"
    makes the expected squared error of rounding and clipping least, both ends on their own; its grid has a point at zero
    exactly, which padding and relu need, and a step of (high - low) / (levels - 1).

    Args:
        statistics: of the values.
        method: how to choose.
        levels: points of the grid.
        percentile: share of the values, in percent, that each end leaves on its inner side.

    Raises:
        UnknownName: another method.
        UsageError: fewer than two levels, or a percentile outside (50, 100].
        PreconditionError: no values were seen, or some that are not finite.

    Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.1. Deviations: the error is integrated
    over the histogram in closed form (`expected_error`) instead of summed over data; zero is always on the grid.
    """
    if method not in METHODS:
        raise UnknownName("method for ranges", method, METHODS, where="ranges of activations")
    if levels < 2:
        raise UsageError("a grid has at least two levels", where="ranges of activations", got=str(levels))
    _check_seen(statistics)
    if method == "percentile":
        return _percentile(statistics, percentile)
    ends = min(statistics.low, 0.0), max(statistics.high, 0.0)
    return ends if method == "minmax" or ends == (0.0, 0.0) else _least_error(statistics, ends, levels)


def expected_error(statistics: RangeStatistics, low: float, high: float, levels: int = 256) -> float:
    """Mean squared error when the values are rounded to a grid of equal steps from low to high, and clipped to it.

    The grid is moved so that zero is on it. Values are taken as spread evenly over each bin, for which the integral is exact.

    Raises:
        UsageError: zero is not between the ends, or the ends are one.
        PreconditionError: as in `find_range`.
    """
    if not low <= 0 <= high or low == high:
        raise UsageError("a range holds zero and more than zero", where="ranges of activations", got=f"{low} to {high}")
    _check_seen(statistics)
    return float(_errors(statistics, torch.tensor([[low, high]], dtype=torch.float64), levels))


def _check_seen(statistics: RangeStatistics) -> None:
    bad = statistics.nans + statistics.infinities
    if bad:
        got = f"{statistics.nans} NaN and {statistics.infinities} infinite values beside {statistics.n} finite ones"
        raise PreconditionError("values without a range", where="ranges of activations", got=got, wanted="finite activations")
    if not statistics.n:
        raise PreconditionError("no values were seen", where="ranges of activations", hint="is the calibration data empty?")


def _percentile(statistics: RangeStatistics, percentile: float) -> tuple[float, float]:
    if not 50 < percentile <= 100:
        raise UsageError("a percentile is more than 50 and at most 100", where="ranges of activations", got=str(percentile))
    inner = percentile / 100
    low, high = _quantile(statistics, 1 - inner), _quantile(statistics, inner)
    return min(max(low, statistics.low), 0.0), max(min(high, statistics.high), 0.0)


def _quantile(statistics: RangeStatistics, share: float) -> float:
    """Value with that share of all below it, as if values were spread evenly over each bin."""
    below = statistics.counts.cumsum(0).double()
    wanted = share * statistics.n
    place = min(int(torch.searchsorted(below, wanted)), BINS - 1)
    count = float(statistics.counts[place])
    inside = 1 - (float(below[place]) - wanted) / count if count else 0.0
    return (statistics.first + place + inside) * statistics.width


def _least_error(statistics: RangeStatistics, ends: tuple[float, float], levels: int) -> tuple[float, float]:
    """Shrink both ends by factors, ever finer around the best ones; ends that are zero stay."""
    ranges = torch.tensor([ends], dtype=torch.float64)
    coarse = torch.cat([2.0 ** (-torch.arange(0, 41, dtype=torch.float64) / 4), torch.zeros(1, dtype=torch.float64)])
    best = _best(statistics, ranges, _products(ranges[0], coarse), levels)
    for share in (0.05, 0.0125, 0.003):
        nearby = 1 + share * torch.arange(-4, 5, dtype=torch.float64)
        options = _products(best[0], nearby)
        options[:, 0], options[:, 1] = options[:, 0].clamp_min(ends[0]), options[:, 1].clamp_max(ends[1])
        best = _best(statistics, best, options, levels)
    low, high = _snapped(best, levels)[0].tolist()
    return low, high


def _products(ends: Tensor, factors: Tensor) -> Float[Tensor, "ranges 2"]:
    """Ranges with each end times each factor, those without any width left out."""
    sides = [factors if end else factors[:1] * 0 for end in ends.tolist()]
    ranges = torch.cartesian_prod(*sides) * ends
    return ranges[ranges[:, 0] < ranges[:, 1]]


def _best(statistics: RangeStatistics, now: Tensor, options: Tensor, levels: int) -> Float[Tensor, "1 2"]:
    """The range of least error; the one there is, unless another is better."""
    both = torch.cat([now, options])
    errors = torch.cat([_errors(statistics, part, levels) for part in torch.split(both, 256)])
    return both[errors.argmin()][None]


def _snapped(ranges: Float[Tensor, "ranges 2"], levels: int) -> Float[Tensor, "ranges 2"]:
    """The same steps, moved so that zero is on the grid."""
    step = (ranges[:, 1] - ranges[:, 0]) / (levels - 1)
    first = torch.round(ranges[:, 0] / step)
    return torch.stack([first * step, (first + levels - 1) * step], 1)


def _errors(statistics: RangeStatistics, ranges: Float[Tensor, "ranges 2"], levels: int) -> Float[Tensor, " ranges"]:
    """Expected squared errors of several ranges.

    In units of the step, the nearest point to u of the grid is n = clamp(round(u)), and the integral of (u - n)^2 from zero is
    n / 12 + (u - n)^3 / 3: twelfths for whole steps behind, a cube for the rest, beyond the ends for all of it.
    """
    used = statistics.counts.nonzero()[:, 0]
    step = ((ranges[:, 1] - ranges[:, 0]) / (levels - 1))[:, None]
    first = torch.round(ranges[:, :1] / step)
    left = statistics.edges[used] / step
    inside = _integral(left + statistics.width / step, first, levels) - _integral(left, first, levels)
    share = statistics.counts[used].double() / statistics.n
    errors: Tensor = (inside * share).sum(1) * step[:, 0] ** 3 / statistics.width
    return errors


def _integral(u: Tensor, first: Tensor, levels: int) -> Tensor:
    nearest = torch.minimum(torch.maximum(torch.round(u), first), first + levels - 1)
    return nearest / 12 + (u - nearest) ** 3 / 3
