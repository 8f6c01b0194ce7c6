"""An advice record as one HTML page that needs no network."""

from collections.abc import Sequence
from dataclasses import replace

from sizewise.advice import AdviceRecord, ScaleAdvice
from sizewise.report import _advice_story as story
from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report import _plot_curves as curves
from sizewise.report import _plot_quality as quality
from sizewise.report import _plot_roofline as roofline
from sizewise.report import _plots as plots
from sizewise.report._layer_bars import layer_bars
from sizewise.report._page import Html, bullets, details, escape, join, page, paragraph, plot_figure, section, stacked, table, tag
from sizewise.types import Interval
from sizewise.units import format_seconds

__all__ = ["render_advice"]


def render_advice(record: AdviceRecord) -> str:
    """The decision, every scale's cost and quality, what its errors come from, and the plots behind that.

    Args:
        record: of `sizewise select`; without data it holds costs only.

    Returns:
        A complete HTML document, about 5 MB where anything is plotted (plotly's JavaScript). Every text is escaped.
    """
    sections = (_head, _qualities, _costs, _follows, _against_cost, _curves, _layers, _roofline, _method)
    parts = [build(record) for build in sections]
    first = next((index for index, part in enumerate(parts) if "Plotly.newPlot" in part), None)
    if first is not None:
        parts.insert(first, plots.plotly_script())
    return page(f"{record.task}: {story.headline(record)}", *parts)


# ---- what came out


def _head(record: AdviceRecord) -> Html:
    rows = [(name.capitalize(), text) for name, text in (*story.facts(record), *story.scenario_rows(record))]
    return tag(
        "header",
        tag("h1", f"{record.task}: {story.headline(record)}"),
        paragraph(record.decision, class_="lead"),
        paragraph(f"Latencies: {costs.place(record.device, record.runtime)}.", class_="soft"),
        table(("In short", ""), rows) if rows else "",
        *(paragraph(tag("strong", "Warning: "), warning) for warning in record.warnings),
    )


def _qualities(record: AdviceRecord) -> Html:
    scales = [s for s in story.by_cost(record) if s.validation or s.train or s.status != "costed"]
    if not scales:
        return section("Quality", paragraph("There are no data yet: the figures below are costs only."))
    head = ("Scale", "Train", "Validation", "Gap", "Behind best", _DOUBLE, _CEILING, "Errors")
    rows = [_quality_row(record, scale) for scale in scales]
    note = f"{record.metric.capitalize()}, cheapest scale first; brackets hold intervals. The words are explained at the end of the page."
    drawn = table(head, rows, numbers=head[1:7], marked=_marked(record, scales), label="Quality of every scale")
    return section("Quality", paragraph(note, class_="soft"), drawn, _evidence(scales))


_DOUBLE, _CEILING = "With twice the data, predicted", "Ceiling, predicted"


def _quality_row(record: AdviceRecord, scale: ScaleAdvice) -> tuple[object, ...]:
    metric, curve = record.metric, scale.curve
    return (
        _name(record, scale),
        _stacked_quality(scale.train, metric),
        _stacked_quality(scale.validation, metric),
        stacked(fmt.drop(scale.gap, metric)),
        "" if scale.name == record.best else stacked(fmt.drop(scale.behind, metric)),
        # the columns' titles say that these are predicted
        _stacked_quality(replace(curve.at_double, how="measured") if curve else None, metric),
        _stacked_quality(replace(curve.ceiling, how="measured") if curve else None, metric),
        _errors(scale),
    )


def _errors(scale: ScaleAdvice) -> Html:
    """The diagnosis, with how often the bootstrap gives it."""
    word, _, certainty = story.diagnosis(scale).partition(", ")
    return join((word, tag("span", certainty, class_="interval")))


def _evidence(scales: Sequence[ScaleAdvice]) -> Html:
    """The figures behind each diagnosis, and why some scales have none."""
    rows = [(scale.name, scale.evidence or story.status(scale)) for scale in scales if scale.evidence or scale.reason]
    shown = table(("Scale", "What is known of its errors"), rows)
    return join((tag("h3", "What the errors come from"), shown)) if rows else Html("")


def _stacked_quality(figure: Interval | None, metric: str) -> Html:
    return stacked(fmt.quality(figure, metric)) if figure else Html("")


def _name(record: AdviceRecord, scale: ScaleAdvice) -> Html:
    words = ", ".join((scale.status, *story.marks(record, scale.name)))
    return join((scale.name, tag("span", words, class_="interval")))


def _marked(record: AdviceRecord, scales: Sequence[ScaleAdvice]) -> list[int]:
    named = record.recommended if record.recommended is not None else record.safe
    return [index for index, scale in enumerate(scales) if scale.name == named]


def _costs(record: AdviceRecord) -> Html:
    scales = story.by_cost(record)
    head = ("Scale", "Parameters", "MACs", "Weights", "Peak memory", "Latency", "Limits broken", "After shrinking")
    rows = [_cost_row(record, scale) for scale in scales]
    unfit = [paragraph(tag("strong", s.name), " ", costs.misfit(s.profile, record.device), ".") for s in scales if s.profile.misfits]
    seen = story.shrunk_sources(record)
    sources = details("Factors of shrinking, as seen elsewhere", bullets(seen)) if seen else Html("")
    note = "The float models, cheapest first. Peak memory is that of activations, without weights."
    drawn = table(head, rows, numbers=head[1:6], marked=_marked(record, scales), label="Cost of every scale")
    return section("Cost", paragraph(note, class_="soft"), *unfit, drawn, sources, _remarks(scales))


