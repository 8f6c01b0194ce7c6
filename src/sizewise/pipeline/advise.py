"""One scale's advice: its cost against the budget, before and after shrinking, and what its trainings say."""

from collections.abc import Iterable
from dataclasses import replace

from sizewise.advice import ScaleAdvice
from sizewise.pipeline.wording import evidence_of
from sizewise.profile.fitting import memory_misfits
from sizewise.select.errors_of import ErrorScale
from sizewise.select.judge import Evidence, Ruling
from sizewise.select.shrinkage import shrunk
from sizewise.types import Budget, Device, Limit, ModelProfile, Violation

__all__ = ["cheapest_first", "costed", "judged", "reachable"]


def costed(profile: ModelProfile, budget: Budget, device: Device) -> ScaleAdvice:
    """The scale's cost, and which limits it breaks before any shrinking and after the best that was seen."""
    found = shrunk(profile)
    if found is not None:
        memory = _memory(found.peak_bytes, found.size_bytes, device)
        found = replace(
            found,
            breaks=_breaks(budget, found.latency_s.value, found.size_bytes, memory),
            misfits=(*memory_misfits(found.size_bytes, found.peak_bytes, device), *_lasting(profile, device)),
        )
    latency = profile.latency_s.value if profile.latency_s is not None else None
    breaks = _breaks(budget, latency, profile.weight_bytes, _memory(profile.peak_bytes, profile.weight_bytes, device))
    return ScaleAdvice(name=profile.name, profile=profile, breaks=breaks, shrunk=found)


def _lasting(profile: ModelProfile, device: Device) -> tuple[str, ...]:
    """Reasons against the device that shrinking does not remove: operators that it lacks."""
    memory = memory_misfits(profile.weight_bytes, profile.peak_bytes, device)
    return tuple(reason for reason in profile.misfits if reason not in memory)


def cheapest_first(profiles: Iterable[ModelProfile]) -> list[ModelProfile]:
    """By the product of latency and weights, so that halving either counts the same; by MACs where a latency is not known."""
    rows = list(profiles)
    timed = all(p.latency_s is not None for p in rows)

    def cost(profile: ModelProfile) -> float:
        speed = profile.latency_s.value if timed and profile.latency_s is not None else float(max(profile.macs, 1))
        return speed * max(profile.weight_bytes, 1)

    return sorted(rows, key=cost)


def reachable(scale: ScaleAdvice) -> bool:
    """Whether nothing is known that keeps the scale from the device and the budget, shrunk as far as was seen."""
    if scale.shrunk is None:
        return not (scale.profile.misfits or scale.breaks)
    return not (scale.shrunk.misfits or scale.shrunk.breaks)


def judged(
    scale: ScaleAdvice, ruling: Ruling, evidence: Evidence | None, stopped: str | None, errors: ErrorScale, metric: str
) -> ScaleAdvice:
    """The scale with what its trainings say."""
    if evidence is None:
        return replace(scale, reason="not looked at: the time limit was reached")
    found = ruling.scales[scale.name]
    return replace(
        scale,
        status="stopped" if evidence.final is None else "complete" if evidence.final else "evaluated",
        reason=stopped,
        points=evidence.points,
        train=found.train,
        validation=found.validation,
        gap=found.gap,
        behind=found.behind,
        curve=found.curve,
        diagnosis=found.diagnosis,
        certainty=found.certainty,
        evidence=evidence_of(scale.name, found, ruling, errors, metric),
    )


def _memory(peak: int | None, weights: int, device: Device) -> int | None:
    """Activations, and weights unless the device executes them from flash."""
    if peak is None:
        return None
    return peak + (0 if device.flash_bytes is not None else weights)


def _breaks(budget: Budget, latency: float | None, size: int, memory: int | None) -> tuple[Violation, ...]:
    rows: tuple[tuple[Limit, float | None, float | None], ...] = (
        ("latency", latency, budget.latency_s),
        ("size", size, budget.size_bytes),
        ("memory", memory, budget.memory_bytes),
    )
    return tuple(
        Violation(limit=limit, got=got, allowed=allowed)
        for limit, got, allowed in rows
        if got is not None and allowed is not None and got > allowed
    )
