"""Scores from gradients, against one backward pass per example and channel."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.data.fisher import channel_fisher
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group
from sizewise.protocols import Inputs
from sizewise.testing import TinyConv


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 9, 4)).eval()


def by_hand(model: nn.Module, group: Group, x: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared slope of every example's loss as a channel's readers are scaled, by finite differences."""
    step, found = 1e-4, torch.zeros(group.channels, dtype=torch.float64)
    for channel in range(group.channels):
        losses = []
        for factor in (1 - step, 1 + step):
            twin = copy.deepcopy(model)
            for member in group.members:
                if member.axis == "in":
                    twin.get_submodule(member.path).get_parameter("weight").data[:, member.rows({channel})] *= factor
            losses.append(F.cross_entropy(twin(x), target, reduction="none"))
        found[channel] = ((losses[1] - losses[0]) / (2 * step)).square().mean() / 2
    return found


def test_with_labels_it_is_the_squared_slope_of_every_examples_loss() -> None:
    model, x, target = classifier().double(), torch.randn(5, 3, 7, 7).double(), torch.tensor([0, 1, 2, 3, 1])
    groups, _ = channel_groups(model, Inputs((x,)))
    scores = channel_fisher(model, groups, [(Inputs((x[:2],)), target[:2]), (Inputs((x[2:],)), target[2:])])
    with torch.no_grad():
        for group, found in zip(groups, scores, strict=True):
            assert torch.allclose(found.double(), by_hand(model, group, x, target), rtol=1e-3)


def test_without_labels_it_is_the_slope_of_all_outputs() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval(), torch.randn(1, 4)
    groups, _ = channel_groups(model, Inputs((torch.cat([x, x]),)))
    (found,) = channel_fisher(model, groups, [(Inputs((x.expand(4000, -1),)), None)])
    second = model[1].weight.detach()  # type: ignore[operator]
    hidden = model[0](x)[0].detach()
    slopes = (second * hidden).square().sum(0)
    assert torch.allclose(found.float(), slopes / 2, rtol=0.15)


def test_the_same_seed_gives_the_same_scores_and_the_model_stays_as_it_was() -> None:
    model, x = TinyConv().eval(), torch.randn(4, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups, _ = channel_groups(model, Inputs((x,)))
    first, second = (channel_fisher(model, groups, [(Inputs((x,)), None)], seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("target", [torch.rand(4, 3), "cat", None])
def test_targets_that_are_no_classes_count_as_absent(target: object) -> None:
    model, x = TinyConv().eval(), torch.randn(4, 1, 8, 8)
    groups, _ = channel_groups(model, Inputs((x,)))
    found = channel_fisher(model, groups, [(Inputs((x,)), target)])
    absent = channel_fisher(model, groups, [(Inputs((x,)), None)])
    assert all(torch.equal(a, b) for a, b in zip(found, absent, strict=True))
