"""Honest intervals: a mean of scores, a paired difference of scores, and how many examples would decide.

A paired difference compares two models on the same examples; its spread is that of the differences, which is far
smaller than that of either score. The level of an interval is two-sided; each of its ends is a one-sided bound that errs half as often.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray
from scipy import optimize, stats

from sizewise.errors import UsageError
from sizewise.types import Interval

__all__ = [
    "UNBOUNDED",
    "examples_needed",
    "flips",
    "mcnemar_errors",
    "mean_interval",
    "median_interval",
    "paired_drop",
    "tango_interval",
    "tango_statistic",
]

Scores = Float[ndarray, " n"]
Counts = int | Integer[ndarray, " *n"]
Floats = Float[ndarray, " *n"]
UNBOUNDED = 1e300  # half-width where one observation says nothing of the spread; JSON has no infinity


def mean_interval(scores: Scores, *, binary: bool, confidence: float = 0.95) -> Interval:
    """Mean of per-example scores: Wilson's interval for scores of 0 and 1, Student's t otherwise.

    Source: Wilson, Probable inference, JASA 1927; Brown, Cai, DasGupta, Interval estimation for a binomial proportion,
    2001, recommend it down to small n.
    """
    n = len(scores)
    mean = float(np.mean(scores))
    if binary and _is_binary(scores):
        result = stats.binomtest(round(float(np.sum(scores))), n).proportion_ci(confidence, method="wilson")
        low, high = float(result.low), float(result.high)
    else:
        half = _t_half_width(scores, confidence)
        low, high = mean - half, mean + half
    return Interval(value=mean, low=low, high=high, n=n, confidence=confidence)


def paired_drop(reference: Scores, candidate: Scores, *, higher_is_better: bool, binary: bool, confidence: float = 0.95) -> Interval:
    """How much worse the candidate is, on average, on the same examples; positive is worse.

    Scores of 0 and 1 use Tango's score interval, which stays honest when few examples differ; others Student's t on
    the differences.
    """
    if reference.shape != candidate.shape:
        raise UsageError("paired scores must be of the same examples", got=f"{reference.shape} and {candidate.shape}")
    sign = 1.0 if higher_is_better else -1.0
    differences = sign * (np.asarray(reference, float) - np.asarray(candidate, float))
    n = len(differences)
    value = float(np.mean(differences))
    counts = flips(reference, candidate, higher_is_better=higher_is_better) if binary else None
    if counts is not None:
        low, high = tango_interval(*counts, n, confidence)
    else:
        half = _t_half_width(differences, confidence)
        low, high = value - half, value + half
    return Interval(value=value, low=low, high=high, n=n, confidence=confidence)


def tango_interval(b: int, c: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for the difference of two paired proportions, (b - c) / n.

    Args:
        b: pairs in which only the first is right.
        c: pairs in which only the second is right.
        n: all pairs.
        confidence: two-sided level.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 1998. For a hypothesised difference d the score statistic is
    z(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))), with q the restricted maximum-likelihood estimate of the
    probability that only the second is right; the interval is where |z(d)| is within the normal quantile. Roots by
    bisection instead of Tango's secant method.
    """
    quantile = float(stats.norm.ppf(0.5 + confidence / 2))

    def z(d: float) -> float:
        return float(tango_statistic(b, c, n, d))

    centre = (b - c) / n
    # z falls in d: above the quantile to the left of the interval, below minus the quantile to the right of it
    low = -1.0 if z(-1 + 1e-12) < quantile else _bisect(lambda d: z(d) - quantile, -1 + 1e-12, centre)
    high = 1.0 if z(1 - 1e-12) > -quantile else _bisect(lambda d: z(d) + quantile, centre, 1 - 1e-12)
    return low, high


