"""Proved, undecided or refused."""

from typing import Any

import pytest

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
