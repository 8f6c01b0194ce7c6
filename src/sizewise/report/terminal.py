"""A run record as plain text for a terminal or a pipe."""

from sizewise.report import _explain as told
from sizewise.report import _format as fmt
from sizewise.report import _story as story
from sizewise.report._text import WIDTH, columns, document, wrap
from sizewise.types import Candidate, Measurement, RunRecord
from sizewise.units import format_bytes, format_seconds

__all__ = ["WIDTH", "summary"]

_FRONTIER_ROWS = 8
_LEFT_ALONE = 4
_NEIGHBOURS = 5


def summary(record: RunRecord) -> str:
    """What was chosen, its figures, the verdict per limit, the frontier and warnings; without a search, what was done and the whole model.

    Args:
        record: of a finished run.

    Returns:
        Lines of at most `WIDTH` characters, without colour codes and without a newline at the end.
    """
    explained = [_waterfall(record), _neighbours(record), _levers(record)]
    others = [*explained, _frontier(record)] if record.searched else [_beside(record), _done(record), _saved(record)]
    return document([_head(record), _figures(record), _integers(record), _verdict(record), _misfit(record), *others, _warnings(record)])


def _head(record: RunRecord) -> list[str]:
    measured = story.winner(record)
    where = f"{record.runtime} on {record.device.title}, {fmt.plural(measured.threads, 'thread')}, batch {measured.batch}"
    name = wrap(f"{record.task}: {fmt.plan_name(record.winner.plan)} ({where})")
    fit = story.fit_sentence(record)
    return name + wrap(fit) if record.feasible else wrap(f"{story.OUTSIDE}. {fit}") + name


def _figures(record: RunRecord) -> list[str]:
    return columns(story.figures(record))


def _integers(record: RunRecord) -> list[str]:
    causes = story.why_slow(record)
    why = ["  not faster than in float:", *(line for cause in causes for line in wrap(cause, "    "))] if causes else []
    return [*wrap(story.integers(record)), *why]


def _verdict(record: RunRecord) -> list[str]:
    # what a judgement rests on is in the report; here only an open one needs words, for what would decide it
    rows = story.verdict_rows(record)
    if not rows:
        return []
    reasons = [wrap(f"{name}: {why}", "  ") for name, judgement, _, _, why in rows if judgement == "undecided"]
    reasons += [wrap(sentence, "  ") for sentence in story.unproved(record)]
    return [f"verdict: {record.verdict.judgement}", *columns([row[:4] for row in rows]), *(line for lines in reasons for line in lines)]


def _misfit(record: RunRecord) -> list[str]:
    if record.feasible:
        return []
    lines = ["limits that bind:", *columns([(b.name, b.got, f"allowed {b.allowed}", b.seen) for b in story.binding(record)])]
    rows = [
        f"{name} {needed} (now {now}): {who}: {what}" if who else f"{name} (now {now}): {needed}"
        for name, now, needed, who, what in story.relaxations(record)
    ]
    rows += [together] if (together := story.together(record)) else []
    return [*lines, "a tried candidate would fit with:", *(line for row in rows for line in wrap(row, "  "))] if rows else lines


def _waterfall(record: RunRecord) -> list[str]:
    """What each lever bought."""
    found = told.stages(record)
    if not found:
        return []
    head = ("latency", "", "file size", "", "drop", "step")
    return ["what each lever bought:", *columns([head, *(_stage_row(record, stage) for stage in found)])]


def _stage_row(record: RunRecord, stage: told.Stage) -> tuple[str, ...]:
    drop = fmt.drop_value(stage.quality.drop.value, record.metric) if stage.quality.drop else ""
    faster = "within noise" if stage.noise else stage.faster.partition(" [")[0] + stage.faster.partition("]")[2]
    return (format_seconds(stage.latency_s), faster, format_bytes(stage.size_bytes), stage.smaller, drop, stage.name)


def _neighbours(record: RunRecord) -> list[str]:
    """Why plans next to the chosen one lost; ~ marks predictions."""
    found = told.rivals(record)
    if not found:
        return []
    lines = []
    for rival in found[:_NEIGHBOURS]:
        figures = ", ".join(part for part in (rival.latency, rival.size, rival.drop) if part)
        lines += wrap(f"{rival.change}{f' ({figures})' if figures else ''}: {rival.why}", "  ")
    left = len(found) - _NEIGHBOURS
    return ["why not its neighbours (~ is predicted):", *lines, *([f"  and {left} more in the report"] if left > 0 else [])]


