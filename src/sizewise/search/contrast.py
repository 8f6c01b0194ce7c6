"""In which levers two plans differ, told from the plans alone: scale, resolution, and what is done to it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sizewise.search.space import HEALED, HEALER, RATE
from sizewise.types import Plan, Step

__all__ = ["RESOLUTION", "SCALE", "Levers", "Setting", "change", "difference", "levers_of", "milder"]

SCALE, RESOLUTION, DEPTH = "scale", "resolution", "depth"
SHRINKING = (*HEALED, DEPTH)  # names of the levers that training heals
PRECISION = {"int8_static": "precision", "int8_dynamic": "precision", "weight_only": "precision"}  # one excludes the others


@dataclass(frozen=True)
class Setting:
    """Where a lever stands.

    Attributes:
        label: in words, such as "scale resnet-m" or "channel_pruning(rate=0.5)"; two settings are the same where it is.
        technique: that does it; None for scale and resolution.
        rate: of what it does; None where it has none.
    """

    label: str
    technique: str | None = None
    rate: float | None = None


Levers = Mapping[str, Setting]  # by the lever's name, in the order of the plan; one that is off is not in it


def levers_of(plan: Plan, scales: Collection[str]) -> Levers:
    """Where every lever of a plan stands.

    Args:
        plan: any.
        scales: all that the run knows; "large@24" is a resolution of "large" where that is one of them.
    """
    model, at, size = plan.scale.rpartition("@")
    resized = bool(at) and model in scales
    found = {SCALE: Setting(f"scale {model if resized else plan.scale}")}
    if resized:
        found[RESOLUTION] = Setting(f"resolution {size}")
    for step in plan.steps:
        name = DEPTH if step.settings.get("parts") == "blocks" else PRECISION.get(step.technique, step.technique)
        while name in found:  # a plan may name a technique twice
            name += " again"
        found[name] = _setting(step)
    return found


def _setting(step: Step) -> Setting:
    rate = step.settings.get(RATE)
    return Setting(Plan(scale="", steps=(step,)).label, step.technique, float(rate) if isinstance(rate, int | float) else None)


def difference(one: Levers, other: Levers) -> tuple[str, ...]:
    """Names of the levers that stand differently, in the order of `other`.

    Training that heals what was shrunk is no lever of its own where one of the two shrinks nothing.
    """
    names = [name for name in dict.fromkeys((*other, *one)) if other.get(name) != one.get(name)]
    if HEALER in names and any(name in SHRINKING for name in names):
        bare = one if HEALER not in one else other
        if HEALER not in bare and not any(name in SHRINKING for name in bare):
            names.remove(HEALER)
    return tuple(names)


def change(one: Levers, other: Levers, name: str) -> str:
    """What `other` does with a lever that differs, as seen from `one`, in words."""
    mine, its = one.get(name), other.get(name)
    if its is None:
        return f"without {mine.label}" if mine else ""
    if mine is None:
        return f"with {its.label}"
    kind = its.technique or its.label.partition(" ")[0]
    rest = mine.label.removeprefix(kind).strip() if mine.label != kind else ""
    return f"{its.label} instead of {rest or mine.label}"


def milder(one: Setting | None, other: Setting | None) -> bool:
    """Whether one setting is a step on the way to the other: the same technique at a lower rate, or where there are no rates at all."""
    if one is None or other is None or one.technique is None or one.technique != other.technique or one == other:
        return False
    return one.rate is None or other.rate is None or one.rate < other.rate
