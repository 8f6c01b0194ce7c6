"""Learning curves: quality over training examples, every seed as a marker, the fitted curve with its bootstrap band."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from sizewise.advice import AdviceRecord, BandPoint, Point, ScaleAdvice
from sizewise.report import _format as fmt
from sizewise.report import _plots as plots
from sizewise.report._page import Html

__all__ = ["draw"]


def draw(record: AdviceRecord) -> Html | None:
    """All scales in one plot; None where nothing was trained on subsets."""
    trained = [(index, scale) for index, scale in enumerate(record.scales) if _points(scale)]
    if not trained:
        return None
    figure = go.Figure()
    for index, scale in trained:
        figure.add_traces(
            _traces(record, scale, plots.colour(index), plots.symbol(index // plots.COLOURS), _aside(index, len(record.scales)))
        )
    figure.add_traces(_legend())
    scales = [scale for _, scale in trained]
    ends = plots.span([math.log10(n) for scale in scales for n in _examples(scale)]), plots.span([q for s in scales for q in _qualities(s)])
    y = plots.quality_axis(record.metric, ends[1]) | {"title": html.escape(record.metric)}
    plots.arrange(figure, plots.log_axis("training examples", ends[0], lambda n: f"{n:,.0f}"), y, height=580)
    if record.sizes:
        _mark_all(figure, record.sizes[-1])
    return plots.in_plot(figure, "curves")


def _points(scale: ScaleAdvice) -> list[Point]:
    """A model as it was given has no place on a logarithmic axis."""
    return [p for p in scale.points if p.examples > 0]


def _band(scale: ScaleAdvice) -> Sequence[BandPoint]:
    return scale.curve.band if scale.curve else ()


def _examples(scale: ScaleAdvice) -> Iterable[int]:
    return (*(p.examples for p in _points(scale)), *(b.examples for b in _band(scale)))


def _qualities(scale: ScaleAdvice) -> list[float]:
    # the band's ends are left to themselves, since a wide one would squeeze everything else
    values = (*(q for p in _points(scale) for q in (p.validation, p.train) if q is not None), *(b.quality.value for b in _band(scale)))
    return [value for value in values if math.isfinite(value)]


def _aside(index: int, count: int) -> float:
    """A factor on the examples, of a tenth over all scales, that sets their markers apart where they were trained on the same numbers."""
    return float(1.1 ** (index / (count - 1) - 0.5)) if count > 1 else 1.0


def _traces(record: AdviceRecord, scale: ScaleAdvice, colour: str, symbol: str, aside: float) -> list[Any]:
    common = {"legendgroup": html.escape(scale.name), "name": html.escape(scale.name)}
    filled = {"color": colour, "symbol": symbol, "size": 8, "line": {"color": "#fff", "width": 0.8}}
    hollow = {"color": colour, "symbol": f"{symbol}-open", "size": 7, "opacity": 0.8}
    return [
        *_fitted(_band(scale), colour, common),
        _dots(record, scale, "train", aside, hollow, common),
        _dots(record, scale, "validation", aside, filled, common | {"showlegend": True}),
    ]


def _fitted(band: Sequence[BandPoint], colour: str, common: dict[str, Any]) -> list[Any]:
    """The curve, dashed from the last measured point on, so that it has no hole; its band behind it."""
    if not band:
        return []
    seen = sum(b.quality.how == "measured" for b in band)
    solid: dict[str, Any] = {"color": colour, "width": 2}
    parts = (_line(band[:seen], solid, common), _line(band[max(seen - 1, 0) :], solid | {"dash": "dash"}, common))
    return [_shade(band, colour, common), *parts]


def _shade(band: Sequence[BandPoint], colour: str, common: dict[str, Any]) -> Any:
    """The band as one closed shape: along the low ends and back along the high ones."""
    xs = [b.examples for b in band]
    ys = [b.quality.low for b in band] + [b.quality.high for b in reversed(band)]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    look = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.11)", "line": {"width": 0}}
    return go.Scatter(x=[*xs, *reversed(xs)], y=ys, mode="lines", hoverinfo="skip", **(common | {"showlegend": False} | look))


def _line(band: Sequence[BandPoint], line: dict[str, Any], common: dict[str, Any]) -> Any:
    xs, ys = [b.examples for b in band], [b.quality.value for b in band]
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", **(common | {"showlegend": False}))


def _dots(record: AdviceRecord, scale: ScaleAdvice, split: str, aside: float, marker: dict[str, Any], common: dict[str, Any]) -> Any:
    points = [(p, getattr(p, split)) for p in _points(scale) if math.isfinite(getattr(p, split))]
    hover = [_hover(record, scale, p, f"{split} {fmt.quality_value(value, record.metric)}") for p, value in points]
    xs, ys = [aside * p.examples for p, _ in points], [value for _, value in points]
    options: dict[str, Any] = {"showlegend": False, "hoverinfo": "text", "hovertext": hover, "marker": marker} | common
    return go.Scatter(x=xs, y=ys, mode="markers", **options)


def _hover(record: AdviceRecord, scale: ScaleAdvice, point: Point, figure: str) -> str:
    trained = f"trained on {fmt.plural(point.examples, 'example')}, {fmt.plural(point.epochs, 'epoch')}, seed {point.seed}"
    return plots.hover_text((scale.name, trained, f"{record.metric}: {figure}"))


def _legend() -> list[Any]:
    rows: list[tuple[str, dict[str, Any]]] = [
        ("validation", {"symbol": "circle", "color": plots.GREY, "size": 8}),
        ("training examples", {"symbol": "circle-open", "color": plots.GREY, "size": 7}),
    ]
    dashed = {"color": plots.GREY, "width": 2, "dash": "dash"}
    beyond = go.Scatter(x=[None], y=[None], mode="lines", line=dashed, name="extrapolated", hoverinfo="skip")
    return [*plots.legend_marks(rows), beyond]


def _mark_all(figure: Any, total: int) -> None:
    """Where the data end."""
    figure.add_shape(type="line", x0=total, x1=total, yref="paper", y0=0, y1=1, line={"color": plots.GREY, "width": 1, "dash": "dot"})
    note = {"showarrow": False, "font": {"color": plots.GREY, "size": 12}}
    figure.add_annotation(text=f"all {total:,}", x=math.log10(total), xanchor="left", yref="paper", y=0, yanchor="bottom", **note)
