"""Zeros that survive training."""

import torch
from torch import nn

from sizewise.graph.zeros import ZeroKeeper


def train(model: nn.Module, keeper: ZeroKeeper | None) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        if keeper:
            keeper()


class Pruned(nn.Module):
    """Half of the first layer's weights are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        with torch.no_grad():
            self.first.weight[:, ::2] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.norm(self.first(x)))
        return out


def test_zeros_stay_and_everything_else_trains() -> None:
    model = Pruned()
    before = [p.detach().clone() for p in model.parameters()]
    train(model, ZeroKeeper(model))
    assert not model.first.weight[:, ::2].any()
    assert (model.first.weight[:, 1::2] != before[0][:, 1::2]).all()
    assert model.norm.bias.all(), "biases of normalizations begin at zero and are free"
    assert (model.last.weight != before[-2]).all()


def test_without_the_keeper_they_are_lost() -> None:
    model = Pruned()
    train(model, None)
    assert model.first.weight[:, ::2].any()
