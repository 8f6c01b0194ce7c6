"""Figures to text, the same in every report: intervals share one unit, shares print as percent, drops as points."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from sizewise.types import Candidate, Interval, Limit, Plan
from sizewise.units import format_bytes, format_count, format_points, format_seconds

__all__ = [
    "at_best",
    "at_limit",
    "drop",
    "drop_value",
    "flat",
    "interval",
    "is_share",
    "kind",
    "limit_figure",
    "limit_name",
    "limit_value",
    "plan_name",
    "plural",
    "portion",
    "printable",
    "quality",
    "quality_value",
    "ratio",
    "speed",
    "times",
]

# the metrics of sizewise.evaluate whose 1.0 is 100 %; a record holds only the metric's name
_SHARES = re.compile(r"accuracy|top\d+|exact_match|cosine")
_LIMITS: dict[Limit, str] = {"latency": "latency", "size": "file size", "memory": "memory"}


def is_share(metric: str) -> bool:
    """Whether a metric's values are shares of 1, which print as percent."""
    return _SHARES.fullmatch(metric) is not None


def interval(figure: Interval, show: Callable[[float], str]) -> str:
    """ "41.2 us [40.1, 43.0]"; the bounds repeat the unit only where it differs, and are left out where they say nothing."""
    text = show(figure.value)
    source = "" if figure.how == "measured" else f" ({figure.how})"
    if figure.low == figure.high:
        return text + source
    bounds = (show(figure.low), show(figure.high))
    unit = text.partition(" ")[2]
    one_unit = unit and " " not in unit  # not so in "2 m 05 s"
    if one_unit and all(bound.partition(" ")[2] == unit for bound in bounds):
        bounds = (bounds[0].partition(" ")[0], bounds[1].partition(" ")[0])
    return f"{text} [{bounds[0]}, {bounds[1]}]{source}"


def quality_value(value: float, metric: str) -> str:
    """ "97.50 %" for a share, "0.4213" for anything else."""
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4g}"


def quality(figure: Interval, metric: str) -> str:
    """A quality with its interval: "97.50 % [95.51, 98.63]"."""
    return interval(figure, lambda value: quality_value(value, metric))


def at_best(candidate: Candidate, text: str) -> str:
    """A quality of a candidate in words, which is its best where a part of validation is unread."""
    return f"at best {text}" if candidate.unread else text


def drop_value(value: float, metric: str, *, signed: bool = True) -> str:
    """A drop without interval: "+0.25 pt" for a share, "+0.0142" for anything else."""
    value += 0.0  # no "-0.00"
    return format_points(value, signed=signed) if is_share(metric) else f"{value:{'+' if signed else ''}.4g}"


def drop(figure: Interval | None, metric: str) -> str:
    """A drop with its interval, positive when worse: "+0.25 pt [-0.60, +1.10]"; "" when there is none."""
    return interval(figure, lambda value: drop_value(value, metric)) if figure else ""


def limit_name(limit: Limit, metric: str) -> str:
    """What a limit is about: "latency", "file size", "drop in accuracy"."""
    return _LIMITS.get(limit) or (f"drop in {metric}" if limit == "max_drop" else metric)


def limit_value(limit: Limit, value: float, metric: str) -> str:
    """A figure without interval, in the limit's unit."""
    if limit == "latency":
        return format_seconds(value)
    if limit in ("size", "memory"):
        return format_bytes(value)
    return drop_value(value, metric, signed=False) if limit == "max_drop" else quality_value(value, metric)


def limit_figure(limit: Limit, figure: Interval, metric: str) -> str:
    """A figure with its interval, in the limit's unit."""
    return drop(figure, metric) if limit == "max_drop" else interval(figure, lambda value: limit_value(limit, value, metric))


def at_limit(limit: Limit, allowed: float, metric: str, *, higher_is_better: bool) -> str:
    """ "at most 5.00 ms", "at least 95.00 %"."""
    word = "at least" if limit == "min_quality" and higher_is_better else "at most"
    return f"{word} {limit_value(limit, allowed, metric)}"


def ratio(value: float) -> str:
    """A bare ratio: two digits after the point below 2, then fewer."""
    return f"{value:.{2 if value < 1.995 else 1 if value < 9.95 else 0}f}"


def times(value: float, more: str, less: str) -> str:
    """ "5.1 times faster", or "1.25 times slower" when the ratio is below 1."""
    return f"{ratio(value)} times {more}" if value >= 1 else f"{ratio(1 / max(value, 1e-12))} times {less}"


def portion(value: float) -> str:
    """A part of a whole: "61 %", "2.4 %", "under 0.1 %"."""
    percent = 100 * value
    if 0 < percent < 0.05:
        return "under 0.1 %"
    return f"{percent:.{0 if percent >= 9.95 or not percent else 1}f} %"


def speed(macs_per_s: float) -> str:
    """Multiply-accumulates per second: "76.8 GMAC/s", "33.5 TMAC/s"."""
    if macs_per_s >= 0.9995e12:
        return f"{macs_per_s / 1e12:.3g} TMAC/s"
    text = format_count(macs_per_s)
    return f"{text if text[-1].isalpha() else text + ' '}MAC/s"


def plural(count: int, noun: str) -> str:
    """ "1 candidate", "1,204 candidates"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plan_name(plan: Plan) -> str:
    """The scale and what is done to it: "resnet-s, int8_static"."""
    return f"{plan.scale}, {plan.label}"


def kind(plan: Plan) -> str:
    """The techniques of a plan without their settings: "float", "channel_pruning + int8_static"."""
    return " + ".join(step.technique for step in plan.steps) or "float"


def flat(value: Any) -> str:
    """A JSON value on one line: "examples 400, sha256 7754"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flat(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, default=str)


def printable(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