def tango_statistic(b: Counts, c: Counts, n: int, d: float) -> Floats:
    """Tango's score statistic at a hypothesised difference d, as in `tango_interval`, for one or many pairs of counts."""
    # the restricted estimate q solves 2n q^2 + B q - c d (1 - d) = 0
    b, c = np.asarray(b, float), np.asarray(c, float)
    big_b = -b - c + (2 * n - b + c) * d
    root = np.sqrt(np.maximum(0.0, big_b**2 + 8 * n * c * d * (1 - d)))
    variance = n * ((root - big_b) / (2 * n) + d * (1 - d))
    numerator = b - c - n * d
    certain = np.where(numerator == 0, 0.0, np.copysign(math.inf, numerator))
    found: Floats = np.where(variance > 1e-300, numerator / np.sqrt(np.maximum(variance, 1e-300)), certain)
    return found


def mcnemar_errors(b: Counts, c: Counts) -> tuple[Floats, Floats]:
    """How probable it is, if neither model is better, to see no more than b and no fewer than b of b + c examples lost.

    Source: the exact form of McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12,
    1947: given that an example differs, either direction is equally probable.
    """
    b, c = np.asarray(b), np.asarray(c)
    return np.asarray(stats.binom.cdf(b, b + c, 0.5)), np.asarray(stats.binom.sf(b - 1, b + c, 0.5))


def flips(reference: Scores, candidate: Scores, *, higher_is_better: bool) -> tuple[int, int] | None:
    """Examples on which the candidate is worse, and on which it is better; None unless all scores are 0 or 1."""
    if not (_is_binary(reference) and _is_binary(candidate)):
        return None
    fell, rose = int(np.sum(reference > candidate)), int(np.sum(reference < candidate))
    return (fell, rose) if higher_is_better else (rose, fell)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.bisect(function, low, high, xtol=1e-10)) if low < high else low


def examples_needed(drop: Interval, limit: float, counts: tuple[int, int] | None = None) -> int | None:
    """Test examples that would decide whether the drop is within `limit`, if effect and spread stay as seen.

    With the counts of a binary comparison, Tango's statistic at the limit grows with the root of n while their shares
    stay, so n (quantile / z)^2 examples bring it to the quantile. Otherwise the interval's half-width falls with the root
    of n, and decided means that it no longer reaches the limit. None when the estimate sits on the limit, where no number
    decides, and when nothing is known of the spread.

    Args:
        drop: the paired drop, or any mean with its interval.
        limit: what it is held against.
        counts: `flips` of the comparison.
    """
    distance = abs(limit - drop.value)
    half = drop.high - drop.value if limit > drop.value else drop.value - drop.low
    if distance <= 1e-12 or half <= 0 or half >= UNBOUNDED / 2:
        return None
    if counts is not None and 0 < limit < 1:
        quantile = float(stats.norm.ppf(0.5 + drop.confidence / 2))
        return math.ceil(drop.n * (quantile / float(tango_statistic(*counts, drop.n, limit))) ** 2)
    return math.ceil(drop.n * (half / distance) ** 2)


def median_interval(samples: Scores, confidence: float = 0.95) -> Interval:
    """Median with an interval from order statistics, which assumes nothing about the distribution.

    Source: the count of samples below the median is binomial(n, 1/2) (David and Nagaraja, Order Statistics, 7.1). With
    too few samples for the level, the interval is the range, and its confidence says what that range carries.
    """
    ordered = np.sort(np.asarray(samples, float))
    n = len(ordered)
    rank = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    covered = 1 - 2 * float(stats.binom.cdf(rank - 1, n, 0.5)) if rank else 1 - 2 * 0.5**n
    low, high = (ordered[rank - 1], ordered[n - rank]) if rank else (ordered[0], ordered[-1])
    return Interval(value=float(np.median(ordered)), low=float(low), high=float(high), n=n, confidence=min(covered, confidence))


def _is_binary(scores: Scores) -> bool:
    return bool(np.all((scores == 0) | (scores == 1)))


def _t_half_width(values: Scores, confidence: float) -> float:
    n = len(values)
    if n < 2:
        return UNBOUNDED
    return float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
