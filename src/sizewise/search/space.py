"""Which plans to try for a scale, mildest first."""

from collections.abc import Sequence

from sizewise.types import Plan, Step

__all__ = ["RATES", "harsher", "plans_for"]

RATES = (0.4, 0.7)
HEALED = ("channel_pruning", "weight_pruning", "low_rank")
HEALER = "recovery"


def plans_for(
    scale: str, seed: int, *, quantization: Step | None, rates: Sequence[float] = RATES, recovery: Step | None = None
) -> tuple[Plan, ...]:
    """Float, quantized, then channel pruning at every rate with and without quantization.

    With a recovery no plan prunes without it: it costs no latency and no size, and hands back what it was given where it does not help.

    Args:
        scale: name of the candidate.
        seed: of everything random in the plans.
        quantization: the step that suits the scale and the runtime; None where none does.
        rates: shares of MACs removed, rising.
        recovery: the step that follows every pruning, before the quantization.
    """
    endings: tuple[tuple[Step, ...], ...] = ((), (quantization,)) if quantization else ((),)
    after = (recovery,) if recovery else ()
    cuts = [(Step(technique="channel_pruning", settings={"rate": rate}), *after) for rate in rates]
    return tuple(Plan(scale=scale, steps=cut + end, seed=seed) for cut in [(), *cuts] for end in endings)


def harsher(plan: Plan, than: Plan) -> bool:
    """Whether `plan` does all that `than` does to the same scale, at least as strongly, so that it can only be worse.

    A recovery makes better what was pruned before it: plans that prune are compared only when they recover alike.
    """
    if plan.scale != than.scale or not than.steps:
        return plan.scale == than.scale
    if any(step.technique in HEALED for step in than.steps) and _healing(plan) != _healing(than):
        return False
    return all(any(_at_least(mine, theirs) for mine in plan.steps) for theirs in than.steps if theirs.technique != HEALER)


def _healing(plan: Plan) -> list[Step]:
    return [step for step in plan.steps if step.technique == HEALER]


def _at_least(mine: Step, theirs: Step) -> bool:
    if mine.technique != theirs.technique:
        return False
    return all(mine.settings.get(key, value) >= value for key, value in theirs.settings.items())
