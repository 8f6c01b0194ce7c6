"""Latency with fewer channels: times of lone layers, kept and interpolated; counts that reach a share of it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from sizewise.errors import PreconditionError
from sizewise.graph.groups import Group, Member, kept_rows
from sizewise.graph.surgery import WHOLE, axis_size, cut
from sizewise.profile.channel_cost import removable
from sizewise.profile.latency_cost import latency_cost
from sizewise.profile.latency_target import Choice, aim, counts_for_latency
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.layer_times import Grid, Wanted, grid_counts, layer_times
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs, Silent
from sizewise.types import Cost, Interval, LayerShape, to_json

LINEAR = LayerShape(kind="linear", out_channels=32, in_channels=24, batch=1)
X = Inputs((torch.randn(1, 3, 8, 8),))


class FakeTimer:
    """A machine as fast as a formula says; every model takes a fifth more than its layers."""

    name = "fake"
    facts = "fake 1.0, 1 thread"

    def __init__(self, folder: Path, seconds: Callable[[LayerShape], float], split: bool = True) -> None:
        self.folder, self.seconds, self.split = folder, seconds, split
        self.measured: list[LayerShape] = []
        self.timed = 0

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        self.measured += shapes
        return [self.seconds(shape) for shape in shapes]

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        times = {path: sum(map(self.seconds, shapes)) for path, shapes in layer_shapes(model, example).items()}
        cost = static_cost(model, example)
        layers = tuple(
            replace(layer, latency_s=Interval.exact(times[layer.path])) if layer.path in times and self.split else layer
            for layer in cost.layers
        )
        return replace(cost, latency_s=Interval.exact(self._whole(model, example) * 1.0), layers=layers)

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        whole = self._whole(model, example)
        rest = whole / 6  # what surrounds the layers does not get faster

        def share(other: nn.Module) -> float:
            self.timed += 1
            return (self._whole(other, example) / 1.2 + rest) / whole

        return share

    def _whole(self, model: nn.Module, example: Inputs) -> float:
        return 1.2 * sum(self.seconds(shape) for shapes in layer_shapes(model, example).values() for shape in shapes)


def macs(shape: LayerShape) -> float:
    return 1e-9 * shape.out_channels * shape.in_channels / shape.groups


def blocks(shape: LayerShape) -> float:
    """Kernels work on 16 outputs at a time."""
    return 1e-9 * -(-shape.out_channels // 16) * shape.in_channels


# ---- shapes


class Nets(nn.Module):
    """One of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5), stride=2, padding="valid")
        self.same = nn.Conv2d(8, 8, 4, padding="same", dilation=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.gru = nn.GRU(4, 6, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.same(self.conv(x)))
        y: Tensor = self.head(self.gru(x.flatten(2).transpose(1, 2))[0])
        return y


def test_what_layers_work_on() -> None:
    found = layer_shapes(Nets().eval(), Inputs((torch.randn(2, 3, 8, 9),)))
    conv = found["conv"][0]
    assert (conv.sides, conv.kernel, conv.stride, conv.padding) == ((8, 9), (3, 5), (2, 2), (0, 0, 0, 0))
    assert (found["same"][0].padding, found["same"][0].groups) == ((1, 1, 2, 2), 8)
    assert (found["up"][0].kind, found["up"][0].sides) == ("conv_transpose", (3, 3))
    assert [(s.in_channels, s.sides, s.batch, s.directions, s.stacked) for s in found["gru"]] == [
        (4, (36,), 2, 2, False),
        (12, (36,), 2, 2, True),
    ]
    assert found["head"][0].batch == 72
    assert "unused" not in found


def test_a_layer_with_other_channels() -> None:
    grouped = LayerShape(kind="conv", out_channels=16, in_channels=8, batch=1, groups=4)
    assert (grouped.resized(8, 1).in_channels, grouped.resized(8, 1).groups) == (4, 2)
    stacked = LayerShape(kind="gru", out_channels=6, in_channels=12, batch=1, directions=2, stacked=True)
    assert stacked.resized(4, 1).in_channels == 8
    assert LINEAR.resized(3, 5) == replace(LINEAR, out_channels=3, in_channels=5)


# ---- times


@given(st.integers(1, 3000), st.sampled_from([1, 4, 8, 16]))
def test_few_counts_up_to_the_whole_layer_are_measured(size: int, multiple: int) -> None:
    counts = grid_counts(size, multiple)
    assert counts[-1] == size
    assert 1 <= len(counts) <= 9
    assert list(counts) == sorted(set(counts))
    assert all(count % multiple == 0 for count in counts[:-1]) or size < 2 * multiple


def table(shape: LayerShape, seconds: Callable[[LayerShape], float], folder: Path, *, multiple: int = 8) -> Grid:
    return layer_times(FakeTimer(folder, seconds), [Wanted(shape=shape, out=True, into=True)], multiple)[shape]


@given(st.floats(1, 32), st.floats(1, 24))
def test_between_measured_counts_times_are_interpolated(out: float, into: float) -> None:
    grid = Grid(shape=LINEAR, outs=(8, 16, 32), ins=(8, 24), seconds=((3.0, 5.0), (4.0, 6.0), (6.0, 8.0)))  # a plane
    assert grid.at(out, into) == pytest.approx(2 + max(out, 8) / 8 + (max(into, 8) - 8) / 8)
    assert grid.whole == 8.0


@pytest.mark.parametrize(
    "shape",
    [
        LINEAR,
        LayerShape(kind="conv", out_channels=24, in_channels=24, batch=1, groups=24),
        LayerShape(kind="conv", out_channels=12, in_channels=24, batch=1, groups=3),
        LayerShape(kind="gru", out_channels=16, in_channels=16, batch=1, stacked=True),
    ],
)
def test_every_measured_count_has_its_own_time(shape: LayerShape, tmp_path: Path) -> None:
    grid = table(shape, macs, tmp_path)
    for out in grid.outs:
        for into in grid.ins:
            assert grid.at(out, into) == pytest.approx(macs(shape.resized(out, into)))
    assert grid.whole == pytest.approx(macs(shape))
    assert len(grid.outs) > 1


def test_axes_that_stay_are_not_measured(tmp_path: Path) -> None:
    timer = FakeTimer(tmp_path, macs)
    layer_times(timer, [Wanted(shape=LINEAR, out=False, into=True), Wanted(shape=LINEAR, out=False, into=True)], 8)
    assert [(shape.out_channels, shape.in_channels) for shape in timer.measured] == [(32, 8), (32, 16), (32, 24)]


def test_times_are_kept(tmp_path: Path) -> None:
    first = table(LINEAR, macs, tmp_path)
    again = FakeTimer(tmp_path, blocks)
    wanted = [Wanted(shape=LINEAR, out=True, into=True)]
    assert layer_times(again, wanted, 8)[LINEAR] == first
    assert not again.measured
    again.facts = "fake 2.0, 1 thread"
    assert layer_times(again, wanted, 8)[LINEAR] != first
    assert again.measured


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b'"seconds"', "negative", "other"])
def test_damaged_times_are_measured_anew(tmp_path: Path, damage: Any) -> None:
    first = table(LINEAR, macs, tmp_path)
    (kept,) = tmp_path.iterdir()
    text = kept.read_text(encoding="utf-8")
    if damage == "negative":
        kept.write_bytes(to_json(replace(first, seconds=((-1.0, *first.seconds[0][1:]), *first.seconds[1:]))))
    elif damage == "other":
        kept.write_bytes(to_json(replace(first, ins=(7, *first.ins[1:]))))
    else:
        kept.write_bytes(damage)
    assert kept.read_text(encoding="utf-8") != text
    assert table(LINEAR, macs, tmp_path) == first
    assert kept.read_text(encoding="utf-8") == text