def _levers(record: RunRecord) -> list[str]:
    """Levers that do not pay on this device, and plans that could not be made."""
    if record.explanation is None:
        return []
    slow, failed = told.no_faster(record), [f"{plan}: {reason}" for plan, reason in told.refused(record)]
    parts = ((f"{told.NO_FASTER.lower()}:", slow), ("what could not be done:", failed))
    return [line for title, rows in parts if rows for line in (title, *(part for row in rows for part in wrap(row, "  ")))]


def _frontier(record: RunRecord) -> list[str]:
    rows = story.frontier(record)
    if not rows:
        return []
    measured = sum(c.measured is not None for c in record.candidates)
    title = f"frontier: {len(rows)} of {measured} measured, {fmt.plural(len(record.candidates), 'candidate')} in all; * is chosen"
    head = ("", "candidate", "latency", "file size", f"{record.metric} on validation", "drop")
    lines = columns([head, *(_frontier_row(record, c, m) for c, m in rows[:_FRONTIER_ROWS])])
    left = len(rows) - _FRONTIER_ROWS
    words = [line for text in (story.search(record), story.racing(record)) for line in wrap(text, "  ")]
    return [title, *lines, *([f"  and {left} more in the report"] if left > 0 else []), *words]


def _frontier_row(record: RunRecord, candidate: Candidate, measured: Measurement) -> tuple[str, ...]:
    metric = measured.quality.metric
    drop = measured.quality.drop
    return (
        "*" if candidate.id == record.chosen else " ",
        fmt.plan_name(candidate.plan),
        fmt.limit_value("latency", measured.latency.value, metric),
        format_bytes(measured.size_bytes),
        fmt.at_best(candidate, fmt.quality_value(measured.quality.score.value, metric)),
        fmt.drop_value(drop.value, metric) if drop else "",
    )


def _beside(record: RunRecord) -> list[str]:
    """The whole model's file and the chosen one, measured in the same rounds."""
    before = story.whole(record)
    if before is None or before.measured is None:
        return []
    head = ("", "latency", "file size", "memory", f"{record.metric} on validation", "drop")
    others = [(fmt.plan_name(c.plan), c.measured) for c in story.ways(record) if c.measured]
    rows = [_beside_row(name, found) for name, found in (("whole", before.measured), ("this file", story.winner(record)), *others)]
    failed = [line for c in story.ways(record) if not c.measured for line in wrap(f"{fmt.plan_name(c.plan)}: {c.reason}", "  ")]
    return [f"beside the whole {before.plan.scale}:", *columns([head, *rows]), *failed]


def _beside_row(name: str, measured: Measurement) -> tuple[str, ...]:
    metric, drop = measured.quality.metric, measured.quality.drop
    return (
        name,
        fmt.interval(measured.latency, format_seconds),
        format_bytes(measured.size_bytes),
        format_bytes(measured.memory.value),
        fmt.quality_value(measured.quality.score.value, metric),
        fmt.drop_value(drop.value, metric) if drop else "",
    )


def _done(record: RunRecord) -> list[str]:
    chosen = record.winner
    lines: list[str] = []
    for step, change in zip(chosen.plan.steps, chosen.changes, strict=False):
        lines += [line for note in (f"{step.technique} changed {len(change.touched)} parts", *change.notes) for line in wrap(note, "  ")]
    left = story.left_alone(record, _LEFT_ALONE)
    alone = [line for what in left for line in wrap(what, "    ")]
    return ["what was done:", *lines, *(["  left alone:", *alone] if alone else [])] if lines else []


def _saved(record: RunRecord) -> list[str]:
    """What each method has saved of the stored weights."""
    rows = story.contributions(record)
    return [*wrap(story.LEFT_OUT), *columns([("", "without it", "with all", "saved"), *rows])] if rows else []


def _warnings(record: RunRecord) -> list[str]:
    return [line for warning in record.warnings for line in wrap(f"warning: {warning}")]
