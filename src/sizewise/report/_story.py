"""What a run record says, in words: the sentences that terminal, card and page share."""

import math
from dataclasses import dataclass

from sizewise.errors import InternalError
from sizewise.report import _format as fmt
from sizewise.report._integers import executed_sentence, shows_integers, why_not_faster
from sizewise.types import Candidate, Interval, Limit, LimitVerdict, Measurement, Quality, Relaxation, RunRecord, Unproved
from sizewise.units import format_bytes, format_seconds

__all__ = [
    "CONVENTIONS",
    "NO_LIMITS",
    "OUTSIDE",
    "Binding",
    "binding",
    "figures",
    "fit_sentence",
    "frontier",
    "headline",
    "how_fast",
    "in_short",
    "integers",
    "judged",
    "judged_on",
    "left_alone",
    "needed",
    "racing",
    "relaxations",
    "search",
    "size_ratio",
    "speedup",
    "together",
    "unproved",
    "verdict_rows",
    "ways",
    "whole",
    "why_slow",
    "winner",
]

OUTSIDE = "OUTSIDE THE BUDGET"
SAME_SIZE = 0.005  # ratios that print as 1.00
NO_LIMITS = "No limits were set, so there is nothing to prove."
LEFT_OUT = (
    "What each method saves of the stored weights: their file with it left out and all others as they are; without pruning or low rank, "
    "weights are as many more and have as many bits each."
)
CONVENTIONS = (
    "1 kB is 1,000 bytes and 1 MB is 1,000,000 bytes.",
    "One MAC (multiply-accumulate) is two FLOPs.",
    "A drop is the difference to the reference in the metric's own unit: percentage points (pt) for a share. Positive is worse.",
    "Brackets hold 95 % confidence intervals; a figure without brackets is exact or rests on one observation.",
    "In a verdict each end of a bracket is a one-sided bound: the limit is proved when the upper one keeps it, refused when the lower "
    "one breaks it. For latency and memory each errs in at most 5 % of cases; for quality all looks at one test split do so together, the "
    "first in 4 %, each further one a fifth as often.",
    "Latency is the median time of one warm call on the example inputs. Memory is the peak growth of a fresh process.",
)


@dataclass(frozen=True)
class Binding:
    """A limit that the chosen file breaks, in words."""

    name: str
    got: str
    allowed: str
    seen: str


def winner(record: RunRecord) -> Measurement:
    """What was measured on the chosen file.

    Raises:
        InternalError: the record chose a candidate without measurements.
    """
    measured = record.winner.measured
    if measured is None:
        raise InternalError("the chosen candidate was not measured", where=record.chosen)
    return measured


def judged(record: RunRecord) -> Quality:
    """The chosen file's quality on the test split, or on validation when that was not looked at."""
    return record.verdict.test_quality or winner(record).quality


def judged_on(record: RunRecord) -> str:
    """ "500 test examples"; says so when it is only validation."""
    found = judged(record)
    if record.verdict.test_quality:
        return fmt.plural(found.score.n, "test example")
    return fmt.plural(found.score.n, "validation example") + (", which the search looked at" if record.searched else "")


def racing(record: RunRecord) -> str:
    """How much of the validation split the candidates were scored on; "" where all of it, or nobody counted."""
    some, everything = record.examples_evaluated, record.examples_in_full
    if not some or not everything or some >= everything:
        return ""
    return f"Scored on {some:,} validation examples instead of {everything:,}: what was not to be chosen was not read to its end."


def search(record: RunRecord) -> str:
    """How many plans were tried, and why no more; "" where nothing was searched."""
    found = record.search
    if found is None:
        return ""
    left = f"; {fmt.plural(found.promising, 'plan')} left might be better" if found.promising else ""
    why = {
        "done": "none that is left is expected to be the best that fits",
        "trials": f"no more were to be tried{left}",
        "time": f"the time limit was reached{left}",
        "target": "the first that fits was all that was wanted",
    }
    return f"{found.tried} of {fmt.plural(found.plans, 'plan')} tried: {why[found.ended]}."


def size_ratio(record: RunRecord) -> float:
    """How many times smaller the chosen file is than the reference's float weights."""
    return record.reference_weight_bytes / max(winner(record).size_bytes, 1)


