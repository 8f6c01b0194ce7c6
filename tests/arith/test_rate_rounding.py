"""Rounding by error and bits, against brain surgery in loops, all possible codes, and nearest values."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.code_rates import code_bits, code_counts, entropy_bits
from sizewise.arith.rate_rounding import nearest_codes, rate_rounded, uniform_levels
from sizewise.arith.rounding import output_errors
from sizewise.errors import PreconditionError, UsageError

SEEDS = st.integers(0, 10_000)


def problem(seed: int, inputs: int, outputs: int = 3, groups: int = 1, rows: int = 60) -> tuple[Tensor, Tensor]:
    """Weights and moments of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, rows, inputs, generator=generator).double()
    x = x @ (torch.eye(inputs) + 0.7 * torch.randn(inputs, inputs, generator=generator)).double()
    return torch.randn(groups, outputs, inputs, generator=generator), x.mT @ x / rows


def surgery(weight: Tensor, moments: Tensor, levels: list[float], prices: list[float]) -> list[int]:
    """One row, column by column with a new inverse of what is left for each; the nearest two values and the cheapest are tried."""
    left = weight.double().clone()
    order = moments.diagonal().argsort(descending=True).tolist()
    codes = [0] * len(left)
    while order:
        inverse = torch.linalg.inv(moments[order][:, order])
        first, weighs = order[0], 1 / float(inverse[0, 0])
        near = sorted(range(len(levels)), key=lambda code: abs(float(left[first]) - levels[code]))[:2]
        tried = [*near, prices.index(min(prices))]
        codes[first] = min(tried, key=lambda code: (float(left[first]) - levels[code]) ** 2 * weighs + prices[code])
        left[order] -= (left[first] - levels[codes[first]]) * inverse[0] / inverse[0, 0]
        order.pop(0)
    return codes


def lagrangian(weight: Tensor, moments: Tensor, codes: Tensor, levels: Tensor, prices: Tensor) -> Tensor:
    """Error plus prices of every row."""
    return output_errors(weight, levels[codes], moments) + prices[codes].sum(-1)


