"""What removed channels save, against really cutting them and counting again."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sizewise.graph.blocks import residual_blocks
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group, Member, kept_rows
from sizewise.graph.surgery import WHOLE, axis_size, cut
from sizewise.graph.trace import trace
from sizewise.profile.channel_cost import ChannelCost, counted_cost, paying, removable, shared_axes
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.zoo.resnet import resnet_cifar


def member(model: nn.Module, path: str, axis: str, *, first: int = 0, channels: int | None = None) -> Member:
    """Channels of a group that begin at one row of an axis; all of them by default."""
    size = axis_size(model.get_submodule(path), axis)
    count = size if channels is None else channels
    return Member(path, axis, tuple(row - first if first <= row < first + count else -1 for row in range(size)))


def really(model: nn.Module, groups: Sequence[Group], removed: Sequence[int], x: Tensor, target: str) -> float:
    """The figure of a copy that was cut."""
    twin = copy.deepcopy(model)
    cut(twin, kept_rows([(group, set(range(count))) for group, count in zip(groups, removed, strict=True)]))
    return float(getattr(static_cost(twin, Inputs((x,))), target))


class Plain(nn.Module):
    """A convolution, normalization, depthwise and pointwise convolutions, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.b = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, bias=False)
        self.head = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.b(self.depthwise(self.norm(self.a(x)))).flatten(1))
        return y


class Dense(nn.Module):
    """The last convolution reads the channels of two others, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        y: Tensor = self.c(torch.cat([a, self.b(a)], 1))
        return y


class Grouped(nn.Module):
    """A convolution in four groups of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grouped, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.grouped(self.a(x)))
        return y


class Recurrent(nn.Module):
    """A stack of recurrent layers between linear ones."""

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM] | type[nn.RNN], layers: int, both_ways: bool) -> None:
        super().__init__()
        self.a = nn.Linear(5, 6)
        self.cell = cell(6, 8, layers, batch_first=True, bidirectional=both_ways)
        self.b = nn.Linear(16 if both_ways else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.cell(self.a(x))[0])
        return y


