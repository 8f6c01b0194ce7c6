"""The two plots of a run: latency and file size against quality."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sizewise.report import _format as fmt
from sizewise.report import _plots as plots
from sizewise.report import _story as story
from sizewise.report._page import Html
from sizewise.types import Candidate, Measurement, RunRecord
from sizewise.units import format_bytes, format_seconds

__all__ = ["SIZE", "SPEED", "Axis", "draw"]

Point = tuple[Candidate, Measurement]


@dataclass(frozen=True)
class Axis:
    """What runs along x: how to read, print and limit it."""

    name: str
    read: Callable[[Measurement], float]
    show: Callable[[float], str]
    limit: Callable[[RunRecord], float | None]
    sized: bool


SPEED = Axis("latency", lambda m: m.latency.value, format_seconds, lambda r: r.budget.latency_s, sized=True)
SIZE = Axis("file size", lambda m: m.size_bytes, format_bytes, lambda r: r.budget.size_bytes, sized=False)


def draw(record: RunRecord, axis: Axis) -> tuple[Html, tuple[str, ...]]:
    """One plot, and remarks about limits that lie outside it."""
    points = [(c, c.measured) for c in record.candidates if c.measured]
    better = record.reference_quality.higher_is_better
    figure = go.Figure([_staircase(points, axis, higher_is_better=better), *_scales(record, points, axis), _star(record, axis)])
    figure.add_traces(_legend(points))
    spans = (plots.span([math.log10(axis.read(m)) for _, m in points]), plots.span([v for _, m in points for v in _ends(m)]))
    plots.arrange(figure, plots.log_axis(axis.name, spans[0], axis.show), plots.quality_axis(record.metric, spans[1]))
    places = [(axis.read(m), m.quality.score.value) for _, m in points]
    remarks = plots.draw_limits(figure, _cost_limit(record, axis), _quality_limits(record), places, spans)
    return plots.in_plot(figure, axis.name), remarks


def _ends(m: Measurement) -> tuple[float, float]:
    return m.quality.score.low, m.quality.score.high


def _scales(record: RunRecord, points: Sequence[Point], axis: Axis) -> list[Any]:
    """One trace per scale: colour by scale, symbol by kind of plan, area by file size, a dark edge on the frontier."""
    symbols, largest = _symbols(points), max(m.size_bytes for _, m in points)
    traces = []
    for index, scale in enumerate(record.scales):
        mine = [(c, m) for c, m in points if c.plan.scale == scale.name]
        if not mine:
            continue
        edge = {"color": [plots.INK if c.on_frontier else "#fff" for c, _ in mine], "width": [2 if c.on_frontier else 1 for c, _ in mine]}
        marker = {
            "color": plots.colour(index),
            "symbol": [symbols[fmt.kind(c.plan)] for c, _ in mine],
            "size": [8 + 20 * math.sqrt(m.size_bytes / largest) if axis.sized else 13 for _, m in mine],
            "line": edge,
            "opacity": 0.9,
        }
        bars = plots.errors([m.quality.score for _, m in mine])
        hover = [_hover(*point) for point in mine]
        traces.append(_scatter(mine, axis, name=html.escape(scale.name), marker=marker, error_y=bars, hovertext=hover))
    return traces


def _scatter(points: Sequence[Point], axis: Axis, **options: Any) -> Any:
    xs, ys = [axis.read(m) for _, m in points], [m.quality.score.value for _, m in points]
    return go.Scatter(**{"x": xs, "y": ys, "mode": "markers", "hoverinfo": "text", **options})


def _hover(candidate: Candidate, m: Measurement) -> str:
    return plots.hover_text(
        (
            fmt.plan_name(candidate.plan),
            fmt.interval(m.latency, format_seconds),
            f"{format_bytes(m.size_bytes)} on disk, {fmt.interval(m.memory, format_bytes)} memory",
            f"{m.quality.metric} {fmt.at_best(candidate, fmt.quality(m.quality.score, m.quality.metric))}",
            "on the frontier" if candidate.on_frontier else "not on the frontier",
        )
    )


def _staircase(points: Sequence[Point], axis: Axis, *, higher_is_better: bool) -> Any:
    """The best quality at or below each x: the frontier's edge in this plot's two figures."""
    sign = 1 if higher_is_better else -1
    edge: list[Point] = []
    for point in sorted(points, key=lambda p: (axis.read(p[1]), -sign * p[1].quality.score.value)):
        if not edge or sign * point[1].quality.score.value > sign * edge[-1][1].quality.score.value:
            edge.append(point)
    line = {"shape": "hv", "color": plots.GREY, "width": 1.2, "dash": "dot"}
    return _scatter(edge, axis, mode="lines", line=line, name="best at this cost", hoverinfo="skip")


def _star(record: RunRecord, axis: Axis) -> Any:
    point = (record.winner, story.winner(record))
    return _scatter([point], axis, name="chosen", marker=plots.STAR, hovertext=[_hover(*point)])


def _symbols(points: Sequence[Point]) -> dict[str, str]:
    kinds = dict.fromkeys(fmt.kind(c.plan) for c, _ in sorted(points, key=lambda p: len(p[0].plan.steps)))
    return {name: plots.symbol(index) for index, name in enumerate(kinds)}


def _legend(points: Sequence[Point]) -> list[Any]:
    """Grey markers that explain the symbols and the frontier's edge."""
    rows: list[tuple[str, dict[str, Any]]] = [
        (name, {"symbol": symbol, "color": plots.GREY, "size": 11}) for name, symbol in _symbols(points).items()
    ]
    rows.append(("on the frontier", {"symbol": "circle", "color": "#ffffff", "size": 11, "line": {"color": plots.INK, "width": 2}}))
    return plots.legend_marks(rows)


def _cost_limit(record: RunRecord, axis: Axis) -> list[plots.Line]:
    limit = axis.limit(record)
    return [] if limit is None else [(f"{axis.name} at most {axis.show(limit)}", limit)]


def _quality_limits(record: RunRecord) -> list[plots.Line]:
    """The lines that `max_drop` and `min_quality` draw on validation quality."""
    found, metric = [], record.metric
    higher = record.reference_quality.higher_is_better
    reference = next((s.quality for s in record.scales if s.name == record.reference), None)
    if record.budget.max_drop is not None and reference is not None:
        allowed = fmt.limit_value("max_drop", record.budget.max_drop, metric)
        side, sign = ("below", -1) if higher else ("above", 1)
        found.append((f"{allowed} {side} {record.reference}", reference.score.value + sign * record.budget.max_drop))
    if record.budget.min_quality is not None:
        found.append((fmt.at_limit("min_quality", record.budget.min_quality, metric, higher_is_better=higher), record.budget.min_quality))
    return found
