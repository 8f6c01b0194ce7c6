"""Whether each limit is kept: proved, undecided or refused, from one-sided bounds.

A limit is proved when the upper bound of the figure keeps it, refused when the lower bound breaks it, else undecided, with the number of
examples that would decide. Either is wrong at most as often as its level says: 5 % for costs, which are judged on the file's own
measurements; for quality, which is judged on a test split that the search never saw, what is left of 5 % for this look
(`evaluate.proof.look_level`). Levels hold per limit: "all limits are proved" is as safe as one, since it takes all of them.
"""

from dataclasses import replace

from sizewise.evaluate.paired import examples_needed
from sizewise.evaluate.proof import drop_proved, drop_refused
from sizewise.pipeline.looks import Look
from sizewise.types import Budget, Interval, Judgement, Limit, LimitVerdict, Measurement, Quality, Verdict

__all__ = ["NO_TEST", "ORDER", "judge", "judge_limit"]

NO_TEST = "the task has no test split"
ORDER: tuple[Judgement, ...] = ("proved", "undecided", "refused")  # the best first


def judge(
    budget: Budget,
    measured: Measurement,
    test: Quality | None,
    *,
    bounds: Quality | None = None,
    look: Look | None = None,
    untested: str = NO_TEST,
) -> Verdict:
    """Judge every limit of the budget.

    Args:
        budget: the limits.
        measured: the chosen file's measurements; its quality is the validation split's. The ends of latency and memory are the bounds.
        test: its quality on the test split, or None where it was not looked at.
        bounds: the same with intervals whose ends are one-sided bounds at the look's level; `test` where it is left out.
        look: at the test split.
        untested: why it was not looked at.
    """
    rows: list[LimitVerdict] = []
    costs: tuple[tuple[Limit, Interval, float | None, str], ...] = (
        ("latency", measured.latency, budget.latency_s, "median of calls of the loaded file"),
        ("size", Interval.exact(measured.size_bytes), budget.size_bytes, "bytes on disk"),
        ("memory", measured.memory, budget.memory_bytes, "peak growth of fresh processes that load and run the file"),
    )
    rows += [judge_limit(limit, figure, allowed, source) for limit, figure, allowed, source in costs if allowed is not None]
    rows += _quality_rows(budget, measured.quality, bounds or test, look, untested)
    judgements: list[Judgement] = [row.judgement for row in rows]
    worst = max(judgements, key=ORDER.index, default=ORDER[0])
    number, level = (look.number, look.level) if look else (None, None)
    return Verdict(judgement=worst, limits=tuple(rows), test_quality=test, look=number, level=level)


def judge_limit(limit: Limit, figure: Interval, allowed: float, source: str, counts: tuple[int, int] | None = None) -> LimitVerdict:
    """An upper limit against an interval whose ends are one-sided bounds; `counts` are a binary comparison's flips."""
    proved, refused = figure.high <= allowed, figure.low > allowed
    if counts is not None and allowed == 0:  # no score test there: McNemar's exact one
        level = (1 - figure.confidence) / 2
        proved, refused = (bool(test(*counts, figure.n, allowed, level)) for test in (drop_proved, drop_refused))
        source = f"{source}; McNemar's exact test"
    if proved or refused:
        return LimitVerdict(limit=limit, judgement="proved" if proved else "refused", figure=figure, allowed=allowed, reason=source)
    needed = examples_needed(figure, allowed, counts) if limit in ("max_drop", "min_quality") else None
    open_ = "the interval holds the limit" if figure.low <= allowed <= figure.high else "neither side is proved"
    return LimitVerdict(limit=limit, judgement="undecided", figure=figure, allowed=allowed, reason=f"{source}: {open_}", needed=needed)


def _quality_rows(budget: Budget, validation: Quality, test: Quality | None, look: Look | None, untested: str) -> list[LimitVerdict]:
    rows: list[LimitVerdict] = []
    judged = test or validation
    if budget.max_drop is not None and judged.drop is not None:
        rows.append(_on_test("max_drop", judged.drop, budget.max_drop, test, look, untested))
    if budget.min_quality is not None:
        if judged.higher_is_better:
            turned = _on_test("min_quality", _negated(judged.score), -budget.min_quality, test, look, untested)
            rows.append(replace(turned, figure=judged.score, allowed=budget.min_quality))
        else:
            rows.append(_on_test("min_quality", judged.score, budget.min_quality, test, look, untested))
    return rows


def _on_test(limit: Limit, figure: Interval, allowed: float, test: Quality | None, look: Look | None, untested: str) -> LimitVerdict:
    if test is not None:
        counts = test.flips if limit == "max_drop" else None
        seen = f"{figure.n} test examples" + (f", {counts[0]} of them worse and {counts[1]} better than the reference" if counts else "")
        return judge_limit(limit, figure, allowed, seen + _at_level(look), counts)
    reason = f"{untested}; the figure is the validation split's, which the search looked at"
    return LimitVerdict(limit=limit, judgement="undecided", figure=figure, allowed=allowed, reason=reason)


def _at_level(look: Look | None) -> str:
    return f"; look {look.number} at them, one-sided error {100 * look.level:.2g} %" if look else ""


def _negated(i: Interval) -> Interval:
    return replace(i, value=-i.value, low=-i.high, high=-i.low)
