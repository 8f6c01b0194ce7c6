"""Which plans to try for a scale, mildest first."""

from collections.abc import Sequence

from sizewise.types import Plan, Step

__all__ = ["RATES", "harsher", "plans_for"]

RATES = (0.4, 0.7)


def plans_for(scale: str, seed: int, *, integers: bool, rates: Sequence[float] = RATES) -> tuple[Plan, ...]:
    """Float, int8, then channel pruning at every rate with and without int8.

    Args:
        scale: name of the candidate.
        seed: of everything random in the plans.
        integers: whether the runtime has integer kernels.
        rates: shares of MACs removed, rising.
    """
    int8 = (Step(technique="int8_static"),)
    endings: tuple[tuple[Step, ...], ...] = ((), int8) if integers else ((),)
    cuts = [(Step(technique="channel_pruning", settings={"rate": rate}),) for rate in rates]
    return tuple(Plan(scale=scale, steps=cut + end, seed=seed) for cut in [(), *cuts] for end in endings)


def harsher(plan: Plan, than: Plan) -> bool:
    """Whether `plan` does all that `than` does to the same scale, at least as strongly, so that it can only be worse."""
    if plan.scale != than.scale or not than.steps:
        return plan.scale == than.scale
    return all(any(_at_least(mine, theirs) for mine in plan.steps) for theirs in than.steps)


def _at_least(mine: Step, theirs: Step) -> bool:
    if mine.technique != theirs.technique:
        return False
    return all(mine.settings.get(key, value) >= value for key, value in theirs.settings.items())
