"""Which untried plan is worth a trial: by how much it may be better than the best so far, and how likely it keeps the budget.

Source: Schonlau, Welch and Jones, Global versus Local Search in Constrained Optimization, 1998, for the expected improvement under
constraints: the improvement expected times the probability that all limits are kept. Deviations: the chance of a proof, which goes by
the loss, is part of what improves, so that the expectation is taken over losses node by node; as long as nothing fits, the probability
alone counts, and where no plan has a chance to fit, the nearness to the budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.stats import norm

from sizewise.search.frontier import largest_drops
from sizewise.search.proxy import FIGURES, LOSS, Forecast, Observation
from sizewise.types import Budget, Measurement, Quality

__all__ = ["Goal", "Promise", "Proofs", "goal_of", "observed_figures", "observed_loss", "promise"]

LEAST_CHANCE = 0.05  # of being the best that fits, below which a plan is not tried
CHEAPER = 0.02  # of the cost: what is no gain
BETTER = 0.02  # hundredths of quality: what is no gain
UNLIKELY = 1e-3  # a chance of proof that is none
NEARER = 0.02  # of the logarithm of the worst excess: what is no nearer
ONE_POINT = 0.01  # a further point counts like doubling the cost, as in `types.Violation.excess`

LATENCY, SIZE = (FIGURES.index(name) for name in ("latency", "size"))
NODES = norm.ppf((np.arange(64) + 0.5) / 64)  # of a standard normal distribution, equally probable

Column = Float[ndarray, " n"]
Mask = Bool[ndarray, " n"]


@dataclass(frozen=True)
class Goal:
    """What a search wants.

    Attributes:
        limits: per figure of the proxy, in its units (logarithms of costs; the loss as it is); infinite where there is none.
        by_cost: whether the cheapest that fits is best; else the one of least loss.
        unit: a hundredth of the reference's quality.
    """

    limits: tuple[float, ...]
    by_cost: bool
    unit: float


@dataclass(frozen=True)
class Proofs:
    """How probable it is that the test split proves the limit of quality, by the loss on validation: a normal distribution's tail.

    Attributes:
        half: per point the loss at which the chance is one half.
        spread: per point its standard deviation, in the metric's unit.
    """

    half: Column
    spread: Column

    def chance(self, losses: Float[ndarray, "n nodes"], at: slice | Sequence[int] = slice(None)) -> Float[ndarray, "n nodes"]:
        """Per point and loss; of all points, or of those at some places."""
        found: Float[ndarray, "n nodes"] = norm.cdf((self.half[at, None] - losses) / self.spread[at, None])
        return found


@dataclass(frozen=True)
class Promise:
    """What is expected of every point.

    Attributes:
        chance: that it keeps every limit and is better than the best so far.
        gain: expected; the higher, the sooner it is tried. 0 where it is not worth a trial.
        nearing: whether no point has a chance, and the gain is only to come nearer to the budget.
    """

    chance: Column
    gain: Column
    nearing: bool = False


def goal_of(budget: Budget, reference: float, *, higher_is_better: bool, unit: float) -> Goal:
    """The budget in the proxy's units.

    Args:
        budget: the limits.
        reference: the reference's score on validation.
        higher_is_better: of the metric.
        unit: see `Goal`.
    """
    losses = [allowed for allowed, _ in largest_drops(budget, reference, higher_is_better=higher_is_better)]
    costs = (budget.latency_s, budget.size_bytes, budget.memory_bytes)
    limits = (*(math.inf if limit is None else math.log(limit) for limit in costs), min(losses, default=math.inf))
    return Goal(limits, bool(losses), unit)


def observed_figures(measured: Measurement, reference: float, pace: float) -> tuple[float, float, float, float]:
    """Latency, size, memory and loss of a measured file, as an `Observation` has them.

    Args:
        measured: of the file.
        reference: score of the reference model, where the measurement does not say its drop.
        pace: seconds that the reference usually takes here. Machines are now faster and now slower by half, so a file's latency is
            told by its share of the reference's, which was timed beside it.
    """
    latency, memory = pace * measured.latency_ratio, max(measured.memory.value, 1.0)
    return latency, float(measured.size_bytes), memory, observed_loss(measured.quality, reference)


def observed_loss(found: Quality, reference: float) -> float:
    """Of quality, in the metric's unit, against the reference, whose score counts where the drop is not told."""
    if found.drop is not None:
        return found.drop.value
    sign = 1 if found.higher_is_better else -1
    return sign * (reference - found.score.value)


