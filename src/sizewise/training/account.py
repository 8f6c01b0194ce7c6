"""What a recovery did, in words and figures for reports."""

from typing import Any

from torch import nn

from sizewise.training.distill import Outcome
from sizewise.types import Change
from sizewise.units import format_count, format_seconds

__all__ = ["account", "figures", "notes"]


def account(student: nn.Module, outcome: Outcome) -> Change:
    """Which modules were trained, for how long and to which effect; the record has the figures that a seed decides."""
    kept = outcome.best > 0 if outcome.scores else not outcome.undone
    paths = [path for path, module in student.named_modules() if kept and next(module.parameters(recurse=False), None) is not None]
    return Change(touched=tuple(paths), notes=tuple(notes(outcome)), record=figures(outcome))


def figures(outcome: Outcome) -> dict[str, Any]:
    """What a seed decides, for records."""
    return {
        "steps": outcome.step,
        "examples": outcome.examples,
        "lr": outcome.lr,
        "lowered": outcome.lowered,
        "loss_before": _mean(outcome.begun),
        "loss_after": _mean(outcome.last),
        "scores": outcome.scores,
        "best": outcome.best,
        "stopped": outcome.stopped,
    }


def notes(outcome: Outcome, judged: str = "validation") -> list[str]:
    """What a person wants to know; `judged` names what the scores are."""
    steps = f"{outcome.step} step{'s' if outcome.step != 1 else ''}"
    told = [f"distilled for {steps} on {format_count(outcome.examples)} examples in {format_seconds(outcome.seconds)}"]
    compared = f", {outcome.features} features compared" if outcome.features else ""
    told.append(f"loss {_mean(outcome.begun):.3g} at the start, {_mean(outcome.last):.3g} at the end{compared}")
    if outcome.lowered:
        told.append(f"began anew {_times(outcome.lowered)} because it got worse, at last with a peak learning rate of {outcome.lr:.2g}")
    if outcome.undone and not outcome.scores:
        told.append("did not help: the loss was higher in the end; the model is as it was")
    if outcome.zeros:
        told.append(f"{format_count(outcome.zeros)} zeros stayed zero")
    if outcome.scores:
        told.append(_validation(outcome, judged))
    if outcome.stopped:
        told.append(f"stopped early: {judged} got no better")
    return told


def _validation(outcome: Outcome, judged: str) -> str:
    before, best = outcome.scores[0], outcome.scores[outcome.best]
    if outcome.best == 0:
        return f"did not help: the model is as it was, {judged} {before:.4g}; the best after training was {max(outcome.scores[1:]):.4g}"
    return f"{judged} {before:.4g} before, {best:.4g} after"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _mean(losses: list[float]) -> float:
    return sum(losses) / max(len(losses), 1)