def speedup(record: RunRecord) -> str:
    """ "18 times [16, 20] faster": the measured ratio with its interval."""
    return how_fast(record.speedup)


def how_fast(found: Interval) -> str:
    """ "18 times [16, 20] faster" for a ratio of speeds."""
    if found.value < 1:
        low, high = (fmt.ratio(1 / max(x, 1e-12)) for x in (found.high, found.low))
        return f"{fmt.ratio(1 / max(found.value, 1e-12))} times [{low}, {high}] slower"
    return f"{fmt.ratio(found.value)} times [{fmt.ratio(found.low)}, {fmt.ratio(found.high)}] faster"


def headline(record: RunRecord) -> str:
    """One sentence: the file's figures, and how they compare with the reference in float PyTorch."""
    measured, found = winner(record), judged(record)
    figures = f"{format_seconds(measured.latency.value)}, {format_bytes(measured.size_bytes)}"
    score = f"{found.metric} {fmt.quality_value(found.score.value, found.metric)}"
    faster = fmt.times(record.speedup.value, "faster", "slower")
    smaller = fmt.times(size_ratio(record), "smaller", "larger")
    return f"{figures}, {score}; {faster} and {smaller} than {record.reference} in float PyTorch"


def figures(record: RunRecord) -> tuple[tuple[str, str, str], ...]:
    """Name, figure and remark of what the chosen file costs and is worth."""
    measured, found = winner(record), judged(record)
    torch = f"float PyTorch {record.reference} ({format_seconds(record.reference_torch_latency.value)})"
    smaller = fmt.times(size_ratio(record), "smaller", "larger")
    against = f"; drop {fmt.drop(found.drop, found.metric)} from {record.reference}" if found.drop else ""
    return (
        ("latency", fmt.interval(measured.latency, format_seconds), f"{speedup(record)} than {torch}"),
        (
            "file size",
            format_bytes(measured.size_bytes),
            f"{smaller} than {record.reference}'s float weights ({format_bytes(record.reference_weight_bytes)})",
        ),
        *_stored(record),
        ("memory", fmt.interval(measured.memory, format_bytes), "peak growth of a fresh process"),
        (found.metric, fmt.quality(found.score, found.metric), judged_on(record) + against),
    )


def _stored(record: RunRecord) -> tuple[tuple[str, str, str], ...]:
    stored = record.winner.stored
    if stored is None:
        return ()
    smaller = fmt.times(stored.whole_bytes / max(stored.size_bytes, 1), "smaller", "larger")
    return (("stored", format_bytes(stored.size_bytes), f"{stored.path}: weights of the torch module, {smaller} than in float32"),)


def contributions(record: RunRecord) -> tuple[tuple[str, ...], ...]:
    """What each method has saved of the stored weights: its name, the file's bytes without it, and what share that saves."""
    saved = [saved for change in record.winner.changes for saved in change.contributions]
    return tuple(
        (one.method, format_bytes(one.bytes_without), format_bytes(one.size_bytes), _share_saved(one.size_bytes, one.bytes_without))
        for one in saved
    )


def _share_saved(size: int, without: int) -> str:
    return f"{100 * (1 - size / without):.1f} %" if without else ""


def ways(record: RunRecord) -> tuple[Candidate, ...]:
    """What else was tried to the same end, where nothing was searched; with the reason where it was not measured."""
    if record.searched:
        return ()
    return tuple(c for c in record.candidates if c.plan.steps and c.id != record.chosen)


def fit_sentence(record: RunRecord) -> str:
    """Whether the chosen file fits the budget, and how sure that is; without a search, how it compares with the whole model's."""
    rows = record.verdict.limits
    if not record.feasible:
        return _outside(record)
    if not rows:
        return NO_LIMITS if record.searched else _against_whole(record)
    open_rows = [fmt.limit_name(row.limit, record.metric) for row in rows if row.judgement != "proved"]
    if not open_rows:
        return f"Inside the budget: all {len(rows)} limits are proved." if len(rows) > 1 else "Inside the budget: its limit is proved."
    return f"Inside the budget by its point estimates; not proved: {', '.join(open_rows)}."


