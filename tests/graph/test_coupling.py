"""Groups found by tracing, cut by surgery: the cut model computes what the dense one computes with those channels silenced."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel
from sizewise.graph.coupling import Group, channel_groups
from sizewise.graph.surgery import axis_size, keep_indices, supports
from sizewise.graph.trace import output_layers, trace
from sizewise.protocols import Inputs
from sizewise.testing import TinyConv
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet import ResNet, resnet_cifar


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.norm(self.a(x)))))
        out: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return out


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Plain, (2, 3, 12, 12)),
    "residual and depthwise": (TinyConv, (2, 1, 8, 8)),
    "resnet, option B": (lambda: ResNet((1, 1), (8, 16), 5, 1), (2, 1, 8, 8)),
    "mobilenet": (lambda: MobileNetV2(0.25, classes=5), (2, 3, 32, 32)),
    "resnet, option A": (lambda: resnet_cifar(8, classes=5), (2, 3, 16, 16)),
}


def silenced(model: nn.Module, group: Group, gone: set[int]) -> nn.Module:
    """The dense model whose readers ignore the channels: their weights for those inputs are zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for member in group.members:
            layer = twin.get_submodule(member.path)
            if member.axis == "in" and isinstance(layer.weight, Tensor):
                layer.weight[:, [i for i, c in enumerate(member.channel_of) if c in gone]] = 0
    return twin


@pytest.mark.parametrize("name", MODELS)
def test_cutting_a_group_is_silencing_its_channels(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    groups, skipped = channel_groups(model, Inputs((x,)), output_layers(trace(model, Inputs((x,))).program))
    assert groups
    assert all(skip.reason for skip in skipped)
    for group in groups:
        gone = set(range(0, group.channels, 3))
        cut = copy.deepcopy(model)
        for member in group.members:
            keep_indices(cut.get_submodule(member.path), member.axis, [i for i, c in enumerate(member.channel_of) if c not in gone])
        with torch.no_grad():
            want, got = silenced(model, group, gone)(x), cut(x)
        assert torch.allclose(want, got, atol=1e-5), group.name


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_never_cut(name: str) -> None:
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(shape)
    frozen = output_layers(trace(model, Inputs((x,))).program)
    groups, skipped = channel_groups(model, Inputs((x,)), frozen)
    assert len(frozen) == 1
    assert not any(m.path in frozen and m.axis == "out" for g in groups for m in g.members)
    assert (frozen[0], "makes the model's output") in {(s.what, s.reason) for s in skipped}


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.norm(self.a(x)))
        return out


def test_a_layer_that_surgery_does_not_know_is_named() -> None:
    groups, skipped = channel_groups(Normed(), Inputs((torch.randn(2, 4),)), ["b"])
    assert not groups
    assert any(s.what == "a" and "norm, a LayerNorm" in s.reason for s in skipped)


def test_a_model_that_cannot_be_traced_says_so() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    with pytest.raises(UnsupportedModel, match="could not be traced"):
        channel_groups(Broken(), Inputs((torch.randn(2, 4),)))


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv1d(6, 4, 3), (2, 6, 9)), (nn.Conv2d(6, 4, 3), (2, 6, 9, 9)), (nn.Linear(6, 4), (2, 6))]
)
def test_surgery_keeps_what_it_is_told(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x, kept_in, kept_out = torch.randn(shape), [0, 2, 5], [3, 1]
    small = copy.deepcopy(layer)
    keep_indices(small, "in", kept_in)
    keep_indices(small, "out", kept_out)
    assert (axis_size(small, "in"), axis_size(small, "out")) == (3, 2)
    zeroed = torch.zeros_like(x)
    zeroed[:, kept_in] = x[:, kept_in]
    assert torch.allclose(small(x[:, kept_in]), layer(zeroed)[:, kept_out], atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6).eval()])
def test_surgery_on_layers_with_one_axis(layer: nn.Module) -> None:
    x, kept = torch.randn(2, 6, 5, 5), [4, 0, 1]
    small = copy.deepcopy(layer)
    keep_indices(small, "out", kept)
    assert torch.allclose(small(x[:, kept]), layer(x)[:, kept], atol=1e-6)


def test_surgery_refuses_what_it_does_not_know() -> None:
    assert not supports(nn.LSTM(3, 4))
    assert not supports(nn.Conv2d(4, 8, 1, groups=2))
    with pytest.raises(UnsupportedModel, match="LSTM"):
        keep_indices(nn.LSTM(3, 4), "out", [0])
