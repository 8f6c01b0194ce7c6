"""Bits of codes, against the definition and a count by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sizewise.arith.code_rates import code_bits, code_counts, entropy_bits


def test_counts_and_entropy_by_hand() -> None:
    codes = torch.tensor([[0, 0, 1, 2], [3, 3, 3, 3]])
    counts = code_counts(codes, 4)
    assert counts.tolist() == [[2, 1, 1, 0], [0, 0, 0, 4]]
    assert entropy_bits(counts).tolist() == [6.0, 0.0]


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_bits_are_those_of_shares_that_add_up_to_one(counts: list[int]) -> None:
    bits = code_bits(torch.tensor([counts], dtype=torch.float64))[0]
    assert float((2**-bits).sum()) == pytest.approx(1)
    assert bool((bits.argsort(stable=True) == torch.tensor(counts).neg().argsort(stable=True)).all())


@given(counts=st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_no_distribution_codes_shorter_than_its_entropy(counts: list[int]) -> None:
    table = torch.tensor([counts], dtype=torch.float64)
    least = float(entropy_bits(table))
    assert least == pytest.approx(-sum(c * math.log2(c / sum(counts)) for c in counts), abs=1e-6)
    assert float((table * code_bits(table)).sum()) >= least - 1e-6
