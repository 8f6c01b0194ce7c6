"""How many channels every group of a network loses, so that the loss is small and the cost is right."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

__all__ = ["LocalCost", "SeparateCost", "allocate", "lower_hull"]


@runtime_checkable
class LocalCost(Protocol):
    """A cost that knows which groups share a part of it, so that a step of one leaves the savings of most others as they are."""

    def __call__(self, removed: Sequence[int]) -> float:
        """The cost with so many channels removed from every group."""
        ...

    def saving(self, removed: Sequence[int], index: int, count: int) -> float:
        """What is saved if so many channels go from one group instead of as many as in `removed`."""
        ...

    def neighbours(self, index: int) -> Collection[int]:
        """Groups, itself included, whose savings depend on how many channels a group has."""
        ...


class SeparateCost:
    """A `LocalCost` to which every group adds by itself.

    Args:
        costs: per group, what it adds at every level.
        base: what is there besides.
    """

    def __init__(self, costs: Sequence[Sequence[float] | Mapping[int, float]], base: float = 0.0) -> None:
        self.costs, self.base = costs, base

    def __call__(self, removed: Sequence[int]) -> float:
        """The cost at one level of every group."""
        return self.base + sum(own[level] for own, level in zip(self.costs, removed, strict=True))

    def saving(self, removed: Sequence[int], index: int, count: int) -> float:
        """What is saved at another level of one group."""
        return self.costs[index][removed[index]] - self.costs[index][count]

    def neighbours(self, index: int) -> tuple[int]:
        """Only the group itself."""
        return (index,)


def allocate(
    losses: Sequence[Sequence[float]], cost: Callable[[Sequence[int]], float], target: float, levels: Sequence[Sequence[int]]
) -> list[int]:
    """How many channels to remove from every group.

    From nothing removed, the step with the least loss per saved cost is taken until the cost is at most `target`: along the
    lower hull of every group's loss, so that a costly channel on the way to cheap ones hides none of them. Savings are those
    at the present counts of all groups, since a layer between two groups costs the product of what both keep. The last step
    goes no further than needed, and what its overshoot allows is put back.

    Args:
        losses: per group, the loss with 0, 1, 2, ... channels removed, rising from 0.
        cost: of the network with so many channels removed from every group; falls with each. A `LocalCost` makes it fast.
        target: largest cost that is good.
        levels: per group, the counts that may be removed, rising from 0.

    Returns:
        counts; where even the largest levels cost more than the target, those.

    Source: the greedy solution of the multiple-choice knapsack on convex hulls (Sinha and Zoltners, 1979), optimal but for the
    last step where costs add up.
    """
    hulls = [lower_hull(options, group) for options, group in zip(levels, losses, strict=True)]
    counts = [0] * len(losses)
    now = cost(counts)
    steps: dict[int, tuple[float, int, int]] = {}
    stale: Iterable[int] = range(len(losses))
    while now > target:
        for index in stale:
            steps.pop(index, None)
            hull = hulls[index]
            place = bisect_right(hull, counts[index])
            if place == len(hull):
                continue
            after = hull[place]
            saved = cost.saving(counts, index, after) if isinstance(cost, LocalCost) else now - cost(_with(counts, index, after))
            if saved > 0:
                steps[index] = ((losses[index][after] - losses[index][counts[index]]) / saved, index, after)
        if not steps:
            break
        _, index, after = min(steps.values())
        between = (level for level in levels[index] if counts[index] < level <= after)
        for level in between:
            counts[index] = level
            now = cost(counts)
            if now <= target:
                break
        stale = cost.neighbours(index) if isinstance(cost, LocalCost) else range(len(losses))
    return _given_back(counts, losses, cost, target, levels)


def _with(counts: Sequence[int], index: int, count: int) -> list[int]:
    return [*counts[:index], count, *counts[index + 1 :]]


def _given_back(
    counts: list[int],
    losses: Sequence[Sequence[float]],
    cost: Callable[[Sequence[int]], float],
    target: float,
    levels: Sequence[Sequence[int]],
) -> list[int]:
    """Channels put back, those with the most loss first, as long as the cost stays within the target: the last step went too far."""
    while True:
        steps = []
        for index, count in enumerate(counts):
            fewer = _with(counts, index, max((level for level in levels[index] if level < count), default=count))
            if fewer[index] < count and cost(fewer) <= target:
                steps.append((losses[index][count] - losses[index][fewer[index]], fewer))
        if not steps:
            return counts
        counts = max(steps)[1]


def lower_hull(levels: Sequence[int], losses: Sequence[float]) -> list[int]:
    """The levels at the corners of the largest convex curve below the losses at all levels, from the first to the last."""
    corners: list[int] = []
    for level in levels:
        while len(corners) > 1 and _above(corners[-2], corners[-1], level, losses):
            corners.pop()
        corners.append(level)
    return corners


def _above(left: int, middle: int, right: int, losses: Sequence[float]) -> bool:
    line = losses[left] + (losses[right] - losses[left]) * (middle - left) / (right - left)
    return losses[middle] >= line
