"""Scores and counts of channels against their definitions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.arith.channels import contribution, group_magnitude, kept_count, strongest


@given(channels=st.integers(1, 300), ratio=st.floats(0.01, 0.99), multiple=st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_kept_counts_are_multiples_near_what_was_asked(channels: int, ratio: float, multiple: int) -> None:
    kept = kept_count(channels, ratio, multiple)
    assert 1 <= kept <= channels
    if channels >= 2 * multiple:
        assert kept % multiple == 0 or kept == channels
        assert abs(kept - channels * (1 - ratio)) <= multiple
    assert kept_count(channels, min(0.99, ratio + 0.1), multiple) <= kept


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
@settings(max_examples=50, deadline=None)
def test_the_strongest_are_the_largest_in_order(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    chosen = strongest(torch.tensor(values, dtype=torch.float64), count)
    assert chosen == sorted(set(chosen))
    assert sorted((values[i] for i in chosen), reverse=True) == sorted(values, reverse=True)[:count]


def test_magnitude_sums_over_members_and_rows_of_a_channel() -> None:
    out, read = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0], [1.0], [0.0], [2.0]])
    scores = group_magnitude([out, read], [[0, 1], [0, 0, 1, 1]], 2)
    first = 25 / 12.5 + (1 + 1) / 1.5
    assert torch.allclose(scores, torch.tensor([first, 4 / 1.5], dtype=torch.float64).sqrt())


def test_a_layers_scale_does_not_decide() -> None:
    weights = [torch.randn(6, 9), torch.randn(6, 4)]
    owners = [range(6)] * 2
    scaled = [weights[0] * 1000, weights[1]]
    assert torch.allclose(group_magnitude(weights, owners, 6), group_magnitude(scaled, owners, 6))


def test_contribution_is_the_readers_lost_variance() -> None:
    torch.manual_seed(0)
    x = torch.randn(20000, 4) * torch.tensor([1.0, 2.0, 0.1, 0.0]) + torch.tensor([0.0, 0.0, 5.0, 9.0])
    weight = torch.randn(4, 3)
    scores = contribution([weight], [x.var(0, unbiased=False)], [range(4)], 4)
    lost = torch.stack([(x[:, [c]] * weight[c]).var(0, unbiased=False).sum() for c in range(4)]).double()
    assert torch.allclose(scores, lost / lost.sum(), atol=1e-6)
    assert scores[3] == 0, "a constant channel is worth nothing: the normalization behind takes it"