def whole(record: RunRecord) -> Candidate | None:
    """The candidate that holds the chosen scale as it was, where it was measured."""
    found = (c for c in record.candidates if c.plan.scale == record.winner.plan.scale and not c.plan.steps and c.id != record.chosen)
    return next((c for c in found if c.measured), None)


def integers(record: RunRecord) -> str:
    """Which part of the chosen file runs as integers; "" where it holds none, or nobody knows."""
    found = winner(record).executed
    return executed_sentence(found) if found and shows_integers(found) else ""


def why_slow(record: RunRecord) -> tuple[str, ...]:
    """Why the chosen quantized file is not faster than the float one it was made from; empty where it is, or that was not measured."""
    measured, before = winner(record), _in_float(record)
    if before is None or before.executed is None or measured.executed is None:
        return ()
    return why_not_faster(before.executed, before.latency.value, measured.executed, measured.latency.value)


def _in_float(record: RunRecord) -> Measurement | None:
    """The float file that has most of the chosen quantized file's first steps."""
    chosen, found = record.winner.plan, winner(record).executed
    if found is None or not shows_integers(found):
        return None
    rows = [
        (len(c.plan.steps), file)
        for c in record.candidates
        if (file := c.measured or c.partly) and file.executed and not shows_integers(file.executed)
        if c.plan.scale == chosen.scale and _kinds(c) == _kinds(record.winner)[: len(c.plan.steps)]
    ]
    return max(rows, key=lambda row: row[0])[1] if rows else None


def _kinds(candidate: Candidate) -> list[tuple[str, dict[str, object]]]:
    return [(step.technique, step.settings) for step in candidate.plan.steps]


def _against_whole(record: RunRecord) -> str:
    before, faster = whole(record), record.file_speedup
    if before is None or before.measured is None or faster is None:
        return NO_LIMITS
    low, high = fmt.ratio(faster.low), fmt.ratio(faster.high)
    speed = f"as fast within the noise [{low}, {high}]" if faster.low <= 1 <= faster.high else how_fast(faster)
    size = before.measured.size_bytes / max(winner(record).size_bytes, 1)
    smaller = "as large" if abs(size - 1) < SAME_SIZE else fmt.times(size, "smaller", "larger")
    return f"Beside the file of the whole {before.plan.scale}: {speed}, {smaller}."


def left_alone(record: RunRecord, most: int) -> list[str]:
    """ "head: its channels are the model's outputs": what the chosen plan's steps did not touch; a count of what is beyond `most`."""
    found = [f"{skip.what}: {skip.reason}" for change in record.winner.changes for skip in change.skipped]
    return found[:most] + ([f"{len(found) - most} more, see the report"] if len(found) > most else [])


def _outside(record: RunRecord) -> str:
    name = fmt.plan_name(record.winner.plan)
    if any(row.seen == _TRIED for row in binding(record)):
        return f"Nothing that was tried keeps every limit. The nearest candidate is {name}."
    return f"{name} keeps every limit on validation, but the final measurement refuses it."


_TRIED, _FINAL = "as tried", "in the final measurement"


def binding(record: RunRecord) -> tuple[Binding, ...]:
    """The limits that keep an infeasible run from fitting; empty for a feasible one."""
    if record.feasible:
        return ()
    broken = record.budget.violations(winner(record))
    rows = [_bound(record, v.limit, fmt.limit_value(v.limit, v.got, record.metric), v.allowed, _TRIED) for v in broken]
    known = {v.limit for v in broken}
    for row in record.verdict.limits:
        if row.judgement == "refused" and row.limit not in known:
            rows.append(_bound(record, row.limit, fmt.limit_figure(row.limit, row.figure, record.metric), row.allowed, _FINAL))
    return tuple(rows)


def _bound(record: RunRecord, limit: Limit, got: str, allowed: float, seen: str) -> Binding:
    return Binding(fmt.limit_name(limit, record.metric), got, _allowed(record, limit, allowed), seen)


def _allowed(record: RunRecord, limit: Limit, value: float) -> str:
    return fmt.at_limit(limit, value, record.metric, higher_is_better=record.reference_quality.higher_is_better)