def test_times_that_cannot_be_kept_are_used_and_the_user_is_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(Silent):
        def note(self, line: str) -> None:
            said.append(line)

    (tmp_path / "file").write_text("", encoding="utf-8")
    timer = FakeTimer(tmp_path / "file", macs)
    found = layer_times(timer, [Wanted(shape=LINEAR, out=True, into=True)], 8, Listening())
    assert found[LINEAR].whole == pytest.approx(macs(LINEAR))
    assert "cannot be kept" in said[0]


# ---- the latency of a model


class Chain(nn.Module):
    """Convolutions of which all but the last can get narrower."""

    def __init__(self, widths: Sequence[int] = (3, 64, 96, 64, 10)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def chain_groups(model: Chain) -> list[Group]:
    groups = []
    for index, layer in enumerate(model.layers[:-1]):
        size = axis_size(layer, "out")
        rows = tuple(range(size))
        groups.append(Group(size, (Member(f"layers.{index}", "out", rows), Member(f"layers.{index + 1}", "in", rows))))
    return groups


def smaller(model: nn.Module, groups: Sequence[Group], counts: Sequence[int]) -> nn.Module:
    twin = copy.deepcopy(model)
    cut(twin, kept_rows([(group, set(range(count))) for group, count in zip(groups, counts, strict=True)]))
    return twin


@pytest.mark.parametrize("split", [True, False])
def test_the_latency_is_that_of_the_cut_model(tmp_path: Path, split: bool) -> None:
    model = Chain().eval()
    groups, timer = chain_groups(model), FakeTimer(tmp_path, macs, split)
    cost = latency_cost(model, groups, X, timer, 8)
    share = timer.beside(model, X)
    for counts in ([0, 0, 0], [32, 0, 16], [56, 88, 8]):
        assert cost(counts) / cost.whole == pytest.approx(share(smaller(model, groups, counts)), rel=1e-6)


@pytest.mark.parametrize("split", [True, False])
def test_a_block_that_is_left_out_takes_the_time_of_its_layers_along(tmp_path: Path, split: bool) -> None:
    """Also where nothing else can go, so that no layer is timed for its channels."""
    model = Chain((3, 64, 64, 10)).eval()
    cost = latency_cost(model, [Group(1, (Member("layers", WHOLE, (0,)),))], X, FakeTimer(tmp_path, macs, split), 8)
    assert cost([0]) == cost.whole
    assert cost([1]) == pytest.approx(cost.whole * (1 - 1 / 1.2))


def choose(model: Chain, timer: FakeTimer, rate: float, multiple: int = 8) -> Choice:
    groups = chain_groups(model)
    return counts_for_latency(
        model.eval(),
        groups,
        [[float(count) ** 2 for count in range(group.channels + 1)] for group in groups],
        [removable(group, multiple) for group in groups],
        rate,
        example=X,
        timer=timer,
        multiple=multiple,
        cut=lambda counts: smaller(model, groups, counts),
        progress=Silent(),
    )


def test_a_layer_never_seems_slower_than_a_larger_one(tmp_path: Path) -> None:
    """Where another program ran while one of the sizes was timed."""

    def disturbed(shape: LayerShape) -> float:
        return macs(shape) * (5.0 if (shape.out_channels, shape.in_channels) == (16, 16) else 1.0)

    wanted = [Wanted(shape=LINEAR, out=True, into=True)]
    grid = layer_times(FakeTimer(tmp_path, disturbed), wanted, 8)[LINEAR]
    assert grid.at(16, 16) == pytest.approx(macs(LINEAR.resized(16, 24)))
    assert grid.at(8, 24) == pytest.approx(macs(LINEAR.resized(8, 24)))


def test_the_measured_share_is_what_was_asked_for(tmp_path: Path) -> None:
    model, timer = Chain(), FakeTimer(tmp_path, macs)
    found = choose(model, timer, 0.4)
    left = timer.beside(model, X)(smaller(model, chain_groups(model), found.counts))
    assert found.reached == pytest.approx(1 - left)
    assert found.reached == pytest.approx(0.4, abs=0.02)
    assert not found.skipped


def test_counts_follow_the_blocks_of_the_kernels(tmp_path: Path) -> None:
    found = choose(Chain((3, *[64] * 8, 10)), FakeTimer(tmp_path, blocks), 0.3)
    assert any(found.counts)
    assert all(count % 16 == 0 for count in found.counts)


def test_groups_that_would_not_get_faster_are_left_alone_and_named(tmp_path: Path) -> None:
    def fixed_first(shape: LayerShape) -> float:
        return 1e-6 if 3 in (shape.in_channels, shape.out_channels) else 1e-6 + 1e-9 * shape.out_channels

    model = Chain((3, 64, 96, 256, 10))
    found = choose(model, FakeTimer(tmp_path, fixed_first), 0.04)
    assert [(skip.what, skip.reason) for skip in found.skipped] == [("layers.0", "would not get faster on fake")]
    assert found.counts[0] == 0


def test_a_share_that_cannot_be_reached_says_what_was(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=r"cannot be reached\n  got: 81.9 % measured on fake with as few") as caught:
        choose(Chain(), FakeTimer(tmp_path, macs), 0.95)
    assert "95.0 %" in str(caught.value.wanted)


def test_between_two_steps_it_is_the_larger(tmp_path: Path) -> None:
    assert choose(Chain((3, 16, 10)), FakeTimer(tmp_path, macs), 0.1).reached > 0.12


# ---- aiming


@given(st.floats(0.1, 0.8), st.floats(0.6, 1.5))
def test_a_machine_that_is_faster_or_slower_than_told_is_corrected(wanted: float, truth: float) -> None:
    """Whatever the tables say, the measured figure counts."""
    assume(wanted < 0.9 * truth)
    counts, reached = aim(lambda goal: [round(1000 * goal)], lambda counts: min(0.95, truth * counts[0] / 1000), wanted)
    assert reached == min(0.95, truth * counts[0] / 1000)
    assert reached == pytest.approx(wanted, abs=0.02)


def test_a_choice_is_timed_once_and_only_four_are(tmp_path: Path) -> None:
    timed: list[Sequence[int]] = []

    def measure(counts: Sequence[int]) -> float:
        timed.append(counts)
        return 0.9 if counts[0] > 3 else 0.1

    _, reached = aim(lambda goal: [round(10 * goal)], measure, 0.5)
    assert reached in (0.1, 0.9)
    assert len(timed) == len({tuple(counts) for counts in timed}) <= 4
