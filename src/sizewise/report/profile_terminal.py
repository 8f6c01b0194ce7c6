"""What models cost, as plain text: a comparison where there are several, then each with its figures and layers."""

from collections.abc import Iterable

from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report._text import columns, document, wrap
from sizewise.types import LayerCost, ModelProfile, ProfileRecord
from sizewise.units import format_bytes, format_count, format_seconds

__all__ = ["profile_summary"]

_LAYERS = 12
_PATH, _CLASS = 24, 14  # most characters


def profile_summary(record: ProfileRecord) -> str:
    """Every model's cost on the device: totals, what was not counted, and the most expensive layers.

    Args:
        record: of `sizewise profile`.

    Returns:
        Lines of at most 100 characters, without colour codes and without a newline at the end.
    """
    blocks = [wrap(costs.place(record.device, record.runtime)), _comparison(record)]
    for model in record.models:
        blocks += _model(record, model)
    return document(blocks)


def _comparison(record: ProfileRecord) -> list[str]:
    if len(record.models) < 2:
        return []
    head = ("model", "params", "MACs", "weights", "peak", "latency", "runs there?")
    return columns([head, *map(_comparison_row, record.models)], squeeze=(0,), middles=(0,))


def _comparison_row(model: ModelProfile) -> tuple[str, ...]:
    return (
        model.name,
        format_count(model.params),
        format_count(model.macs),
        format_bytes(model.weight_bytes),
        costs.peak(model),
        format_seconds(model.latency_s.value) if model.latency_s else "not known",
        f"no: {', '.join(m.partition(':')[0] for m in model.misfits)}" if model.misfits else "yes",
    )


def _model(record: ProfileRecord, model: ModelProfile) -> Iterable[list[str]]:
    cannot = costs.misfit(model, record.device)
    head = wrap(f"{model.name}: {', '.join(model.inputs) or 'no input tensors'}, batch {model.batch}")
    return (head + (wrap(cannot) if cannot else []), _figures(record, model), _layers(model))


def _figures(record: ProfileRecord, model: ModelProfile) -> list[str]:
    rows = columns(costs.figures(model, record.device))
    left = costs.uncounted(model)
    notes = [f"not counted: {left}"] if left else []
    return rows + [line for note in (*notes, *(f"note: {text}" for text in model.notes)) for line in wrap(note, "  ")]


def _layers(model: ModelProfile) -> list[str]:
    if not model.layers:
        return []
    top = costs.top_layers(model, _LAYERS)
    order = {"latency": "time", "macs": "MACs"}[top.by]
    title = f"layers by {order}, {len(top.rows)} of {len(model.layers)}; writes and peak are bytes of activations"
    timed = any(layer.latency_s for layer in model.layers)
    head = ("layer", "class", "family", "params", "MACs", "writes", "peak", *(("latency",) if timed else ()), "share")
    rows = [head, *(_layer_row(layer, share, timed=timed) for layer, share in top.rows)]
    room = max(len(row[-1]) for row in rows)
    return [title, *columns(rows, last=room, squeeze=(0, 1), middles=(0,)), *([f"  {top.rest_line}"] if top.rest else [])]


def _layer_row(layer: LayerCost, share: float, *, timed: bool) -> tuple[str, ...]:
    return (
        costs.short_path(costs.layer_name(layer), _PATH),
        layer.kind[:_CLASS],
        layer.family,
        format_count(layer.params),
        format_count(layer.macs),
        format_bytes(layer.activation_bytes),
        format_bytes(layer.peak_bytes),
        *((costs.layer_latency(layer),) if timed else ()),
        fmt.portion(share),
    )
