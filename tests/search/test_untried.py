"""What is told of plans that the search left out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.search.spaces import BASES, UNIT, measured, observed, small_space

from sizewise.search.contrast import levers_of
from sizewise.search.proxy import Proxy
from sizewise.search.space import Point
from sizewise.search.untried import Outlook, untried_neighbours
from sizewise.types import Candidate, Neighbour

SPACE = small_space()
HERE = Point("small", ("0.5", "off", "off", "int8"))
CHOSEN = measured(SPACE, HERE)
TWIN = Point("large", HERE.levels)


def outlook(chance: float = 0.01, left: Sequence[Point] = ()) -> Outlook:
    forecast = Proxy(SPACE, BASES, UNIT).predict([observed(HERE)])
    return Outlook(SPACE, forecast, np.full(len(SPACE.points), chance), left)


def told(known: Outlook, *others: Candidate) -> dict[str, Neighbour]:
    return {neighbour.change: neighbour for neighbour in untried_neighbours(known, CHOSEN, [CHOSEN, *others], SPACE.scales)}


def test_plans_that_were_not_tried_are_told_with_what_was_expected_of_them() -> None:
    known = outlook(left=[TWIN])
    found = told(known)
    other = found["scale large instead of small"]
    assert other.why == "open"
    assert other.latency is not None
    assert other.size_ratio is not None
    assert other.latency.how == "predicted"
    at = SPACE.points.index(TWIN)
    latency, size, _, loss = observed(HERE).latency, observed(HERE).size, None, known.forecast.mean[3, at]
    assert latency is not None
    assert size is not None
    assert other.latency.value * latency == pytest.approx(np.exp(known.forecast.mean[0, at]))
    assert other.size_ratio * size == pytest.approx(np.exp(known.forecast.mean[1, at]))
    assert other.drop is not None
    assert other.drop.value == pytest.approx(loss)
    assert other.candidate is None
    assert found["channel_pruning(rate=0.4) instead of (rate=0.5)"].why == "unpromising"
    assert found["with low_rank(rate=0.2)"].chance == 0.01


def test_only_one_lever_differs_and_nothing_that_was_tried_is_told_again() -> None:
    tried = measured(SPACE, TWIN)
    found = told(outlook(), tried)
    assert "scale large instead of small" not in found
    mine = levers_of(CHOSEN.plan, SPACE.scales)
    for neighbour in found.values():
        its = levers_of(neighbour.plan, SPACE.scales)
        assert [name for name in {*mine, *its} if mine.get(name) != its.get(name)] == [neighbour.lever]


def test_what_can_only_be_worse_than_a_stopped_plan_says_so() -> None:
    stopped = replace(measured(SPACE, Point("small", ("0.6", "off", "off", "int8"))), status="stopped", measured=None, reason="hopeless")
    found = told(outlook(), stopped)
    assert found["channel_pruning(rate=0.8) instead of (rate=0.5)"].why == "harsher"
    assert found["channel_pruning(rate=0.8) instead of (rate=0.5)"].because == stopped.id
    assert found["channel_pruning(rate=0.4) instead of (rate=0.5)"].why == "unpromising"


def test_what_only_repairs_is_needless_and_what_was_kept_back_otherwise_is_left_out() -> None:
    found = told(outlook(chance=0.5))
    assert {neighbour.why for neighbour in found.values()} == {"needless"}
    assert list(found) == ["int8_static(max_drop=0.005) instead of int8_static"]


def test_a_plan_of_another_space_has_no_neighbours() -> None:
    stranger = replace(CHOSEN, plan=replace(CHOSEN.plan, seed=7))
    assert not untried_neighbours(outlook(), stranger, [stranger], SPACE.scales)