@given(seed=SEEDS, inputs=st.integers(1, 7), slope=st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_it_is_brain_surgery_that_looks_at_prices(seed: int, inputs: int, slope: float) -> None:
    weight, moments = problem(seed, inputs)
    levels, step = uniform_levels(torch.tensor([0.5]), 9), torch.tensor([0.5])
    found = rate_rounded(weight, moments, levels, step, slope=slope, rounds=1)
    near = nearest_codes(weight, levels)
    prices = slope * 0.25 * found.cost * code_bits(code_counts(near.flatten(1), 19))[0]
    for row in range(3):
        want = torch.tensor(surgery(weight[0, row], moments[0], levels[0].tolist(), prices.tolist()))
        own, costs = weight[:, row : row + 1], []
        for codes in (want, near[0, 0, row], found.codes[0, 0, row]):
            costs.append(float(lagrangian(own, moments, codes[None, None], levels[0], prices)))
        assert costs[2] == pytest.approx(min(costs[:2]), rel=1e-6, abs=1e-12)


@given(seed=SEEDS, inputs=st.integers(1, 10), groups=st.integers(1, 2), rows=st.sampled_from([2, 60]), slope=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_no_row_costs_more_than_nearest_values(seed: int, inputs: int, groups: int, rows: int, slope: float) -> None:
    weight, moments = problem(seed, inputs, groups=groups, rows=rows)
    levels, step = uniform_levels(torch.tensor([0.3, 1.0]), 5), torch.tensor([0.3, 1.0])
    found = rate_rounded(weight, moments, levels, step, slope=slope, rounds=1)
    near = nearest_codes(weight, levels)
    for option in range(2):
        prices = slope * step[option].double() ** 2 * found.cost * code_bits(code_counts(near[option : option + 1].flatten(1), 11))[0]
        costs = [lagrangian(weight, moments, codes[option], levels[option], prices) for codes in (found.codes, near)]
        assert bool((costs[0] <= costs[1] * (1 + 1e-6) + 1e-12).all())
    assert torch.equal(found.values, levels.gather(1, found.codes.flatten(1)).reshape(found.codes.shape))


def test_rows_come_near_the_cheapest_of_all_codes() -> None:
    levels, step, ratios, plain = uniform_levels(torch.tensor([0.8]), 2), torch.tensor([0.8]), [], []
    for seed in range(10):
        weight, moments = problem(seed, 5, outputs=4)
        found = rate_rounded(weight, moments, levels, step, slope=2 * math.log(2) / 12, rounds=1)
        near = nearest_codes(weight, levels)
        prices = 2 * math.log(2) / 12 * 0.64 * found.cost * code_bits(code_counts(near.flatten(1), 5))[0]
        every = torch.tensor(list(itertools.product(range(5), repeat=5)))[None]
        for row in range(4):
            own = weight[:, row : row + 1]
            best = lagrangian(own.expand(1, every.shape[1], 5), moments, every, levels[0], prices).min()
            ratios.append(float(lagrangian(own, moments, found.codes[0, :, row : row + 1], levels[0], prices) / best))
            plain.append(float(lagrangian(own, moments, near[0, :, row : row + 1], levels[0], prices) / best))
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / 40 < 1.3 < sum(plain) / 40


def test_prices_give_less_error_at_the_same_bits() -> None:
    weight, moments = problem(5, 48, outputs=64, rows=500)
    steps = 2 ** (torch.arange(0, 12) / 4) * 0.3
    levels = uniform_levels(steps, 20)
    curves = {}
    for slope in (0.0, 2 * math.log(2) / 12):
        found = rate_rounded(weight, moments, levels, steps, slope=slope)
        curves[slope] = (found.bits / weight.numel(), found.errors.log2() / 2)
    (bits, errors), (cheap, low) = curves[0.0], curves[2 * math.log(2) / 12]
    for rate, error in zip(cheap.tolist(), low.tolist(), strict=True):
        place = int((bits > rate).sum())
        if 0 < place < len(bits) and rate < 1.6:
            share = (float(bits[place - 1]) - rate) / float(bits[place - 1] - bits[place])
            assert error < float(errors[place - 1]) * (1 - share) + float(errors[place]) * share


def test_bits_are_the_entropy_of_the_codes() -> None:
    weight, moments = problem(3, 40, outputs=100)
    found = rate_rounded(weight, moments, uniform_levels(torch.tensor([0.5]), 20), torch.tensor([0.5]))
    assert float(found.bits[0]) == pytest.approx(float(entropy_bits(code_counts(found.codes.flatten(1), 41))[0]), rel=1e-6)


def test_options_groups_slabs_and_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(1, 37, outputs=7, groups=2, rows=200)
    steps = torch.tensor([0.2, 0.7])
    whole = rate_rounded(weight, moments, uniform_levels(steps, 30), steps)
    for option in range(2):
        alone = rate_rounded(weight, moments, uniform_levels(steps[option : option + 1], 30), steps[option : option + 1])
        assert torch.equal(alone.codes[0], whole.codes[option])
    monkeypatch.setattr("sizewise.arith.rate_rounding.SLAB", 5)
    monkeypatch.setattr("sizewise.arith.rate_rounding.MOST", 300)
    assert torch.equal(rate_rounded(weight, moments, uniform_levels(steps, 30), steps).codes, whole.codes)


def test_values_that_lie_anywhere() -> None:
    weight, moments = problem(2, 20, outputs=8)
    levels = torch.tensor([[-2.0, -0.3, 0.1, 0.4, 1.9]], dtype=torch.float64)
    found = rate_rounded(weight, moments, levels, torch.tensor([0.5]), slope=0.0)
    near = levels[0][nearest_codes(weight, levels)[0]]
    assert float(found.errors[0]) < float(output_errors(weight, near, moments).sum())
    assert bool((nearest_codes(weight, levels)[0] == (weight.double()[..., None] - levels[0]).abs().argmin(-1)).all())


def test_importance_of_outputs_moves_errors_to_the_others() -> None:
    weight, moments = problem(4, 30, outputs=40)
    step = torch.tensor([1.0])
    importance = torch.ones(1, 40)
    importance[0, :20] = 30
    plain, moved = (rate_rounded(weight, moments, uniform_levels(step, 9), step, given, slope=0.4) for given in (None, importance))
    errors = [output_errors(weight, found.values[0], moments)[0] for found in (plain, moved)]
    assert float(errors[1][:20].sum()) < float(errors[0][:20].sum())


@pytest.mark.parametrize(("levels", "rounds"), [([[1.0, 0.0]], 1), ([[0.0, 1.0]], 0), ([[]], 1)])
def test_values_that_do_not_rise_are_refused(levels: list[list[float]], rounds: int) -> None:
    weight, moments = problem(0, 3)
    with pytest.raises(UsageError, match="must rise"):
        rate_rounded(weight, moments, torch.tensor(levels, dtype=torch.float64), torch.tensor([1.0]), rounds=rounds)


def test_what_is_not_finite_is_refused() -> None:
    weight, moments = problem(0, 3)
    levels, step = uniform_levels(torch.tensor([1.0]), 3), torch.tensor([1.0])
    with pytest.raises(PreconditionError, match="weights"):
        rate_rounded(weight / 0, moments, levels, step)
    with pytest.raises(PreconditionError, match="moments"):
        rate_rounded(weight, moments / 0, levels, step)
