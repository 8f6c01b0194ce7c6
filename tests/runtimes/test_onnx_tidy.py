"""Exported files made smaller: they compute the same, and hold less."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.pipeline.apply import run_technique
from sizewise.protocols import Context, Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.techniques.int8_static import Int8Static

RUNTIME = OnnxRuntime()


class Padded(nn.Module):
    """Same padding by hand, as ported models have it."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.first, self.second, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(F.pad(x, (0, 1, 0, 1), value=self.value)))
        y = torch.relu(self.second(F.pad(y, (1, 1, 1, 1), value=self.value)))
        found: Tensor = self.head(y.mean((2, 3)))
        return found


def lowered(model: nn.Module, x: Tensor, folder: Path) -> tuple[Counter[str], Tensor, onnx.ModelProto]:
    path = folder / "m.onnx"
    RUNTIME.lower(model, Inputs((x,)), path)
    proto = onnx.load(path)
    return Counter(node.op_type for node in proto.graph.node), RUNTIME.load(path, threads=1)(Inputs((x,)))[0], proto


def quantized(model: nn.Module, x: Tensor, **settings: int) -> nn.Module:
    context = Context(Inputs((x[:1],)), [Inputs((part,)) for part in torch.split(x, 4)], RUNTIME.scheme)
    return run_technique(Int8Static(**settings), model, context)[0]  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad(), torch.random.fork_rng():
        yield


@pytest.fixture
def x() -> Tensor:
    return torch.randn(16, 2, 9, 9, generator=torch.Generator().manual_seed(0))


def test_convolutions_pad_by_themselves(x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Padded().eval()
    kinds, got, _ = lowered(model, x, tmp_path)
    assert kinds["Pad"] == 0
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
    other = Padded(1.0).eval()
    kinds, got, _ = lowered(other, x, tmp_path)
    assert kinds["Pad"] == 2
    torch.testing.assert_close(got, other(x), rtol=1e-4, atol=1e-5)


def test_padding_between_integers_goes_too_and_the_last_layer_is_an_integer(x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = quantized(Padded().eval(), x)
    kinds, got, proto = lowered(graph, x, tmp_path)
    assert kinds["Pad"] == 0
    assert float((got - graph(x)).abs().max()) < 0.02 * float(graph(x).abs().max())
    found = RUNTIME.executed(tmp_path / "m.onnx", Inputs((x,)), threads=1)
    assert found is not None
    assert found.share == 1
    assert found.weight_conversions == 0
    assert {numpy_helper.to_array(t).dtype for t in proto.graph.initializer} >= {np.dtype(np.int8), np.dtype(np.int32)}


def test_four_bit_weights_take_four_bits_in_the_file(x: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Padded().eval()
    wide, narrow = quantized(model, x), quantized(model, x, weight_bits=4)
    sizes = {}
    for name, graph in (("wide", wide), ("narrow", narrow)):
        (tmp_path / name).mkdir()
        _, got, proto = lowered(graph, x, tmp_path / name)
        assert float((got - graph(x)).abs().max()) < 0.02 * float(graph(x).abs().max())
        sizes[name] = sum(numpy_helper.to_array(t).nbytes for t in proto.graph.initializer if t.data_type in (t.INT8, t.UINT8))
    assert sizes["narrow"] < 0.75 * sizes["wide"]  # the first layer and the head are too small to gain


def test_states_of_zero_are_left_out(tmp_path: Path) -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.gru(x)[0]
            return found

    model, x = Cell().eval(), torch.randn(3, 5, 4)
    kinds, got, proto = lowered(model, x, tmp_path)
    assert kinds["Expand"] == 0
    assert not next(node for node in proto.graph.node if node.op_type == "GRU").input[5:]
    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
