"""What an advice record says, in words: the sentences that terminal and page share."""

from dataclasses import replace

from sizewise.advice import AdviceRecord, Curve, ScaleAdvice, Shrunk
from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.types import Interval, ModelProfile, Violation
from sizewise.units import format_bytes, format_count, format_seconds

__all__ = [
    "broken",
    "by_cost",
    "conventions",
    "cost_row",
    "curve_sentence",
    "diagnosis",
    "facts",
    "headline",
    "marks",
    "scenario_rows",
    "shrunk_limits",
    "shrunk_sentence",
    "shrunk_sources",
    "status",
]


def by_cost(record: AdviceRecord) -> tuple[ScaleAdvice, ...]:
    """The scales, cheapest first: by the product of latency and weights, so that halving either counts the same."""
    return tuple(sorted(record.scales, key=lambda scale: _cost(scale.profile)))


def _cost(profile: ModelProfile) -> float:
    latency = profile.latency_s.value if profile.latency_s else float(profile.macs)
    return latency * max(profile.weight_bytes, 1)


def headline(record: AdviceRecord) -> str:
    """ "resnet-s is recommended", or how far the answer goes."""
    if record.recommended is not None:
        return f"{record.recommended} is recommended"
    if record.safe is not None:
        return f"undecided; {record.safe} is safe"
    if record.undecided:
        return "undecided"
    return "no recommendation" if record.best is not None else "costs only, no recommendation"


def marks(record: AdviceRecord, name: str) -> tuple[str, ...]:
    """What a scale is in the decision: recommended, safe, undecided, best."""
    held = (
        ("recommended", name == record.recommended),
        ("safe", name == record.safe and record.safe != record.recommended),
        ("undecided", name in record.undecided),
        ("best", name == record.best),
    )
    return tuple(word for word, true in held if true)


def facts(record: AdviceRecord) -> tuple[tuple[str, str], ...]:
    """The parts of the decision, each with its name; nothing without data."""
    if record.best is None:
        return ()
    rows = (
        ("recommended", record.recommended or "none yet"),
        ("safe", record.safe if record.safe != record.recommended else None),
        ("undecided", ", ".join(record.undecided)),
        ("best", record.best),
        ("tolerance", f"at most {fmt.drop_value(record.tolerance, record.metric, signed=False)} behind the best"),
        ("training", _training(record)),
    )
    return tuple((name, text) for name, text in rows if text)


def _training(record: AdviceRecord) -> str:
    if not record.sizes:
        return ""
    seeds = fmt.plural(record.seeds, "seed")
    return f"on {', '.join(f'{size:,}' for size in record.sizes)} examples, {seeds} on the last"


def status(scale: ScaleAdvice) -> str:
    """ "complete", or "stopped: " and the reason."""
    return f"{scale.status}: {scale.reason}" if scale.reason else scale.status


def diagnosis(scale: ScaleAdvice) -> str:
    """ "data-limited, in 91 % of draws"; "" where there is none."""
    if scale.diagnosis is None:
        return ""
    return scale.diagnosis if scale.certainty is None else f"{scale.diagnosis}, in {fmt.portion(scale.certainty)} of draws"


def broken(record: AdviceRecord, violations: tuple[Violation, ...]) -> str:
    """ "latency 41.0 ms (8.2 times the limit)" of each limit; "none" when all are kept."""
    return ", ".join(_broken(v, record.metric) for v in violations) or "none"


def _broken(v: Violation, metric: str) -> str:
    how_far = f" ({fmt.ratio(v.excess)} times the limit)" if v.limit in ("latency", "size", "memory") else ""
    return f"{fmt.limit_name(v.limit, metric)} {fmt.limit_value(v.limit, v.got, metric)}{how_far}"


def shrunk_limits(record: AdviceRecord, scale: ScaleAdvice) -> str:
    """Limits still broken after shrinking, by a stated factor; "" where nothing is known of it."""
    return broken(record, scale.shrunk.breaks) if scale.shrunk else ""


def shrunk_sentence(shrunk: Shrunk) -> str:
    """What shrinking would make of a scale, with the factors."""
    latency = fmt.interval(replace(shrunk.latency_s, how="measured"), format_seconds)  # the last word says that it is not
    size = format_bytes(shrunk.size_bytes)
    return f"latency {latency} ({shrunk.latency_factor:.2f} times), size {size} ({shrunk.size_factor:.2f} times), predicted"


