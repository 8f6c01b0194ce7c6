"""The part of the page that explains the choice."""

from sizewise.report import _explain as told
from sizewise.report import _format as fmt
from sizewise.report._page import Html, bullets, details, join, paragraph, plot_figure, section, stacked, table, tag
from sizewise.report._plot_waterfall import draw_waterfall
from sizewise.types import RunRecord
from sizewise.units import format_bytes, format_seconds

__all__ = ["levers_section", "neighbours_section", "waterfall_section"]


def waterfall_section(record: RunRecord) -> Html:
    """What each lever bought; nothing where that is not known."""
    found = told.stages(record)
    if not found:
        return Html("")
    caption = "What each lever made of latency and file size. Equal lengths are equal ratios. Pale: within the noise of the latencies."
    words = (
        f"From {record.reference} in float PyTorch to the chosen file, over files that were measured. Levers in one bar were measured "
        "together only. What a lever buys depends on what was done before it. Latencies are compared within rounds, so that slow spells "
        "of the machine are no steps."
    )
    head = ("Step", "Latency", "To the step before", "File size", "To that before", record.metric.capitalize(), "Drop")
    rows = (
        (
            join((stage.name, tag("span", stage.note, class_="interval"))) if stage.note else stage.name,
            format_seconds(stage.latency_s),
            stage.faster,
            format_bytes(stage.size_bytes),
            stage.smaller,
            fmt.quality_value(stage.quality.score.value, record.metric),
            stacked(fmt.drop(stage.quality.drop, record.metric)),
        )
        for stage in found
    )
    drawn = plot_figure(draw_waterfall(found), (), caption)
    figures = table(head, rows, numbers=("Latency", "File size", head[5], "Drop"), label="What each lever bought")
    return section("What each lever bought", paragraph(words, class_="soft"), drawn, figures)


def neighbours_section(record: RunRecord) -> Html:
    """Why plans next to the chosen one lost; nothing where there are none."""
    found = told.rivals(record)
    if not found:
        return Html("")
    words = f"Plans that differ from {fmt.plan_name(record.winner.plan)} in one lever. Figures with ~ are predictions of the search."
    head = ("Instead", "Latency", "File size", "Drop", "Why not")
    rows = ((rival.change, rival.latency, rival.size, rival.drop, rival.why) for rival in found)
    return section("Why not its neighbours", paragraph(words, class_="soft"), table(head, rows, numbers=head[1:4]))


def levers_section(record: RunRecord) -> Html:
    """What levers do on this device, those that do not pay first, and what could not be done; nothing where that is not known."""
    found, refused = told.effects(record), told.refused(record)
    if record.explanation is None or not (found or refused):
        return Html("")
    slow = told.no_faster(record)
    parts = []
    if found:
        good = "Every lever that was measured with and without made its file faster."
        parts.append(join((paragraph(f"{told.NO_FASTER}:"), bullets(slow))) if slow else paragraph(good))
        parts.append(_effects(found))
    if refused:
        parts += [tag("h3", "What could not be done"), table(("Plan", "Reason"), refused, label="Plans that failed")]
    return section("Levers on this device", *parts)


def _effects(found: tuple[told.Effect, ...]) -> Html:
    head = ("Lever", "Added to", "Latency", "File size", "Drop", "Faster")
    rows = (
        (row.lever, row.on, stacked(row.latency), row.size, row.drop, "yes" if row.faster else "not proved" if row.ratio < 1 else "no")
        for row in found
    )
    words = "Latency and file size with the lever over those without it. Faster: the whole interval of the latency's ratio is below 1."
    title = f"All {fmt.plural(len(found), 'pair')} of files that differ in one lever"
    return details(title, paragraph(words, class_="soft"), table(head, rows, numbers=head[2:5], label="Levers with and without"))