def promise(
    forecast: Forecast,
    goal: Goal,
    open_: Mask,
    top: float | None,
    others: Sequence[Observation],
    proofs: Proofs | None = None,
    spare: float = 0.0,
    dear: Mask | None = None,
) -> Promise:
    """What the points that are not tried yet promise.

    Args:
        forecast: of every point.
        goal: limits, and what is better.
        open_: which points may be tried.
        top: what the best that fits so far is worth: the logarithm of latency times size that it promises (`frontier.rank_key`), or its
            loss, whichever decides.
        others: all that is measured, of which one is the nearest where nothing fits.
        proofs: how probable a proof is; None where none is wanted.
        spare: what latency times size is where there is no proof (`search/spare.py`).
        dear: points that surely break a limit of costs.
    """
    cheap = np.prod([norm.cdf((limit - forecast.mean[at]) / forecast.sd[at]) for at, limit in enumerate(goal.limits[:-1])], axis=0)
    cheap = cheap if dear is None else np.where(dear, 0.0, cheap)
    losses = forecast.losses(NODES)
    proved = proofs.chance(losses) if proofs is not None else np.ones_like(losses)
    proved = np.where(losses <= goal.limits[-1], proved, 0.0)
    if top is not None:
        chance, gain = _cheaper(forecast, top, proved, spare) if goal.by_cost else _improvement(forecast, goal, top)
        chance, gain = chance * cheap, gain * cheap
        return Promise(chance, np.where(open_ & (chance >= LEAST_CHANCE), gain, 0.0))
    fits = cheap * proved.mean(axis=1)
    worth = np.where(open_ & (fits >= LEAST_CHANCE), fits, 0.0)
    if not worth.any() and others:
        return Promise(fits, np.where(open_, _nearer(forecast, goal, others), 0.0), nearing=True)
    return Promise(fits, worth)


def _cheaper(forecast: Forecast, top: float, proved: Float[ndarray, "n nodes"], spare: float) -> tuple[Column, Column]:
    """The chance to promise less cost by more than nothing, and by how much in expectation; no loss beyond the limit does.

    A file promises the proved share of its own cost, and the rest of what is spare (`search/spare.py`).
    """
    mean, sd = forecast.mean[LATENCY] + forecast.mean[SIZE], np.hypot(forecast.sd[LATENCY], forecast.sd[SIZE])
    share = np.maximum(proved, UNLIKELY)
    z = ((top - CHEAPER - (1 - share) * spare) / share - mean[:, None]) / sd[:, None]
    fits = proved > UNLIKELY
    return (fits * norm.cdf(z)).mean(axis=1), (fits * share * sd[:, None] * (z * norm.cdf(z) + norm.pdf(z))).mean(axis=1)


def _improvement(forecast: Forecast, goal: Goal, top: float) -> tuple[Column, Column]:
    """The chance to lose less by more than nothing, and by how much in expectation, in hundredths."""
    mean, sd = forecast.mean[LOSS] / goal.unit, forecast.sd[LOSS] / goal.unit
    z = (top / goal.unit - BETTER - mean) / sd
    return norm.cdf(z), sd * (z * norm.cdf(z) + norm.pdf(z))


def _nearer(forecast: Forecast, goal: Goal, others: Sequence[Observation]) -> Column:
    """By how much a point is expected to be nearer to the budget than all that is measured; 0 where it is not."""
    measured = np.array([[math.log(o.latency), math.log(o.size), math.log(o.memory), o.loss] for o in others if o.whole]).T  # type: ignore[arg-type]
    if not measured.size:
        return np.zeros(forecast.mean.shape[1])
    gap = _excess(measured, goal).min() - _excess(forecast.mean, goal)
    return np.where(gap > NEARER, gap, 0.0)


def _excess(figures: Float[ndarray, "figures n"], goal: Goal) -> Column:
    """The logarithm of the worst excess over a limit, as `search/frontier.nearest` counts it."""
    over = [np.maximum(figures[at] - limit, 0.0) for at, limit in enumerate(goal.limits[:-1])]
    limit = goal.limits[-1]
    if math.isfinite(limit):
        over.append(np.log1p(np.maximum(figures[-1] - limit, 0.0) / max(limit, ONE_POINT)))
    worst: Column = np.max(over, axis=0)
    return worst
