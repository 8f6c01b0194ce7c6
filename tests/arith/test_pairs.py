"""Scales that keep sums of two codes small, against a loop over pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.pairs import least_scale

LIMIT = 128
SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 9)), st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 4)] * 4)
)


def pairs(row: Tensor) -> list[Tensor]:
    """Sums of neighbours of one output, in the order of a kernel that goes over inputs within places."""
    terms = [row[channel].flatten()[place] for place in range(row[0].numel()) for channel in range(len(row))]
    return [torch.stack(terms[at : at + 2]).sum() for at in range(0, len(terms), 2)]


@given(shape=SHAPES, seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_the_nearest_codes_of_every_pair_keep_the_limit_and_no_scale_is_larger_than_that_takes(shape: tuple[int, ...], seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
    least = least_scale(weight, LIMIT)
    for row, scale in zip(weight, least.double(), strict=True):
        assert max(abs(sum_) for sum_ in pairs(torch.round(row / scale))) <= LIMIT
        assert float(max(abs(sum_) for sum_ in pairs(row)) / scale) == pytest.approx(LIMIT - 1, rel=1e-5)


def test_neighbours_of_opposite_sign_take_nothing() -> None:
    assert float(least_scale(torch.tensor([[1.0, -1.0, 3.0, -3.0]]), LIMIT)) == 0
    assert float(least_scale(torch.tensor([[-1.0, 1.0, 1.0, -3.0]]), LIMIT)) == pytest.approx(2 / 127)
