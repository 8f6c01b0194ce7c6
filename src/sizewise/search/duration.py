"""How long a trial may take, told from those that were made."""

from collections.abc import Sequence

import numpy as np

from sizewise.search.space import HEALER
from sizewise.types import Candidate, Plan, Step

__all__ = ["expected_seconds"]


def expected_seconds(done: Sequence[Candidate], plan: Plan) -> float:
    """How long a trial may take, by those of the same techniques, whose training takes longer in proportion; 0 where there are none.

    Where there are none, those of these techniques and others count, without their training where the plan has none. Those of the same
    scale count alone, where there are some.
    """
    kinds = _kinds(plan)
    alike = [c for c in done if c.seconds and _kinds(c.plan) == kinds]
    alike = alike or [c for c in done if c.seconds and kinds and set(kinds) < set(_kinds(c.plan))]
    alike = [c for c in alike if c.plan.scale == plan.scale] or alike
    return float(np.median([c.seconds + _trained_seconds(c) * _longer(plan, c.plan) for c in alike])) if alike else 0.0


def _kinds(plan: Plan) -> list[str]:
    return [step.technique for step in plan.steps]


def _trained_seconds(candidate: Candidate) -> float:
    """Of a trial, what its trainings took."""
    steps = zip(candidate.plan.steps, candidate.changes, strict=False)  # one that failed has no changes
    return sum(change.seconds for step, change in steps if step.technique == HEALER)


def _longer(plan: Plan, than: Plan) -> float:
    """By which share of its length the trainings of a plan are longer than those of another: -1 where it has none."""
    if HEALER not in _kinds(plan):
        return -1.0
    mine, theirs = (sum(map(_length, own.steps)) for own in (plan, than))
    return max(0.0, mine / theirs - 1) if theirs else 0.0


def _length(step: Step) -> float:
    """Of a training, in epochs or seconds; 0 where it says none."""
    found = (step.settings.get("epochs") or step.settings.get("seconds")) if step.technique == HEALER else None
    return float(found) if isinstance(found, int | float) else 0.0
