"""What is timed in integers is quantized first, and layers by themselves are integer layers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from sizewise.graph.trace import is_graph
from sizewise.profile.integer_timer import IntegerTimer
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.testing import NullRuntime
from sizewise.types import Cost, LayerShape

EXAMPLE = Inputs((torch.zeros(1, 3, 8, 8),))


class Recorder:
    """A timer that remembers what it was asked about."""

    name, facts, folder = "recorder", "one thread", Path("nowhere")

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.shapes: list[LayerShape] = []

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        self.shapes += shapes
        return [1.0 for _ in shapes]

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        self.models.append(model)
        return static_cost(model, example)

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        self.models.append(model)

        def share(other: nn.Module) -> float:
            self.models.append(other)
            return 0.5

        return share


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def timer(recorder: Recorder) -> IntegerTimer:
    assert NullRuntime.scheme is not None
    return IntegerTimer(recorder, NullRuntime.scheme)


def net(channels: int = 8) -> nn.Module:
    layers = (nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(36 * channels, 2))
    return nn.Sequential(*layers).eval()


def integers(model: nn.Module) -> int:
    """How many layers of a quantized graph read integers."""
    assert is_graph(model)
    return sum("dequantize" in str(node.target) for node in model.graph.nodes)  # type: ignore[union-attr]


def test_models_are_timed_quantized(timer: IntegerTimer, recorder: Recorder) -> None:
    share = timer.beside(net(), EXAMPLE)
    assert share(net(4)) == 0.5
    cost = timer.profile(net(), EXAMPLE)
    assert len(recorder.models) == 3
    assert all(integers(model) >= 4 for model in recorder.models), "inputs and weights of two layers"
    assert {"0", "4"} <= {layer.path for layer in cost.layers}, "layers keep the paths that they have in the float model"


def test_layers_are_timed_as_integers_where_there_are_kernels_for_it(timer: IntegerTimer, recorder: Recorder) -> None:
    linear = LayerShape(kind="linear", out_channels=4, in_channels=6, batch=1)
    cell = LayerShape(kind="gru", out_channels=4, in_channels=6, batch=1, sides=(3,))
    timer.kernel_seconds([linear, cell])
    assert [shape.integer for shape in recorder.shapes] == [True, False]


def test_kept_figures_are_not_those_of_float(timer: IntegerTimer, recorder: Recorder) -> None:
    assert timer.facts != recorder.facts
    assert timer.folder == recorder.folder
    assert recorder.name in timer.name
    assert "integers" in timer.name
