"""Which file can still win, told from its costs and from what was measured before its quality is known."""

import math
from collections.abc import Sequence
from typing import Protocol

from sizewise.search.frontier import best, limits_quality, rank_key
from sizewise.search.spare import expected_cost, spare_of
from sizewise.types import Budget, Candidate, Interval

__all__ = ["Costs", "breaks_costs", "opponents", "outranked", "settled"]


class Costs(Protocol):
    """What a file costs; a `Measurement` is one."""

    @property
    def latency(self) -> Interval:
        """Seconds of one call."""
        ...

    @property
    def latency_ratio(self) -> float:
        """That over the reference module's, in the same rounds."""
        ...

    @property
    def size_bytes(self) -> int:
        """On disk."""
        ...

    @property
    def memory(self) -> Interval:
        """Bytes."""
        ...


def outranked(costs: Costs, others: Sequence[Candidate], budget: Budget, chance: float | None = None) -> Candidate | None:
    """The measured candidate that is chosen before a file of these costs, whose proof is no more probable than said, or None.

    That takes a candidate that fits, and a file whose costs surely break a limit; or, under a quality limit, where cost decides, a
    candidate that surely is better even with that chance, or with a sure proof where none is said. Latencies were measured at
    different times: they are compared by the ends of their intervals, and as ratios to the reference.
    """
    leader = best(others, budget)
    if leader is None or leader.measured is None:
        return None
    if breaks_costs(costs, budget):
        return leader
    if not limits_quality(budget):
        return None
    its, spare = leader.measured, spare_of(others, budget)
    best_cost, sure = rank_key(leader, budget, spare)[0], 1.0 if chance is None else chance
    own = math.log(its.latency_ratio) + math.log(costs.size_bytes)
    slower = (costs.latency.low / its.latency.high, costs.latency_ratio / its.latency_ratio)
    return leader if all(expected_cost(own + math.log(ratio), sure, spare.cost) > best_cost for ratio in slower) else None


def breaks_costs(costs: Costs, budget: Budget) -> bool:
    """Whether a file surely breaks a limit of latency, size or memory."""
    figures = (costs.latency.low, budget.latency_s), (costs.size_bytes, budget.size_bytes), (costs.memory.low, budget.memory_bytes)
    return any(allowed is not None and figure > allowed for figure, allowed in figures)


def opponents(costs: Costs, others: Sequence[Candidate], budget: Budget) -> tuple[Candidate, ...]:
    """The candidates, scored in full, whose quality a file of these costs must exceed to win, the best in quality first.

    Under a quality limit those that surely cost no more, in latency and in size: if one of them is as good, it is chosen before the
    file where it fits, and where it does not, the file does not either. Without such a limit the best that fits.
    """
    if not limits_quality(budget):
        leader = best(others, budget)
        return (leader,) if leader is not None else ()
    found = [(c.measured.quality, c) for c in others if c.measured and not c.unread and _costs_no_more(c.measured, costs)]
    ordered = sorted(found, key=lambda pair: (-pair[0].score.value if pair[0].higher_is_better else pair[0].score.value, pair[1].id))
    return tuple(c for _, c in ordered)


def _costs_no_more(one: Costs, other: Costs) -> bool:
    faster = one.latency.high <= other.latency.low and one.latency_ratio <= other.latency_ratio
    return faster and one.size_bytes <= other.size_bytes


def settled(candidate: Candidate, others: Sequence[Candidate], budget: Budget) -> bool:
    """Whether a beaten candidate still is, among these others and under this budget, which may not be those that it was beaten under."""
    if candidate.partly is None or outranked(candidate.partly, others, budget, candidate.most_chance):
        return True
    return candidate.beaten_by in {c.id for c in opponents(candidate.partly, others, budget)}
