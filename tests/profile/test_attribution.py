"""A measured pass split over layers by the runtime's kernels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.profile.attribution import ELSEWHERE, with_measured
from sizewise.profile.static import Analysis, analyse
from sizewise.protocols import Inputs
from sizewise.types import Cost, Interval

WHOLE = Interval(value=0.010, low=0.009, high=0.012, n=11)


class Block(nn.Module):
    """Folded operators of modules and of the model itself, and one that runs by itself at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv1(x)))
        x = F.relu(self.conv2(F.dropout(x, 0.1, self.training)) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(Block(), Inputs((torch.zeros(1, 4, 6, 6),)))


def measured(analysis: Analysis, kernels: dict[tuple[str, int], float]) -> Cost:
    return with_measured(analysis.cost, analysis.operators, WHOLE, kernels)


def seconds(cost: Cost) -> dict[str, float]:
    assert all(layer.latency_s is not None for layer in cost.layers)
    return {layer.path: layer.latency_s.value for layer in cost.layers if layer.latency_s is not None}


def test_every_layer_gets_its_share_of_the_whole(analysis: Analysis) -> None:
    found = measured(analysis, {("conv1", 0): 3e-6, ("conv2", 0): 4e-6, ("head", 0): 1e-6, ("", 2): 2e-6})
    got = seconds(found)
    assert got == pytest.approx({"conv1": 0.003, "norm": 0, "relu": 0, "conv2": 0.004, "": 0.002, "head": 0.001})
    assert (found.latency_s, found.notes) == (WHOLE, ())


def test_the_interval_of_a_layer_is_its_share_of_the_interval(analysis: Analysis) -> None:
    found = measured(analysis, {("conv1", 0): 1.0, ("conv2", 0): 3.0})
    (layer,) = (layer for layer in found.layers if layer.path == "conv2")
    assert layer.latency_s is not None
    assert layer.latency_s.value == pytest.approx(0.75 * WHOLE.value)
    assert layer.latency_s.low == pytest.approx(0.75 * WHOLE.low)
    assert layer.latency_s.high == pytest.approx(0.75 * WHOLE.high)
    assert (layer.latency_s.n, layer.latency_s.how) == (WHOLE.n, WHOLE.how)


@pytest.mark.parametrize("named", ["conv1", "norm", "relu"])
def test_a_kernel_of_a_folded_group_counts_for_the_first_layer_of_it(analysis: Analysis, named: str) -> None:
    assert seconds(measured(analysis, {(named, 0): 1.0}))["conv1"] == WHOLE.value


@pytest.mark.parametrize("turn", [0, 1])
def test_folded_operators_of_the_model_itself_count_for_their_convolution(analysis: Analysis, turn: int) -> None:
    """The dropout before them is no operator of a runtime's file, so the sum is the first and the relu the second."""
    found = seconds(measured(analysis, {("", turn): 1.0, ("", 2): 1.0}))
    assert (found["conv2"], found[""]) == (WHOLE.value / 2, WHOLE.value / 2)


def test_a_shared_activation_counts_for_the_layer_it_follows() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.b(self.act(self.a(x))))
            return y

    found = seconds(measured(analyse(Shared(), Inputs((torch.zeros(1, 1, 2, 2),))), {("act", 0): 1.0, ("act", 1): 3.0}))
    assert found == pytest.approx({"a": WHOLE.value / 4, "act": 0, "b": 3 * WHOLE.value / 4})


def test_several_kernels_of_one_layer_add_up(analysis: Analysis) -> None:
    found = seconds(measured(analysis, {("head", 0): 1.0, ("head", 1): 1.0, ("conv1", 0): 2.0}))
    assert found["head"] == found["conv1"] == WHOLE.value / 2


def test_time_that_belongs_to_no_layer_is_a_note(analysis: Analysis) -> None:
    found = measured(analysis, {("conv1", 0): 3.0, (ELSEWHERE, 0): 1.0})
    assert found.notes == ("25 % of the time belongs to no layer (changes of memory layout)",)
    assert seconds(found)["conv1"] == 0.75 * WHOLE.value


def test_paths_that_the_model_does_not_have_are_in_the_note(analysis: Analysis) -> None:
    found = measured(analysis, {("conv1", 0): 1.0, ("nowhere.to.be.found", 3): 1.0})
    assert found.notes[-1].startswith("50 % of the time belongs to no layer")


def test_earlier_notes_stay(analysis: Analysis) -> None:
    cost = replace(analysis.cost, notes=("first",))
    found = with_measured(cost, analysis.operators, WHOLE, {(ELSEWHERE, 0): 1.0, ("head", 0): 1.0})
    assert found.notes[0] == "first"
    assert len(found.notes) == 2


def test_next_to_nothing_outside_the_layers_is_no_note(analysis: Analysis) -> None:
    assert measured(analysis, {("conv1", 0): 1.0, (ELSEWHERE, 0): 0.004}).notes == ()


@pytest.mark.parametrize("kernels", [{}, {("conv1", 0): 0.0, ("head", 0): 0.0}])
def test_without_times_of_kernels_only_the_whole_is_known(analysis: Analysis, kernels: dict[tuple[str, int], float]) -> None:
    found = measured(analysis, kernels)
    assert found == replace(analysis.cost, latency_s=WHOLE)


PLACES = st.tuples(st.sampled_from(["", "conv1", "norm", "relu", "conv2", "head", "lost", ELSEWHERE]), st.integers(0, 5))


@given(st.dictionaries(PLACES, st.floats(1e-7, 1), min_size=1))
@settings(deadline=None)
def test_shares_and_what_belongs_to_no_layer_make_the_whole(kernels: dict[tuple[str, int], float]) -> None:
    found = measured(_analysis(), kernels)
    lost = sum(value for (path, _), value in kernels.items() if path in ("lost", ELSEWHERE)) / sum(kernels.values())
    assert sum(seconds(found).values()) == pytest.approx((1 - lost) * WHOLE.value, abs=1e-12)
    assert min(seconds(found).values()) >= 0


_KEPT: list[Analysis] = []


def _analysis() -> Analysis:
    if not _KEPT:
        _KEPT.append(analyse(Block(), Inputs((torch.zeros(1, 4, 6, 6),))))
    return _KEPT[0]
