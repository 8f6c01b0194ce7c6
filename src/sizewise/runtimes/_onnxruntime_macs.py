"""Multiply-accumulates of ONNX Runtime's kernels, and which of them are integer products.

Counts follow `profile/operators.py`: one MAC is one multiply-accumulate, biases and activations are none. Source of the operators:
ONNX's operator list and ONNX Runtime's list of contributed operators. What multiplies and has no formula is in `UNKNOWN`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = ["UNKNOWN", "Call", "is_depthwise", "macs"]

Shape = tuple[int, ...]

_UNKNOWN_NAMES = """
AttnLSTM CDist CausalConvWithState DFT DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DeformConv
GatedRelativePositionBias GemmFastGelu GemmFloat8 GroupQueryAttention LinearAttention LongformerAttention MatMulFpQ4 MoE
PackedAttention PackedMultiHeadAttention PagedAttention QMoE STFT SparseAttention SparseToDenseMatMul WordConvEmbedding
"""
UNKNOWN = frozenset(_UNKNOWN_NAMES.split())
_INTEGER_BLOCKS = 4  # the accuracy level of MatMulNBits at which activations are quantized too, and products are of integers


@dataclass(frozen=True)
class Call:
    """One execution of a node; shapes in the node's order, None where an input is absent or its shape is not known."""

    operator: str
    domain: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape]

    def shape(self, place: int) -> Shape:
        """Of an input.

        Raises:
            LookupError: it is absent or not known.
        """
        if place >= len(self.inputs) or (found := self.inputs[place]) is None:
            raise LookupError(place)
        return found

    def length(self, place: int, axis: int) -> int:
        """Of an axis of an input; 0 where the input is absent."""
        found = self.inputs[place] if place < len(self.inputs) else None
        return 0 if found is None else found[axis]


def macs(call: Call) -> tuple[int, int] | None:
    """MACs in integers and in floating point; None for operators that multiply no tensors.

    Raises:
        LookupError: it needs a shape that is not known.
    """
    if integer := _INTEGER.get(call.operator):
        return integer(call), 0
    if floating := _FLOAT.get(call.operator):
        return 0, floating(call)
    mixed = _MIXED.get(call.operator)
    return mixed(call) if mixed else None


def is_depthwise(call: Call) -> bool:
    """Whether it convolves every channel by itself."""
    group = int(call.attributes.get("group", 1))
    return group > 1 and call.operator in _WEIGHT_OF and call.shape(_WEIGHT_OF[call.operator])[1] == 1


# ---- formulas


def _convolution(call: Call) -> int:
    # weights are [out, in / group, *kernel] in every layout of the activations
    return prod(call.outputs[0]) * prod(call.shape(_WEIGHT_OF[call.operator])[1:])


def _transposed(call: Call) -> int:
    return prod(call.shape(0)) * prod(call.shape(1)[1:])  # weights are [in, out / group, *kernel]


def _product(call: Call) -> int:
    return prod(call.outputs[0]) * call.shape(0)[-2 if call.attributes.get("transA", 0) and len(call.shape(0)) > 1 else -1]


def _blocks(call: Call) -> int:
    return prod(call.outputs[0]) * int(call.attributes["K"])


def _recurrent(call: Call) -> int:
    # every step of every example multiplies both matrices of every direction once
    return prod(call.shape(0)[:2]) * (prod(call.shape(1)) + prod(call.shape(2)))


def _einsum(call: Call) -> int:
    equation = call.attributes["equation"].decode().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "..." in equation:
        raise LookupError(equation)
    sizes = {letter: size for place, term in enumerate(terms) for letter, size in zip(term, call.shape(place), strict=True)}
    return prod(sizes.values()) * (len(terms) - 1)


def _projected(call: Call, past: int) -> tuple[int, int]:
    """Of attention that holds its projection: of the projection, and of scores and weighted sum."""
    rows, weight = call.shape(0), call.shape(1)
    query, _, value = call.attributes.get("qkv_hidden_sizes") or [weight[1] // 3] * 3
    steps = rows[1] + call.length(past, -2)
    return prod(rows[:2]) * prod(weight), prod(rows[:2]) * steps * (query + value)


def _attention(call: Call) -> int:
    if call.domain:
        return sum(_projected(call, past=4))
    steps = call.shape(1)[-2] + call.length(4, -2)
    return (prod(call.shape(0)) + prod(call.outputs[0])) * steps


def _quantized_attention(call: Call) -> tuple[int, int]:
    return _projected(call, past=8)  # only the projection is quantized


def _heads(call: Call) -> int:
    query, packed = call.shape(0), len(call.shape(0)) == 5  # [batch, steps, heads, 3, size]
    steps = query[1] if packed else call.shape(1)[2 if len(call.shape(1)) == 4 else 1]
    return (prod(query) // (3 if packed else 1) + prod(call.outputs[0])) * (steps + call.length(6, -2))


def _few_bits(call: Call) -> tuple[int, int]:
    integers = call.attributes.get("accuracy_level", 0) == _INTEGER_BLOCKS
    return (_blocks(call), 0) if integers else (0, _blocks(call))


_WEIGHT_OF = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "NhwcConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_INTEGER: dict[str, Callable[[Call], int]] = {
    **dict.fromkeys(("QLinearConv", "ConvInteger"), _convolution),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _product),
    "DynamicQuantizeLSTM": _recurrent,
}
_FLOAT: dict[str, Callable[[Call], int]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "NhwcConv"), _convolution),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _transposed),
    **dict.fromkeys(("MatMul", "FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "Gemm", "FusedGemm"), _product),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "MatMulBnb4": _blocks,
    "Einsum": _einsum,
    "Attention": _attention,
    "MultiHeadAttention": _heads,
}
_MIXED: dict[str, Callable[[Call], tuple[int, int]]] = {"MatMulNBits": _few_bits, "QAttention": _quantized_attention}
