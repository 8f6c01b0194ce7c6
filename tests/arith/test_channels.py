"""Channel scores against loops, counts against their promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.channels import contribution, group_magnitude, kept_count, strongest

CHANNELS, OWNERS = 3, [[0, 1, 2], [0, 0, 1, 1, 2, 2]]


def _weights(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, generator=generator), 100 * torch.randn(6, 2, generator=generator)]


def test_magnitude_is_the_root_of_all_squares_each_layer_divided_by_its_mean() -> None:
    weights = _weights()
    want = [0.0] * CHANNELS
    for matrix, owner in zip(weights, OWNERS, strict=True):
        rows = [sum(v * v for v in row) for row in matrix.tolist()]
        for channel, square in zip(owner, rows, strict=True):
            want[channel] += square / (sum(rows) / CHANNELS)
    assert group_magnitude(weights, OWNERS, CHANNELS).tolist() == pytest.approx([math.sqrt(v) for v in want])


def test_a_layers_scale_does_not_change_the_magnitudes() -> None:
    weights = _weights()
    scaled = [1e4 * weights[0], weights[1]]
    assert torch.allclose(group_magnitude(weights, OWNERS, CHANNELS), group_magnitude(scaled, OWNERS, CHANNELS))


def test_layers_of_zeros_and_no_layers_score_zero() -> None:
    assert group_magnitude([torch.zeros(3, 2)], [[0, 1, 2]], 3).tolist() == [0.0, 0.0, 0.0]
    assert group_magnitude([], [], 2).tolist() == [0.0, 0.0]


def test_a_channel_without_weights_scores_zero_and_a_larger_one_more() -> None:
    matrix = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    scores = group_magnitude([matrix], [[0, 1, 2]], 3).tolist()
    assert scores[0] == 0 < scores[1]
    assert scores[2] == pytest.approx(2 * scores[1])


def test_scoring_takes_parameters_and_leaves_no_graph() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert not group_magnitude([weight], [[0, 1]], 2).requires_grad
    assert not contribution([weight], [torch.ones(2)], [[0, 1]], 2).requires_grad


def test_a_layer_with_many_rows_per_channel_does_not_decide_for_the_group() -> None:
    conv = torch.tensor([[1.0], [3.0]])  # channel 1 is three times as strong
    linear = torch.cat([torch.full((16, 1), 2.0), torch.full((16, 1), 1.0)])  # channel 0 is twice as strong
    scores = group_magnitude([conv, linear], [[0, 1], [0] * 16 + [1] * 16], 2)
    assert scores[1] > scores[0]


def test_a_contribution_is_the_share_of_variance_each_reader_gets_from_a_channel() -> None:
    weights = _weights()
    variances = [torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, 3.0, 1.0, 2.0, 0.25])]
    want = [0.0] * CHANNELS
    for matrix, variance, owner in zip(weights, variances, OWNERS, strict=True):
        values = [v * sum(w * w for w in row) for v, row in zip(variance.tolist(), matrix.tolist(), strict=True)]
        for channel, value in zip(owner, values, strict=True):
            want[channel] += value / sum(values)
    got = contribution(weights, variances, OWNERS, CHANNELS)
    assert got.tolist() == pytest.approx(want)
    assert float(got.sum()) == pytest.approx(len(weights))  # every reader has the same say


def test_a_constant_channel_contributes_nothing() -> None:
    weight = torch.tensor([[5.0], [1.0]])
    assert contribution([weight], [torch.tensor([0.0, 1.0])], [[0, 1]], 2).tolist() == [0.0, 1.0]
    assert contribution([weight], [torch.zeros(2)], [[0, 1]], 2).tolist() == [0.0, 0.0]


def test_the_contribution_is_the_variance_of_what_independent_channels_add() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=generator).double() * torch.tensor([1.0, 2.0, 0.3]).double() + 7
    weight = torch.randn(4, 3, generator=generator).double()  # out, in
    parts = torch.stack([torch.outer(x[:, c], weight[:, c]).var(0).sum() for c in range(3)])
    got = contribution([weight.T], [x.var(0)], [[0, 1, 2]], 3)
    assert torch.allclose(got, parts / parts.sum(), atol=1e-9)
    assert got.argmax() == parts.argmax()


counts = st.integers(1, 2048)
ratios = st.floats(0, 1)
multiples = st.sampled_from([1, 2, 4, 8, 16, 32])


@given(counts, ratios, multiples)
@settings(max_examples=50, deadline=None)
def test_kept_counts_are_within_bounds_and_near_what_was_asked(channels: int, ratio: float, multiple: int) -> None:
    kept = kept_count(channels, ratio, multiple)
    assert isinstance(kept, int)
    assert 1 <= kept <= channels
    wanted = channels * (1 - ratio)
    if channels < 2 * multiple:
        assert abs(kept - max(1.0, wanted)) <= 0.5
    else:
        assert kept % multiple == 0 or kept == channels
        assert kept >= multiple
        assert abs(kept - max(float(multiple), wanted)) <= multiple / 2


@given(counts, ratios, ratios, multiples)
@settings(max_examples=50, deadline=None)
def test_removing_a_larger_share_never_keeps_more(channels: int, one: float, other: float, multiple: int) -> None:
    assert kept_count(channels, max(one, other), multiple) <= kept_count(channels, min(one, other), multiple)


@given(counts, multiples)
@settings(max_examples=50, deadline=None)
def test_removing_nothing_keeps_all(channels: int, multiple: int) -> None:
    assert kept_count(channels, 0.0, multiple) >= channels - multiple // 2
    assert kept_count(channels, 0.0, 1) == channels


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "kept"),
    [
        (64, 0.5, 8, 32),
        (64, 0.45, 8, 32),
        (64, 0.99, 8, 8),
        (10, 0.5, 8, 5),
        (15, 0.99, 8, 1),
        (16, 0.3, 8, 8),
        (100, 0.03, 8, 96),
        (1, 0.9, 8, 1),
        (30, 0.01, 8, 30),
    ],
)
def test_kept_counts_by_hand(channels: int, ratio: float, multiple: int, kept: int) -> None:
    assert kept_count(channels, ratio, multiple) == kept


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
@settings(max_examples=50, deadline=None)
def test_the_strongest_are_the_largest_in_rising_order_ties_to_the_lower(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    got = strongest(torch.tensor(values, dtype=torch.float64), count)
    assert got == sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])
    assert all(type(i) is int for i in got)
