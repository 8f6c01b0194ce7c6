"""What all plots share: colours, logarithmic axes with readable ticks, error bars, limits as lines, and a figure's HTML."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io

from sizewise.report import _format as fmt
from sizewise.report._page import Html
from sizewise.types import Interval

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "STAR",
    "Line",
    "Spans",
    "arrange",
    "colour",
    "draw_limits",
    "errors",
    "hover_text",
    "in_plot",
    "legend_marks",
    "log_axis",
    "plotly_script",
    "quality_axis",
    "span",
    "symbol",
]

INK, GREY = "#1c2126", "#59626c"
# Okabe and Ito's colours, told apart by colour-blind readers
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D31")
COLOURS = len(_PALETTE)
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "pentagon", "hexagon", "x")
# the buttons are named one by one since plotly's own choice has one that sends the data to a server
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}
_DASHED = {"color": "#b3261e", "width": 1.2, "dash": "dash"}
_NOTE = {"showarrow": False, "font": {"color": "#b3261e", "size": 12}}
STAR = {"symbol": "star", "size": 15, "color": "#ffd60a", "line": {"color": INK, "width": 1.5}}
_BARS = {"thickness": 0.8, "width": 2, "color": "rgba(89,98,108,0.45)"}

Line = tuple[str, float]  # what a limit is called, and where it lies
Spans = tuple[tuple[float, float], tuple[float, float]]  # ends of x (logarithms to base 10) and of y


def plotly_script() -> Html:
    """Plotly's JavaScript itself, so that the page needs no network."""
    return Html(f"<script>{plotly.offline.get_plotlyjs()}</script>")


def in_plot(figure: Any, name: str) -> Html:
    """The figure's HTML; `name` is unique in the page."""
    return Html(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=_CONFIG, div_id=f"plot-{name.replace(' ', '-')}"))


def arrange(figure: Any, x: dict[str, Any], y: dict[str, Any], height: int = 520) -> None:
    """The look that plots have in common: legend below, text to the left in labels."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 64, "r": 20, "t": 24, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 12.5, "color": INK},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        xaxis=x,
        yaxis=y,
    )


def colour(index: int) -> str:
    """The colour of the scale at that place; repeats after eight."""
    return _PALETTE[index % COLOURS]


def symbol(index: int) -> str:
    """The marker of the kind at that place; repeats after eight."""
    return _SYMBOLS[index % len(_SYMBOLS)]


def log_axis(title: str, ends: tuple[float, float], show: Callable[[float], str]) -> dict[str, Any]:
    """A logarithmic axis between two logarithms to base 10."""
    ticks = _ticks(*(10**end for end in ends))
    texts = [show(tick).replace(".00 ", " ").replace(".0 ", " ") for tick in ticks]
    return {"type": "log", "range": ends, "title": f"{title} (log scale)", "ticks": "outside", "tickvals": ticks, "ticktext": texts}


def quality_axis(metric: str, ends: tuple[float, float]) -> dict[str, Any]:
    """Quality on validation, as percent where it is a share."""
    shown = ".4~%" if fmt.is_share(metric) else ".4~g"
    return {"range": ends, "title": f"{html.escape(metric)} on validation", "tickformat": shown}


def span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds these values with some room."""
    low, high = min(values), max(values)
    room = 0.07 * (high - low) or max(0.05 * abs(high), 0.05)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Decades where there are many, 1, 2, 5 of each where there are few, or finer where that leaves fewer than four."""
    for digits, enough in (((1,), 6), ((1, 2, 5), 4), (range(1, 10), 4), ([n / 10 for n in range(10, 100)], 4)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(found) >= enough:
            break
    return found[:: max(1, len(found) // 12)]


def errors(figures: Sequence[Interval]) -> dict[str, Any]:
    """Bars from the low to the high end of each figure."""
    up, down = [f.high - f.value for f in figures], [f.value - f.low for f in figures]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **_BARS}


def hover_text(lines: Iterable[str]) -> str:
    """Lines of a label. Plotly reads simple HTML in labels, so names are escaped here although the page escapes the script's text."""
    return "<br>".join(html.escape(line) for line in lines)


def legend_marks(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Markers that explain a look in the legend; they stand for no data."""
    nowhere = {"x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip"}
    return [go.Scatter(name=html.escape(name), marker=marker, **nowhere) for name, marker in rows]


def draw_limits(
    figure: Any, at_x: Sequence[Line], at_y: Sequence[Line], points: Sequence[tuple[float, float]], spans: Spans
) -> tuple[str, ...]:
    """Limits as dashed lines; one outside the plot becomes a remark, since an axis that reached it would hide the rest.

    Args:
        figure: with a logarithmic x.
        at_x: limits that stand upright.
        at_y: limits that lie flat.
        points: x and y of every marker, which the lines' names keep clear of.
        spans: ends of both axes.

    Returns:
        A sentence for each limit that is not in the plot.
    """
    upright = (_upright(figure, line, spans) for line in at_x)
    flat = (_flat(figure, line, points, spans) for line in at_y)
    return tuple(remark for remark in (*upright, *flat) if remark)


def _upright(figure: Any, line: Line, spans: Spans) -> str:
    (text, value), (low, high) = line, spans[0]
    at = math.log10(value)
    if not low <= at <= high:
        return f"The limit, {text}, lies to the {'right' if at > high else 'left'} of the plot."
    figure.add_shape(type="line", x0=value, x1=value, yref="paper", y0=0, y1=1, line=_DASHED)
    # plotly wants the logarithm here and the value above
    anchor = "right" if at > (low + high) / 2 else "left"
    figure.add_annotation(text=html.escape(text), x=at, xanchor=anchor, yref="paper", y=0, yanchor="bottom", **_NOTE)
    return ""


def _flat(figure: Any, line: Line, points: Sequence[tuple[float, float]], spans: Spans) -> str:
    (text, value), (low, high) = line, spans[1]
    if not low <= value <= high:
        return f"The limit, {text}, lies {'above' if value > high else 'below'} the plot."
    side = _free_side(points, value, spans)
    figure.add_shape(type="line", y0=value, y1=value, xref="paper", x0=0, x1=1, line=_DASHED)
    place = {"xref": "paper", "x": float(side == "right"), "xanchor": side, "y": value, "yanchor": "bottom"}
    figure.add_annotation(text=html.escape(text), **place, **_NOTE)
    return ""


def _free_side(points: Sequence[tuple[float, float]], value: float, spans: Spans) -> str:
    """The end of a horizontal line with fewer markers near it."""
    near = 0.1 * (spans[1][1] - spans[1][0])
    found = [math.log10(x) < sum(spans[0]) / 2 for x, y in points if abs(y - value) < near]
    return "right" if sum(found) > len(found) / 2 else "left"
