"""How probable it is that fresh examples will prove a quality limit, told from the examples that were seen.

A limit is proved when the one-sided bound of the figure on the test split keeps it. Before anybody looks at that split, the figures
on validation say how often that would happen (a predictive probability, sometimes called assurance: O'Hagan, Stevens and Campbell,
Assurance in clinical trial design, Pharmaceutical Statistics 4, 2005): what validation itself leaves open counts, as far as its
examples are like those of the test split. That the candidate was picked for its figure on validation does not count.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Integer
from numpy import ndarray
from scipy import stats

from sizewise.evaluate.paired import UNBOUNDED, mcnemar_errors, tango_statistic
from sizewise.types import Budget, Interval, Quality

__all__ = ["ERROR", "confidence_at", "drop_proved", "drop_refused", "level_after", "look_level", "most_chance", "proof_chance"]

ERROR = 0.05  # one-sided, of everything that is ever said about one limit on one test split
SPENT_FIRST = 0.8
DRAWS = 4000
ROUGH = 0.02  # more than two standard errors of a chance that so many draws tell
Counts = int | Integer[ndarray, " *n"]


def look_level(look: int) -> float:
    """The one-sided error that the how-manieth look at the same test split may make.

    Four fifths of the 5 % go to the first look and four fifths of what is left to each further one, so that all looks together, how many
    there ever are, stay within 5 % (alpha spending by the union bound).
    """
    return SPENT_FIRST * ERROR * (1 - SPENT_FIRST) ** (look - 1)


def level_after(level: float) -> float:
    """The error that the look after one of this error may make."""
    return level * (1 - SPENT_FIRST)


def confidence_at(level: float) -> float:
    """The two-sided confidence of the interval whose ends are one-sided bounds of this error."""
    return 1 - 2 * level


def drop_proved(b: Counts, c: Counts, n: int, limit: float, level: float) -> Bool[ndarray, " *n"]:
    """Whether b examples lost and c won of n prove a drop of at most `limit`: by Tango's bound, or McNemar's exact test at 0."""
    if limit == 0:
        return np.asarray(mcnemar_errors(b, c)[0] <= level)
    return np.asarray(limit >= 1 or tango_statistic(b, c, n, limit) <= -stats.norm.isf(level))


def drop_refused(b: Counts, c: Counts, n: int, limit: float, level: float) -> Bool[ndarray, " *n"]:
    """Whether they prove that more than `limit` are lost."""
    if limit == 0:
        return np.asarray(mcnemar_errors(b, c)[1] <= level)
    return np.asarray(limit < 1 and tango_statistic(b, c, n, limit) > stats.norm.isf(level))


def proof_chance(found: Quality, budget: Budget, examples: int, level: float) -> float | None:
    """How probable it is that a test split proves every quality limit of a budget.

    Scores of 0 and 1: the mean over draws of what the test split will count, from a Dirichlet posterior (Jeffreys' prior) of the shares
    lost, won and unchanged. Others: Student's t, as if means were normal and the spread stayed. With both limits the smaller of the two.

    Args:
        found: on validation.
        budget: only its quality limits matter.
        examples: of the test split.
        level: one-sided error of the bound.

    Returns:
        None without a quality limit that can be judged, or with fewer than two test examples.
    """
    if examples < 2:
        return None
    chances: list[float] = []
    if budget.max_drop is not None and found.drop is not None:
        chances.append(_drop_chance(found, found.drop, budget.max_drop, examples, level))
    if budget.min_quality is not None:
        chances.append(_score_chance(found, budget.min_quality, examples, level))
    return min(chances, default=None)


def most_chance(seen: Quality, least: float, count: int, budget: Budget, examples: int, level: float) -> float | None:
    """The highest chance of a proof that a validation split may show in the end, of which a part was read; it has a limit on the drop.

    With b lost on the whole and c won, the chance is the higher, the smaller the difference is, as long as it keeps the limit, and of the
    same difference, the fewer they are. No fewer are lost or won on the whole than on a part, and the difference is what is surely lost.

    Args:
        seen: on the part.
        least: share of the whole split that is lost, at least.
        count: examples of the whole split.
        budget: its `max_drop` counts.
        examples: of the test split.
        level: one-sided error of the bound.

    Returns:
        None without such a limit, for scores other than 0 and 1, or with fewer than two test examples.
    """
    if budget.max_drop is None or seen.drop is None or seen.flips is None or examples < 2:
        return None
    (lost, won), more = seen.flips, math.ceil(least * count - 1e-9)
    lost = max(lost, won + more)
    chance = _drop_chance(replace(seen, flips=(lost, lost - more)), replace(seen.drop, n=count), budget.max_drop, examples, level)
    return min(1.0, chance + ROUGH)


def _drop_chance(found: Quality, drop: Interval, limit: float, examples: int, level: float) -> float:
    if found.flips is None:
        return _normal_chance(drop, limit, examples, level)
    b, c = found.flips
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.array([b, c, drop.n - b - c]) + 0.5, DRAWS)
    lost, won, _ = rng.multinomial(examples, shares).T
    return float(np.mean(drop_proved(lost, won, examples, limit, level)))


def _score_chance(found: Quality, limit: float, examples: int, level: float) -> float:
    sign = -1.0 if found.higher_is_better else 1.0
    if found.flips is None:
        turned = Interval(value=sign * found.score.value, low=found.score.low, high=found.score.high, n=found.score.n)
        return _normal_chance(turned, sign * limit, examples, level)
    if not 0 < limit < 1:
        return float(sign * found.score.value <= sign * limit)
    ones = round(found.score.value * found.score.n)
    rng = np.random.default_rng(0)
    share = rng.binomial(examples, rng.beta(ones + 0.5, found.score.n - ones + 0.5, DRAWS)) / examples
    # Wilson's bound keeps the limit where the score statistic at the limit reaches the quantile
    statistic = sign * (limit - share) / np.sqrt(limit * (1 - limit) / examples)
    return float(np.mean(statistic >= stats.norm.isf(level)))


def _normal_chance(mean: Interval, limit: float, examples: int, level: float) -> float:
    """Of a mean that is not to exceed the limit; its spread is read off Student's interval."""
    half = (mean.high - mean.low) / 2
    if mean.n < 2 or half >= UNBOUNDED / 2:
        return 0.0
    spread = half / float(stats.t.ppf(0.5 + mean.confidence / 2, mean.n - 1)) * np.sqrt(mean.n)
    room = limit - mean.value - float(stats.t.isf(level, examples - 1)) * spread / np.sqrt(examples)
    if spread <= 0:
        return float(room >= 0)
    return float(stats.t.cdf(room / (spread * np.sqrt(1 / mean.n + 1 / examples)), mean.n - 1))
