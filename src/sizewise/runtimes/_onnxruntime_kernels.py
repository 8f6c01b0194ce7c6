"""Files that hold lone layers, so that ONNX Runtime's profiler tells what each kernel takes by itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from sizewise.arith.packing import packed
from sizewise.errors import UnsupportedModel
from sizewise.runtimes._onnxruntime_layers import MARK
from sizewise.types import LayerShape

__all__ = ["IDLE", "YARDSTICK", "file_of", "label", "parts"]

IDLE = "idle"  # a kernel that does next to nothing: what the profiler itself takes
YARDSTICK = LayerShape(  # a layer of common size, timed beside others to tell how busy the machine was
    kind="conv",
    out_channels=64,
    in_channels=64,
    batch=1,
    sides=(28, 28),
    kernel=(3, 3),
    stride=(1, 1),
    dilation=(1, 1),
    padding=(1, 1, 1, 1),
)
LARGEST_BYTES = 256e6  # of inputs, weights and outputs that one file works on
_MICROSOFT = "com.microsoft"  # the domain of the runtime's own operators
_SCALE = np.float32(0.05)
_OPSET, _IR = 18, 9  # old enough for every runtime that the project supports
_CELLS = {"gru": ("GRU", 3), "lstm": ("LSTM", 4), "rnn": ("RNN", 1)}  # operator and gates


@dataclass(frozen=True)
class _Lone:
    """One layer as ONNX has it: an input, weights, its node, and what makes the result small.

    Of an integer layer, weights have a scale for each of `channels` outputs.
    """

    operator: str
    input: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    attributes: dict[str, Any]
    shrink: str  # GlobalMaxPool or Slice
    channels: int = 0
    domain: str = ""


def label(turn: int | str) -> str:
    """The name of a node that `layer_seconds` finds under (str(turn), 0)."""
    return f"<{turn}#0>{MARK}"


def parts(shapes: Sequence[LayerShape]) -> Iterator[list[int]]:
    """The positions of shapes that go into one file together: what they work on has to fit the memory."""
    return packed(map(_bytes, shapes), LARGEST_BYTES)


def file_of(shapes: Sequence[LayerShape]) -> tuple[Any, dict[str, Any]]:
    """An ONNX model with every layer as an island of its own, and inputs for one call.

    Every layer has an input of its own, which the runtime brings into the layout it wants right before the layer runs: it lies in the
    cache, as the result of the layer before would. The result is reduced at once and its memory used again, as in a whole model.
    """
    from onnx import helper

    nodes: list[Any] = []
    arrays: dict[str, Any] = {"start": np.zeros(1, np.int64), "end": np.ones(1, np.int64), "scale": _SCALE, "zero": np.uint8(128)}
    feed: dict[str, Any] = {"x_idle": np.zeros(1, np.float32)}
    nodes.append(helper.make_node("Sin", ["x_idle"], ["z_idle"], name=label(IDLE)))
    for turn, shape in enumerate(shapes):
        lone = _lone(shape)
        feed[f"x_{turn}"] = np.full(lone.input, 130, np.uint8) if shape.integer else np.full(lone.input, 0.1, np.float32)
        read, own = _integer_inputs(turn, lone) if shape.integer else _float_inputs(turn, lone)
        arrays |= own
        out = f"{label(turn)}y"  # the optimizer names some kernels after their node, others after what they make
        nodes.append(helper.make_node(lone.operator, read, [out], name=label(turn), domain=lone.domain, **lone.attributes))
        extra = ["start", "end"] if lone.shrink == "Slice" else []
        nodes.append(helper.make_node(lone.shrink, [out, *extra], [f"z_{turn}"]))
    inputs = [_value(name, array.dtype, array.shape) for name, array in feed.items()]
    outputs = [_value(f"z_{name[2:]}", array.dtype, None) for name, array in feed.items()]
    graph = helper.make_graph(nodes, "kernels", inputs, outputs, [_constant(name, array) for name, array in arrays.items()])
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR), feed


def _float_inputs(turn: int, lone: _Lone) -> tuple[list[str], dict[str, Any]]:
    """Names of what the node reads, and the constants among it."""
    arrays = {f"w_{turn}_{place}": np.full(size, 0.01, np.float32) for place, size in enumerate(lone.weights)}
    return [f"x_{turn}", *arrays], arrays


def _integer_inputs(turn: int, lone: _Lone) -> tuple[list[str], dict[str, Any]]:
    """Input, weight and output, each with its scale and zero, and the bias, which the linear layer has before the output."""
    size, (weight, scales, zeros, bias) = lone.weights[0], (f"{name}_{turn}" for name in ("w", "s", "q", "b"))
    arrays = {
        weight: np.ones(size, np.int8),
        scales: np.full(lone.channels, _SCALE),
        zeros: np.zeros(lone.channels, np.int8),
        bias: np.zeros(lone.channels, np.int32),
    }
    last = [bias, "scale", "zero"] if lone.domain else ["scale", "zero", bias]
    return [f"x_{turn}", "scale", "zero", weight, scales, zeros, *last], arrays


def _value(name: str, dtype: Any, shape: tuple[int, ...] | None) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)


def _constant(name: str, array: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(array), name)


def _lone(shape: LayerShape) -> _Lone:
    """The layer as ONNX has it.

    Raises:
        UnsupportedModel: integers where the runtime has no kernel for them.
    """
    if not shape.integer:
        return _LONE[shape.kind](shape)
    if shape.kind not in _INTEGER:
        raise UnsupportedModel("onnxruntime has no integer kernel for this layer", where=shape.kind)
    return _INTEGER[shape.kind](shape)


def _convolution(shape: LayerShape) -> _Lone:
    transposed = shape.kind == "conv_transpose"
    first, second = (shape.in_channels, shape.out_channels) if transposed else (shape.out_channels, shape.in_channels)
    return _Lone(
        operator="ConvTranspose" if transposed else "Conv",
        input=(shape.batch, shape.in_channels, *shape.sides),
        weights=((first, second // shape.groups, *shape.kernel), (shape.out_channels,)),
        attributes={
            "kernel_shape": list(shape.kernel),
            "strides": list(shape.stride),
            "dilations": list(shape.dilation),
            "pads": list(shape.padding),
            "group": shape.groups,
        },
        shrink="GlobalMaxPool",
    )


def _linear(shape: LayerShape) -> _Lone:
    weights = ((shape.in_channels, shape.out_channels), (shape.out_channels,))
    return _Lone("Gemm", (shape.batch, shape.in_channels), weights, {}, "Slice")


def _integer_convolution(shape: LayerShape) -> _Lone:
    # what makes float results small has no integer kernel
    return replace(_convolution(shape), operator="QLinearConv", shrink="Slice", channels=shape.out_channels)


def _integer_linear(shape: LayerShape) -> _Lone:
    return replace(_linear(shape), operator="QGemm", channels=shape.out_channels, domain=_MICROSOFT)


def _recurrent(shape: LayerShape) -> _Lone:
    operator, gates = _CELLS[shape.kind]
    hidden, ways = shape.out_channels, shape.directions
    return _Lone(
        operator=operator,
        input=(*shape.sides, shape.batch, shape.in_channels),
        weights=((ways, gates * hidden, shape.in_channels), (ways, gates * hidden, hidden), (ways, 2 * gates * hidden)),
        attributes={
            "hidden_size": hidden,
            "direction": "bidirectional" if ways == 2 else "forward",
            **({"linear_before_reset": 1} if shape.kind == "gru" else {}),  # torch's order, for which the runtime has another kernel
        },
        shrink="Slice",
    )


_LONE: dict[str, Callable[[LayerShape], _Lone]] = {
    "conv": _convolution,
    "conv_transpose": _convolution,
    "linear": _linear,
    "gru": _recurrent,
    "lstm": _recurrent,
    "rnn": _recurrent,
}
_INTEGER: dict[str, Callable[[LayerShape], _Lone]] = {"conv": _integer_convolution, "linear": _integer_linear}


def _bytes(shape: LayerShape) -> int:
    """Of input, weights, and about as much output per channel as input."""
    lone = _lone(shape)
    output = shape.batch * shape.out_channels * shape.directions * prod(shape.sides)
    return 4 * (prod(lone.input) + output + sum(map(prod, lone.weights)))
