"""The roofline: what the device can attain at each arithmetic intensity, and what layers and models attain."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from sizewise.advice import AdviceRecord, ScaleAdvice
from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report import _plots as plots
from sizewise.report._page import Html
from sizewise.types import Cost, Interval, LayerCost, Rates
from sizewise.units import format_bytes, format_seconds

__all__ = ["draw"]

Spot = tuple[float, float]  # MACs per byte, MACs per second


def draw(record: AdviceRecord) -> tuple[Html, tuple[str, ...]] | None:
    """The plot, and what is not in it; None where the device's rates or all latencies are unknown."""
    rates = record.device.rates
    spots = [spot for scale in record.scales for spot in _spots(scale)]
    if rates is None or not spots:
        return None
    roofs, peak = _roofs(rates, record.scales), rates.peak_macs_per_s["float32"]
    ends = (
        plots.span([math.log10(x) for x, _ in spots] + [math.log10(peak / rates.bandwidth_bytes_per_s)]),
        plots.span([math.log10(y) for y in (*(y for _, y in spots), *roofs.values(), peak)]),
    )
    figure = go.Figure(_lines(rates, roofs, ends[0]))
    for index, scale in enumerate(record.scales):
        figure.add_traces(_traces(scale, index))
    figure.add_traces(_legend())
    plots.arrange(
        figure, plots.log_axis("MACs per byte", ends[0], lambda x: f"{x:.3g}"), plots.log_axis("attained", ends[1], fmt.speed), 560
    )
    figure.update_yaxes(title="MACs per second (log scale)")
    _name_roofs(figure, roofs, ends[1])
    return plots.in_plot(figure, "roofline"), _left_out(record.scales)


def _spot(cost: Cost | LayerCost) -> Spot | None:
    """Where a layer or a model lies; nowhere without MACs or time of its own."""
    seconds = cost.latency_s.value if cost.latency_s else 0.0
    return (cost.intensity, cost.macs / seconds) if seconds > 0 and cost.macs > 0 and cost.intensity > 0 else None


def _spots(scale: ScaleAdvice) -> list[Spot]:
    found = [_spot(scale.profile), *map(_spot, scale.profile.layers)]
    return [spot for spot in found if spot]


def _roofs(rates: Rates, scales: Iterable[ScaleAdvice]) -> dict[str, float]:
    """What each family of layers that occurs can attain at most in float32; all of them where none occurs."""
    used = {layer.family for scale in scales for layer in scale.profile.layers}
    peak = rates.peak_macs_per_s["float32"]
    every = {family: peak * share for family, share in rates.efficiency.items() if share > 0}
    return {family: roof for family, roof in every.items() if family in used} or every


def _lines(rates: Rates, roofs: dict[str, float], ends: tuple[float, float]) -> list[Any]:
    """Two slopes up to the peak, the peak, and the roofs of families from the cache's slope to the right edge."""
    left, right = (10**end for end in ends)
    peak, memory, cache = rates.peak_macs_per_s["float32"], rates.bandwidth_bytes_per_s, rates.cache_bandwidth_bytes_per_s
    flat = [((max(roof / cache, left), right), roof) for roof in roofs.values()]
    return [
        _line([left, peak / memory], [left * memory, peak], f"memory, {format_bytes(memory)}/s", "solid"),
        _line([left, peak / cache], [left * cache, peak], f"cache, {format_bytes(cache)}/s", "dash"),
        _line([max(peak / cache, left), right], [peak, peak], f"peak in float32, {fmt.speed(peak)}", "dot"),
        *(_line(list(xs), [roof, roof], "", "solid") for xs, roof in flat),
    ]


def _line(xs: Sequence[float], ys: Sequence[float], name: str, dash: str) -> Any:
    line = {"color": plots.GREY, "width": 1.4, "dash": dash}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, name=name, showlegend=bool(name), hoverinfo="skip")


