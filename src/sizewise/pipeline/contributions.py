"""What every method of a way to a small file has saved: the file with one method left out and all others as they are.

Shared values and entropy coding tell by themselves (`techniques/weight_sharing.py`). Without pruning or low rank there are more weights;
they are stored with as many bits each as the others, in a run of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from sizewise.errors import PreconditionError, UnsupportedModel
from sizewise.pipeline.apply import apply_plan
from sizewise.pipeline.recover import RECOVERY
from sizewise.pipeline.small_weights import small_bytes
from sizewise.protocols import Context
from sizewise.types import Change, Contribution, Plan, Skip, Step

__all__ = ["SHARING", "judged", "leave_one_out"]

SHARING = "weight_sharing"
_REDUCTIONS = {"channel_pruning": "pruning", "weight_pruning": "pruning of weights", "low_rank": "low rank"}


def leave_one_out(
    model: nn.Module,
    plan: Plan,
    changes: Sequence[Change],
    size: int,
    context: Context,
    change: Callable[[nn.Module], float] | None = None,
) -> tuple[Change, ...]:
    """The changes with the contributions of those steps that leave fewer weights.

    Args:
        model: that the plan began with; left as it is.
        plan: what was done to it.
        changes: what each step did.
        size: bytes of the stored weights that came of it.
        context: that the plan was carried out in.
        change: of a module's outputs, on data that nothing was fitted to.
    """
    found = list(changes)
    for place, step in enumerate(plan.steps):
        method = _REDUCTIONS.get(step.technique)
        if method is None or found[place].contributions:  # known from before
            continue
        context.progress.working(f"leaving out {method}, to see what it saves")
        try:
            bytes_without, module = _without(model, plan, place, changes, context)
        except (PreconditionError, UnsupportedModel) as error:
            skip = Skip(what=f"the file without {method}", reason=error.what)
            found[place] = replace(found[place], skipped=(*found[place].skipped, skip))
            continue
        lost = change(module) if change is not None else None
        told = Contribution(method=method, size_bytes=size, bytes_without=bytes_without, change_without=lost)
        found[place] = replace(found[place], contributions=(told,))
    return tuple(found)


def judged(contributions: Sequence[Contribution], change: float, before: float) -> tuple[Contribution, ...]:
    """With what outputs changed by.

    Args:
        contributions: of all methods.
        change: of the outputs with all of them.
        before: of the outputs before weights shared values.
    """
    without = {"shared values": before, "entropy coding": change}
    return tuple(replace(c, change=change, change_without=without.get(c.method, c.change_without)) for c in contributions)


def _without(model: nn.Module, plan: Plan, place: int, changes: Sequence[Change], context: Context) -> tuple[int, nn.Module]:
    """Bytes without one step, and the module; a training behind it makes up for what it took, and goes too."""
    steps = [replace(step, record=None) for step in plan.steps]
    behind = place + 1 < len(steps) and steps[place + 1].technique == RECOVERY
    rest = [*steps[:place], *steps[place + 1 + behind :]]
    shared = rest[-1] if rest and rest[-1].technique == SHARING else None
    module, _, _ = apply_plan(model, replace(plan, steps=tuple(rest[:-1] if shared else rest)), context)
    whole = small_bytes(module)
    if shared is None:
        return whole, module
    own = next((c for c in changes[-1].contributions if c.method == "shared values"), None)
    if own is None:  # coded without loss
        return whole, module
    size = round(whole * own.size_bytes / own.bytes_without)
    kept = {name: value for name, value in shared.settings.items() if name not in ("rate", "size", "bits")}
    last = Step(technique=SHARING, settings={**kept, "size": size})
    module, _, _ = apply_plan(model, replace(plan, steps=(*rest[:-1], last)), context)
    return small_bytes(module), module
