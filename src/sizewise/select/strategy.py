"""What follows from the figures for a situation, in plain words; every piece of advice names the figures it rests on."""

from collections.abc import Iterator, Sequence

from sizewise.advice import AdviceRecord, ScaleAdvice, Strategy
from sizewise.types import Device, LayerCost
from sizewise.units import format_bytes, format_count, format_seconds

__all__ = ["strategy"]

EXAMPLES_PER_CLASSIFIER = 20_000  # below this many labelled examples, nets of millions of parameters rarely train from nothing


def strategy(record: AdviceRecord) -> tuple[Strategy, ...]:
    """Advice for the record's device, budget and scenario; the choice between scales is in `decision`, not here."""
    return tuple(piece for rule in (_cannot_run, _fits, _bound_by, _stream, _batch, _data, _resolution, _privacy) for piece in rule(record))


def _cannot_run(record: AdviceRecord) -> Iterator[Strategy]:
    for scale in record.scales:
        left = _misfits(scale)
        if left:
            yield Strategy(advice=f"Leave {scale.name} out on {record.device.title}.", because="; ".join(left))
        elif scale.profile.misfits:
            yield Strategy(advice=f"{scale.name} needs int8 to run there at all.", because="; ".join(scale.profile.misfits))


def _misfits(scale: ScaleAdvice) -> tuple[str, ...]:
    """What keeps a scale from the device however it is shrunk."""
    return scale.shrunk.misfits if scale.shrunk is not None else scale.profile.misfits


def _fits(record: AdviceRecord) -> Iterator[Strategy]:
    if record.budget.latency_s is None and record.budget.size_bytes is None and record.budget.memory_bytes is None:
        return
    scales = [scale for scale in record.scales if not _misfits(scale)]
    as_is = [scale for scale in scales if not (scale.breaks or scale.profile.misfits)]
    shrunk = [scale for scale in scales if scale.breaks and scale.shrunk is not None and not scale.shrunk.breaks]
    never = [scale for scale in scales if scale.shrunk is not None and scale.shrunk.breaks]
    if as_is:
        yield Strategy(advice=f"Within the limits as they are: {', '.join(s.name for s in as_is)}.", because=_figures(as_is))
    if shrunk:
        yield Strategy(
            advice=f"Plan to shrink, else outside the limits: {', '.join(scale.name for scale in shrunk)}.",
            because="; ".join(f"{s.name} breaks {_broken(s)}; int8 brings {_factors(s)}" for s in shrunk),
        )
    if never:
        yield Strategy(
            advice=f"Too large even after the best shrinking seen at similar layers: {', '.join(scale.name for scale in never)}.",
            because="; ".join(f"{s.name} still breaks {_still_broken(s)}" for s in never),
        )


def _bound_by(record: AdviceRecord) -> Iterator[Strategy]:
    """Whether bytes or arithmetic take the time, for the scale that matters most."""
    scale = _main(record)
    rates = record.device.rates
    if scale is None or rates is None or scale.profile.latency_s is None:
        return
    timed = [layer for layer in scale.profile.layers if layer.latency_s is not None]
    total = sum(layer.latency_s.value for layer in timed if layer.latency_s)
    if not total:
        return
    waiting = sum(layer.latency_s.value for layer in timed if layer.latency_s and _moves(layer, record.device)) / total
    share = f"{100 * waiting:.0f} % of {scale.name}'s time is in layers whose MACs per byte are below what the device's arithmetic needs"
    if waiting > 0.5:
        yield Strategy(advice="Save bytes first: int8 weights and activations, fewer and narrower tensors.", because=share)
    else:
        yield Strategy(
            advice="Save arithmetic first: int8 kernels, fewer channels, a smaller input.",
            because=f"{100 * (1 - waiting):.0f} % of {scale.name}'s time is in layers that compute more than they move",
        )


def _moves(layer: LayerCost, device: Device) -> bool:
    rates = device.rates
    assert rates is not None
    roof = rates.peak_macs_per_s["float32"] * rates.efficiency.get(layer.family, 0.0)
    return layer.intensity * rates.bandwidth_bytes_per_s < roof or layer.family == "memory"


