"""Which modules count as residual blocks, and what a model without one computes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.graph.nets import Net, inputs, outputs, settled
from torch import Tensor, nn

from sizewise.graph.blocks import residual_blocks
from sizewise.graph.groups import kept_rows
from sizewise.graph.surgery import WHOLE, cut
from sizewise.graph.trace import export_static
from sizewise.protocols import Inputs
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet import resnet_cifar


def blocks_of(model: nn.Module, example: Inputs) -> list[str]:
    """Paths, after checking that each is a group of one channel that goes as a whole."""
    groups = residual_blocks(model.eval(), export_static(model.eval(), example), example)
    assert all((group.channels, [m.axis for m in group.members]) == (1, [WHOLE]) for group in groups)
    return [group.name for group in groups]


class Block(nn.Module):
    """Adds what its layers make to what it is given, in one of several ways."""

    def __init__(self, way: str = "plain", width: int = 6) -> None:
        super().__init__()
        self.way, self.norm, self.inner, self.out = way, nn.LayerNorm(width), nn.Linear(width, 8), nn.Linear(8, width)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        y: Tensor = self.out(torch.relu(self.inner(self.norm(x))))
        if self.way == "in place":
            y += x
            return y
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: x + y,
            "dropped": lambda: self.drop(y) + x,
            "scaled": lambda: y.add(x, alpha=2),
            "none": lambda: y,
        }
        return ways[self.way]()


class Stage(nn.Module):
    """Two blocks; it adds nothing itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(), Block("in place")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x))
        return out


class Nested(nn.Module):
    """Adds, and holds a block that adds."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = Block(), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.out(self.body(x))
        return out


def between(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *modules, nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (between(Block(), Block("dropped"), Block("in place")), ["1", "2", "3"]),
        (between(Stage()), ["1.one", "1.two"]),
        (between(Nested()), ["1.body"]),
        (between(Block("none")), []),
        (between(nn.Sequential(nn.Linear(6, 6), nn.ReLU())), []),
        (between(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)), ["1"]),
    ],
)
def test_modules_that_add_to_their_input_and_no_others(model: nn.Module, found: list[str]) -> None:
    assert blocks_of(model, Inputs((torch.randn(2, 5, 4),))) == found


def test_a_block_that_scales_what_it_is_given_is_none() -> None:
    assert blocks_of(between(Block("scaled")), Inputs((torch.randn(2, 5, 4),))) == []


def test_a_block_that_runs_twice_is_none() -> None:
    model = Net(lambda m, x: m.head(m.block(m.block(x))), block=Block(), head=nn.Linear(6, 2))
    assert blocks_of(model, Inputs((torch.randn(2, 6),))) == []


def test_a_block_that_never_runs_is_none() -> None:
    model = Net(lambda m, x: m.head(x), block=Block(), head=nn.Linear(6, 2))
    assert blocks_of(model, Inputs((torch.randn(2, 6),))) == []


def test_a_module_that_adds_another_tensor_than_its_first_is_none() -> None:
    behind = Net(lambda m, made, x: m.norm(m.dense(made) + x), dense=nn.Linear(6, 6), norm=nn.LayerNorm(6))
    model = Net(lambda m, x: m.behind(m.inner(x), x), inner=nn.Linear(6, 6), behind=behind)
    assert blocks_of(model, Inputs((torch.randn(2, 6),))) == [], "left out, it would hand on what the layer before it made"


def test_a_block_that_gives_more_than_one_tensor_is_none() -> None:
    inner = Net(lambda m, x: (x + m.layer(x), x), layer=nn.Linear(6, 6))
    model = Net(lambda m, x: m.block(x)[0], block=inner)
    assert blocks_of(model, Inputs((torch.randn(2, 6),))) == []


def test_of_a_resnet_the_blocks_without_a_change_of_shape_go() -> None:
    model = resnet_cifar(14)
    assert blocks_of(model, Inputs((torch.randn(1, 3, 8, 8),))) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]


def test_of_a_mobilenet_the_inverted_residuals_that_add_go() -> None:
    model = MobileNetV2(classes=3, setting=((1, 16, 1, 1), (6, 24, 3, 2), (6, 32, 1, 1)), stem=16, last=32)
    found = blocks_of(model, Inputs((torch.randn(1, 3, 32, 32),)))
    assert found == ["features.1", "features.3", "features.4"]


@pytest.mark.parametrize("way", ["plain", "dropped", "in place"])
def test_leaving_a_block_out_is_a_branch_of_zeros(way: str) -> None:
    model, example = settled(between(Block(way), Block())), inputs((2, 5, 4))
    (first, _) = residual_blocks(model, export_static(model, example), example)
    silent = copy.deepcopy(model)
    for parameter in silent.get_submodule(f"{first.name}.out").parameters():
        nn.init.zeros_(parameter)
    cut(model, kept_rows([(first, {0})]))
    assert torch.equal(outputs(model, example)[0], outputs(silent, example)[0])
    assert len(list(model.get_submodule(first.name).parameters())) == 0


def test_what_is_given_beside_the_first_input_is_ignored_once_a_block_is_out() -> None:
    def run(m: Any, x: Tensor) -> Any:
        return m.head(m.block(x, scale=0.5))

    model, example = settled(Net(run, block=Block(), head=nn.Linear(6, 2))), inputs((2, 6))
    (group,) = residual_blocks(model, export_static(model, example), example)
    cut(model, kept_rows([(group, {0})]))
    assert torch.equal(outputs(model, example)[0], model.get_submodule("head")(example.args[0]))


def test_looking_for_blocks_leaves_no_hooks() -> None:
    model = between(Block())
    blocks_of(model, Inputs((torch.randn(2, 5, 4),)))
    assert not any(module._forward_hooks for module in model.modules())
