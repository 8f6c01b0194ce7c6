"""Groups of whole networks: cut by surgery, they compute what the whole ones compute with those channels emptied."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.graph.nets import Net, found_in, free_outputs, inputs, outputs, reasons, settled
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group, Member, kept_rows, sound_groups
from sizewise.graph.surgery import ATTRIBUTE, axis_size
from sizewise.protocols import Inputs
from sizewise.testing import TinyConv
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet import ResNet, resnet_cifar


def dense() -> nn.Module:
    """Every layer reads what all layers before have made."""

    def run(m: Any, x: Tensor) -> Any:
        first = m.a(x)
        second = m.b(first.relu())
        return m.head(m.c(torch.cat([first, second], 1).relu()).mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 6, 3, padding=1), "b": nn.Conv2d(6, 4, 3, padding=1), "c": nn.Conv2d(10, 5, 1)}
    return Net(run, **layers, head=nn.Linear(5, 2))


def flattened() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual and depthwise": (TinyConv, (2, 1, 8, 8)),
    "resnet, option A": (lambda: resnet_cifar(8, classes=5), (2, 3, 16, 16)),
    "resnet, option B": (lambda: ResNet((1, 1), (8, 16), 5, 1), (2, 1, 8, 8)),
    "dense": (dense, (2, 3, 6, 6)),
    "flattened": (flattened, (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_cutting_groups_is_emptying_their_channels_and_all_but_the_output_can_go(name: str) -> None:
    make, shape = MODELS[name]
    model = settled(make())
    groups, skips = found_in(model, inputs(shape))
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    free = free_outputs(groups)
    assert {skip.what for skip in skips if skip.reason == "makes the model's output"} == {linears[-1]}
    assert set(linears) - set(free) == {linears[-1]}


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_consistent(name: str) -> None:
    make, shape = MODELS[name]
    model = make().eval()
    groups, skips = channel_groups(model, Inputs((torch.randn(shape),)))
    owner: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        assert group.name == group.members[0].path
        assert group.members[0].axis == "out"
        for member in group.members:
            assert len(member.channel_of) == axis_size(model.get_submodule(member.path), member.axis)
            assert set(member.channel_of) - {-1} == set(range(group.channels))
            owned = owner.setdefault((member.path, member.axis), [0] * len(member.channel_of))
            for row in member.rows(range(group.channels)):
                owned[row] += 1
    assert all(count <= 1 for owned in owner.values() for count in owned), "an index belongs to one group at most"
    for skip in skips:
        assert (skip.what in free_outputs(groups)) == ("of its channels" in skip.reason)


def test_an_axis_can_hold_channels_of_several_groups() -> None:
    groups, _ = found_in(settled(dense()), inputs((2, 3, 6, 6)))
    by_name = {group.name: group for group in groups}
    reading = {name: next(m for m in group.members if (m.path, m.axis) == ("c", "in")) for name, group in by_name.items() if name != "c"}
    assert reading["a"].channel_of == (0, 1, 2, 3, 4, 5, -1, -1, -1, -1)
    assert reading["b"].channel_of == (-1, -1, -1, -1, -1, -1, 0, 1, 2, 3)
    both = kept_rows([(by_name["a"], {0, 5}), (by_name["b"], {1})])
    assert both["c"]["in"] == [1, 2, 3, 4, 6, 8, 9]


def test_every_position_of_a_flattened_channel_belongs_to_it() -> None:
    groups, _ = channel_groups(flattened().eval(), Inputs((torch.randn(2, 3, 5, 5),)))
    (reader,) = (m for g in groups for m in g.members if (m.path, m.axis) == ("3", "in"))
    assert reader.channel_of == tuple(channel for channel in range(4) for _ in range(9))


def test_of_flattened_positions_with_channels_last_every_fourth_belongs_to_one() -> None:
    model = Net(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(3, 4, 3), b=nn.Linear(36, 2))
    groups, _ = channel_groups(model.eval(), Inputs((torch.randn(2, 3, 5, 5),)))
    (reader,) = (m for g in groups for m in g.members if m.axis == "in")
    assert reader.channel_of == tuple(range(4)) * 9


def test_padded_shortcuts_free_the_stream_and_keep_what_is_added_to_the_padding() -> None:
    groups, skips = channel_groups(resnet_cifar(8).eval(), Inputs((torch.randn(2, 3, 16, 16),)))
    assert sorted(group.name for group in groups) == ["conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    padding = "of its channels: padded with channels of zeros"
    assert reasons(skips)["layer2.0.conv2"] == f"16 {padding}"
    assert reasons(skips)["layer3.0.conv2"] == f"48 {padding}"


def test_numbers_that_count_heads_shrink_with_them() -> None:
    def run(m: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).view(2, 5, m.num_heads, m.head_size).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mixed = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).contiguous()
        return m.o(mixed.view(2, 5, m.all_head_size))

    numbers = {"num_heads": 3, "head_size": 4, "all_head_size": 12, "num_layers": 3}
    model = settled(Net(run, **{name: nn.Linear(6, 12) for name in "qkv"}, o=nn.Linear(12, 5), **numbers))
    groups, _ = found_in(model, inputs((2, 5, 6)))
    (group,) = groups
    found = {member.axis: member.channel_of for member in group.members if member.axis.startswith(ATTRIBUTE)}
    assert found == {".num_heads": (0, 1, 2), ".all_head_size": (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)}


def test_one_example_tells_as_much_as_two() -> None:
    model = dense().eval()
    one, two = (channel_groups(model, Inputs((torch.randn(batch, 3, 6, 6),))) for batch in (1, 2))
    assert one == two


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no")


@pytest.mark.parametrize("model", [Broken(), nn.Sequential(nn.LazyLinear(3))])
def test_a_model_that_cannot_be_traced_says_so(model: nn.Module) -> None:
    with pytest.raises(UnsupportedModel, match="could not be traced") as caught:
        channel_groups(model, Inputs((torch.randn(2, 4),)))
    assert caught.value.got


def test_a_model_of_no_layers_has_no_groups() -> None:
    assert channel_groups(nn.ReLU(), Inputs((torch.randn(2, 4),))) == ((), ())


def test_tracing_changes_no_weight() -> None:
    model = MobileNetV2(classes=5, setting=((1, 16, 1, 1), (6, 24, 3, 2), (6, 32, 1, 1)), stem=16, last=32).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups, _ = channel_groups(model, Inputs((torch.randn(1, 3, 32, 32),)))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    convolutions = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert set(convolutions) <= set(free_outputs(groups))


# --- the proof


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def pair(writer: str, reader: str, order: tuple[int, ...] = tuple(range(8))) -> Group:
    return Group(8, (Member(writer, "out", tuple(range(8))), Member(reader, "in", order)))


EXAMPLE = Inputs((torch.zeros(3, 4),))  # proves nothing by itself


@pytest.mark.parametrize(
    "wrong",
    [
        pair("0", "2", (1, 0, 2, 3, 4, 5, 6, 7)),
        pair("0", "4"),
        Group(8, (Member("0", "out", tuple(range(8))),)),
        Group(4, (Member("0", "out", (0, 0, 1, 1, 2, 2, 3, 3)), Member("2", "in", (0, 1, 2, 3) * 2))),
    ],
)
def test_a_wrong_group_is_named_and_the_others_stay(wrong: Group) -> None:
    right = pair("2", "4")
    kept, skips = sound_groups(chain(), EXAMPLE, [wrong, right])
    assert kept == (right,)
    assert [skip.what for skip in skips] == ["0"]
    assert "depends on their order or number" in skips[0].reason


def test_behind_a_layer_of_zeros_wrong_groups_are_still_told() -> None:
    model = chain()
    for parameter in model.get_submodule("4").parameters():
        nn.init.zeros_(parameter)
    right, wrong = pair("2", "4"), pair("0", "2", (1, 0, 2, 3, 4, 5, 6, 7))
    assert sound_groups(model, EXAMPLE, [wrong, right])[0] == (right,)
    assert not any(p.any() for p in model.get_submodule("4").parameters())


def test_of_groups_that_only_go_one_at_a_time_the_first_stays() -> None:
    def run(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        assert y.shape[1] > 6, "one may go, not two"
        return m.b(y)

    halves = [(0, 1, 2, 3, -1, -1, -1, -1), (-1, -1, -1, -1, 0, 1, 2, 3)]
    groups = [Group(4, (Member("a", "out", own), Member("b", "in", own))) for own in halves]
    model = Net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3)).eval()
    kept, skips = sound_groups(model, EXAMPLE, groups)
    assert kept == (groups[0],)
    assert len(skips) == 1


# --- random networks


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    """Steps of a network: what is done, to which two values before, and a number."""
    kinds = st.sampled_from(["conv", "grouped", "add", "mul", "cat", "norm", "act", "chunk", "slice", "gate"])
    step = st.tuples(kinds, st.integers(0, 5), st.integers(0, 5), st.integers(1, 4))
    return draw(st.lists(step, min_size=3, max_size=9))


class Drawn(nn.Module):
    """The network of such steps; steps whose widths do not fit are adapted by a layer between."""

    def __init__(self, steps: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.steps, self.layers, self.chosen = steps, nn.ModuleDict(), dict[str, str]()
        with torch.no_grad():
            self.head = nn.Conv2d(self._run(torch.zeros(2, 3, 3, 3)).shape[1], 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self._run(x))

    def _layer(self, name: str, make: Callable[[], nn.Module]) -> Any:
        if name not in self.layers:
            self.layers[name] = make().to(next((p.dtype for p in self.layers.parameters()), torch.float32))
        return self.layers[name]

    def _conv(self, name: str, x: Tensor, width: int, groups: int = 1) -> Any:
        return self._layer(name, lambda: nn.Conv2d(x.shape[1], width, 1, groups=groups))(x)

    def _run(self, x: Tensor) -> Any:
        values = [self._conv("first", x, 4)]
        for number, (kind, a, b, size) in enumerate(self.steps):
            one, two = values[a % len(values)], values[b % len(values)]
            values.append(self._step(f"s{number}", kind, one, two, size))
        return values[-1]

    def _step(self, name: str, kind: str, one: Tensor, two: Tensor, size: int) -> Any:
        odd = kind in ("chunk", "slice", "grouped") and one.shape[1] % 2
        unlike = kind in ("add", "mul") and one.shape != two.shape
        kind = self.chosen.setdefault(name, "conv" if odd else f"{kind} after conv" if unlike else kind)  # once, while it is whole
        if kind.endswith(" after conv"):
            kind, two = kind.partition(" ")[0], self._conv(name, two, one.shape[1])
        return self._operators(name, one, two, size)[kind]()

    def _operators(self, name: str, one: Tensor, two: Tensor, size: int) -> dict[str, Callable[[], Any]]:
        return {
            "add": lambda: one + two,
            "mul": lambda: one * two,
            "norm": lambda: self._layer(name, lambda: nn.BatchNorm2d(one.shape[1]))(one),
            "conv": lambda: self._conv(name, one, 2 * size),
            "grouped": lambda: self._conv(name, one, 2 * size, groups=2),
            "cat": lambda: torch.cat([one, two], 1),
            "act": lambda: (torch.relu, torch.sigmoid, torch.tanh, torch.sin)[size - 1](one),
            "chunk": lambda: one.chunk(2, 1)[0] - one.chunk(2, 1)[1],
            "slice": lambda: one[:, 1:],
            "gate": lambda: one * one.mean((2, 3), keepdim=True),
        }


@given(steps=programs())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_groups_of_random_networks_are_removals(steps: list[tuple[str, int, int, int]]) -> None:
    torch.manual_seed(0)
    model, example = settled(Drawn(steps)), inputs((2, 3, 3, 3))
    before = outputs(copy.deepcopy(model), example)
    groups, skips = found_in(model, example)
    named = {skip.what for skip in skips} | set(free_outputs(groups))
    made = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model, example), strict=True))
    assert named <= made | set(free_outputs(groups))
    assert "head" in named
