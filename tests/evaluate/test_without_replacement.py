"""Bets on a list of numbers that is read in random order: fair under the hypothesis, and they find what is not."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.evaluate.without_replacement import SHARES, exceeded, log_wealth, lower_bound

lists = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=6)


@given(lists, st.sampled_from([-1.0, -1.5]), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_over_all_orders_the_wealth_never_grows_on_average(values: list[float], least: float, above: float) -> None:
    mean = float(np.mean(values)) + above  # the list's own mean, or more: the hypothesis is true
    wealth = [np.exp(log_wealth(np.array(order), len(values), mean, least)) for order in itertools.permutations(values)]
    average = np.mean(wealth, axis=0)
    assert np.all(average <= 1 + 1e-6)
    assert np.all(np.diff(np.concatenate([[1.0], average])) <= 1e-6), "at every step"


@given(lists, st.sampled_from([0.5, 0.2, 0.1]))
@settings(max_examples=60, deadline=None)
def test_over_all_orders_a_true_hypothesis_is_given_up_as_rarely_as_said(values: list[float], error: float) -> None:
    orders = list(itertools.permutations(values))
    wrong = sum(exceeded(np.array(order), len(values), float(np.mean(values)), -1.0, error) for order in orders)
    assert wrong <= error * len(orders)


def _slow_wealth(values: list[float], count: int, mean: float, least: float) -> list[float]:
    wealth, total, seen = np.ones(len(SHARES)), 0.0, []
    for done, x in enumerate(values):
        expected = (count * mean - total) / (count - done)
        wealth = wealth * (1 + SHARES * (x - expected) / (expected - least))
        total += x
        seen.append(math.log(wealth.mean()))
    return seen


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(0.3, 0.9), st.integers(20, 40))
@settings(max_examples=60, deadline=None)
def test_the_wealth_is_the_average_of_the_bets(values: list[float], mean: float, count: int) -> None:
    got = log_wealth(np.array(values), count, mean, -1.0)
    finite = np.isfinite(got)
    assert got[finite] == pytest.approx(np.array(_slow_wealth(values, count, mean, -1.0))[finite], abs=1e-6)
    assert np.all(np.array(values).cumsum()[~finite] - (count - np.arange(1, len(values) + 1))[~finite] > count * mean - 1e-6)


def test_what_is_certain_is_certain() -> None:
    values = np.array([1.0, 1.0, 1.0, 0.0])
    assert exceeded(values, 4, 0.7, 0.0, 1e-9), "all are read, and the mean is 0.75"
    assert exceeded(values[:3], 4, 0.7, 0.0, 1e-9), "the last cannot be less than 0"
    assert not exceeded(values[:3], 4, 0.76, 0.0, 1e-9)
    assert not exceeded(values, 4, 0.75, 0.0, 1e-9)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=5, max_size=60), st.integers(0, 100), st.floats(0.001, 0.3))
@settings(max_examples=60, deadline=None)
def test_the_bound_separates_what_is_refuted_from_what_is_not(values: list[float], more: int, error: float) -> None:
    array, count = np.array(values), len(values) + more
    bound = lower_bound(array, count, -1.0, error)
    assert -1 <= bound <= max(values)
    for mean in np.linspace(-0.99, 0.99, 23):
        if abs(mean - bound) > 1e-6:
            assert exceeded(array, count, float(mean), -1.0, error) == (mean < bound)


def test_when_all_is_read_the_bound_is_the_mean() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 1.0], 50)
    assert lower_bound(values, 50, -1.0, 0.01) == pytest.approx(values.mean(), abs=1e-6)


@pytest.mark.parametrize(("worse", "better"), [(0.03, 0.02), (0.01, 0.0), (0.11, 0.1)])
def test_at_the_limit_it_is_given_up_as_rarely_as_said_though_one_looks_all_the_time(worse: float, better: float) -> None:
    count, wrong, runs = 1000, 0, 300
    values = np.zeros(count)
    values[: round(worse * count)] = 1
    values[-round(better * count) or count :] = -1
    for run in range(runs):
        order = np.random.default_rng(run).permutation(values)
        wrong += exceeded(order, count, 0.01, -1.0, 0.05)
    assert wrong / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_drop_of_five_points_is_found_after_a_fraction_of_the_examples() -> None:
    count, needed = 5000, []
    for run in range(20):
        values = np.random.default_rng(run).permutation(np.repeat([1.0, -1.0, 0.0], [300, 50, 4650]))
        crossed = np.flatnonzero(log_wealth(values, count, 0.01, -1.0) >= math.log(100))
        needed.append(int(crossed[0]))
    assert np.mean(needed) < 0.15 * count