def _cost_row(record: AdviceRecord, scale: ScaleAdvice) -> tuple[object, ...]:
    _, *figures, latency = story.cost_row(scale)
    limits: object = story.broken(record, scale.breaks)
    if scale.profile.misfits:
        limits = join((tag("span", "cannot run there", class_="refused"), f"; {limits}"))
    return (_name(record, scale), *figures, stacked(latency), limits, _shrunk(record, scale))


def _shrunk(record: AdviceRecord, scale: ScaleAdvice) -> Html:
    if scale.shrunk is None:
        return escape("not known")
    figures = tag("span", story.shrunk_sentence(scale.shrunk), class_="interval")
    return join((f"limits broken: {story.shrunk_limits(record, scale)}", figures))


def _remarks(scales: Sequence[ScaleAdvice]) -> Html:
    """What was not counted, and what profiling noted."""
    left = {s.name: costs.uncounted(s.profile) for s in scales}
    said = {s.name: "; ".join([*([f"not counted: {left[s.name]}"] if left[s.name] else []), *s.profile.notes]) for s in scales}
    rows = [f"{name}: {text}" for name, text in said.items() if text]
    return details("Remarks on the counts", bullets(rows)) if rows else Html("")


def _follows(record: AdviceRecord) -> Html:
    rows = [join((step.advice, tag("span", f"because: {step.because}", class_="interval"))) for step in record.strategy]
    return section("What follows", bullets(rows)) if rows else Html("")


# ---- plots


def _against_cost(record: AdviceRecord) -> Html:
    drawn = [(axis, quality.draw(record, axis)) for axis in quality.AXES]
    if not any(plot for _, plot in drawn):
        return section("Quality against cost", paragraph("Not drawn: no scale has a measured or predicted quality."))
    note = "One marker per scale, with its intervals. Dashed: limits of the budget, and the tolerance below the best scale."
    figures = [_plotted(plot, f"{axis.name[0].upper()}{axis.name[1:]} against quality.", axis.name) for axis, plot in drawn]
    return section("Quality against cost", paragraph(note, class_="soft"), *figures)


def _plotted(plot: tuple[Html, tuple[str, ...]] | None, caption: str, what: str) -> Html:
    return plot_figure(*plot, caption) if plot else paragraph(f"Not drawn: {what} is not known of any scale.")


def _curves(record: AdviceRecord) -> Html:
    drawn = curves.draw(record)
    if drawn is None:
        return section("Learning curves", paragraph("Not drawn: nothing was trained on parts of the data."))
    caption = (
        "Every marker is one training: filled on validation, hollow on its own training examples; scales are set apart a little. Lines "
        "are fitted to validation, dashed beyond the data trained on. A click on a name in the legend hides that scale."
    )
    missing = [s.name for s in record.scales if s.curve is None and s.points]
    remark = (f"No curve, since it needs three numbers of examples: {', '.join(missing)}.",) if missing else ()
    return section("Learning curves", plot_figure(drawn, remark, caption))


def _layers(record: AdviceRecord) -> Html:
    named = record.recommended if record.recommended is not None else record.safe
    shown = named if named is not None else next((s.name for s in story.by_cost(record)), None)
    parts = [
        details(f"Layers of {s.name}", layer_bars(s.profile, label=f"of {s.name}"), open_=s.name == shown) for s in story.by_cost(record)
    ]
    note = "The most expensive layers of each scale; what a layer holds inside is not counted in it but by itself."
    return section("Where the cost lies", paragraph(note, class_="soft"), *parts)


def _roofline(record: AdviceRecord) -> Html:
    drawn = roofline.draw(record)
    if drawn is None:
        return section("Roofline", paragraph("Not drawn: the speed of the device or the latency of the scales is not known."))
    caption = (
        "Left of where a slope meets a roof, bytes are the limit; right of it, arithmetic. A family's roof is the share of the peak that "
        "its kernels reach as a rule, so that a layer can lie above it. Markers are what layers attain, the larger the more of the time "
        "they take; far below their roof, time goes elsewhere."
    )
    predicted = " Latencies are predicted by this very roofline: what markers are below it is the overhead of each operator."
    return section("Roofline", plot_figure(*drawn, caption + (predicted if any(map(_predicted, record.scales)) else "")))


def _predicted(scale: ScaleAdvice) -> bool:
    figure = scale.profile.latency_s
    return figure is not None and figure.how == "predicted"


# ---- how it is known


def _method(record: AdviceRecord) -> Html:
    device = record.device
    facts: list[tuple[str, object]] = [
        ("Device", f"{device.title} ({device.name}), {costs.accuracy_of(device)}"),
        *((name.capitalize(), value) for name, value in device.machine.items()),
        ("Sources", bullets(device.sources)),
        ("Runtime", record.runtime),
        ("Run", f"{record.created}, took {format_seconds(record.seconds)}"),
        ("Sizewise", record.version),
        *((f"Data: {name}", tag("code", fmt.flat(value))) for name, value in record.data.items()),
        ("Fingerprint of the run", tag("code", record.fingerprint)),
    ]
    shown = table(("Fact", "Value"), [(name, value) for name, value in facts if value])
    return section("How it is known", shown, tag("h3", "Conventions"), bullets(story.conventions(record)))
