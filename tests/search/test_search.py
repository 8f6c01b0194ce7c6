"""Frontier, choice, nearest and relaxations."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.search.frontier import best, mark_frontier, nearest, relaxations
from sizewise.types import Budget, Candidate, Interval, Measurement, Parity, Plan, Quality


def candidate(name: str, latency: float, size: int, quality: float, drop: float = 0.0) -> Candidate:
    measured = Measurement(
        latency=Interval.exact(latency),
        latency_ratio=latency,
        size_bytes=size,
        memory=Interval.exact(1e6),
        quality=Quality(metric="accuracy", higher_is_better=True, score=Interval.exact(quality), drop=Interval.exact(drop)),
        parity=Parity(max_abs=0, mean_abs=0, output_scale=1, top1_agreement=1.0, n=1),
        threads=1,
        batch=1,
    )
    return Candidate(id=name, plan=Plan(scale=name), status="measured", measured=measured)


FAST = candidate("fast", 1e-3, 4000, 0.90, drop=0.05)
SMALL = candidate("small", 3e-3, 1000, 0.93, drop=0.02)
GOOD = candidate("good", 9e-3, 9000, 0.95, drop=0.0)
BEATEN = candidate("beaten", 9e-3, 9001, 0.95, drop=0.0)
FAILED = Candidate(id="failed", plan=Plan(scale="failed"), status="failed", reason="no")
ALL = (FAST, SMALL, GOOD, BEATEN, FAILED)


def test_the_frontier_is_what_no_other_beats() -> None:
    assert {c.id for c in mark_frontier(ALL) if c.on_frontier} == {"fast", "small", "good"}


points = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=12)


@given(points)
@settings(max_examples=50, deadline=None)
def test_the_frontier_agrees_with_the_definition(values: list[tuple[int, int, int]]) -> None:
    marked = mark_frontier([candidate(str(i), a, b, c / 10) for i, (a, b, c) in enumerate(values)])
    for mine, c in zip(values, marked, strict=True):
        beaten = any(a <= mine[0] and b <= mine[1] and q >= mine[2] and (a, b, q) != mine for a, b, q in values)
        assert c.on_frontier is not beaten


def test_with_a_quality_limit_the_cheapest_that_fits_is_best() -> None:
    found = best(ALL, Budget(max_drop="3 %"))
    assert found is not None
    assert found.id == "small"


def test_without_one_the_best_in_quality_is() -> None:
    found = best(ALL, Budget(latency="5 ms"))
    assert found is not None
    assert found.id == "small"
    unlimited = best(ALL, Budget())
    assert unlimited is not None
    assert unlimited.id == "good", "same quality as 'beaten', one byte less"


def test_nothing_fits() -> None:
    budget = Budget(size="900 B", max_drop="1 %")
    assert best(ALL, budget) is None
    close = nearest(ALL, budget)
    assert close is not None
    assert close.id == "small"


def test_relaxations_say_what_each_limit_would_have_to_be() -> None:
    found = {r.limit: r for r in relaxations(ALL, Budget(latency="2 ms", size="2 kB", max_drop="3 %"))}
    assert found["latency"].needed == pytest.approx(3e-3)
    assert found["latency"].candidate == "small"
    assert found["size"].needed is None, "the only fast one also drops too much"
    assert found["max_drop"].needed is None


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
@settings(max_examples=50, deadline=None)
def test_a_limit_is_broken_exactly_above_it(latency: float, limit: float) -> None:
    measured = candidate("x", latency, 1, 1.0).measured
    assert measured is not None
    broken = Budget(latency=limit).violations(measured)
    assert bool(broken) == (latency > limit + 1e-12)
    assert all(v.excess >= 1 for v in broken)


def test_a_loss_is_better_when_lower() -> None:
    assert GOOD.measured is not None
    low = replace(GOOD.measured, quality=Quality(metric="loss", higher_is_better=False, score=Interval.exact(0.5)))
    assert not Budget(min_quality="0.6").violations(low)
    assert [v.limit for v in Budget(min_quality="0.4").violations(low)] == ["min_quality"]
