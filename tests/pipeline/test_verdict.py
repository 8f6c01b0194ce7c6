"""Proved, undecided or refused."""

from typing import Any

import numpy as np
import pytest

from sizewise.evaluate.metrics import METRICS
from sizewise.evaluate.proof import confidence_at, look_level
from sizewise.evaluate.scoring import quality as quality_of
from sizewise.pipeline.looks import Look
from sizewise.pipeline.verdict import judge, judge_limit
from sizewise.types import Budget, Interval, Measurement, Parity, Quality


def interval(value: float, half: float, n: int = 100) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, n=n)


def quality(score: Interval, drop: Interval | None, *, higher: bool = True) -> Quality:
    return Quality(metric="accuracy" if higher else "loss", higher_is_better=higher, score=score, drop=drop)


def measured(**changes: Any) -> Measurement:
    figures: dict[str, Any] = {
        "latency": interval(1e-3, 1e-4),
        "latency_ratio": 0.5,
        "size_bytes": 1000,
        "memory": interval(1e6, 0),
        "quality": quality(interval(0.9, 0.02), interval(0.0, 0.01)),
        "parity": Parity(max_abs=0, mean_abs=0, output_scale=1, top1_agreement=1.0, n=1),
        "threads": 1,
        "batch": 1,
    }
    return Measurement(**{**figures, **changes})


@pytest.mark.parametrize(
    ("value", "half", "judgement"), [(0.5, 0.4, "proved"), (0.5, 0.6, "undecided"), (1.5, 0.6, "undecided"), (1.5, 0.4, "refused")]
)
def test_one_limit(value: float, half: float, judgement: str) -> None:
    assert judge_limit("latency", interval(value, half), 1.0, "measured").judgement == judgement


def test_an_undecided_drop_says_how_many_examples_would_decide() -> None:
    row = judge_limit("max_drop", interval(0.005, 0.01, n=400), 0.01, "test")
    assert row.judgement == "undecided"
    assert row.needed == 1600, "half the distance: four times the examples"


def test_the_worst_limit_is_the_verdict() -> None:
    test = quality(interval(0.9, 0.02), interval(0.0, 0.005))
    budget = Budget(latency="2 ms", size="999 B", max_drop="1 %")
    verdict = judge(budget, measured(), test)
    assert [row.judgement for row in verdict.limits] == ["proved", "refused", "proved"]
    assert verdict.judgement == "refused"
    assert verdict.test_quality == test


def test_quality_is_judged_on_the_test_split_not_on_validation() -> None:
    test = quality(interval(0.8, 0.02), interval(0.1, 0.01))
    verdict = judge(Budget(max_drop="1 %", min_quality="85 %"), measured(), test)
    assert [row.judgement for row in verdict.limits] == ["refused", "refused"]
    assert verdict.limits[1].figure == test.score, "the figure is the quality itself"
    assert verdict.limits[1].allowed == 0.85


def test_without_a_test_split_quality_stays_undecided() -> None:
    verdict = judge(Budget(max_drop="50 %"), measured(), None)
    assert verdict.judgement == "undecided"
    assert "no test split" in verdict.limits[0].reason


def test_a_loss_has_an_upper_limit() -> None:
    test = quality(interval(0.5, 0.1), interval(0.0, 0.1), higher=False)
    assert judge(Budget(min_quality="0.7"), measured(), test).judgement == "proved"
    assert judge(Budget(min_quality="0.3"), measured(), test).judgement == "refused"


def test_no_limit_is_kept_by_everything() -> None:
    assert judge(Budget(), measured(), None).judgement == "proved"


def seen(worse: int, better: int, count: int, confidence: float) -> Quality:
    reference = np.repeat([1.0, 0.0], [count - 100, 100])
    candidate = reference.copy()
    candidate[:worse] = 0
    candidate[count - 100 : count - 100 + better] = 1
    return quality_of(candidate, METRICS["accuracy"], reference, confidence)


def judged(worse: int, better: int, count: int, limit: str, number: int = 1) -> Any:
    look = Look(number, look_level(number))
    test, bounds = (seen(worse, better, count, confidence) for confidence in (0.95, confidence_at(look.level)))
    return judge(Budget(max_drop=limit), measured(), test, bounds=bounds, look=look)


def test_a_bound_is_one_sided_at_the_looks_level() -> None:
    # 9 lost and 3 won of 2,000: the upper end of the two-sided 95 % interval is 0.72 %, the one-sided 96 % bound is 0.67 %
    two_sided = seen(9, 3, 2000, 0.95).drop
    assert two_sided is not None
    limit = "0.70 %"
    assert two_sided.high > 0.0070
    verdict = judged(9, 3, 2000, limit)
    assert verdict.judgement == "proved"
    assert (verdict.look, verdict.level) == (1, pytest.approx(0.04))
    assert verdict.limits[0].figure.confidence == pytest.approx(0.92)
    assert "9 of them worse and 3 better than the reference; look 1 at them, one-sided error 4 %" in verdict.limits[0].reason
    assert verdict.test_quality == seen(9, 3, 2000, 0.95), "shown as ever"
    second = judged(9, 3, 2000, limit, number=2)
    assert second.judgement == "undecided", "a second look must be surer"
    assert "look 2 at them, one-sided error 0.8 %" in second.limits[0].reason


def test_what_would_decide_is_counted_at_the_one_sided_level() -> None:
    first, second = (judged(8, 4, 1000, "1 %", number) for number in (1, 2))
    assert first.judgement == second.judgement == "undecided"
    needed = first.limits[0].needed
    assert needed is not None
    assert second.limits[0].needed > needed
    more = needed / 1000
    assert judged(round(8 * more * 1.1), round(4 * more * 1.1), round(needed * 1.1), "1 %").judgement == "proved"
    assert judged(round(8 * more * 0.9), round(4 * more * 0.9), round(needed * 0.9), "1 %").judgement == "undecided"


@pytest.mark.parametrize(
    ("worse", "better", "judgement"), [(0, 5, "proved"), (0, 4, "undecided"), (0, 0, "undecided"), (4, 1, "undecided"), (5, 0, "refused")]
)
def test_no_drop_at_all_is_judged_by_mcnemars_exact_test(worse: int, better: int, judgement: str) -> None:
    verdict = judged(worse, better, 1000, "0 %")
    assert verdict.judgement == judgement
    assert "McNemar's exact test" in verdict.limits[0].reason


def test_an_unlooked_test_split_says_why() -> None:
    verdict = judge(Budget(max_drop="50 %"), measured(), None, untested="nobody looked")
    assert verdict.limits[0].reason.startswith("nobody looked; the figure is the validation split's")
    assert (verdict.look, verdict.level) == (None, None)
