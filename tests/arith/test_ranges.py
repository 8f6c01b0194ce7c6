"""Ranges from histograms, against the values themselves."""

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.ranges import BINS, Method, RangeStatistics, expected_error, find_range
from sizewise.errors import PreconditionError, UnknownName, UsageError

FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0)  # what float32 holds exactly
LISTS = st.lists(FLOATS, min_size=1, max_size=40)


def seen(*batches: Tensor) -> RangeStatistics:
    statistics = RangeStatistics()
    for batch in batches:
        statistics.add(batch)
    return statistics


def state(statistics: RangeStatistics) -> tuple[object, ...]:
    s = statistics
    return (s.low, s.high, s.n, s.nans, s.infinities, s.exponent, s.first, s.counts.tolist())


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def rounding_error(values: Tensor, low: float, high: float, levels: int) -> float:
    """What a runtime's quantization does to the values."""
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    codes = torch.round(values.double() / scale + zero).clamp(0, levels - 1)
    return float(((codes - zero) * scale - values.double()).square().mean())


# --- the histogram


@given(values=LISTS)
@settings(max_examples=40, deadline=None)
def test_every_value_is_counted_in_its_bin(values: list[float]) -> None:
    statistics = seen(torch.tensor(values))
    bins = [math.floor(value / statistics.width) - statistics.first for value in torch.tensor(values).tolist()]
    assert statistics.counts.tolist() == [bins.count(place) for place in range(BINS)]
    assert (statistics.low, statistics.high, statistics.n) == (min(values), max(values), len(values))
    assert float(statistics.edges[0]) <= min(values) <= max(values) < float(statistics.edges[-1])


@given(values=LISTS, cuts=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_batches_make_a_difference(values: list[float], cuts: list[int], seed: int) -> None:
    whole = torch.tensor(values)
    mixed = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))]
    parts = torch.tensor_split(mixed, sorted(cuts))
    assert state(seen(*parts)) == state(seen(whole))
    merged = RangeStatistics()
    for part in parts:
        merged.merge(seen(part))
    assert state(merged) == state(seen(whole))


@given(values=st.lists(FLOATS, min_size=2, max_size=20))
@settings(max_examples=40, deadline=None)
def test_half_of_the_bins_or_more_are_between_the_ends(values: list[float]) -> None:
    statistics = seen(torch.tensor(values))
    finest = math.ldexp(max(map(abs, values)), -24)
    assert statistics.high - statistics.low >= (BINS / 2 - 2) * statistics.width or statistics.width <= max(2 * finest, 2.0**-100)


def test_silence_comes_first() -> None:
    quiet = torch.tensor([1e-9, -3e-9])
    assert state(seen(torch.zeros(4), quiet)) == state(seen(quiet, torch.zeros(4)))


def test_types_shapes_and_nothing() -> None:
    values = torch.tensor([[0.5, -2.0], [3.25, 0.0]])
    want = state(seen(values))
    assert all(state(seen(values.to(kind))) == want for kind in (torch.float16, torch.bfloat16, torch.float64))
    assert state(seen(torch.empty(0, 3), values.requires_grad_())) == want
    assert seen(torch.tensor([3, 4])).high == 4


def test_extreme_values_have_bins() -> None:
    largest = torch.finfo(torch.float32).max
    statistics = seen(torch.tensor([1e-45, 1e-38]), torch.tensor([-largest, largest, 1.0]))
    assert int(statistics.counts.sum()) == 5
    assert find_range(statistics, "minmax") == (-largest, largest)


def test_values_that_are_not_finite_are_counted_and_told() -> None:
    statistics = seen(torch.tensor([1.0, math.nan, math.inf]), torch.tensor([-math.inf, math.nan]), torch.tensor([2.0]))
    assert (statistics.n, statistics.nans, statistics.infinities, statistics.high) == (2, 2, 2, 2.0)
    with pytest.raises(PreconditionError, match="2 NaN and 2 infinite values beside 2 finite"):
        find_range(statistics, "minmax")
    merged = seen(torch.tensor([1.0]))
    merged.merge(statistics)
    assert (merged.n, merged.nans) == (3, 2)


# --- the choice


@given(values=LISTS, method=st.sampled_from(["minmax", "percentile", "mse"]), levels=st.sampled_from([2, 16, 256]))
@settings(max_examples=40, deadline=None)
def test_zero_is_within_and_nothing_reaches_beyond_the_values_but_for_rounding(values: list[float], method: str, levels: int) -> None:
    statistics = seen(torch.tensor(values))
    low, high = find_range(statistics, cast(Method, method), levels)
    step = (high - low) / (levels - 1)
    assert low <= 0 <= high
    assert min(0.0, *values, 0.0) - step / 2 - 1e-9 <= low
    assert high <= max(0.0, *values, 0.0) + step / 2 + 1e-9


