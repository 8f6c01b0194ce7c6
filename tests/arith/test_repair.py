"""Fits by least squares, against the rows themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sizewise.arith.repair import DAMPINGS, HeldOut, Regression


def rows(count: int, inputs: int, outputs: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, count, inputs, generator=generator)
    law = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)) / inputs**0.5
    return x, x @ law.T + 0.5 + noise * torch.randn(1, count, outputs, generator=generator)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_the_error_is_that_of_the_rows_but_for_the_squares_of_what_was_wanted(groups: int, outputs: int, inputs: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(groups, 12, inputs), torch.randn(groups, 12, outputs)
    weight, constant = torch.randn(groups, outputs, inputs).double(), torch.randn(groups, outputs).double()
    regression = Regression.empty(groups, outputs, inputs)
    regression.add(x[:, :7], y[:, :7])
    regression.add(x[:, 7:], y[:, 7:])
    errors = x.double() @ weight.mT + constant.unsqueeze(1) - y.double()
    want = errors.square().sum() - y.double().square().sum()
    assert regression.error(weight, constant) == pytest.approx(float(want), rel=1e-4, abs=1e-3)


def test_two_merged_are_one_that_saw_all() -> None:
    x, y = rows(50, 6, 3, 0.1)
    one, first, second = (Regression.empty(1, 3, 6) for _ in range(3))
    one.add(x, y)
    first.add(x[:, :20], y[:, :20])
    second.add(x[:, 20:], y[:, 20:])
    both, start = first.merge(second), torch.zeros(1, 3, 6)
    for got, want in zip(both.solve(start, intercept=True), one.solve(start, intercept=True), strict=True):
        assert torch.allclose(got, want, atol=1e-5)
    assert (first.inputs.n, second.inputs.n) == (20, 30), "neither is changed"


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_rows_held_out_choose_a_damping_that_does_well_on_new_rows(noise: float) -> None:
    """Sixty rows for forty inputs: without noise hardly any damping is right, with much of it a lot."""
    x, y = rows(60, 40, 5, noise)
    found, start = HeldOut.empty(1, 5, 40), torch.zeros(1, 5, 40)
    found.add(x, y)
    new = Regression.empty(1, 5, 40)
    new.add(*rows(4000, 40, 5, noise, seed=7))
    errors = {d: new.error(*found.parts[0].merge(found.parts[1]).solve(start, intercept=True, damping=d)) for d in DAMPINGS}
    low, high = min(errors.values()), max(errors.values())
    assert new.error(*found.solve(start, intercept=True)) <= low + 0.1 * (high - low)


def test_one_row_is_fitted_with_the_least_damping() -> None:
    x, y = rows(1, 3, 2, 0.0)
    found = HeldOut.empty(1, 2, 3)
    found.add(x, y)
    start = torch.zeros(1, 2, 3)
    want = found.parts[0].merge(found.parts[1]).solve(start, intercept=True, damping=DAMPINGS[0])
    assert all(torch.equal(a, b) for a, b in zip(found.solve(start, intercept=True), want, strict=True))
    assert found.n == 1
