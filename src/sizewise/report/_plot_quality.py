"""Three plots of an advice: quality against latency, size and MACs, one marker per scale."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sizewise.advice import AdviceRecord, ScaleAdvice
from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report import _plots as plots
from sizewise.report._page import Html
from sizewise.types import Interval, ModelProfile
from sizewise.units import format_bytes, format_count, format_seconds

__all__ = ["AXES", "Axis", "draw"]

Marker = tuple[int, ScaleAdvice, Interval, Interval]  # the scale's place in the record, the scale, its cost and its quality


@dataclass(frozen=True)
class Axis:
    """What runs along x: how to read, print and limit it."""

    name: str
    read: Callable[[ModelProfile], Interval | None]
    show: Callable[[float], str]
    limit: Callable[[AdviceRecord], float | None]


AXES = (
    Axis("latency", lambda p: p.latency_s, format_seconds, lambda r: r.budget.latency_s),
    Axis("size", lambda p: Interval.exact(p.weight_bytes), format_bytes, lambda r: r.budget.size_bytes),
    Axis("MACs", lambda p: Interval.exact(p.macs), format_count, lambda _: None),
)


def draw(record: AdviceRecord, axis: Axis) -> tuple[Html, tuple[str, ...]] | None:
    """One plot, and remarks about what is not in it; None where no scale has both figures."""
    markers = _markers(record, axis)
    if not markers:
        return None
    figure = go.Figure([*_star(record, markers), *(_trace(*marker, record) for marker in markers)])
    if any(quality.how == "predicted" for *_, quality in markers):
        figure.add_traces(plots.legend_marks([("quality predicted by the curve", _look(plots.GREY, predicted=True))]))
    ends = (
        plots.span([math.log10(end) for *_, cost, _ in markers for end in (cost.low, cost.high)]),
        plots.span([end for *_, quality in markers for end in (quality.low, quality.high)]),
    )
    plots.arrange(figure, plots.log_axis(axis.name, ends[0], axis.show), plots.quality_axis(record.metric, ends[1]), height=440)
    limit, places = axis.limit(record), [(cost.value, quality.value) for *_, cost, quality in markers]
    upright = [] if limit is None else [(f"{axis.name} at most {axis.show(limit)}", limit)]
    remarks = plots.draw_limits(figure, upright, _quality_limits(record), places, ends)
    return plots.in_plot(figure, f"quality-{axis.name}"), (*remarks, *_left_out(record, markers))


def _markers(record: AdviceRecord, axis: Axis) -> list[Marker]:
    """Logarithms leave no room for a cost of nothing."""
    rows = ((index, scale, axis.read(scale.profile), scale.validation) for index, scale in enumerate(record.scales))
    return [(i, scale, cost, quality) for i, scale, cost, quality in rows if cost and cost.low > 0 and quality]


def _left_out(record: AdviceRecord, markers: Sequence[Marker]) -> tuple[str, ...]:
    drawn = {scale.name for _, scale, *_ in markers}
    names = [scale.name for scale in record.scales if scale.name not in drawn]
    return (f"Not drawn, since a figure is missing: {', '.join(names)}.",) if names else ()


def _look(colour: str, *, predicted: bool) -> dict[str, Any]:
    edge = {"color": colour if predicted else "#fff", "width": 2 if predicted else 1}
    return {"color": "#fff" if predicted else colour, "size": 13, "symbol": "circle", "line": edge}


def _trace(index: int, scale: ScaleAdvice, cost: Interval, quality: Interval, record: AdviceRecord) -> Any:
    bars = {"error_y": plots.errors([quality])}
    if cost.low < cost.high:
        bars["error_x"] = plots.errors([cost])
    look = _look(plots.colour(index), predicted=quality.how == "predicted")
    look["symbol"] = plots.symbol(index // plots.COLOURS)  # colours repeat where there are many scales
    return _scatter([cost], [quality], name=html.escape(scale.name), marker=look, hovertext=[_hover(record, scale)], **bars)


def _scatter(costs_: Sequence[Interval], qualities: Sequence[Interval], **options: Any) -> Any:
    return go.Scatter(x=[c.value for c in costs_], y=[q.value for q in qualities], mode="markers", hoverinfo="text", **options)


def _hover(record: AdviceRecord, scale: ScaleAdvice) -> str:
    profile, metric = scale.profile, record.metric
    quality = fmt.quality(scale.validation, metric) if scale.validation else ""
    behind = f"{fmt.drop(scale.behind, metric)} behind the best" if scale.behind and scale.name != record.best else ""
    size = f"{format_count(profile.params)} parameters, {format_bytes(profile.weight_bytes)}, {format_count(profile.macs)} MACs"
    lines = (scale.name, f"latency {costs.latency(profile.latency_s)}", size, f"{metric} {quality}", behind, scale.diagnosis or "")
    return plots.hover_text(line for line in lines if line)


def _star(record: AdviceRecord, markers: Sequence[Marker]) -> list[Any]:
    """Behind the scale that the decision names, so that its colour stays in sight."""
    name, word = (record.recommended, "recommended") if record.recommended is not None else (record.safe, "safe")
    return [
        _scatter([cost], [quality], name=word, marker=plots.STAR | {"size": 30}, hovertext=[_hover(record, scale)])
        for _, scale, cost, quality in markers
        if scale.name == name
    ]


def _quality_limits(record: AdviceRecord) -> list[plots.Line]:
    """The tolerance below the best, and a least quality."""
    found, metric, higher = [], record.metric, record.higher_is_better
    best = record.scale(record.best).validation if record.best is not None else None
    if best is not None:
        side, sign = ("below", -1) if higher else ("above", 1)
        allowed = fmt.drop_value(record.tolerance, metric, signed=False)
        found.append((f"{allowed} {side} {record.best}", best.value + sign * record.tolerance))
    if record.budget.min_quality is not None:
        found.append((fmt.at_limit("min_quality", record.budget.min_quality, metric, higher_is_better=higher), record.budget.min_quality))
    return found
