"""What a recovery did, in words and figures for reports."""

from torch import nn

from sizewise.training.distill import Outcome
from sizewise.types import Change
from sizewise.units import format_count, format_seconds

__all__ = ["account"]


def account(student: nn.Module, outcome: Outcome) -> Change:
    """Which modules were trained, for how long and to which effect; the record has the figures that a seed decides."""
    kept = not outcome.scores or outcome.best > 0
    paths = [path for path, module in student.named_modules() if kept and next(module.parameters(recurse=False), None) is not None]
    record = {
        "steps": outcome.step,
        "examples": outcome.examples,
        "loss_before": _mean(outcome.first),
        "loss_after": _mean(outcome.last),
        "scores": outcome.scores,
        "best": outcome.best,
        "stopped": outcome.stopped,
    }
    return Change(touched=tuple(paths), notes=tuple(_notes(outcome)), record=record)


def _notes(outcome: Outcome) -> list[str]:
    steps = f"{outcome.step} step{'s' if outcome.step != 1 else ''}"
    notes = [f"distilled for {steps} on {format_count(outcome.examples)} examples in {format_seconds(outcome.seconds)}"]
    compared = f", {outcome.features} features compared" if outcome.features else ""
    notes.append(f"loss {_mean(outcome.first):.3g} at the start, {_mean(outcome.last):.3g} at the end{compared}")
    if outcome.zeros:
        notes.append(f"{format_count(outcome.zeros)} zeros stayed zero")
    if outcome.scores:
        notes.append(_validation(outcome))
    if outcome.stopped:
        notes.append("stopped early: validation got no better")
    return notes


def _validation(outcome: Outcome) -> str:
    before, best = outcome.scores[0], outcome.scores[outcome.best]
    if outcome.best == 0:
        return f"did not help: the model is as it was, validation {before:.4g}; the best after training was {max(outcome.scores[1:]):.4g}"
    return f"validation {before:.4g} before, {best:.4g} after"


def _mean(losses: list[float]) -> float:
    return sum(losses) / max(len(losses), 1)