def shrunk_sources(record: AdviceRecord) -> tuple[str, ...]:
    """Where the factors of all scales were seen, each once."""
    return tuple(dict.fromkeys(source for scale in record.scales if scale.shrunk for source in scale.shrunk.sources))


def curve_sentence(curve: Curve, metric: str) -> str:
    """The fitted curve's figures: now, with twice as many examples, and endless ones."""
    now, double, ceiling = (fmt.quality(f, metric) for f in (curve.at_full, curve.at_double, curve.ceiling))
    return f"{now} on all examples, {double} with twice as many, ceiling {ceiling}; fitted to {fmt.plural(curve.sizes, 'size')}"


def scenario_rows(record: AdviceRecord) -> tuple[tuple[str, str], ...]:
    """The situation that models are chosen for."""
    found = record.scenario
    if found is None:
        return ()
    calls = {"single": "single calls as they come", "stream": "a stream without end", "batch": "batches"}[found.mode]
    limits = (("latency", found.latency), ("size", found.size), ("memory", found.memory), ("drop by shrinking", found.max_drop))
    yes_no = (("data must not leave the device", found.private), ("it must work without a network", found.offline))
    rows = (
        ("scenario", f"{found.title} ({found.domain})"),
        ("calls", f"{calls}, {fmt.plural(found.batch, 'example')} per call"),
        ("limits", ", ".join(f"{name} at most {limit}" for name, limit in limits if limit)),
        ("labelled examples", f"{found.examples:,}" if found.examples is not None else ""),
        ("conditions", ", ".join(text for text, true in yes_no if true)),
        ("notes", found.notes),
    )
    return tuple((name, text) for name, text in rows if text)


def conventions(record: AdviceRecord) -> tuple[str, ...]:
    """What the words and figures mean."""
    worse = "train minus validation" if record.higher_is_better else "validation minus train, since less is better"
    declared = record.device.how != "measured"
    factor = record.device.rates.error_factor if record.device.rates else None
    spread = f" Predicted latencies p stand for p / {factor:.1f} to p x {factor:.1f}." if factor and declared else ""
    known = "predicted by a roofline from counts, not measured" if declared else "measured on this machine: the median of one warm call"
    return (
        "One MAC (multiply-accumulate) is two FLOPs. 1 kB is 1,000 bytes, 1 MB is 1,000,000 bytes. Weights are those of the float model.",
        f"Latency is {known}.{spread} Figures marked as predicted rest on a model; all others were counted or measured.",
        f"Gap: {worse}. A large one is a sign of overfitting.",
        "Behind: how much worse than the best scale at all examples, compared example by example. Positive is worse.",
        f"Tolerance: a scale at most {fmt.drop_value(record.tolerance, record.metric, signed=False)} behind the best is good enough.",
        "Cheapest first: by the product of latency and weights. Recommended is the cheapest scale that is within the tolerance.",
        "Ceiling: the quality that a fitted learning curve approaches with endless data.",
        f"Brackets hold intervals: {_levels(record)}. The shaded band of a learning curve holds {_band(record)} of bootstrap draws.",
        "Within the tolerance of the best, a scale is saturated where twice the examples would gain at most half the tolerance, else "
        "data-limited. Further behind, it underfits where most of what it lacks is error on its own training examples, else it overfits.",
        "Limits are compared with point estimates. After shrinking: by factors seen at similar layers, as stated; nothing was shrunk here.",
    )


def _levels(record: AdviceRecord) -> str:
    figures = [f for s in record.scales for f in (s.validation, s.gap, s.behind) if f is not None and f.low != f.high]
    quality = _percents(figures) or "95 %"
    timed = [s.profile.latency_s for s in record.scales if s.profile.latency_s]
    latency = _percents([f for f in timed if f.low != f.high])
    return f"{quality} of quality" + (f", {latency} of latency" if latency else "")


def _band(record: AdviceRecord) -> str:
    return _percents([point.quality for s in record.scales if s.curve for point in s.curve.band]) or "90 %"


def _percents(figures: list[Interval]) -> str:
    return " and ".join(f"{100 * level:.0f} %" for level in sorted({f.confidence for f in figures}))


def cost_row(scale: ScaleAdvice) -> tuple[str, str, str, str, str, str]:
    """Name, parameters, MACs, weights, peak memory and latency."""
    profile = scale.profile
    return (
        scale.name,
        format_count(profile.params),
        format_count(profile.macs),
        format_bytes(profile.weight_bytes),
        costs.peak(profile),
        costs.latency(profile.latency_s),
    )
