"""Lone layers as files for ONNX Runtime."""

from dataclasses import replace

import numpy as np
import pytest

from sizewise.errors import UnsupportedModel
from sizewise.runtimes import _onnxruntime_kernels as kernels
from sizewise.runtimes import onnxruntime as runtime
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.types import LayerKind, LayerShape

CONV = LayerShape(
    kind="conv",
    out_channels=16,
    in_channels=8,
    batch=2,
    sides=(10, 7),
    kernel=(3, 3),
    stride=(2, 1),
    dilation=(1, 2),
    padding=(1, 2, 1, 2),
)
CONV1D = replace(CONV, sides=(30,), kernel=(5,), stride=(1,), dilation=(4,), padding=(16, 0))
CONV3D = replace(CONV, sides=(4, 4, 4), kernel=(1, 3, 3), stride=(1, 1, 1), dilation=(1, 1, 1), padding=(0, 1, 1, 0, 1, 1))
LINEAR = LayerShape(kind="linear", out_channels=5, in_channels=7, batch=3)
CELL = LayerShape(kind="gru", out_channels=6, in_channels=5, batch=2, sides=(9,))


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "KERNEL_RUNS", 5)


def test_every_kind_of_layer_has_a_time() -> None:
    cells: list[LayerKind] = ["gru", "lstm", "rnn"]
    shapes = [
        CONV,
        CONV1D,
        CONV3D,
        replace(CONV, in_channels=16, groups=16),
        replace(CONV, groups=4),
        replace(CONV, kind="conv_transpose", dilation=(1, 1), padding=(0, 0, 0, 0)),
        LINEAR,
        *(replace(CELL, kind=kind, directions=ways) for kind in cells for ways in (1, 2)),
    ]
    seconds = OnnxRuntime().kernel_seconds(shapes, threads=1)
    assert len(seconds) == len(shapes)
    assert all(0 < value < 10 for value in seconds)


def test_convolutions_and_linear_layers_have_a_time_in_integers_too() -> None:
    shapes = [replace(shape, integer=True) for shape in (CONV, CONV1D, CONV3D, replace(CONV, groups=4), LINEAR)]
    seconds = OnnxRuntime().kernel_seconds([*shapes, CELL, CONV], threads=1)
    assert all(0 < value < 10 for value in seconds)
    with pytest.raises(UnsupportedModel, match="no integer kernel"):
        OnnxRuntime().kernel_seconds([replace(CELL, integer=True)], threads=1)


def test_integer_layers_run_as_integers_and_give_the_outputs_of_their_shape() -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    proto, feed = kernels.file_of([replace(shape, integer=True) for shape in (CONV, LINEAR)])
    names = [f"{kernels.label(turn)}y" for turn in range(2)]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    conv, linear = session.run(names, feed)
    assert (conv.dtype, conv.shape) == (np.uint8, (2, 16, 5, 7))
    assert (linear.dtype, linear.shape) == (np.uint8, (3, 5))
    # every product is 2 steps of the input times one of the weight, each 0.05, over an output step of 0.05
    assert set(linear.flatten()) == {128 + round(7 * 2 * 0.05)}


def test_times_are_in_the_order_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they do not fit one file; the work differs by a factor of thousands."""
    big = LayerShape(kind="linear", out_channels=1024, in_channels=1024, batch=64)
    monkeypatch.setattr(kernels, "LARGEST_BYTES", 5e6)
    assert [len(part) for part in kernels.parts([LINEAR, big, LINEAR, big])] == [3, 1]
    first, second, third, fourth = OnnxRuntime().kernel_seconds([LINEAR, big, LINEAR, big], threads=1)
    assert min(second, fourth) > max(first, third)


def test_other_work_on_the_machine_while_one_file_is_timed_changes_nothing() -> None:
    """Two files of two layers; the machine is three times slower for the second file in the first round, for both in the last."""
    quiet = [[1.0, 2.0, 0.5], [4.0, 8.0, 0.5]]
    slow = [[3.0 * seconds for seconds in part] for part in quiet]
    assert runtime._undisturbed([[quiet[0], slow[1]], quiet, quiet, slow]) == pytest.approx([1.0, 2.0, 4.0, 8.0])


def test_nothing_to_time_is_fine() -> None:
    assert OnnxRuntime().kernel_seconds([], threads=1) == []


def test_a_layer_larger_than_a_file_should_be_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGEST_BYTES", 1.0)
    assert list(kernels.parts([LINEAR, CONV])) == [[0], [1]]
    assert len(OnnxRuntime().kernel_seconds([LINEAR, CONV], threads=1)) == 2


def test_every_layer_computes_what_its_shape_says() -> None:
    """The output sizes that torch gives for the same layers."""
    import onnxruntime
    import torch
    from onnx import TensorProto, helper
    from torch import nn

    proto, feed = kernels.file_of([CONV, CONV1D, LINEAR, CELL])
    names = [f"{kernels.label(turn)}y" for turn in range(4)]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    conv, conv1d, linear, cell = session.run(names, feed)
    want = nn.Conv2d(8, 16, 3, (2, 1), (1, 2), (1, 2))(torch.zeros(2, 8, 10, 7))
    assert conv.shape == want.shape
    assert conv1d.shape == (2, 16, 30)
    assert linear.shape == (3, 5)
    assert cell.shape == (9, 1, 2, 6)
    assert all(bool(np.isfinite(value).all()) for value in (conv, conv1d, linear, cell))
