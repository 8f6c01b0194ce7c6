"""Why the chosen file is what it is, in words: what each lever bought, why its neighbours lost, what levers do on this device."""

from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.report import _format as fmt
from sizewise.report import _story as story
from sizewise.types import Candidate, Gain, Interval, Measurement, Neighbour, Quality, RunRecord
from sizewise.units import format_bytes, format_seconds

__all__ = [
    "NO_FASTER",
    "Effect",
    "Rival",
    "Stage",
    "by_technique",
    "effects",
    "figures_of",
    "no_faster",
    "refused",
    "rivals",
    "speed",
    "stages",
]

NO_FASTER = "Levers that did not make a file measurably faster on this device"
_SAME_SIZE = 0.005  # ratios that print as 1.00


@dataclass(frozen=True)
class Stage:
    """One step of the way from the reference to the chosen file.

    Attributes:
        levers: what was done, each by itself; of the first stage the reference's name.
        latency_s: afterwards, as its ratio to the reference's module in the same rounds says, which slow spells of the machine leave alone.
        size_bytes: afterwards.
        quality: afterwards, on validation.
        faster: how the latency compares with the stage before, in words.
        smaller: how the size does.
        note: what a reader should know of the quality, or "".
        noise: whether the latency may as well not have changed.
    """

    levers: tuple[str, ...]
    latency_s: float
    size_bytes: int
    quality: Quality
    faster: str = ""
    smaller: str = ""
    note: str = ""
    noise: bool = False

    @property
    def name(self) -> str:
        """All of its levers."""
        return " + ".join(self.levers)


@dataclass(frozen=True)
class Rival:
    """A neighbour in words: what differs, its figures as far as known, and why it lost."""

    change: str
    latency: str
    size: str
    drop: str
    why: str


@dataclass(frozen=True)
class Effect:
    """A lever measured with and without, in words.

    Attributes:
        technique: of the lever, without its settings.
        lever: with its settings.
        on: the plan that it was added to.
        latency: ratio with its interval.
        size: ratio.
        drop: what it costs in quality, by the point estimates.
        faster: whether the whole interval says so.
        ratio: of the latencies.
    """

    technique: str
    lever: str
    on: str
    latency: str
    size: str
    drop: str
    faster: bool
    ratio: float


def figures_of(candidate: Candidate) -> Measurement | None:
    """What is known of its file."""
    return candidate.measured or candidate.partly


def speed(ratio: Interval) -> str:
    """ "1.5 times [1.3, 1.8] faster" for a latency of 0.67 times another; says when the noise hides the difference."""
    found = Interval(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low, n=ratio.n)
    if _within_noise(ratio):
        return f"as fast within the noise [{fmt.ratio(found.low)}, {fmt.ratio(found.high)}]"
    return story.how_fast(found)


def _within_noise(ratio: Interval) -> bool:
    return ratio.low <= 1 <= ratio.high and ratio.low < ratio.high


def _smaller(ratio: float) -> str:
    return "as large" if abs(ratio - 1) < _SAME_SIZE else fmt.times(1 / ratio, "smaller", "larger")


# ---- what each lever bought


def stages(record: RunRecord) -> tuple[Stage, ...]:
    """The reference's float PyTorch module, then what every lever made of it; nothing where that is not known."""
    found = record.explanation
    scale = next((s for s in record.scales if s.name == record.reference), None)
    if found is None or not found.waterfall or scale is None:
        return ()
    name, latency = f"float PyTorch {record.reference}", record.reference_torch_latency.value
    first = Stage((name,), latency, record.reference_weight_bytes, scale.quality)
    return (first, *(_stage(record, gain) for gain in found.waterfall))


def _stage(record: RunRecord, gain: Gain) -> Stage:
    candidate = record.candidate(gain.after)
    file = figures_of(candidate)
    assert file is not None
    seen = f"quality of {fmt.plural(file.quality.score.n, 'example')}" if candidate.measured is None or candidate.unread else ""
    return Stage(
        levers=gain.levers,
        latency_s=file.latency.value if gain.after == record.chosen else file.latency_ratio * record.reference_torch_latency.value,
        size_bytes=file.size_bytes,
        quality=file.quality,
        faster=speed(gain.latency),
        smaller=_smaller(gain.size_ratio),
        note=seen,
        noise=_within_noise(gain.latency),
    )


# ---- why not the others


def rivals(record: RunRecord) -> tuple[Rival, ...]:
    """The neighbours of the chosen plan, the most telling first."""
    found = record.explanation
    return tuple(_rival(record, neighbour) for neighbour in found.neighbours) if found else ()


def _rival(record: RunRecord, neighbour: Neighbour) -> Rival:
    chosen, metric = story.winner(record), record.metric
    candidate = record.candidate(neighbour.candidate) if neighbour.candidate else None
    file = figures_of(candidate) if candidate else None
    why = _why(record, neighbour, candidate)
    if file is not None:
        drop = fmt.drop_value(file.quality.drop.value, metric) if file.quality.drop else ""
        return Rival(neighbour.change, format_seconds(file.latency.value), format_bytes(file.size_bytes), drop, why)
    if neighbour.latency is None or neighbour.size_ratio is None:
        return Rival(neighbour.change, "", "", "", why)
    latency, size = chosen.latency.value * neighbour.latency.value, round(chosen.size_bytes * neighbour.size_ratio)
    drop = fmt.drop_value(neighbour.drop.value, metric) if neighbour.drop else ""
    return Rival(neighbour.change, f"~{format_seconds(latency)}", f"~{format_bytes(size)}", f"~{drop}" if drop else "", why)


