"""Rows times weights are what torch's convolutions compute; regressions are what least squares gives."""

from typing import Any

import pytest
import torch
from torch import nn

from sizewise.arith.repair import Regression
from sizewise.arith.unfolding import input_rows, output_rows

LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1, bias=False),
    nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(2, 0), dilation=(2, 1), bias=False),
    nn.Conv2d(4, 6, 1, bias=False),
    nn.Conv2d(4, 6, (4, 3), padding="same", bias=False),
    nn.Conv2d(4, 6, 3, padding="valid", groups=2, bias=False),
    nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
    nn.Conv1d(4, 6, 3, stride=2, padding=4, dilation=4, bias=False),
    nn.Conv1d(4, 6, 2, padding="same", bias=False),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_times_weights_are_the_convolution(layer: Any) -> None:
    x = torch.randn(3, 4, 9, 7) if isinstance(layer, nn.Conv2d) else torch.randn(3, 4, 17)
    rows = input_rows(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    weight = layer.weight.detach().flatten(1).reshape(layer.groups, -1, rows.shape[2])
    torch.testing.assert_close(rows @ weight.mT, output_rows(layer(x).detach(), layer.groups), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("intercept", [True, False])
def test_a_regression_is_least_squares(intercept: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 4, generator=generator) + 1
    y = torch.randn(2, 300, 3, generator=generator) + x @ torch.randn(2, 4, 3, generator=generator)
    regression = Regression.empty(2, 3, 4)
    for part in range(3):
        regression.add(x[:, part * 100 : part * 100 + 100], y[:, part * 100 : part * 100 + 100])
    weight, constant = regression.solve(torch.randn(2, 3, 4), intercept=intercept, damping=0.0)
    design = torch.cat([x, torch.ones(2, 300, 1)], 2) if intercept else x
    want = torch.linalg.lstsq(design.double(), y.double()).solution
    torch.testing.assert_close(weight, want[:, :4].mT, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(constant, want[:, 4] if intercept else torch.zeros(2, 3, dtype=torch.float64), rtol=1e-3, atol=1e-4)


def test_what_the_data_do_not_decide_stays_as_it_was() -> None:
    x = torch.randn(1, 50, 3)
    x[:, :, 2] = 0
    start = torch.randn(1, 2, 3)
    regression = Regression.empty(1, 2, 3)
    regression.add(x, x @ torch.randn(1, 3, 2))
    weight, _ = regression.solve(start, intercept=False)
    assert torch.equal(weight[:, :, 2].float(), start[:, :, 2])
