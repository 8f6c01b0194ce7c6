"""The waterfall of a run: latency and file size from the reference to the chosen file, one lever after the other."""

import html
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sizewise.report import _plots as plots
from sizewise.report._explain import Stage
from sizewise.report._page import Html
from sizewise.units import format_bytes, format_seconds

__all__ = ["draw_waterfall"]

LESS, MORE = "#0072B2", "#D55E00"  # of the palette that colour-blind readers tell apart
PALE = 0.4  # opacity of what may be noise
ROW = 46  # pixels per bar
ROOM = 0.12  # of the axis on both sides, for the texts


def draw_waterfall(found: Sequence[Stage]) -> Html:
    """Bars from what was to what became of it, on logarithmic axes, where equal lengths are equal ratios.

    Args:
        found: stages of the way, the reference first.
    """
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    latencies, sizes = [stage.latency_s for stage in found], [float(stage.size_bytes) for stage in found]
    names = [*("<br>+ ".join(html.escape(lever) for lever in stage.levers) for stage in found), "chosen file"]
    rows = list(range(len(names)))
    _bars(figure, 1, latencies, format_seconds, [*(PALE if stage.noise else 1.0 for stage in found), 1.0])
    _bars(figure, 2, sizes, lambda value: format_bytes(round(value)), [1.0] * len(rows))
    plots.arrange(figure, _axis("latency", latencies, format_seconds), {}, height=110 + ROW * len(rows))
    figure.update_layout(xaxis2=_axis("file size", sizes, lambda value: format_bytes(round(value))), showlegend=False, bargap=0.35)
    figure.update_yaxes(autorange="reversed", tickvals=rows, ticktext=names, automargin=True, showgrid=False)
    figure.update_yaxes(showticklabels=False, col=2)
    return plots.in_plot(figure, "waterfall")


def _axis(title: str, values: Sequence[float], show: Callable[[float], str]) -> dict[str, Any]:
    low, high = _ends(values)
    return plots.log_axis(title, (low, high), show)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Of the axis, as logarithms to base 10."""
    logs = [math.log10(value) for value in values]
    room = ROOM * (max(logs) - min(logs)) or ROOM
    return min(logs) - 2 * room, max(logs) + 2 * room


def _bars(figure: Any, column: int, values: Sequence[float], show: Callable[[float], str], opacity: Sequence[float]) -> None:
    """The first and the last are totals, the others changes."""
    floor = 10 ** _ends(values)[0]
    before, after = [floor, *values[:-1], floor], [*values, values[-1]]
    changes = ["", *(f"x {now / was:.2f}" for was, now in pairwise(values)), ""]
    texts = [change or show(value) for change, value in zip(changes, after, strict=True)]
    colours = [plots.GREY if not change else LESS if now <= was else MORE for change, was, now in zip(changes, before, after, strict=True)]
    hover = [
        f"{show(now)}" if not change else f"{show(was)} to {show(now)}" for change, was, now in zip(changes, before, after, strict=True)
    ]
    bar = go.Bar(
        orientation="h",
        y=list(range(len(after))),
        base=[min(was, now) for was, now in zip(before, after, strict=True)],
        x=[abs(was - now) for was, now in zip(before, after, strict=True)],
        text=texts,
        textposition="outside",
        cliponaxis=False,
        marker={"color": colours, "opacity": list(opacity)},
        hovertext=[plots.hover_text([text]) for text in hover],
        hoverinfo="text",
    )
    figure.add_trace(bar, row=1, col=column)
    for row, value in enumerate(values):  # what one step ends with the next begins with
        line = {"color": plots.GREY, "width": 1, "dash": "dot"}
        figure.add_shape(type="line", x0=value, x1=value, y0=row, y1=row + 1, line=line, layer="below", row=1, col=column)
