"""Where a model's cost lies: its most expensive layers as bars in a table, which needs no script and can be read as text."""

from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report._page import Html, join, paragraph, table, tag
from sizewise.types import Cost, LayerCost
from sizewise.units import format_bytes, format_count

__all__ = ["layer_bars"]

_BAR = ""  # the bars' column needs no title


def layer_bars(cost: Cost, *, by: costs.By | None = None, count: int = 12, label: str = "") -> Html:
    """The `count` most expensive layers and one bar for the rest; a sentence where the cost is not known by layers.

    Args:
        cost: of a model.
        by: what the bars show; latency where it is known and nothing is asked for.
        count: of layers shown.
        label: whose layers they are, for screen readers.
    """
    if not cost.layers:
        return paragraph("Its cost is not known layer by layer, since the model could not be exported.", class_="soft")
    top = costs.top_layers(cost, count, by)
    widest = max([share for _, share in top.rows] + [top.rest_share]) or 1.0
    share = f"Share {top.what}"
    timed = ("Latency",) if top.by == "latency" else ()
    head = ("Layer", share, _BAR, "Class", "Family", "MACs", "Parameters", "Written", *timed)
    rows = [_row(layer, part, widest, timed=bool(timed)) for layer, part in top.rows]
    if top.rest:
        more = fmt.plural(top.rest, "more layer")
        rows.append((more, fmt.portion(top.rest_share), _bar(top.rest_share / widest), *([""] * (len(head) - 3))))
    drawn = table(head, rows, numbers=(share, "MACs", "Parameters", "Written", "Latency"), label=f"Layers {label}".strip())
    whole = costs.families(cost, top.by)
    return join((paragraph(f"By family: {whole}.", class_="soft"), drawn)) if whole else drawn


def _row(layer: LayerCost, share: float, widest: float, *, timed: bool) -> tuple[object, ...]:
    return (
        costs.layer_name(layer),
        fmt.portion(share),
        _bar(share / widest),
        layer.kind,
        layer.family,
        format_count(layer.macs),
        format_count(layer.params),
        format_bytes(layer.activation_bytes),
        *((costs.layer_latency(layer),) if timed else ()),
    )


def _bar(part: float) -> Html:
    if part <= 0:
        return Html("")
    return tag("div", class_="bar", style=f"width: {100 * part:.1f}%", aria_hidden="true")
