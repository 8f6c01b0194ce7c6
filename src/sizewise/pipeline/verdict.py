"""Whether each limit is kept: proved, undecided or refused, from intervals.

A cost limit is judged on the file's own measurements. A quality limit is judged on the test split, which the search never
saw: proved when the whole interval keeps the limit, refused when the whole interval breaks it, else undecided with the
number of examples that would decide.
"""

from sizewise.evaluate.paired import examples_needed
from sizewise.types import Budget, Interval, Judgement, Limit, LimitVerdict, Measurement, Quality, Verdict

__all__ = ["judge", "judge_limit"]

_ORDER: tuple[Judgement, ...] = ("proved", "undecided", "refused")


def judge(budget: Budget, measured: Measurement, test: Quality | None) -> Verdict:
    """Judge every limit of the budget.

    Args:
        budget: the limits.
        measured: the chosen file's measurements; its quality is the validation split's.
        test: its quality on the test split, or None when the task has none.
    """
    rows: list[LimitVerdict] = []
    for limit, figure, allowed, source in (
        ("latency", measured.latency, budget.latency_s, "median of calls of the loaded file"),
        ("size", Interval.exact(measured.size_bytes), budget.size_bytes, "bytes on disk"),
        ("memory", measured.memory, budget.memory_bytes, "peak growth of fresh processes that load and run the file"),
    ):
        if allowed is not None:
            rows.append(judge_limit(limit, figure, allowed, source))  # type: ignore[arg-type]
    rows += _quality_rows(budget, measured.quality, test)
    judgements: list[Judgement] = [row.judgement for row in rows]
    worst = max(judgements, key=_ORDER.index, default=_ORDER[0])
    return Verdict(judgement=worst, limits=tuple(rows), test_quality=test)


def judge_limit(limit: Limit, figure: Interval, allowed: float, source: str, counts: tuple[int, int] | None = None) -> LimitVerdict:
    """An upper limit against an interval; `counts` are a binary comparison's flips."""
    if figure.high <= allowed:
        return LimitVerdict(limit=limit, judgement="proved", figure=figure, allowed=allowed, reason=source)
    if figure.low > allowed:
        return LimitVerdict(limit=limit, judgement="refused", figure=figure, allowed=allowed, reason=source)
    needed = examples_needed(figure, allowed, counts) if limit in ("max_drop", "min_quality") else None
    return LimitVerdict(
        limit=limit, judgement="undecided", figure=figure, allowed=allowed, reason=f"{source}: the interval holds the limit", needed=needed
    )


def _quality_rows(budget: Budget, validation: Quality, test: Quality | None) -> list[LimitVerdict]:
    rows: list[LimitVerdict] = []
    judged = test or validation
    if budget.max_drop is not None and judged.drop is not None:
        rows.append(_on_test("max_drop", judged.drop, budget.max_drop, test))
    if budget.min_quality is not None:
        if judged.higher_is_better:
            turned = _on_test("min_quality", _negated(judged.score), -budget.min_quality, test)
            rows.append(_turned_back(turned, judged.score, budget.min_quality))
        else:
            rows.append(_on_test("min_quality", judged.score, budget.min_quality, test))
    return rows


def _on_test(limit: Limit, figure: Interval, allowed: float, test: Quality | None) -> LimitVerdict:
    if test is not None:
        counts = test.flips if limit == "max_drop" else None
        source = f"{figure.n} test examples" + (f", {counts[0]} of them worse and {counts[1]} better than the reference" if counts else "")
        return judge_limit(limit, figure, allowed, source, counts)
    reason = "the task has no test split; the figure is the validation split's, which the search looked at"
    return LimitVerdict(limit=limit, judgement="undecided", figure=figure, allowed=allowed, reason=reason)


def _negated(i: Interval) -> Interval:
    return Interval(value=-i.value, low=-i.high, high=-i.low, n=i.n, how=i.how, confidence=i.confidence)


def _turned_back(row: LimitVerdict, figure: Interval, allowed: float) -> LimitVerdict:
    return LimitVerdict(limit=row.limit, judgement=row.judgement, figure=figure, allowed=allowed, reason=row.reason, needed=row.needed)
