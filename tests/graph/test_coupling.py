"""Groups found by tracing, cut by surgery: the cut model computes what the dense one computes with those channels silenced."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group
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


class Flat(nn.Module):
    """A convolution flattened into a linear layer; `last` moves the channels behind the positions first."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 9, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        out: Tensor = self.head(torch.relu(self.b((x.permute(0, 2, 3, 1) if self.last else x).flatten(1))))
        return out


class Excited(nn.Module):
    """Squeeze and excitation: channels multiplied by what two 1x1 convolutions make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        out: Tensor = self.head(torch.relu(self.b(x)).mean((2, 3)))
        return out


class Twice(nn.Module):
    """One layer used twice: its outputs are also its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.b(torch.relu(self.b(self.a(x))))).mean((2, 3)))
        return out


class Attention(nn.Module):
    """Self-attention written out, with `heads` heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.i, self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (3 * q @ k.transpose(-1, -2)).softmax(-1) @ v
        out: Tensor = self.head(self.o(mixed.transpose(1, 2).flatten(2)).mean(1))
        return out


class Shuffled(nn.Module):
    """ShuffleNet's channel shuffle between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(torch.channel_shuffle(self.a(x), 2)).mean((2, 3)))
        return out


class Gated(nn.Module):
    """One half of the channels gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.a(x).chunk(2, 1)
        out: Tensor = self.head(self.b(values * gate.sigmoid()).mean((2, 3)))
        return out


class Masked(nn.Module):
    """A buffer with one entry per channel."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)
        self.register_buffer("mask", torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.a(x) * self.mask).mean((2, 3)))
        return out


class Scaled(nn.Module):
    """A learned scale behind the last layer: one number, or one per channel of the first layer."""

    def __init__(self, inner: bool = False) -> None:
        super().__init__()
        self.a, self.head, self.inner = nn.Linear(4, 8), nn.Linear(8, 5), inner
        self.scale = nn.Parameter(torch.rand(8) if inner else torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        out: Tensor = self.head(x * self.scale) if self.inner else self.head(x) * self.scale
        return out


class Joined(nn.Module):
    """Two branches concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(12, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.c(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))
        return out


PICTURE = (2, 3, 8, 8)
SOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **MODELS,
    "flattened": (Flat, (2, 3, 5, 5)),
    "squeeze and excitation": (Excited, PICTURE),
    "one layer twice": (Twice, PICTURE),
    "attention, one head": (lambda: Attention(1), (2, 3, 8)),
    "concatenation": (Joined, PICTURE),
    "a scale per channel": (lambda: Scaled(inner=True), (2, 4)),
}
UNSOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "flattened with channels last": (lambda: Flat(last=True), (2, 3, 5, 5)),
    "attention, two heads": (lambda: Attention(2), (2, 3, 8)),
    "channel shuffle": (Shuffled, PICTURE),
    "gated halves": (Gated, PICTURE),
    "a buffer per channel": (Masked, PICTURE),
    "a scale behind the output": (Scaled, (2, 4)),
}


def emptied(model: nn.Module, groups: list[tuple[Group, set[int]]]) -> nn.Module:
    """The dense model whose groups write zeros to the channels: weights, biases and normalizations of those outputs are zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for group, gone in groups:
            for member in group.members:
                layer = twin.get_submodule(member.path)
                rows = [i for i, c in enumerate(member.channel_of) if c in gone]
                for values in layer.parameters(recurse=False) if member.axis == "out" else ():
                    values[rows] = 0
    return twin


def check_sound(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Each group alone, and all together: the cut model runs and gives what the emptied dense one gives."""
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for values, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, 0.5, 2), (norm.bias, -1, 1)):
                nn.init.uniform_(values, low, high)
    example = Inputs((x,))
    groups, _ = channel_groups(model, example, output_layers(trace(model, example).program))
    removals = [(group, set(range(max(1, group.channels // 3)))) for group in groups]
    for chosen in ([removals] if len(removals) > 1 else []) + [[removal] for removal in removals[:6]]:
        cut = copy.deepcopy(model)
        for group, gone in chosen:
            for member in group.members:
                keep_indices(cut.get_submodule(member.path), member.axis, [i for i, c in enumerate(member.channel_of) if c not in gone])
        with torch.no_grad():
            want, got = emptied(model, chosen)(x), cut(x)
        assert want.shape == got.shape
        assert torch.allclose(want, got, atol=1e-10), [group.name for group, _ in chosen]


@pytest.mark.parametrize("name", SOUND)
def test_cutting_groups_is_emptying_their_channels(name: str) -> None:
    check_sound(*SOUND[name])


@pytest.mark.parametrize("name", UNSOUND)
def test_groups_that_would_be_cut_wrongly_are_not_offered(name: str) -> None:
    check_sound(*UNSOUND[name])


@pytest.mark.parametrize("name", SOUND)
def test_groups_are_consistent(name: str) -> None:
    make, shape = SOUND[name]
    model = make().eval()
    groups, skipped = channel_groups(model, Inputs((torch.randn(shape),)))
    axes = [(member.path, member.axis) for group in groups for member in group.members]
    assert len(axes) == len(set(axes)), "an axis is cut once"
    for group in groups:
        assert group.name == group.members[0].path
        assert any(member.axis == "out" for member in group.members)
        for member in group.members:
            assert len(member.channel_of) == axis_size(model.get_submodule(member.path), member.axis)
            assert set(member.channel_of) == set(range(group.channels))
    assert not {group.name for group in groups} & {skip.what for skip in skipped}


def test_every_position_of_a_flattened_channel_belongs_to_it() -> None:
    groups, _ = channel_groups(Flat().eval(), Inputs((torch.randn(2, 3, 5, 5),)))
    (reader,) = (m for g in groups for m in g.members if (m.path, m.axis) == ("b", "in"))
    assert reader.channel_of == tuple(channel for channel in range(4) for _ in range(9))


@pytest.mark.parametrize(
    ("make", "shape", "what", "reason"),
    [
        (Joined, PICTURE, "a", "only part of the inputs of c belongs to the group"),
        (lambda: Scaled(inner=True), (2, 4), "a", "couples with a parameter outside any known layer"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 2, 3)),
            PICTURE,
            "0",
            "couples with 1, a PReLU, whose shape cannot be changed",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)),
            PICTURE,
            "0",
            "couples with 1, a Conv2d, whose shape cannot be changed",
        ),
    ],
)
def test_what_cannot_be_cut_is_skipped_with_the_reason(
    make: Callable[[], nn.Module], shape: tuple[int, ...], what: str, reason: str
) -> None:
    groups, skipped = channel_groups(make().eval(), Inputs((torch.randn(shape),)))
    assert (what, reason) in {(skip.what, skip.reason) for skip in skipped}
    assert what not in {group.name for group in groups}


def test_option_a_shortcuts_keep_the_stages_whole_and_free_the_inner_layers() -> None:
    model, example = resnet_cifar(8).eval(), Inputs((torch.randn(2, 3, 16, 16),))
    groups, skipped = channel_groups(model, example, ["linear"])
    assert sorted(group.name for group in groups) == [f"layer{i}.0.conv1" for i in (1, 2, 3)]
    streams = [skip for skip in skipped if skip.what != "linear"]
    assert streams
    for skip in streams:  # what the shortcuts add up
        assert "belongs to the group" in skip.reason or "different widths" in skip.reason


def test_tracing_changes_no_weight() -> None:
    model = MobileNetV2(0.25, classes=5).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    channel_groups(model, Inputs((torch.randn(1, 3, 32, 32),)))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