def plain() -> tuple[nn.Module, list[Group], Tensor]:
    model = Plain()
    wide = [("a", "out"), ("norm", "out"), ("depthwise", "out"), ("b", "in")]
    flat = Member("head", "in", tuple(row // 16 for row in range(96)))
    groups = [Group(8, tuple(member(model, path, axis) for path, axis in wide)), Group(6, (member(model, "b", "out"), flat))]
    return model, groups, torch.randn(2, 3, 6, 6)


def dense() -> tuple[nn.Module, list[Group], Tensor]:
    model = Dense()
    first = Group(6, (member(model, "a", "out"), member(model, "b", "in"), member(model, "c", "in", channels=6)))
    second = Group(4, (member(model, "b", "out"), member(model, "c", "in", first=6, channels=4)))
    return model, [first, second], torch.randn(2, 3, 6, 6)


def grouped() -> tuple[nn.Module, list[Group], Tensor]:
    model = Grouped()
    pairs = tuple(row // 2 for row in range(8))
    places = [("a", "out"), ("grouped", "out"), ("b", "in")]
    return model, [Group(4, tuple(Member(path, axis, pairs) for path, axis in places))], torch.randn(2, 3, 6, 6)


def recurrent(cell: Any, layers: int, both_ways: bool) -> tuple[nn.Module, list[Group], Tensor]:
    model = Recurrent(cell, layers, both_ways)
    read = tuple(row % 8 for row in range(16 if both_ways else 8))
    groups = [
        Group(6, (member(model, "a", "out"), member(model, "cell", "in"))),
        Group(8, (member(model, "cell", "out"), Member("b", "in", read))),
    ]
    return model, groups, torch.randn(2, 7, 5)


CASES: dict[str, Callable[[], tuple[nn.Module, list[Group], Tensor]]] = {
    "plain": plain,
    "dense": dense,
    "grouped": grouped,
    "gru": lambda: recurrent(nn.GRU, 1, False),
    "lstm, stacked, both ways": lambda: recurrent(nn.LSTM, 3, True),
    "rnn, stacked": lambda: recurrent(nn.RNN, 2, False),
}


@pytest.mark.parametrize("target", ["macs", "params"])
@pytest.mark.parametrize("name", CASES)
def test_the_cost_is_that_of_the_cut_model(name: str, target: Literal["macs", "params"]) -> None:
    model, groups, x = CASES[name]()
    cost = counted_cost(model, groups, static_cost(model, Inputs((x,))), target)
    for removed in ([0] * len(groups), [1] * len(groups), [3, *[2] * (len(groups) - 1)]):
        assert cost(removed) == pytest.approx(really(model, groups, removed, x, target), rel=1e-9), removed


def test_numbers_in_the_code_cost_nothing() -> None:
    model, groups, x = plain()
    told = [Group(8, (*groups[0].members, Member("head", ".heads", tuple(range(8)))))]
    profile = static_cost(model, Inputs((x,)))
    assert counted_cost(model, told, profile, "macs")([4]) == counted_cost(model, groups[:1], profile, "macs")([4])
    assert "head" not in shared_axes(told)


def test_a_removed_block_takes_all_within_with_it() -> None:
    block = Group(1, (Member("block", WHOLE, (0,)),))
    inner = Group(4, (Member("block.a", "out", (0, 1, 2, 3)),))
    amounts = {"block.a": 40.0, "block.b": 10.0, "blocks": 7.0}
    cost = ChannelCost([block, inner], 100.0, amounts, {})
    assert cost([0, 0]) == 100
    assert cost([0, 2]) == 80
    assert cost([1, 0]) == cost([1, 2]) == 50


def test_a_layer_without_a_rule_falls_with_the_axis_that_loses_most() -> None:
    groups = [Group(4, (Member("x", "out", (0, 1, 2, 3)),)), Group(4, (Member("x", "in", (0, 1, 2, 3)),))]
    cost = ChannelCost(groups, 100.0, {"x": 80.0}, {})
    assert cost([1, 2]) == 60


def test_counts_that_can_be_removed() -> None:
    def of(channels: int, axis: str = "out") -> list[int]:
        return removable(Group(channels, (Member("x", axis, tuple(range(channels))),)), 8)

    assert of(32) == [0, 8, 16, 24]
    assert of(20) == [0, 4, 12]
    assert of(9) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert of(1) == [0]
    assert of(1, WHOLE) == [0, 1]


def test_counts_that_save_nothing_are_not_tried() -> None:
    """Kernels work on 16 channels at a time; the clock errs a little."""

    def cost(removed: Sequence[int]) -> float:
        kept = 64 - removed[1]
        return 100 + -(-kept // 16) * 10 + 0.1 * (kept % 3)

    assert paying(1, [0, 8, 16, 24, 32, 40, 48], cost, groups=3) == [0, 16, 32, 48]
    assert paying(0, [0, 1], cost, groups=3) == [0]


def test_a_step_is_priced_by_the_layers_that_it_touches() -> None:
    """The saving of one group and the groups that share a layer with it, against the whole cost anew."""
    torch.manual_seed(0)
    model, x = resnet_cifar(8, classes=5).eval(), Inputs((torch.randn(2, 3, 16, 16),))
    groups, _ = channel_groups(model, x)
    groups = (*groups, *residual_blocks(model, trace(model, x).program, x))
    cost = counted_cost(model, groups, static_cost(model, x), "macs")
    generator = torch.Generator().manual_seed(0)
    removed = [0] * len(groups)
    for _ in range(40):
        index = int(torch.randint(len(groups), (1,), generator=generator))
        count = int(torch.randint(removed[index], groups[index].channels + groups[index].is_block, (1,), generator=generator))
        others = set(range(len(groups))) - set(cost.neighbours(index))
        before = {other: cost.saving(removed, other, groups[other].channels - 1) for other in others}
        after = [*removed[:index], count, *removed[index + 1 :]]
        assert cost.saving(removed, index, count) == pytest.approx(cost(removed) - cost(after), abs=1e-6 * cost.whole)
        removed = after
        assert before == {other: cost.saving(removed, other, groups[other].channels - 1) for other in others}
