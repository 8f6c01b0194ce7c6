"""What `select` advises, as plain text for a terminal or a pipe."""

from collections.abc import Sequence

from sizewise.advice import AdviceRecord, ScaleAdvice
from sizewise.report import _advice_story as story
from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report._text import columns, document, wrap
from sizewise.types import Interval

__all__ = ["advice_summary"]


def advice_summary(record: AdviceRecord) -> str:
    """The decision, what every scale costs and is worth, what its errors come from, and what follows.

    Args:
        record: of `sizewise select`; without data it holds costs only.

    Returns:
        Lines of at most 100 characters, without colour codes and without a newline at the end.
    """
    blocks = [_decision(record), _facts(record), _costs(record), _qualities(record), _details(record), _strategy(record)]
    return document([*blocks, _warnings(record)])


def _decision(record: AdviceRecord) -> list[str]:
    where = costs.place(record.device, record.runtime)
    return [*wrap(f"{record.task}: {story.headline(record)} ({where})"), *wrap(record.decision)]


def _facts(record: AdviceRecord) -> list[str]:
    rows = [*story.facts(record), *story.scenario_rows(record)]
    return columns(rows) if rows else []


def _starred(record: AdviceRecord) -> tuple[str | None, str]:
    """The scale with a star, and what the star means."""
    if record.recommended is not None:
        return record.recommended, "; * is recommended"
    return record.safe, "; * is safe, whatever is undecided" if record.safe is not None else ""


def _star(record: AdviceRecord, scale: ScaleAdvice) -> str:
    return "*" if scale.name == _starred(record)[0] else " "


def _costs(record: AdviceRecord) -> list[str]:
    rows = [_cost_row(record, scale) for scale in story.by_cost(record)]
    if not rows:
        return []
    head = ("  scale", "params", "MACs", "weights", "peak", "latency", "limits broken")
    how = ", latencies predicted" if record.device.how != "measured" else ""
    return [f"cost of the float models, cheapest first{how}{_starred(record)[1]}", *columns([head, *rows], squeeze=(0,), middles=(0,))]


def _cost_row(record: AdviceRecord, scale: ScaleAdvice) -> tuple[str, ...]:
    name, *figures, _ = story.cost_row(scale)
    return (f"{_star(record, scale)} {name}", *figures, _latency(scale), _limits(record, scale))


def _latency(scale: ScaleAdvice) -> str:
    figure = scale.profile.latency_s
    return fmt.limit_value("latency", figure.value, "") if figure else "not known"


def _limits(record: AdviceRecord, scale: ScaleAdvice) -> str:
    broken = story.broken(record, scale.breaks)
    cannot = "cannot run there; " if scale.profile.misfits else ""
    if not _must_shrink(scale):
        return cannot + broken
    return f"{cannot}{broken}; after shrinking: {story.shrunk_limits(record, scale)}"


def _qualities(record: AdviceRecord) -> list[str]:
    scales = [s for s in story.by_cost(record) if s.validation or s.train]
    if not scales:
        return []
    predicted = any(s.validation and s.validation.how == "predicted" for s in scales)
    note = ("; ~ is predicted by the curve" if predicted else "") + _starred(record)[1]
    head = ("  scale", "train", "validation", "gap", "behind best", "errors")
    return wrap(f"{record.metric}{note}") + columns([head, *(_quality_row(record, s) for s in scales)], last=12, squeeze=(0,), middles=(0,))


def _quality_row(record: AdviceRecord, scale: ScaleAdvice) -> tuple[str, ...]:
    metric, best = record.metric, scale.name == record.best
    return (
        f"{_star(record, scale)} {scale.name}",
        fmt.quality_value(scale.train.value, metric) if scale.train else "",
        _figure(scale.validation, fmt.quality(scale.validation, metric)) if scale.validation else "",
        fmt.drop_value(scale.gap.value, metric) if scale.gap else "",
        "best" if best else _figure(scale.behind, fmt.drop(scale.behind, metric)) if scale.behind else "",
        scale.diagnosis or "",
    )


def _figure(figure: Interval, text: str) -> str:
    """A sign for the word "predicted", which has no room in a column."""
    return f"~{text.removesuffix(' (predicted)')}" if figure.how == "predicted" else text


def _details(record: AdviceRecord) -> list[str]:
    rows = [row for scale in story.by_cost(record) for row in _about(record, scale)]
    if not rows:
        return []
    seen = story.shrunk_sources(record) if any(_must_shrink(scale) for scale in record.scales) else ()
    sources = (line for source in seen for line in wrap(source, "  - "))
    return [
        "scale by scale",
        *columns(rows, squeeze=(0,), middles=(0,), last=70),
        *(["  factors of shrinking, as seen elsewhere:"] if seen else []),
        *sources,
    ]


def _must_shrink(scale: ScaleAdvice) -> bool:
    return bool(scale.breaks) and scale.shrunk is not None


def _about(record: AdviceRecord, scale: ScaleAdvice) -> list[Sequence[str]]:
    curve = f"curve: {story.curve_sentence(scale.curve, record.metric)}" if scale.curve else ""
    shrunk = f"after shrinking: {story.shrunk_sentence(scale.shrunk)}" if scale.shrunk and scale.breaks else ""
    told = (
        story.status(scale) if scale.reason or scale.status == "stopped" else "",
        costs.misfit(scale.profile, record.device),
        scale.evidence or ". ".join(text for text in (story.diagnosis(scale), curve) if text),
        shrunk,
    )
    lines = [text for text in told if text]
    return [(scale.name if index == 0 else "", line) for index, line in enumerate(lines)]


def _strategy(record: AdviceRecord) -> list[str]:
    if not record.strategy:
        return []
    rows = ((*wrap(step.advice, "- "), *wrap(f"because: {step.because}", "    ")) for step in record.strategy)
    return ["what follows", *(line for row in rows for line in row)]


def _warnings(record: AdviceRecord) -> list[str]:
    return [line for warning in record.warnings for line in wrap(f"warning: {warning}")]
