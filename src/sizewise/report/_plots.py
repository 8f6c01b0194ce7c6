"""The two plots: latency and file size against quality."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import plotly.io

from sizewise.report import _format as fmt
from sizewise.report import _story as story
from sizewise.report._page import Html
from sizewise.types import Candidate, Measurement, RunRecord
from sizewise.units import format_bytes, format_seconds

__all__ = ["SIZE", "SPEED", "Axis", "draw", "plotly_script"]

# Okabe and Ito's colours, told apart by colour-blind readers
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D31")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "pentagon", "hexagon", "x")
_INK, _GREY = "#1c2126", "#59626c"
# the buttons are named one by one since plotly's own choice has one that sends the data to a server
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}

_DASHED = {"color": "#b3261e", "width": 1.2, "dash": "dash"}
_NOTE = {"showarrow": False, "font": {"color": "#b3261e", "size": 12}}

Point = tuple[Candidate, Measurement]
Spans = tuple[tuple[float, float], tuple[float, float]]  # ends of x (logarithms to base 10) and of y


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


def plotly_script() -> Html:
    """Plotly's JavaScript itself, so that the page needs no network."""
    return Html(f"<script>{plotly.offline.get_plotlyjs()}</script>")


def draw(record: RunRecord, axis: Axis) -> tuple[Html, tuple[str, ...]]:
    """One plot, and remarks about limits that lie outside it."""
    points = [(c, c.measured) for c in record.candidates if c.measured]
    better = record.reference_quality.higher_is_better
    figure = go.Figure([_staircase(points, axis, higher_is_better=better), *_scales(record, points, axis), _star(record, axis)])
    figure.add_traces(_legend(points))
    spans = (_span([math.log10(axis.read(m)) for _, m in points]), _span([v for _, m in points for v in _ends(m)]))
    ticks = _ticks(*(10**end for end in spans[0]))
    figure.update_layout(
        template="plotly_white",
        height=520,
        margin={"l": 64, "r": 20, "t": 24, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 12.5, "color": _INK},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        xaxis={
            "type": "log",
            "range": spans[0],
            "title": f"{axis.name} (log scale)",
            "ticks": "outside",
            "tickvals": ticks,
            "ticktext": [axis.show(tick).replace(".00 ", " ").replace(".0 ", " ") for tick in ticks],
        },
        yaxis={"range": spans[1], "title": f"{html.escape(record.metric)} on validation", "tickformat": _percent(record)},
    )
    remarks = _draw_limits(figure, record, axis, points, spans)
    inner = plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=_CONFIG, div_id=f"plot-{axis.name.replace(' ', '-')}")
    return Html(inner), remarks


def _percent(record: RunRecord) -> str:
    return ".4~%" if fmt.is_share(record.metric) else ".4~g"


