"""How many channels every group loses so that a measured share of the latency goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sizewise.arith.allocation import allocate
from sizewise.errors import PreconditionError, UsageError
from sizewise.graph.groups import Group
from sizewise.profile.channel_cost import paying
from sizewise.profile.latency_cost import latency_cost
from sizewise.protocols import Inputs, Progress, Timer
from sizewise.types import Skip

__all__ = ["HIGHEST", "WITHIN", "Choice", "aim", "counts_for_latency", "not_timed"]

WITHIN = 0.02  # of the latency that the wanted share may be missed by
NEAR = 0.01  # that ends the search
TRIES = 4  # models that are cut and timed
GOALS = 12  # that are tried; many lead to the same model
HIGHEST = 0.99
WORTH = 0.005  # of the latency that a group must be able to save


@dataclass(frozen=True)
class Choice:
    """Counts removed from every group, the share of the latency that went with them, and the groups left alone."""

    counts: list[int]
    reached: float
    skipped: tuple[Skip, ...] = ()


def counts_for_latency(
    model: nn.Module,
    groups: Sequence[Group],
    losses: Sequence[Sequence[float]],
    levels: Sequence[Sequence[int]],
    rate: float,
    *,
    example: Inputs,
    timer: Timer,
    multiple: int,
    cut: Callable[[Sequence[int]], nn.Module],
    progress: Progress,
) -> Choice:
    """Choose counts whose real file is by `rate` faster, within two points, or by more where channels go in larger steps.

    Counts are chosen by measured times of the layers; the model so cut is timed beside the whole one, and where the figures differ,
    another goal is tried, up to four.

    Args:
        model: whole, in inference mode.
        groups: whose channels go.
        losses: per group, the loss with 0, 1, 2, ... channels removed.
        levels: per group, the counts that may be removed, rising from 0.
        rate: share of the latency that goes, in (0, 1).
        example: inputs of one call.
        timer: of the runtime that counts.
        multiple: channel counts that the runtime likes are multiples of this.
        cut: a copy of the model with so many channels removed from every group; which ones does not matter for its speed.
        progress: told what is measured.

    Raises:
        PreconditionError: the share cannot be reached; says what was.
        UnsupportedModel: the runtime cannot run the model.
    """
    cost = latency_cost(model, groups, example, timer, multiple, progress)
    worth = [list(options) for options in levels]
    skipped = []
    for index, group in enumerate(groups):
        single = [0] * len(groups)
        single[index] = worth[index][-1]
        if cost.whole - cost(single) < WORTH * cost.whole:
            worth[index] = [0]
            skipped.append(Skip(what=group.name, reason=f"would not get faster on {timer.name}"))
        else:
            worth[index] = paying(index, worth[index], cost, len(groups))

    share = timer.beside(model, example)

    def measured(counts: Sequence[int]) -> float:
        progress.working(f"timing the cut model on {timer.name}")
        return 1 - share(cut(counts))

    def chosen(goal: float) -> list[int]:
        limit = (1 - goal) * cost.whole
        return allocate(losses, cost, limit, worth)

    counts, reached = aim(chosen, measured, rate)
    if reached < rate - WITHIN:
        raise _missed(rate, reached, counts, worth, timer.name)
    return Choice(counts, reached, tuple(skipped))


def aim(choose: Callable[[float], list[int]], measure: Callable[[Sequence[int]], float], wanted: float) -> tuple[list[int], float]:
    """The choice whose measured figure comes nearest to the wanted one, and at most two points below it if one does, and that figure.

    The goal is moved by what was measured at the goals before: between the two that enclose the wanted figure, else in proportion.

    Args:
        choose: a choice for a goal in (0, 1).
        measure: its true figure.
        wanted: in (0, 1).
    """
    tried: dict[float, float] = {}
    figures: dict[tuple[int, ...], float] = {}
    goal = wanted
    for _ in range(GOALS):
        counts = tuple(choose(goal))
        if counts not in figures and len(figures) == TRIES:
            break
        if counts not in figures:
            figures[counts] = measure(counts)
        tried[goal] = figures[counts]
        if abs(figures[counts] - wanted) <= NEAR:
            break
        goal = _next(tried, wanted)
    enough = [counts for counts, figure in figures.items() if figure >= wanted - WITHIN]
    best = min(enough or figures, key=lambda counts: abs(figures[counts] - wanted))
    return list(best), figures[best]


def _next(tried: Mapping[float, float], wanted: float) -> float:
    """Another goal: between the nearest that gave less and the nearest that gave more, else in proportion to what they gave."""
    below = {goal: got for goal, got in tried.items() if got <= wanted}
    above = {goal: got for goal, got in tried.items() if got > wanted}
    if below and above:
        low, high = max(below), min(above)
        return low + (high - low) * (wanted - below[low]) / (above[high] - below[low])
    if above:
        return min(above) * wanted / above[min(above)]
    return min(HIGHEST, max(below) * min(2.0, wanted / max(below[max(below)], 1e-9)))


def not_timed(where: str, instead: str) -> UsageError:
    """What is wrong where the latency is a target and nothing can time it.

    Args:
        where: the technique.
        instead: a target that needs no clock.
    """
    got = "a device elsewhere, or no runtime"
    return UsageError("the latency cannot be measured", where=where, got=got, hint=f'device "local", or target "{instead}"')


def _missed(rate: float, reached: float, counts: Sequence[int], levels: Sequence[Sequence[int]], runtime: str) -> PreconditionError:
    all_gone = all(count == options[-1] for count, options in zip(counts, levels, strict=True))
    return PreconditionError(
        "this share of the latency cannot be reached",
        where="channel_pruning",
        got=f"{100 * reached:.1f} % measured on {runtime}" + (" with as few channels as are possible" if all_gone else ""),
        wanted=f"{100 * rate:.1f} %, within {100 * WITHIN:.0f} points",
        hint="the rest belongs to layers that cannot be cut, or would not get faster; a lower rate",
        reach=reached if all_gone else None,
    )