def test_minmax() -> None:
    assert find_range(seen(torch.tensor([-1.5, 4.0])), "minmax") == (-1.5, 4.0)
    assert find_range(seen(torch.tensor([1.5, 4.0])), "minmax") == (0.0, 4.0)
    assert find_range(seen(torch.tensor([-4.0, -1.5])), "minmax") == (-4.0, 0.0)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 100.0])
def test_percentiles_are_those_of_the_values(percentile: float) -> None:
    values = torch.cat([normal(50_000), 0.3 * normal(50_000, 1) - 2])
    statistics = seen(values)
    ends = torch.quantile(values.double(), torch.tensor([1 - percentile / 100, percentile / 100]).double()).tolist()
    assert find_range(statistics, "percentile", percentile=percentile) == pytest.approx(ends, abs=2 * statistics.width)


@given(seed=st.integers(0, 99), low=st.floats(-4, -0.2), high=st.floats(0.2, 4), levels=st.sampled_from([4, 16, 64, 256]))
@settings(max_examples=25, deadline=None)
def test_the_expected_error_is_that_of_the_values(seed: int, low: float, high: float, levels: int) -> None:
    values = normal(40_000, seed)
    assert expected_error(seen(values), low, high, levels) == pytest.approx(rounding_error(values, low, high, levels), rel=0.02)


@pytest.mark.parametrize("shape", ["normal", "relu", "skewed", "outlier"])
@pytest.mark.parametrize("levels", [16, 256])
def test_mse_is_as_good_as_the_best_of_all_ranges(shape: str, levels: int) -> None:
    values = normal(20_000)
    values = {"normal": values, "relu": values.relu(), "skewed": values.exp() - 1.2, "outlier": torch.cat([values, torch.tensor([60.0])])}[
        shape
    ]
    low, high = find_range(seen(values), "mse", levels)
    found = rounding_error(values, low, high, levels)
    lowest, largest = min(0.0, float(values.min())), float(values.max())
    options = [(a * lowest / 25, b * largest / 50) for a in range(26) for b in range(1, 51)]
    best = min(rounding_error(values, *option, levels) for option in options)
    assert found <= 1.03 * best
    assert found <= rounding_error(values, lowest, largest, levels)


@pytest.mark.parametrize(("levels", "step"), [(8, 0.5860), (16, 0.3352), (32, 0.1881)])
def test_a_normal_distribution_gets_the_step_that_is_known_to_be_best(levels: int, step: float) -> None:
    """Max, Quantizing for minimum distortion, 1960, table II; his grid has no point at zero, which costs a little."""
    low, high = find_range(seen(normal(400_000)), "mse", levels)
    assert (high - low) / (levels - 1) == pytest.approx(step, rel=0.06)


def test_mse_keeps_the_ends_on_a_grid_with_zero_and_leaves_one_sided_ranges_one_sided() -> None:
    low, high = find_range(seen(normal(10_000).relu()), "mse", 16)
    assert low == 0 < high
    low, high = find_range(seen(normal(10_000)), "mse", 16)
    assert low / ((high - low) / 15) == pytest.approx(round(low / ((high - low) / 15)), abs=1e-9)
    assert find_range(seen(torch.zeros(9)), "mse") == (0.0, 0.0)


def test_a_constant_is_on_the_grid() -> None:
    for constant in (7.3, -1e-20, 1e30):
        low, high = find_range(seen(torch.full((5,), constant)), "mse", 16)
        value = float(torch.tensor(constant))
        assert max(abs(low), abs(high)) == pytest.approx(abs(value), rel=1e-3)
        assert min(abs(low), abs(high)) == 0


def test_what_cannot_be_meant() -> None:
    statistics = seen(torch.tensor([1.0]))
    with pytest.raises(UnknownName, match="'msee'"):
        find_range(statistics, cast(Method, "msee"))
    with pytest.raises(UsageError, match="two levels"):
        find_range(statistics, "mse", 1)
    with pytest.raises(UsageError, match="percentile"):
        find_range(statistics, "percentile", percentile=0.999)
    with pytest.raises(PreconditionError, match="no values"):
        find_range(RangeStatistics(), "minmax")
    with pytest.raises(UsageError, match="holds zero"):
        expected_error(statistics, 1.0, 2.0)