def _ends(m: Measurement) -> tuple[float, float]:
    return m.quality.score.low, m.quality.score.high


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.07 * (high - low) or max(0.05 * abs(high), 0.05)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade, or finer where that leaves fewer than four."""
    for digits in ((1, 2, 5), range(1, 10), [n / 10 for n in range(10, 100)]):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(found) >= 4:
            break
    return found[:: max(1, len(found) // 12)]


def _scales(record: RunRecord, points: Sequence[Point], axis: Axis) -> list[Any]:
    """One trace per scale: colour by scale, symbol by kind of plan, area by file size, a dark edge on the frontier."""
    symbols, largest = _symbols(points), max(m.size_bytes for _, m in points)
    traces = []
    for index, scale in enumerate(record.scales):
        mine = [(c, m) for c, m in points if c.plan.scale == scale.name]
        if not mine:
            continue
        marker = {
            "color": _COLOURS[index % len(_COLOURS)],
            "symbol": [symbols[fmt.kind(c.plan)] for c, _ in mine],
            "size": [8 + 20 * math.sqrt(m.size_bytes / largest) if axis.sized else 13 for _, m in mine],
            "line": {"color": [_INK if c.on_frontier else "#fff" for c, _ in mine], "width": [2 if c.on_frontier else 1 for c, _ in mine]},
            "opacity": 0.9,
        }
        hover = [_hover(*point) for point in mine]
        traces.append(_scatter(mine, axis, name=html.escape(scale.name), marker=marker, error_y=_errors(mine), hovertext=hover))
    return traces


def _scatter(points: Sequence[Point], axis: Axis, **options: Any) -> Any:
    xs, ys = [axis.read(m) for _, m in points], [m.quality.score.value for _, m in points]
    return go.Scatter(**{"x": xs, "y": ys, "mode": "markers", "hoverinfo": "text", **options})


def _errors(points: Sequence[Point]) -> dict[str, Any]:
    scores = [m.quality.score for _, m in points]
    up, down = [s.high - s.value for s in scores], [s.value - s.low for s in scores]
    look = {"thickness": 0.8, "width": 2, "color": "rgba(89,98,108,0.45)"}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **look}


def _hover(candidate: Candidate, m: Measurement) -> str:
    # plotly reads simple HTML in labels, so names are escaped here although the page escapes the script's text once more
    lines = (
        fmt.plan_name(candidate.plan),
        fmt.interval(m.latency, format_seconds),
        f"{format_bytes(m.size_bytes)} on disk, {fmt.interval(m.memory, format_bytes)} memory",
        f"{m.quality.metric} {fmt.quality(m.quality.score, m.quality.metric)}",
        "on the frontier" if candidate.on_frontier else "not on the frontier",
    )
    return "<br>".join(html.escape(line) for line in lines)


def _staircase(points: Sequence[Point], axis: Axis, *, higher_is_better: bool) -> Any:
    """The best quality at or below each x: the frontier's edge in this plot's two figures."""
    sign = 1 if higher_is_better else -1
    edge: list[Point] = []
    for point in sorted(points, key=lambda p: (axis.read(p[1]), -sign * p[1].quality.score.value)):
        if not edge or sign * point[1].quality.score.value > sign * edge[-1][1].quality.score.value:
            edge.append(point)
    line = {"shape": "hv", "color": _GREY, "width": 1.2, "dash": "dot"}
    return _scatter(edge, axis, mode="lines", line=line, name="best at this cost", hoverinfo="skip")


def _star(record: RunRecord, axis: Axis) -> Any:
    point = (record.winner, story.winner(record))
    marker = {"symbol": "star", "size": 15, "color": "#ffd60a", "line": {"color": _INK, "width": 1.5}}
    return _scatter([point], axis, name="chosen", marker=marker, hovertext=[_hover(*point)])


def _symbols(points: Sequence[Point]) -> dict[str, str]:
    kinds = dict.fromkeys(fmt.kind(c.plan) for c, _ in sorted(points, key=lambda p: len(p[0].plan.steps)))
    return {name: _SYMBOLS[index % len(_SYMBOLS)] for index, name in enumerate(kinds)}


def _legend(points: Sequence[Point]) -> list[Any]:
    """Grey markers that explain the symbols and the frontier's edge; they stand for no data."""
    rows: list[tuple[str, dict[str, Any]]] = [
        (name, {"symbol": symbol, "color": _GREY, "size": 11}) for name, symbol in _symbols(points).items()
    ]
    rows.append(("on the frontier", {"symbol": "circle", "color": "#ffffff", "size": 11, "line": {"color": _INK, "width": 2}}))
    nowhere = {"x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip"}
    return [go.Scatter(name=html.escape(name), marker=marker, **nowhere) for name, marker in rows]


def _draw_limits(figure: Any, record: RunRecord, axis: Axis, points: Sequence[Point], spans: Spans) -> tuple[str, ...]:
    """The budget as dashed lines; a limit outside the plot becomes a remark, since an axis that reached it would hide the rest."""
    remarks = []
    limit = axis.limit(record)
    if limit is not None:
        text, at = f"{axis.name} at most {axis.show(limit)}", math.log10(limit)
        if spans[0][0] <= at <= spans[0][1]:
            anchor = "right" if at > sum(spans[0]) / 2 else "left"
            figure.add_shape(type="line", x0=limit, x1=limit, yref="paper", y0=0, y1=1, line=_DASHED)
            # plotly wants the logarithm here and the value above
            figure.add_annotation(text=text, x=at, xanchor=anchor, yref="paper", y=0, yanchor="bottom", **_NOTE)
        else:
            remarks.append(f"The limit, {text}, lies to the {'right' if at > spans[0][1] else 'left'} of the plot.")
    for text, value in _quality_limits(record):
        if spans[1][0] <= value <= spans[1][1]:
            side = _free_side(points, axis, value, spans)
            figure.add_shape(type="line", y0=value, y1=value, xref="paper", x0=0, x1=1, line=_DASHED)
            figure.add_annotation(
                text=html.escape(text), y=value, yanchor="bottom", xref="paper", x=float(side == "right"), xanchor=side, **_NOTE
            )
        else:
            remarks.append(f"The limit, {text}, lies {'above' if value > spans[1][1] else 'below'} the plot.")
    return tuple(remarks)


def _free_side(points: Sequence[Point], axis: Axis, value: float, spans: Spans) -> str:
    """The end of a horizontal line with fewer markers near it."""
    near = 0.1 * (spans[1][1] - spans[1][0])
    found = [math.log10(axis.read(m)) < sum(spans[0]) / 2 for _, m in points if abs(m.quality.score.value - value) < near]
    return "right" if sum(found) > len(found) / 2 else "left"


def _quality_limits(record: RunRecord) -> list[tuple[str, float]]:
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
