"""Counts per group against trying all of them."""

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.arith.allocation import allocate, lower_hull

CURVES = st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), min_size=1, max_size=3)


def rising(steps: Sequence[float]) -> list[float]:
    return [0.0, *itertools.accumulate(steps)]


@given(CURVES, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_cost_is_kept_where_it_can_be_and_the_last_step_went_no_further_than_needed(steps: list[list[float]], share: float) -> None:
    losses = [rising(group) for group in steps]
    levels = [list(range(len(group))) for group in losses]

    def cost(counts: Sequence[int]) -> float:
        return float(sum(len(group) for group in losses) - sum(counts))

    whole, least = cost([0] * len(losses)), cost([len(group) - 1 for group in losses])
    target = share * whole
    counts = allocate(losses, cost, target, levels)
    assert all(count in options for count, options in zip(counts, levels, strict=True))
    assert cost(counts) <= max(target, least)
    assert cost(counts) > target - 1 or not any(counts)


@given(st.lists(st.lists(st.floats(0.01, 10), min_size=3, max_size=3).map(sorted), min_size=2, max_size=3), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_convex_losses_and_equal_costs_are_allocated_best(steps: list[list[float]], removed: int) -> None:
    losses = [rising(group) for group in steps]
    levels = [list(range(4))] * len(losses)
    removed = min(removed, 3 * len(losses))
    counts = allocate(losses, lambda counts: -float(sum(counts)), -float(removed), levels)
    got = sum(group[count] for group, count in zip(losses, counts, strict=True))
    best = min(
        sum(group[count] for group, count in zip(losses, option, strict=True))
        for option in itertools.product(range(4), repeat=len(losses))
        if sum(option) == removed
    )
    assert abs(got - best) < 1e-9


def test_a_costly_channel_on_the_way_to_cheap_ones_hides_none_of_them() -> None:
    losses = [[0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, 1.5, 2.0]]
    assert allocate(losses, lambda counts: 8.0 - sum(counts), 4.0, [range(5), range(5)]) == [4, 0]


def test_a_layer_between_two_groups_is_cheaper_once_one_is_cut() -> None:
    """The product of what both keep: after the first cuts, the same channel of the other group saves less."""
    losses = [[0.0, 1.0, 2.0, 3.0]] * 2
    counts = allocate(losses, lambda counts: (4.0 - counts[0]) * (4.0 - counts[1]), 6.0, [range(4), range(4)])
    assert (4 - counts[0]) * (4 - counts[1]) <= 6
    assert sum(counts) == 3


@given(st.lists(st.floats(0, 5), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_hull_lies_below_every_level_and_starts_and_ends_with_them(steps: list[float]) -> None:
    losses = rising(steps)
    corners = lower_hull(range(len(losses)), losses)
    assert (corners[0], corners[-1]) == (0, len(losses) - 1)
    for left, right in itertools.pairwise(corners):
        for level in range(left, right + 1):
            line = losses[left] + (losses[right] - losses[left]) * (level - left) / (right - left)
            assert losses[level] >= line - 1e-9
