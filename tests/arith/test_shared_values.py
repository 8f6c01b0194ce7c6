"""Values that weights share, against all ways to part sorted values and against plain least squares."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.rounding import output_errors
from sizewise.arith.shared_values import fitted_levels, fitted_scale, shared_values
from sizewise.errors import PreconditionError, UsageError

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9)


def loss(values: Tensor, levels: Tensor, importance: Tensor) -> float:
    return float((importance * (values.double()[:, None] - levels).square().min(1).values).sum())


def least(values: Tensor, importance: Tensor, count: int) -> float:
    """The best of all ways to part sorted values."""
    order = values.argsort()
    x, w, n = values.double()[order], importance[order], len(values)
    found = []
    for cuts in itertools.combinations(range(1, n), min(count, n) - 1):
        edges = [0, *cuts, n]
        parts = [(x[a:b], w[a:b]) for a, b in itertools.pairwise(edges)]
        found.append(sum(float((own * (part - (own * part).sum() / own.sum()).square()).sum()) for part, own in parts))
    return min(found)


@given(values=NUMBERS, count=st.integers(1, 4), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_few_values_are_clustered_as_well_as_can_be(values: list[float], count: int, seed: int) -> None:
    x = torch.tensor(values)
    importance = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)).double() + 0.1
    levels = shared_values(x, count, importance)
    assert len(levels) <= count
    assert bool((levels.diff() > 0).all())
    assert loss(x, levels, importance) == pytest.approx(least(x, importance, count), rel=1e-6, abs=1e-6)


def test_many_values_are_clustered_nearly_as_well() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    levels = shared_values(x, 8)
    # Max, Quantizing for Minimum Distortion, 1960: the best quantizer of 8 levels leaves 0.03454 of a normal variance
    assert loss(x, levels, torch.ones(len(x))) / len(x) == pytest.approx(0.03454, rel=0.03)


def test_as_many_levels_as_values_leave_no_error_and_importance_of_zero_counts_nothing() -> None:
    x = torch.tensor([3.0, -1.0, 3.0, 7.0])
    assert shared_values(x, 256).tolist() == [-1, 3, 7]
    assert shared_values(x, 1, torch.tensor([0.0, 0, 0, 1])).tolist() == [7]
    assert shared_values(x, 1, torch.zeros(4)).tolist() == [3]


def test_what_cannot_be_clustered_is_refused() -> None:
    for values, count, importance in ((torch.ones(2), 0, None), (torch.empty(0), 1, None), (torch.ones(2), 1, -torch.ones(2))):
        with pytest.raises(UsageError):
            shared_values(values, count, importance)
    with pytest.raises(PreconditionError):
        shared_values(torch.tensor([1.0, float("nan")]), 1)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 40, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()
    codes = torch.randint(0, 3, (2, 5, 6), generator=generator)
    return torch.randn(2, 5, 6, generator=generator).double(), x.mT @ x / 40, codes


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_fitted_levels_and_scales_cannot_be_bettered(seed: int) -> None:
    weight, moments, codes = problem(seed)
    levels = torch.tensor([-1.0, 0.2, 1.0, 5.0], dtype=torch.float64)
    found = fitted_levels(weight, moments, codes, levels)
    assert float(found[3]) == 5  # no weight has it
    error = float(output_errors(weight, found[codes], moments).sum())
    for place in range(3):
        for change in (-1e-2, 1e-2):
            other = found.clone()
            other[place] += change
            assert error <= float(output_errors(weight, other[codes], moments).sum())
    factor = fitted_scale(weight, moments, levels[codes])
    best = float(output_errors(weight, factor * levels[codes], moments).sum())
    if factor != 1:
        assert all(best <= float(output_errors(weight, (factor + d) * levels[codes], moments).sum()) + 1e-9 for d in (-1e-2, 1e-2))
