"""The way from the reference to the chosen file, against all ways there are."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.search.contrast import Levers, difference, levers_of, milder
from sizewise.search.waterfall import best_path
from sizewise.types import Plan, Step

SCALES = ("large", "small")
INT8, INT4 = Step(technique="int8_static"), Step(technique="int8_static", settings={"weight_bits": 4})
Stop = tuple[str, Levers]


def prune(rate: float) -> Step:
    return Step(technique="channel_pruning", settings={"rate": rate})


RANK = Step(technique="low_rank", settings={"rate": 0.4})


def stop(scale: str, *steps: Step) -> Stop:
    plan = Plan(scale=scale, steps=steps)
    return plan.id, levers_of(plan, SCALES)


def names(path: Sequence[Stop]) -> list[str]:
    return [name for name, _ in path]


def test_levers_come_in_the_order_of_the_plan_where_all_was_measured() -> None:
    stops = [stop("small"), stop("large", INT8), stop("small", prune(0.5)), stop("small", INT8)]
    path = best_path(stop("large"), stops, stop("small", prune(0.5), INT8))
    assert names(path) == ["large.float", "small.float", "small.channel_pruning-rate-0.5", "small.channel_pruning-rate-0.5.int8_static"]


def test_another_order_separates_levers_that_the_plans_order_does_not() -> None:
    stops = [stop("large", INT8), stop("small", INT8)]
    path = best_path(stop("large"), stops, stop("small", prune(0.5), INT8))
    assert names(path) == ["large.float", "large.int8_static", "small.int8_static", "small.channel_pruning-rate-0.5.int8_static"]


def test_a_milder_setting_is_passed_only_where_it_separates() -> None:
    end = stop("small", prune(0.5), INT4)
    path = best_path(stop("large"), [stop("large", INT8), stop("small", INT8), stop("small", prune(0.5), INT8)], end)
    assert names(path)[1:3] == ["large.int8_static", "small.int8_static"]
    assert len(path) == 5
    direct = best_path(stop("large"), [stop("large", prune(0.2))], stop("large", prune(0.5)))
    assert len(direct) == 2, "a lower rate on the way tells nothing of the lever"


def test_what_lies_beside_the_way_is_not_passed() -> None:
    beside = [stop("small", prune(0.7)), stop("small", RANK), stop("large", INT4)]
    assert len(best_path(stop("large"), beside, stop("small", prune(0.5), INT8))) == 2
    assert len(best_path(stop("large"), [], stop("large"))) == 1


SETTINGS = (("large", "small"), (None, prune(0.2), prune(0.5)), (None, RANK), (None, INT8, INT4))
plans = st.tuples(*(st.sampled_from(options) for options in SETTINGS)).map(
    lambda row: Plan(scale=row[0], steps=tuple(step for step in row[1:] if step is not None))
)


def all_ways(here: Stop, stops: Sequence[Stop], start: Stop, end: Stop) -> list[list[Stop]]:
    """Every chain of stops along which each lever is where it begins, where it ends, or at one milder setting in between."""
    if here[0] == end[0]:
        return [[here]]
    order = dict.fromkeys((*end[1], *start[1]))
    found = []
    for other in [*stops, end]:
        moved = difference(here[1], other[1])
        onward = moved and all(
            other[1].get(n) == end[1].get(n) or (here[1].get(n) == start[1].get(n) and milder(other[1].get(n), end[1].get(n)))
            for n in moved
        )
        if onward and set(other[1]) <= set(order):
            found += [[here, *rest] for rest in all_ways(other, stops, start, end)]
    return found


def key(way: Sequence[Stop], end: Stop, start: Stop) -> tuple[int, int, list[list[int]]]:
    order = list(dict.fromkeys((*end[1], *start[1])))
    moves = [difference(one[1], other[1]) for one, other in pairwise(way)]
    return sum(len(moved) - 1 for moved in moves), len(moves), [[order.index(name) for name in moved] for moved in moves]


@given(st.lists(plans, max_size=8, unique_by=lambda plan: plan.id), plans)
@settings(max_examples=200, deadline=None)
def test_it_is_the_best_of_all_ways(measured: list[Plan], chosen: Plan) -> None:
    start, end = ("module", levers_of(Plan(scale="large"), SCALES)), ("end", levers_of(chosen, SCALES))
    stops = [(plan.id, levers_of(plan, SCALES)) for plan in measured]
    path = best_path(start, stops, end)
    if len(path) == 1:
        assert not difference(start[1], end[1])
        return
    ways = all_ways(start, stops, start, end)
    assert names(path) in [names(way) for way in ways]
    assert key(path, end, start) == min(key(way, end, start) for way in ways)
