"""Statically quantized ONNX files, after torch's exporter: biases that let layers run as integers, and 4-bit weights in 4 bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["integer_biases", "pack_narrow"]

_LEAST = 256  # weights; the nodes that unpack fewer take more room than they save
_LARGEST_BIAS = 2**31 - 1
_PARTS = ("codes", "scales", "zeros")


def integer_biases(graph: Any) -> None:
    """Store the biases of products as int32 in steps of input scale times weight scale.

    ONNX Runtime does so itself for layers whose output is quantized. A product that gives floats, as the last layer does, runs as
    an integer kernel only with such a bias: otherwise its weights are turned into floats at every call.
    """
    from onnx import helper, numpy_helper

    values = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[2] not in values:
            continue
        scales = [_scale(made.get(name), values) for name in node.input[:2]]
        if scales[0] is None or scales[1] is None or scales[0].size != 1:
            continue
        scale = np.broadcast_to(scales[0].astype(np.float64) * scales[1], tuple(values[node.input[2]].dims)).astype(np.float32)
        codes = np.round(numpy_helper.to_array(values[node.input[2]]).astype(np.float64) / scale)
        if np.abs(codes).max(initial=0) > _LARGEST_BIAS:
            continue
        name = f"{node.input[2]}_int32_{place}"
        graph.initializer.append(numpy_helper.from_array(codes.astype(np.int32), f"{name}_codes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scales"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int32), f"{name}_zeros"))
        graph.node.insert(place, helper.make_node("DequantizeLinear", [f"{name}_{part}" for part in _PARTS], [name], axis=0))
        node.input[2] = name


def _scale(node: Any, values: Any) -> NDArray[np.float32] | None:
    """The constant scale of a dequantization."""
    from onnx import numpy_helper

    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in values:
        return None
    found: NDArray[np.float32] = numpy_helper.to_array(values[node.input[1]])
    return found


def pack_narrow(graph: Any) -> None:
    """Store int8 weights whose codes all are from -8 to 7 in 4 bits each.

    What unpacks them is constant, and the runtime does it once while it loads the file: kernels see int8 as before.
    """
    from onnx import numpy_helper

    wanted = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for tensor in list(graph.initializer):
        if tensor.name in wanted and tensor.data_type == tensor.INT8:
            codes = numpy_helper.to_array(tensor)
            if codes.size >= _LEAST and codes.min() >= -8 and codes.max() <= 7:
                _pack(graph, tensor, codes)


def _pack(graph: Any, tensor: Any, codes: NDArray[np.int8]) -> None:
    from onnx import helper, numpy_helper

    name = tensor.name
    flat = codes.reshape(-1).astype(np.int16) + 8
    halves = np.append(flat, 0) if flat.size % 2 else flat
    packed = (halves[0::2] | halves[1::2] << 4).astype(np.uint8)[:, None]
    constants = {
        "packed": packed,
        "mask": np.array(15, np.uint8),
        "four": np.array(4, np.uint8),
        "from": np.array([0], np.int64),
        "to": np.array([flat.size], np.int64),
        "all": np.array([-1], np.int64),
        "shape": np.array(codes.shape, np.int64),
        "eight": np.array(8, np.int32),
    }
    graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}_{part}") for part, value in constants.items())
    steps: tuple[tuple[str, tuple[str, ...], str, dict[str, Any]], ...] = (
        ("BitwiseAnd", ("packed", "mask"), "low", {}),
        ("BitShift", ("packed", "four"), "high", {"direction": "RIGHT"}),
        ("Concat", ("low", "high"), "pairs", {"axis": 1}),
        ("Reshape", ("pairs", "all"), "flat", {}),
        ("Slice", ("flat", "from", "to"), "exact", {}),
        ("Reshape", ("exact", "shape"), "shaped", {}),
        ("Cast", ("shaped",), "wide", {"to": tensor.INT32}),
        ("Sub", ("wide", "eight"), "signed", {}),
        ("Cast", ("signed",), "", {"to": tensor.INT8}),
    )
    nodes = [
        helper.make_node(kind, [f"{name}_{part}" for part in sources], [f"{name}_{target}" if target else name], **attributes)
        for kind, sources, target, attributes in steps
    ]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