def _name_roofs(figure: Any, roofs: dict[str, float], ends: tuple[float, float]) -> None:
    """A name above each roof's right end; roofs too close for two names share one, from the highest down."""
    apart = 0.045 * (ends[1] - ends[0])
    groups: list[list[tuple[float, str]]] = []
    for name, roof in sorted(roofs.items(), key=lambda pair: -pair[1]):
        at = math.log10(roof)
        if groups and groups[-1][-1][0] - at < apart:
            groups[-1].append((at, name))
        else:
            groups.append([(at, name)])
    look = {"showarrow": False, "font": {"color": plots.GREY, "size": 12}, "bgcolor": "rgba(255,255,255,0.75)", "yshift": 2}
    for group in groups:
        text = html.escape(" > ".join(name for _, name in group))
        figure.add_annotation(text=text, xref="paper", x=1, xanchor="right", y=group[0][0], yanchor="bottom", **look)


def _traces(scale: ScaleAdvice, index: int) -> list[Any]:
    colour, symbol = plots.colour(index), plots.symbol(index // plots.COLOURS)
    layers = [(layer, spot) for layer in scale.profile.layers if (spot := _spot(layer))]
    whole, place = scale.profile.latency_s, _spot(scale.profile)
    common = {"legendgroup": html.escape(scale.name), "name": html.escape(scale.name)}
    dots = {
        "color": colour,
        "symbol": symbol,
        "size": [_size(layer.latency_s, whole) for layer, _ in layers],
        "opacity": 0.55,
        "line": {"color": "#fff", "width": 0.6},
    }
    traces = [_markers([s for _, s in layers], dots, [_layer_hover(scale, layer, s) for layer, s in layers], common, shown=place is None)]
    if place is not None:
        large = {"color": colour, "symbol": "diamond", "size": 16, "line": {"color": plots.INK, "width": 1.6}}
        traces.append(_markers([place], large, [_whole_hover(scale, place)], common, shown=True))
    return traces


def _size(part: Interval | None, whole: Interval | None) -> float:
    """The marker's area is the layer's part of the time."""
    share = part.value / whole.value if part and whole and whole.value else 0.0
    return 5 + 22 * math.sqrt(min(max(share, 0.0), 1.0))


def _markers(spots: Sequence[Spot], marker: dict[str, Any], hover: Sequence[str], common: dict[str, Any], *, shown: bool) -> Any:
    xs, ys = [x for x, _ in spots], [y for _, y in spots]
    return go.Scatter(x=xs, y=ys, mode="markers", marker=marker, hoverinfo="text", hovertext=hover, showlegend=shown, **common)


def _layer_hover(scale: ScaleAdvice, layer: LayerCost, spot: Spot) -> str:
    seconds = layer.latency_s.value if layer.latency_s else 0.0
    return plots.hover_text((scale.name, f"{costs.layer_name(layer)} ({layer.family})", *_figures(spot), format_seconds(seconds)))


def _whole_hover(scale: ScaleAdvice, spot: Spot) -> str:
    return plots.hover_text((scale.name, "the whole model", *_figures(spot), costs.latency(scale.profile.latency_s)))


def _figures(spot: Spot) -> tuple[str, str]:
    return f"{spot[0]:.3g} MACs per byte", fmt.speed(spot[1])


def _legend() -> list[Any]:
    rows: list[tuple[str, dict[str, Any]]] = [
        ("a layer", {"symbol": "circle", "color": plots.GREY, "size": 8, "opacity": 0.55}),
        ("a whole model", {"symbol": "diamond", "color": "#ffffff", "size": 13, "line": {"color": plots.INK, "width": 1.6}}),
    ]
    return plots.legend_marks(rows)


def _left_out(scales: Iterable[ScaleAdvice]) -> tuple[str, ...]:
    layers = [layer for scale in scales for layer in scale.profile.layers]
    idle, folded = sum(layer.macs == 0 for layer in layers), sum(layer.macs > 0 and _spot(layer) is None for layer in layers)
    said = [f"{fmt.plural(idle, 'layer')} without MACs"] if idle else []
    said += [f"{fmt.plural(folded, 'layer')} without time of {'its' if folded == 1 else 'their'} own"] if folded else []
    return (f"Left out: {' and '.join(said)}.",) if said else ()