def _stream(record: AdviceRecord) -> Iterator[Strategy]:
    if record.scenario is None or record.scenario.mode != "stream":
        return
    recurrent = [s.name for s in record.scales if any(layer.family == "recurrent" for layer in s.profile.layers)]
    causal = f"{', '.join(recurrent)} carry a state from step to step" if recurrent else "no candidate carries a state"
    yield Strategy(
        advice="Feed new frames only and keep what was computed: causal convolutions with their past in a buffer, or recurrent layers.",
        because=f"the figures here are of a whole window each time; {causal}",
    )


def _batch(record: AdviceRecord) -> Iterator[Strategy]:
    if record.scenario is None or record.scenario.mode != "batch":
        return
    rows = [
        f"{s.name} {s.profile.batch / s.profile.latency_s.value:,.0f} examples per second"
        for s in record.scales
        if s.profile.latency_s is not None and not _misfits(s)
    ]
    if rows:
        yield Strategy(advice="Choose by examples per second, not by the latency of one.", because="; ".join(rows))


def _data(record: AdviceRecord) -> Iterator[Strategy]:
    if record.scenario is None or record.scenario.examples is None:
        return
    examples, scale = record.scenario.examples, _main(record)
    if scale is None:
        return
    ratio = scale.profile.params / max(examples, 1)
    because = f"{examples:,} labelled examples for the {format_count(scale.profile.params)} parameters of {scale.name}, {ratio:,.0f} each"
    if examples < EXAMPLES_PER_CLASSIFIER and ratio > 50:
        yield Strategy(advice="Start from published weights and tune; training from nothing would overfit.", because=because)
    else:
        yield Strategy(
            advice="Training from nothing is possible; let learning curves say whether the larger scale pays: sizewise select TASK.",
            because=because,
        )


def _resolution(record: AdviceRecord) -> Iterator[Strategy]:
    scale = _main(record)
    if record.scenario is None or record.scenario.domain != "vision" or scale is None:
        return
    yield Strategy(
        advice="Try a smaller input before a smaller network: Task(resize=...).",
        because=f"three quarters of the side are 56 % of {scale.name}'s {format_count(scale.profile.macs)} MACs, with the same weights",
    )


def _privacy(record: AdviceRecord) -> Iterator[Strategy]:
    if record.scenario is None or not (record.scenario.private or record.scenario.offline):
        return
    facts = ((record.scenario.private, "data must not leave the device"), (record.scenario.offline, "there is no network"))
    yield Strategy(
        advice="Everything runs on the device: the file, its preprocessing, and a fallback for inputs it is unsure of.",
        because=" and ".join(text for holds, text in facts if holds),
    )


def _main(record: AdviceRecord) -> ScaleAdvice | None:
    """The scale that the advice is about: the recommended one, else the largest that can run and can keep the limits."""
    chosen = record.recommended or record.safe
    if chosen is not None:
        return record.scale(chosen)
    possible = [s for s in record.scales if not _misfits(s) and (s.shrunk is None or not s.shrunk.breaks)]
    return max(possible or record.scales, key=lambda s: s.profile.macs, default=None)


def _figures(scales: Sequence[ScaleAdvice]) -> str:
    timed = [(s.profile, s.profile.latency_s) for s in scales if s.profile.latency_s is not None]
    return "; ".join(f"{p.name} {format_seconds(latency.value)}, {format_bytes(p.weight_bytes)}" for p, latency in timed)


def _broken(scale: ScaleAdvice) -> str:
    return ", ".join(f"{v.limit} {_show(v.limit, v.got)} of {_show(v.limit, v.allowed)}" for v in scale.breaks)


def _still_broken(scale: ScaleAdvice) -> str:
    assert scale.shrunk is not None
    return ", ".join(f"{v.limit} {_show(v.limit, v.got)} of {_show(v.limit, v.allowed)}" for v in scale.shrunk.breaks)


def _factors(scale: ScaleAdvice) -> str:
    assert scale.shrunk is not None
    return f"{scale.shrunk.latency_factor:.2f} of the time, {scale.shrunk.size_factor:.2f} of the bytes"


def _show(limit: str, value: float) -> str:
    return format_seconds(value) if limit == "latency" else format_bytes(value)
