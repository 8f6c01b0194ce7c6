"""Channel scores against loops."""

import math

import pytest
import torch
from torch import Tensor

from sizewise.arith.channels import group_magnitude

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


def test_a_layer_with_many_rows_per_channel_does_not_decide_for_the_group() -> None:
    conv = torch.tensor([[1.0], [3.0]])  # channel 1 is three times as strong
    linear = torch.cat([torch.full((16, 1), 2.0), torch.full((16, 1), 1.0)])  # channel 0 is twice as strong
    scores = group_magnitude([conv, linear], [[0, 1], [0] * 16 + [1] * 16], 2)
    assert scores[1] > scores[0]


def test_rows_of_no_channel_count_for_none() -> None:
    weights, with_strangers = _weights(), torch.full((2, 4), 50.0)
    first = torch.cat([weights[0][:1], with_strangers, weights[0][1:]])
    whole = group_magnitude(weights, OWNERS, CHANNELS)
    assert torch.allclose(group_magnitude([first, weights[1]], [[0, -1, -1, 1, 2], OWNERS[1]], CHANNELS), whole)
    assert group_magnitude([with_strangers], [[-1, -1]], CHANNELS).tolist() == [0.0, 0.0, 0.0]
