"""A run record as one HTML page that needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

from sizewise.report import _costs as costs
from sizewise.report import _format as fmt
from sizewise.report import _plot_frontier as frontier
from sizewise.report import _plots as plots
from sizewise.report import _story as story
from sizewise.report._explain_html import levers_section, neighbours_section, waterfall_section
from sizewise.report._layer_bars import layer_bars
from sizewise.report._page import Html, bullets, details, join, page, paragraph, plot_figure, section, stacked, table, tag
from sizewise.types import Candidate, Change, Interval, Measurement, RunRecord, ScaleRecord, Step
from sizewise.units import format_bytes, format_count, format_seconds

__all__ = ["render_html"]


def render_html(record: RunRecord) -> str:
    """The whole run on one page: verdict, plots, every candidate with its reason, and how it was measured.

    Args:
        record: of a finished run.

    Returns:
        A complete HTML document of about 5 MB, nearly all of it plotly's JavaScript. Every text is escaped.

    Raises:
        InternalError: the record chose a candidate without measurements.
    """
    explained = (waterfall_section, neighbours_section, levers_section)
    tried = (_frontier, _candidates, _scales, _changes, _stored, _warnings, _method)
    sections = (_banner, _head, _verdict, *explained, *tried)
    title = f"{record.task}: {fmt.plan_name(record.winner.plan)}"
    if not record.feasible:
        title = f"{story.OUTSIDE}: {title}"
    return page(title, plots.plotly_script(), *(build(record) for build in sections))


# ---- what came out


def _banner(record: RunRecord) -> Html:
    if record.feasible:
        return Html("")
    bound = ((b.name.capitalize(), f"{b.got} {b.seen}", b.allowed) for b in story.binding(record))
    parts = [tag("strong", story.OUTSIDE), paragraph(story.fit_sentence(record)), tag("h3", "Limits that bind")]
    parts.append(table(("Limit", "Found", "Allowed"), bound, numbers=("Found", "Allowed")))
    if record.relaxations:
        head = ("Limit", "Now", "A tried candidate would fit with", "Candidate", "What that would be")
        parts += [
            tag("h3", "What relaxing one limit would buy"),
            table(head, ((name.capitalize(), *rest) for name, *rest in story.relaxations(record))),
            *([paragraph(f"Relaxed {words}.")] if (words := story.together(record)) else []),
        ]
    return tag("div", *parts, class_="banner", role="alert")


def _head(record: RunRecord) -> Html:
    rows = ((name.capitalize(), figure, remark) for name, figure, remark in story.figures(record))
    return tag(
        "header",
        tag("h1", f"{record.task}: {fmt.plan_name(record.winner.plan)}"),
        paragraph(story.headline(record), ".", class_="lead"),
        paragraph("" if not record.feasible else story.fit_sentence(record)),
        table(("Figure", "Measured", "Compared"), rows, numbers=("Measured",), label="Figures of the chosen file"),
        *_integers(record),
    )


def _integers(record: RunRecord) -> list[Html]:
    causes = story.why_slow(record)
    why = [paragraph("Not faster than in float:"), bullets(causes)] if causes else []
    return [*([paragraph(said)] if (said := story.integers(record)) else []), *why]


def _verdict(record: RunRecord) -> Html:
    rows = [
        (name.capitalize(), tag("span", judgement, class_=judgement), figure, allowed, why)
        for name, judgement, figure, allowed, why in story.verdict_rows(record)
    ]
    if not rows:
        return section("Verdict", paragraph(story.NO_LIMITS))
    head = ("Limit", "Verdict", "Figure", "Allowed", "Rests on")
    words = "Proved: the whole interval keeps the limit. Refused: the whole interval breaks it. Undecided: it holds the limit."
    body = table(head, rows, numbers=("Figure", "Allowed"))
    overall = tag("span", record.verdict.judgement, class_=record.verdict.judgement)
    others = [bullets(said)] if (said := story.unproved(record)) else []
    return section("Verdict", paragraph("Overall: ", overall, "."), body, *others, paragraph(words, class_="soft"))


# ---- what was tried


def _frontier(record: RunRecord) -> Html:
    captions = (
        (frontier.SPEED, "Latency against quality. A larger marker is a larger file."),
        (frontier.SIZE, "File size against quality."),
    )
    left = sum(c.measured is None for c in record.candidates)
    note = (
        "Colour is the scale, the symbol is what was done to it. A dark edge: no other candidate is at least as good in latency, "
        "file size and quality and better in one. Bars are 95 % intervals of quality on validation. The table below has the same figures."
    )
    unmeasured = f" {fmt.plural(left, 'candidate')} without measurements: see the table." if left else ""
    return section(
        "Frontier",
        paragraph(note + unmeasured, class_="soft"),
        *(plot_figure(*frontier.draw(record, axis), caption) for axis, caption in captions),
    )


def _candidates(record: RunRecord) -> Html:
    pairs = [(c, c.measured) for c in record.candidates if c.measured]
    rows = sorted(pairs, key=lambda pair: (pair[1].latency.value, pair[0].id))
    metric = record.metric.capitalize()
    head = ("Candidate", "Status", "Latency", "To reference", "File size", "Memory", metric, "Drop", "Same top-1", "Tried in")
    marked = [index for index, (c, _) in enumerate(rows) if c.id == record.chosen]
    ratio = f"To reference: latency over that of {record.reference} as a float PyTorch module, timed in the same rounds. "
    top1 = "Same top-1: how often the file and the torch module it was made from name the same class. Quality is on validation."
    best = "At best: the rest of validation can only make it worse, and is read where that matters."
    part = best if any(c.unread for c, _ in rows) else ""
    return section(
        f"All {fmt.plural(len(record.candidates), 'candidate')}",
        paragraph(" ".join(filter(None, (story.search(record), ratio + top1, part, story.racing(record)))), class_="soft"),
        table(head, (_measured_row(c, m, record.chosen) for c, m in rows), numbers=head[2:], marked=marked, label="Measured candidates"),
        _unmeasured([c for c in record.candidates if c.measured is None]),
    )


def _unmeasured(candidates: Sequence[Candidate]) -> Html:
    if not candidates:
        return Html("")
    rows = ((_name(c), c.status, c.reason or "no reason recorded", _drop_seen(c), _spent(c)) for c in candidates)
    words = (
        "Stopped: its quality surely breaks a limit. Beaten: it cannot be chosen before another, whatever the rest of the validation split "
        "says. Failed: could not be made. Untried: the time ran out. A drop here is that of the examples seen."
    )
    head = ("Candidate", "Status", "Reason", "Drop", "Tried in")
    return join(
        (tag("h3", "Not measured"), paragraph(words, class_="soft"), table(head, rows, numbers=head[3:], label="Candidates not measured"))
    )


def _name(c: Candidate) -> Html:
    return join((fmt.plan_name(c.plan), tag("span", c.id, class_="interval")))


def _drop_seen(c: Candidate) -> Html:
    found = c.partly.quality if c.partly else None
    return stacked(fmt.drop(found.drop, found.metric)) if found else Html("")


def _spent(c: Candidate) -> str:
    return format_seconds(c.seconds) if c.seconds else ""


def _measured_row(c: Candidate, m: Measurement, chosen: str) -> tuple[object, ...]:
    marks = ["chosen"] * (c.id == chosen) + ["frontier"] * c.on_frontier
    marks += [f"on {m.quality.score.n:,} of {m.quality.score.n + c.unread:,} examples"] if c.unread else []
    agreement = m.parity.top1_agreement
    return (
        _name(c),
        ", ".join([c.status, *marks]),
        stacked(fmt.interval(m.latency, format_seconds)),
        f"{m.latency_ratio:.3g}",
        format_bytes(m.size_bytes),
        stacked(fmt.interval(m.memory, format_bytes)),
        stacked(fmt.at_best(c, fmt.quality(m.quality.score, m.quality.metric))),
        stacked(fmt.drop(m.quality.drop, m.quality.metric)),
        "" if agreement is None else f"{100 * agreement:.1f} %",
        _spent(c),
    )


def _scales(record: RunRecord) -> Html:
    head = ("Scale", "Parameters", "MACs", "Weights", "Float quality", "Float PyTorch", "How trained", "Not counted in MACs")
    marked = [index for index, scale in enumerate(record.scales) if scale.name == record.reference]
    note = f"The reference, which drops and ratios are counted from, is {record.reference}. Quality is on validation."
    rows = map(_scale_row, record.scales)
    drawn = table(head, rows, numbers=head[1:6], marked=marked)
    return section("Scales", paragraph(note, class_="soft"), drawn, *(_layers(s) for s in record.scales if s.cost.layers))


def _layers(scale: ScaleRecord) -> Html:
    # by MACs, which every scale has; what takes the time in the file is not known layer by layer here
    return details(f"MACs per layer of {scale.name}", layer_bars(scale.cost, by="macs", label=f"of {scale.name}"))


def _scale_row(scale: ScaleRecord) -> tuple[object, ...]:
    cost, found = scale.cost, scale.quality
    return (
        scale.name,
        format_count(cost.params),
        format_count(cost.macs),
        format_bytes(cost.weight_bytes),
        stacked(fmt.quality(found.score, found.metric)) if found else "",
        _latency(scale.torch_latency),
        scale.trained,
        costs.uncounted(cost) or "nothing",
    )


def _latency(figure: Interval | None) -> Html:
    return stacked(fmt.interval(figure, format_seconds)) if figure else Html("")


# ---- what was done


def _changes(record: RunRecord) -> Html:
    chosen = record.winner
    parts = [_change(step, change) for step, change in zip(chosen.plan.steps, chosen.changes, strict=False)]
    notes = chosen.artefact.notes if chosen.artefact else ()
    nothing = "Nothing was changed: the file holds the float model."
    return section("What was done to the chosen model", *(parts or [paragraph(nothing)]), bullets(notes))


def _change(step: Step, change: Change) -> Html:
    settings = ", ".join(f"{name} {value}" for name, value in step.settings.items())
    touched = f"Touched {fmt.plural(len(change.touched), 'part')}"
    skipped = ((skip.what, skip.reason) for skip in change.skipped)
    return join(
        (
            tag("h3", step.technique + (f" ({settings})" if settings else "")),
            details(touched, paragraph(join((tag("code", name) for name in change.touched), ", "))),
            table(("Left alone", "Why"), skipped) if change.skipped else paragraph("Left nothing alone."),
            bullets(change.notes),
        )
    )


def _stored(record: RunRecord) -> Html:
    stored = record.winner.stored
    if stored is None:
        return Html("")
    largest = sorted(stored.tensors, key=lambda tensor: (-tensor.size_bytes, tensor.name))
    rows = [
        (
            tag("code", tensor.name),
            tensor.form,
            format_bytes(tensor.float_bytes),
            format_bytes(tensor.size_bytes),
            f"{32 * tensor.size_bytes / max(tensor.float_bytes, 1):.2f}",
        )
        for tensor in largest
    ]
    head = ("Tensor", "Form", "In float32", "Stored", "Bits per number")
    rest = stored.size_bytes - sum(tensor.size_bytes for tensor in stored.tensors)
    words = (
        f"{stored.path} holds the torch module's weights in {format_bytes(stored.size_bytes)}; the whole model's take "
        f"{format_bytes(stored.whole_bytes)} in float32. {format_bytes(rest)} of it are names, shapes and checksums. "
        "sizewise.load reads it; the runtime's file holds decoded weights."
    )
    every = table(head, rows, numbers=head[2:], label="Stored bytes of every tensor")
    return section("Stored weights", paragraph(words), _contributions(record), every)


def _contributions(record: RunRecord) -> Html:
    rows = story.contributions(record)
    if not rows:
        return Html("")
    head = ("Method", "File without it", "File with all", "Saved")
    return join((paragraph(story.LEFT_OUT), table(head, rows, numbers=head[1:], label="What each method saves")))


def _warnings(record: RunRecord) -> Html:
    return section("Warnings", bullets(record.warnings)) if record.warnings else Html("")


# ---- how it is known


def _method(record: RunRecord) -> Html:
    measured = story.winner(record)
    where = f"{record.device.title} ({record.device.name}), {record.device.how}"
    facts: list[tuple[str, object]] = [("Device", where), *((k.capitalize(), v) for k, v in record.device.machine.items())]
    facts += [
        ("Sources", "; ".join(record.device.sources)),
        ("Threads", measured.threads),
        ("Batch", f"{measured.batch} per call"),
        ("Runtime", record.runtime),
        ("Seed", record.seed),
        ("Run", f"{record.created}, took {format_seconds(record.seconds)}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        *_data(record.data),
        ("Fingerprint of the run", tag("code", record.fingerprint)),
    ]
    conventions = (tag("h3", "Conventions"), bullets(story.CONVENTIONS))
    return section("How it was measured", table(("Fact", "Value"), facts), _parity(record), *conventions)


def _data(data: Mapping[str, Any]) -> Sequence[tuple[str, object]]:
    return [(f"Data: {name}", tag("code", fmt.flat(value))) for name, value in data.items()]


def _parity(record: RunRecord) -> Html:
    parity = story.winner(record).parity
    return paragraph(
        f"The chosen file against the torch module it was made from, on {fmt.plural(parity.n, 'validation example')}: "
        f"outputs differ by {parity.max_abs:.3g} at most and {parity.mean_abs:.3g} on average; their size is {parity.output_scale:.3g}."
    )
