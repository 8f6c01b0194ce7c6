"""What `select` found, in sentences."""

from collections.abc import Sequence

from sizewise.advice import Diagnosis, ScaleAdvice
from sizewise.report import _format as fmt
from sizewise.select.errors_of import ErrorScale
from sizewise.select.judge import Judged, Ruling, what_decides

__all__ = ["MEANING", "decision", "evidence_of"]

MEANING: dict[Diagnosis, str] = {
    "underfits": "underfits: go larger",
    "overfits": "overfits: more data or smaller",
    "data-limited": "data-limited: more data would help, a larger scale would not",
    "saturated": "saturated: smaller is enough",
}


def evidence_of(name: str, found: Judged, ruling: Ruling, errors: ErrorScale, metric: str) -> str | None:
    """The figures behind a scale's diagnosis, as one sentence; None without a diagnosis."""
    if found.diagnosis is None or found.validation is None or found.gap is None or found.train is None:
        return None
    parts = [f"{fmt.quality_value(found.train.value, metric)} on training data, {fmt.quality(found.validation, metric)} on validation"]
    parts.append(f"gap {fmt.drop_value(found.gap.value, metric)}")
    if found.behind is not None and name != ruling.best:
        parts.append(f"{fmt.drop(found.behind, metric)} behind {ruling.best}")
    if found.curve is not None:
        gain = errors.difference(found.curve.at_full.value, found.curve.at_double.value)
        parts.append(f"twice the data would bring {fmt.drop_value(gain, metric)}, endless data {fmt.quality(found.curve.ceiling, metric)}")
    smallest = name == (ruling.choice.recommended or ruling.choice.safe)
    meaning = "saturated: this size is enough" if smallest and found.diagnosis == "saturated" else MEANING[found.diagnosis]
    return f"{'; '.join(parts)}: {meaning} (in {100 * (found.certainty or 0):.0f} % of bootstrap draws)"


def decision(ruling: Ruling, scales: Sequence[ScaleAdvice], allowed: Sequence[str], tolerance: float, metric: str, seeds: int) -> str:
    """The recommendation, or why there is none and what would decide."""
    choice, limit = ruling.choice, fmt.limit_value("max_drop", tolerance, metric)
    costs = {scale.name: scale for scale in scales}
    if choice.recommended is not None:
        name = choice.recommended
        if name == ruling.best:
            return f"{name}: no cheaper scale is within {limit} of it"
        behind = ruling.scales[name].behind
        assert behind is not None
        figure = fmt.drop(behind, metric)
        return f"{name}: {figure} behind {ruling.best}, within {limit}, {_saving(costs[name], costs[ruling.best])}"
    reach = [scale.name for scale in scales if scale.name in allowed]
    if not reach:
        return "no scale keeps the budget's cost limits, even after the best shrinking seen at similar layers"
    if not choice.undecided:
        return f"no scale that can keep the budget's cost limits is within {limit} of {ruling.best}; nearest is {_nearest(ruling, reach)}"
    names = ", ".join(choice.undecided)
    text = f"undecided whether {names} would do: the bands overlap the limit of {limit}"
    if choice.safe == ruling.best:
        text += f" of {choice.safe}, which is the best and safe to take"
    elif choice.safe:
        text += f"; {choice.safe} is the smallest that is known to be within it of {ruling.best}"
    return f"{text}. {_needed(ruling, tolerance, seeds)}"


def _needed(ruling: Ruling, tolerance: float, seeds: int) -> str:
    """What would decide the smallest undecided scale, in words."""
    name = ruling.choice.undecided[0]
    more_seeds, more_examples = what_decides(ruling, name, tolerance, seeds)
    ways = [f"{more_seeds} seeds per scale"] if more_seeds and more_seeds > seeds else []
    ways += [f"about {more_examples:,} validation examples"] if more_examples else []
    if not ways:
        return f"{name} lies on the limit itself: another tolerance would decide, more data hardly"
    return f"What would decide {name}: {' or '.join(ways)}"


def _saving(mine: ScaleAdvice, theirs: ScaleAdvice) -> str:
    a, b = mine.profile, theirs.profile
    smaller = fmt.times(b.weight_bytes / max(a.weight_bytes, 1), "smaller", "larger")
    if a.latency_s is None or b.latency_s is None:
        return f"and {smaller}"
    return f"and {fmt.times(b.latency_s.value / a.latency_s.value, 'faster', 'slower')}, {smaller}"


def _nearest(ruling: Ruling, names: Sequence[str]) -> str:
    def behind(name: str) -> float:
        figure = ruling.scales[name].behind if name in ruling.scales else None
        return figure.value if figure is not None else float("inf")

    return min(names, key=behind)
