"""Plans, frontier, choice, nearest and relaxations."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.search.frontier import best, mark_frontier, nearest, relaxations
from sizewise.search.space import harsher, plans_for
from sizewise.types import Budget, Candidate, Interval, Measurement, Parity, Plan, Quality, Step

INT8 = Step(technique="int8_static")


def candidate(name: str, latency: float, size: int, quality: float, drop: float = 0.0) -> Candidate:
    measured = Measurement(
        latency=Interval.exact(latency),
        latency_ratio=1.0,
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


def test_plans_come_mildest_first_and_have_names_of_their_own() -> None:
    plans = plans_for("a", 0, quantization=INT8)
    assert [p.label for p in plans][:3] == ["float", "int8_static", "channel_pruning(rate=0.4)"]
    assert len({p.id for p in plans}) == len(plans) == 6
    assert all("int8" not in p.label for p in plans_for("a", 0, quantization=None))


def plan(*steps: Step, scale: str = "a") -> Plan:
    return Plan(scale=scale, steps=steps)


def test_harsher_plans_do_all_the_milder_does_and_more() -> None:
    int8 = Step(technique="int8_static")
    quarter, half = (Step(technique="channel_pruning", settings={"rate": r}) for r in (0.25, 0.5))
    assert harsher(plan(quarter, int8), plan(quarter))
    assert harsher(plan(half), plan(quarter))
    assert harsher(plan(half, int8), plan(int8))
    assert not harsher(plan(quarter), plan(half))
    assert not harsher(plan(int8), plan(quarter))
    assert not harsher(plan(half, scale="b"), plan(quarter))


def test_with_a_recovery_every_pruning_is_followed_by_it_before_int8() -> None:
    step = Step(technique="recovery", settings={"epochs": 1})
    plans = plans_for("a", 0, quantization=INT8, rates=(0.5,), recovery=step)
    assert [p.label for p in plans] == [
        "float",
        "int8_static",
        "channel_pruning(rate=0.5) + recovery(epochs=1)",
        "channel_pruning(rate=0.5) + recovery(epochs=1) + int8_static",
    ]


def test_a_recovery_makes_a_pruned_plan_no_harsher_than_one_without() -> None:
    int8, recovery = Step(technique="int8_static"), Step(technique="recovery", settings={"epochs": 1})
    longer = Step(technique="recovery", settings={"epochs": 9})
    quarter, half = (Step(technique="channel_pruning", settings={"rate": r}) for r in (0.25, 0.5))
    assert not harsher(plan(half, recovery), plan(quarter))
    assert not harsher(plan(half, longer), plan(quarter, recovery))
    assert harsher(plan(half, recovery), plan(quarter, recovery))
    assert harsher(plan(half, recovery, int8), plan(int8)), "nothing was pruned there that it could heal"
    assert harsher(plan(half, recovery, int8), plan(half, recovery))
