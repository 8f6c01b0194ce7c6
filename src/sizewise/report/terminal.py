"""A run record as plain text for a terminal or a pipe."""

import textwrap
from collections.abc import Sequence

from sizewise.report import _format as fmt
from sizewise.report import _story as story
from sizewise.types import Candidate, Measurement, RunRecord
from sizewise.units import format_bytes

__all__ = ["WIDTH", "summary"]

WIDTH = 100
_FRONTIER_ROWS = 8
_LAST_COLUMN = 20


def summary(record: RunRecord) -> str:
    """What was chosen, its figures, the verdict per limit, the frontier and warnings.

    Args:
        record: of a finished run.

    Returns:
        Lines of at most `WIDTH` characters, without colour codes and without a newline at the end.
    """
    blocks = [_head(record), _figures(record), _verdict(record), _misfit(record), _frontier(record), _warnings(record)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _head(record: RunRecord) -> list[str]:
    measured = story.winner(record)
    where = f"{record.runtime} on {record.device.title}, {fmt.plural(measured.threads, 'thread')}, batch {measured.batch}"
    name = _wrap(f"{record.task}: {fmt.plan_name(record.winner.plan)} ({where})")
    fit = story.fit_sentence(record)
    return name + _wrap(fit) if record.feasible else _wrap(f"{story.OUTSIDE}. {fit}") + name


def _figures(record: RunRecord) -> list[str]:
    return _columns(story.figures(record))


def _verdict(record: RunRecord) -> list[str]:
    # what a judgement rests on is in the report; here only an open one needs words, for what would decide it
    rows = story.verdict_rows(record)
    if not rows:
        return []
    reasons = [_wrap(f"{name}: {why}", "  ") for name, judgement, _, _, why in rows if judgement == "undecided"]
    return [f"verdict: {record.verdict.judgement}", *_columns([row[:4] for row in rows]), *(line for lines in reasons for line in lines)]


def _misfit(record: RunRecord) -> list[str]:
    if record.feasible:
        return []
    lines = ["limits that bind:", *_columns([(b.name, b.got, f"allowed {b.allowed}", b.seen) for b in story.binding(record)])]
    rows = [(name, needed, f"now {now}", who) for name, now, needed, who in story.relaxations(record)]
    return [*lines, "a tried candidate would fit with:", *_columns(rows)] if rows else lines


def _frontier(record: RunRecord) -> list[str]:
    rows = story.frontier(record)
    if not rows:
        return []
    measured = sum(c.measured is not None for c in record.candidates)
    title = f"frontier: {len(rows)} of {measured} measured, {fmt.plural(len(record.candidates), 'candidate')} in all; * is chosen"
    head = ("", "candidate", "latency", "file size", f"{record.metric} on validation", "drop")
    lines = _columns([head, *(_frontier_row(record, c, m) for c, m in rows[:_FRONTIER_ROWS])])
    left = len(rows) - _FRONTIER_ROWS
    return [title, *lines, *([f"  and {left} more in the report"] if left > 0 else [])]


def _frontier_row(record: RunRecord, candidate: Candidate, measured: Measurement) -> tuple[str, ...]:
    metric = measured.quality.metric
    drop = measured.quality.drop
    return (
        "*" if candidate.id == record.chosen else " ",
        fmt.plan_name(candidate.plan),
        fmt.limit_value("latency", measured.latency.value, metric),
        format_bytes(measured.size_bytes),
        fmt.quality_value(measured.quality.score.value, metric),
        fmt.drop_value(drop.value, metric) if drop else "",
    )


def _warnings(record: RunRecord) -> list[str]:
    return [line for warning in record.warnings for line in _wrap(f"warning: {warning}")]


def _wrap(text: str, first: str = "") -> list[str]:
    indent = " " * (len(first) or 2)
    return textwrap.wrap(fmt.printable(text), WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, two spaces apart and indented by two; the last column wraps below itself."""
    cells = [[fmt.printable(cell) for cell in row] for row in rows]
    widths = _shares([max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]])
    lines: list[str] = []
    for row in cells:
        start = "  " + "".join(f"{_short(cell, width):<{width}}  " for cell, width in zip(row[:-1], widths, strict=True))
        lines += [line.rstrip() for line in _wrap(row[-1], start)] or [start.rstrip()]
    return lines


def _shares(widths: list[int]) -> list[int]:
    """Narrow the widest columns until the last one has room."""
    room = WIDTH - _LAST_COLUMN - 2 * (len(widths) + 1)
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    return widths


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."