def _why(record: RunRecord, neighbour: Neighbour, candidate: Candidate | None) -> str:
    if candidate is not None:
        return _why_tried(record, neighbour, candidate) if candidate.measured else f"{candidate.status}: {candidate.reason}"
    if neighbour.why == "harsher" and neighbour.because is not None:
        milder = record.candidate(neighbour.because)
        return f"not tried: it does more than {fmt.plan_name(milder.plan)}, which {_became(milder)}"
    if neighbour.why == "needless":
        return "not tried: it only loses less quality, and the chosen file loses little enough"
    chance = "" if neighbour.chance is None else f", {_percent(neighbour.chance)} to be the best that fits"
    return f"not tried{', the search had ended' if neighbour.why == 'open' else ''}: predicted as shown{chance}"


def _became(candidate: Candidate) -> str:
    return "failed" if candidate.status == "failed" else "loses too much"


def _why_tried(record: RunRecord, neighbour: Neighbour, candidate: Candidate) -> str:
    measured = candidate.measured
    assert measured is not None
    broken = ", ".join(
        f"{fmt.limit_name(v.limit, record.metric)} by {_beyond(record, v.limit, v.got, v.allowed)}"
        for v in record.budget.violations(measured)
    )
    if neighbour.why == "breaks":
        return f"breaks {broken}"
    if neighbour.why == "further":
        return f"is further from the budget: breaks {broken}"
    if neighbour.why == "unsure":
        ours, its = (_percent(c.proof_chance or 0.0) for c in (record.winner, candidate))
        only = "at most" if candidate.unread else "only"
        return f"fits, but the test split would prove that with a chance of {its} {only}, not {ours}"
    if neighbour.why == "unproved":
        return f"fits, but the test split did not prove it{_side_by_side(neighbour)}"
    if neighbour.why == "close":
        return f"is as good within the noise of the latencies{_side_by_side(neighbour)}"
    if neighbour.why == "worse":
        ours, its = (fmt.quality_value(q.score.value, record.metric) for q in (story.winner(record).quality, measured.quality))
        return f"fits, but {record.metric} is {its}, not {ours}" if its != ours else "fits and is as good, but costs more"
    return f"fits, but costs more{_side_by_side(neighbour)}"


def _beyond(record: RunRecord, limit: str, got: float, allowed: float) -> str:
    if limit == "latency":
        return format_seconds(got - allowed)
    if limit in ("size", "memory"):
        return format_bytes(round(got - allowed))
    return fmt.drop_value(abs(got - allowed), record.metric, signed=False)


def _side_by_side(neighbour: Neighbour) -> str:
    if neighbour.latency is None or neighbour.size_ratio is None:
        return ""
    return f": {speed(neighbour.latency)}, {_smaller(neighbour.size_ratio)}"


def _percent(chance: float) -> str:
    return f"{100 * chance:.0f} %" if chance >= 0.01 or not chance else "under 1 %"


# ---- what levers do here


def effects(record: RunRecord) -> tuple[Effect, ...]:
    """Every lever that was measured with and without, those that do not make it faster first, the slowest of them first."""
    found = record.explanation
    rows = [_effect(record, gain) for gain in found.levers if gain.before is not None] if found else []
    return tuple(sorted(rows, key=lambda row: (row.faster, -row.ratio)))


def _effect(record: RunRecord, gain: Gain) -> Effect:
    assert gain.before is not None
    before, after = record.candidate(gain.before), record.candidate(gain.after)
    lever = " + ".join(gain.levers)
    drops = [file.quality.drop for c in (before, after) if (file := figures_of(c)) and file.quality.drop]
    return Effect(
        technique=lever.partition("(")[0].partition(" ")[0],
        lever=lever,
        on=fmt.plan_name(before.plan),
        latency=fmt.interval(gain.latency, fmt.ratio),
        size=fmt.ratio(gain.size_ratio),
        drop=fmt.drop_value(drops[1].value - drops[0].value, record.metric) if len(drops) == 2 else "",
        faster=gain.faster,
        ratio=gain.latency.value,
    )


def by_technique(found: Sequence[Effect]) -> dict[str, list[Effect]]:
    """Effects of every technique, in their order."""
    groups: dict[str, list[Effect]] = {}
    for effect in found:
        groups.setdefault(effect.technique, []).append(effect)
    return groups


def no_faster(record: RunRecord) -> tuple[str, ...]:
    """Every technique that did not make a file faster here, how often, and the figures of its slowest pair."""
    found = []
    for technique, rows in by_technique(effects(record)).items():
        slow = [row for row in rows if not row.faster]
        if slow:
            worst = slow[0]
            how_often = f"in {len(slow)} of {fmt.plural(len(rows), 'measured pair')}" if len(rows) > 1 else "in the one measured pair"
            figures = f"{worst.lever} on {worst.on}: {worst.latency} times the latency, {worst.size} times the size"
            found.append(f"{technique} {how_often}; {figures}")
    return tuple(found)


def refused(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """Plans that could not be made, and why; of the same reason one, with a count of the others."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in record.candidates:
        if candidate.status == "failed":
            groups.setdefault(candidate.reason or "no reason recorded", []).append(candidate)
    return tuple(
        (fmt.plan_name(rows[0].plan) + (f" and {fmt.plural(len(rows) - 1, 'other')}" if len(rows) > 1 else ""), reason)
        for reason, rows in groups.items()
    )
