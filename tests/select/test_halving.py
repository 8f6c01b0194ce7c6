"""Stopping scales early: only what cannot catch up, never too many; sizes that double."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.select.halving import Progress, hopeless_scales, rungs


def test_a_scale_that_cannot_catch_up_is_stopped_and_the_reason_names_the_leader() -> None:
    scales = {"s": Progress(0.60, 0.60, 0.0), "m": Progress(0.3, 0.2, 0.0), "l": Progress(0.3, 0.22, 0.0)}
    found = hopeless_scales(scales, 2, 0.01)
    assert list(found) == ["s"]
    assert "0.6 at best" in found["s"]
    assert "m has 0.2" in found["s"]


def test_a_scale_that_falls_fast_enough_to_catch_up_stays() -> None:
    scales = {"late": Progress(0.8, 0.6, 0.0), "m": Progress(0.3, 0.2, 0.0), "l": Progress(0.3, 0.22, 0.0)}
    assert hopeless_scales(scales, 2, 0.01) == {}
    assert list(hopeless_scales(scales, 1, 0.01)) == ["late"], "with one doubling left it cannot"


def test_where_errors_have_a_least_value_a_doubling_helps_by_the_same_share() -> None:
    """From 0.8 to 0.6 and on by the same amount would reach 0.2 after two more doublings; by the same share it is 0.34."""
    scales = {"late": Progress(0.8, 0.6, 0.0), "m": Progress(0.3, 0.2, 0.0), "l": Progress(0.3, 0.22, 0.0)}
    assert hopeless_scales(scales, 2, 0.01) == {}
    assert "0.3375 at best" in hopeless_scales(scales, 2, 0.01, least=0.0)["late"]
    assert hopeless_scales(scales, 2, 0.14, least=0.0) == {}


@pytest.mark.parametrize("least", [None, 0.0, 0.05])
@pytest.mark.parametrize("floor", [0.05, 0.2])
@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_a_power_law_never_ends_below_what_was_said_to_be_its_reach(least: float | None, floor: float, power: float) -> None:
    errors = [floor + 0.5 * n**-power for n in (1, 2, 4, 8, 16)]
    for before, now, left in ((0, 1, 3), (1, 2, 2), (2, 3, 1)):
        scales = {"s": Progress(errors[before], errors[now], 0.0)} | {name: Progress(errors[4], errors[4], 0.0) for name in "ab"}
        assert "s" not in hopeless_scales(scales, left, 1e-12, least), "it ends where a and b are"


def test_what_is_not_known_counts_for_the_scale() -> None:
    sure, unsure = Progress(0.30, 0.30, 0.0), Progress(0.30, 0.30, 0.03)
    others = {"m": Progress(0.3, 0.2, 0.0), "l": Progress(0.3, 0.22, 0.0)}
    assert list(hopeless_scales({"s": sure, **others}, 2, 0.01)) == ["s"]
    assert hopeless_scales({"s": unsure, **others}, 2, 0.01) == {}


def test_a_leader_that_may_be_worse_than_it_looks_spares_the_others() -> None:
    small, large = Progress(0.25, 0.25, 0.0), Progress(0.3, 0.22, 0.0)
    assert list(hopeless_scales({"s": small, "m": Progress(0.2, 0.2, 0.0), "l": large}, 1, 0.01)) == ["s"]
    assert hopeless_scales({"s": small, "m": Progress(0.2, 0.2, 0.1), "l": large}, 1, 0.01) == {}


def test_within_the_tolerance_nothing_is_stopped() -> None:
    scales = {"s": Progress(0.25, 0.25, 0.0), "m": Progress(0.2, 0.2, 0.0), "l": Progress(0.2, 0.2, 0.0)}
    assert hopeless_scales(scales, 1, 0.05) == {}
    assert list(hopeless_scales(scales, 1, 0.04)) == ["s"]


def test_the_worst_half_goes_first() -> None:
    scales = {name: Progress(error, error, 0.0) for name, error in (("a", 0.1), ("b", 0.5), ("c", 0.9), ("d", 0.7))}
    assert set(hopeless_scales(scales, 1, 0.01)) == {"c", "d"}


@pytest.mark.parametrize(("count", "stopped"), [(1, 0), (2, 0), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_never_more_than_half_and_two_are_left(count: int, stopped: int) -> None:
    scales = {str(i): Progress(0.1 * i + 0.05, 0.1 * i + 0.05, 0.0) for i in range(count)}
    assert len(hopeless_scales(scales, 1, 0.0)) == stopped


progresses = st.builds(Progress, before=st.floats(0, 1), now=st.floats(0, 1), half=st.floats(0, 0.2))


@given(st.lists(progresses, min_size=1, max_size=7), st.floats(0, 4), st.floats(0, 0.1))
@settings(max_examples=100, deadline=None)
def test_the_leader_and_whoever_could_reach_it_are_kept(rows: list[Progress], doublings: float, tolerance: float) -> None:
    scales = {str(i): row for i, row in enumerate(rows)}
    found = hopeless_scales(scales, doublings, tolerance)
    best = min(row.now for row in rows)
    shares = hopeless_scales(scales, doublings, tolerance, least=0.0)
    for name in shares:
        p = scales[name]
        assert p.now > best
        assert p.now * min(1.0, p.now / max(p.before, 1e-12)) ** doublings > best + tolerance
    for name in found:
        p = scales[name]
        assert p.now > best
        assert p.now - doublings * max(0.0, p.before - p.now) > best + tolerance


@given(examples=st.integers(1, 10**6), least=st.integers(1, 200), most=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_sizes_double_up_to_all_examples(examples: int, least: int, most: int) -> None:
    sizes = list(rungs(examples, least, most))
    assert sizes[-1] == examples
    assert 1 <= len(sizes) <= most
    assert all(small == large // 2 for small, large in itertools.pairwise(sizes))
    assert all(size >= least for size in sizes[:-1])


def test_there_are_as_many_sizes_as_the_data_allow() -> None:
    assert list(rungs(256, 32)) == [32, 64, 128, 256]
    assert list(rungs(1001, 32)) == [125, 250, 500, 1001]
    assert list(rungs(127, 32)) == [63, 127]
    assert list(rungs(10, 32)) == [10]
