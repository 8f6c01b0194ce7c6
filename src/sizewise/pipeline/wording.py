"""What `select` found, in sentences."""

from collections.abc import Mapping, Sequence

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
    if choice.recommended is not None:
        return _recommendation(ruling, {scale.name: scale for scale in scales}, allowed, tolerance, metric)
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


def _recommendation(ruling: Ruling, costs: Mapping[str, ScaleAdvice], allowed: Sequence[str], tolerance: float, metric: str) -> str:
    """The scale, what it costs in quality, what it saves, and cheaper ones that are not excluded."""
    name, limit = ruling.choice.recommended, fmt.limit_value("max_drop", tolerance, metric)
    assert name is not None
    text = f"{name}: no cheaper scale is expected to be within {limit} of it"
    if name != ruling.best:
        behind = ruling.scales[name].behind
        text = f"{name}: {fmt.drop(behind, metric)} behind {ruling.best}, within {limit}, {_saving(costs[name], costs[ruling.best])}"
    cheaper = list(costs)[: list(costs).index(name)]
    close = [(other, ruling.scales[other].behind) for other in cheaper if other in allowed and other in ruling.scales]
    not_excluded = [f"{other} ({fmt.drop(found, metric)})" for other, found in close if found is not None and found.low <= tolerance]
    return f"{text}; cheaper and not excluded, but not expected to be within: {', '.join(not_excluded)}" if not_excluded else text


def _needed(ruling: Ruling, tolerance: float, seeds: int) -> str:
    """What would decide the smallest undecided scale, in words."""
    name = ruling.choice.undecided[0]
    more_seeds, more_examples = what_decides(ruling, name, tolerance, seeds)
    ways = [f"{more_seeds} seeds per scale"] if more_seeds and more_seeds > seeds else []
    ways += [f"about {more_examples:,} validation examples"] if more_examples else []
    if not ways:
        return f"Neither more seeds nor more validation examples alone would decide {name}: both, or another tolerance"
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