def verdict_rows(record: RunRecord) -> tuple[tuple[str, str, str, str, str], ...]:
    """Limit, judgement, figure, what is allowed, and why, per limit of the budget."""
    return tuple(
        (
            fmt.limit_name(row.limit, record.metric),
            row.judgement,
            fmt.limit_figure(row.limit, row.figure, record.metric),
            _allowed(record, row.limit, row.allowed),
            row.reason + needed(row),
        )
        for row in record.verdict.limits
    )


def unproved(record: RunRecord) -> tuple[str, ...]:
    """A sentence per candidate that was looked at on the test split, and not proved."""
    return tuple(_unproved(record, found) for found in record.unproved)


def _unproved(record: RunRecord, found: Unproved) -> str:
    rows = [row for row in found.verdict.limits if row.judgement != "proved"]
    figures = "; ".join(
        f"{fmt.limit_name(row.limit, record.metric)} {fmt.limit_figure(row.limit, row.figure, record.metric)}, {row.judgement}{needed(row)}"
        for row in rows
    )
    look = f" (look {found.verdict.look})" if found.verdict.look is not None else ""
    return f"{fmt.plan_name(record.candidate(found.candidate).plan)} was looked at on the test split, too{look}: {figures}"


def needed(row: LimitVerdict) -> str:
    """How many examples would decide, as the end of a sentence; "" when that is not known."""
    return f"; about {row.needed:,} test examples would decide" if row.needed is not None else ""


def relaxations(record: RunRecord) -> tuple[tuple[str, str, str, str, str], ...]:
    """Limit, its value now, the value at which a tried candidate would fit, that candidate, and its figures."""
    return tuple(_relaxed(record, row) for row in record.relaxations)


def _relaxed(record: RunRecord, row: Relaxation) -> tuple[str, str, str, str, str]:
    name, now = fmt.limit_name(row.limit, record.metric), _allowed(record, row.limit, row.allowed)
    if row.needed is None or row.candidate is None:
        return name, now, "relaxing it alone does not help", "", ""
    found = record.candidate(row.candidate)
    wanted = f"{_allowed(record, row.limit, row.needed)}, {_by_how_much(row.limit, row.needed, row.allowed, record.metric)}"
    return name, now, wanted, fmt.plan_name(found.plan), in_short(found.measured)


def _by_how_much(limit: Limit, needed: float, allowed: float, metric: str) -> str:
    if limit not in ("max_drop", "min_quality"):
        return f"{fmt.ratio(needed / allowed)} times as much"
    return f"{fmt.drop_value(abs(needed - allowed), metric, signed=False)} {'more' if needed > allowed else 'less'}"


def together(record: RunRecord) -> str:
    """Which limits must be relaxed at once, and what that gives, where relaxing one alone does not help; else ""."""
    if not record.relaxations or any(row.candidate is not None for row in record.relaxations):
        return ""
    found = [(record.budget.violations(c.measured), c) for c in record.candidates if c.measured]
    rows = [(len(broken), math.prod(v.excess for v in broken), c.id, broken) for broken, c in found if broken]
    if not rows:
        return ""
    _, _, name, broken = min(rows, key=lambda row: row[:3])
    limits = " and ".join(f"{fmt.limit_name(v.limit, record.metric)} {_allowed(record, v.limit, v.got)}" for v in broken)
    chosen = record.candidate(name)
    return f"together: {limits} would fit {fmt.plan_name(chosen.plan)}: {in_short(chosen.measured)}"


def in_short(measured: Measurement | None) -> str:
    """ "41.2 us, 26.1 kB, accuracy 97.50 %, drop +1.00 pt"; "" where nothing was measured."""
    if measured is None:
        return ""
    found = measured.quality
    drop = f", drop {fmt.drop_value(found.drop.value, found.metric)}" if found.drop else ""
    costs = f"{format_seconds(measured.latency.value)}, {format_bytes(measured.size_bytes)}"
    return f"{costs}, {found.metric} {fmt.quality_value(found.score.value, found.metric)}{drop}"


def frontier(record: RunRecord) -> tuple[tuple[Candidate, Measurement], ...]:
    """Frontier candidates with their measurements, fastest first."""
    found = [(c, c.measured) for c in record.candidates if c.on_frontier and c.measured]
    return tuple(sorted(found, key=lambda pair: (pair[1].latency.value, pair[0].id)))
