"""The measured candidates that no other beats on all counts, and the best within a budget."""

import math
from collections.abc import Sequence
from dataclasses import replace

from sizewise.search.spare import Spare, expected_cost, log_cost, spare_of
from sizewise.types import Budget, Candidate, Limit, Measurement, Relaxation

__all__ = [
    "best",
    "has_margin",
    "largest_drops",
    "limits_quality",
    "mark_frontier",
    "nearest",
    "rank_key",
    "relaxations",
]

MARGIN = 0.8  # how probable the proof on the test split must be for nothing to be wanted but less cost


def _counts(m: Measurement) -> tuple[float, ...]:
    sign = -1.0 if m.quality.higher_is_better else 1.0
    return (m.latency.value, float(m.size_bytes), sign * m.quality.score.value)


def mark_frontier(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Set `on_frontier`: nothing measured is at least as good in latency, size and quality and better in one."""
    points = [_counts(c.measured) for c in candidates if c.measured]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in points)

    return tuple(replace(c, on_frontier=c.measured is not None and not beaten(_counts(c.measured))) for c in candidates)


def rank_key(candidate: Candidate, budget: Budget, spare: Spare) -> tuple[float, ...]:
    """What makes one fitting candidate better than another; smaller is better.

    With a quality limit, cost decides: the logarithm of latency times size, so that halving either counts the same, as it is to be expected
    where this file is looked at first on the test split (`search/spare.py`). Without one, quality decides and cost breaks ties.

    Args:
        candidate: a measured one.
        budget: the limits.
        spare: of all candidates.
    """
    assert candidate.measured is not None
    _, _, worse = _counts(candidate.measured)
    cost = log_cost(candidate)
    if not limits_quality(budget):
        return (worse, cost)
    return (expected_cost(cost, candidate.proof_chance, spare.beside(candidate.id)), -(candidate.proof_chance or 0.0), cost, worse)


def limits_quality(budget: Budget) -> bool:
    """Whether a budget says anything about quality."""
    return budget.max_drop is not None or budget.min_quality is not None


def largest_drops(budget: Budget, reference: float, *, higher_is_better: bool) -> list[tuple[float, Limit]]:
    """Every quality limit as the most that may be lost against the reference, whose score is known: a least quality is a largest drop."""
    found: list[tuple[float, Limit]] = [(budget.max_drop, "max_drop")] if budget.max_drop is not None else []
    if budget.min_quality is not None:
        found.append(((reference - budget.min_quality) * (1 if higher_is_better else -1), "min_quality"))
    return found


def has_margin(candidate: Candidate) -> bool:
    """Whether the test split will very probably prove what validation shows."""
    return candidate.proof_chance is not None and candidate.proof_chance >= MARGIN


def best(candidates: Sequence[Candidate], budget: Budget) -> Candidate | None:
    """The best measured candidate whose figures keep every limit, or None."""
    fitting = [c for c in candidates if c.fits(budget)]
    spare = spare_of(candidates, budget)
    return min(fitting, key=lambda c: (*rank_key(c, budget, spare), c.id), default=None)


def nearest(candidates: Sequence[Candidate], budget: Budget) -> Candidate | None:
    """The measured candidate whose worst violation is smallest (then the sum of violations), or None if none is measured."""

    def distance(candidate: Candidate) -> tuple[float, float, str]:
        assert candidate.measured is not None
        over = [math.log(max(1.0, v.excess)) for v in budget.violations(candidate.measured)]
        return (max(over, default=0.0), sum(over), candidate.id)

    return min((c for c in candidates if c.measured), key=distance, default=None)


def relaxations(candidates: Sequence[Candidate], budget: Budget) -> tuple[Relaxation, ...]:
    """For every limit: the value at which a tried candidate would fit while all other limits stay."""
    limits: tuple[tuple[Limit, float | None], ...] = (
        ("latency", budget.latency_s),
        ("size", budget.size_bytes),
        ("memory", budget.memory_bytes),
        ("max_drop", budget.max_drop),
        ("min_quality", budget.min_quality),
    )
    return tuple(_relax(limit, allowed, candidates, budget) for limit, allowed in limits if allowed is not None)


def _relax(limit: Limit, allowed: float, candidates: Sequence[Candidate], budget: Budget) -> Relaxation:
    options: list[tuple[float, float, str]] = []
    for c in candidates:
        broken = budget.violations(c.measured) if c.measured else ()
        if len(broken) == 1 and broken[0].limit == limit:
            options.append((broken[0].excess, broken[0].got, c.id))
    if not options:
        return Relaxation(limit=limit, allowed=allowed, needed=None, candidate=None)
    _, needed, candidate = min(options)
    return Relaxation(limit=limit, allowed=allowed, needed=needed, candidate=candidate)
