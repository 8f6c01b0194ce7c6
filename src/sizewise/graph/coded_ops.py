"""Four operators for weights stored in few bits; runtimes translate them, and torch computes here what runtimes compute.

Codes are a matrix, one row per output channel (per token for embeddings), in one of four forms:
int8 [rows, columns] with scales [rows]; int4, two to a byte, uint8 [rows, groups * size / 2], low half first, each stored plus 8
(as ONNX Runtime's MatMulNBits wants), with scales [rows, groups], where the last group is filled up; float16 and bfloat16
[rows, columns] without scales. A weight is (code - zero) * scale in float32, in this order everywhere, so that torch and
runtimes agree bit by bit. Zero points are int8 in the scales' shape; without them zero is 0.

`dynamic_linear` follows ONNX's DynamicQuantizeLinear, opset 11, and MatMulInteger.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from sizewise.arith.grids import unpack_int4

__all__ = ["OFFSET", "OPERATORS", "coded_embedding", "decode", "dynamic_linear", "grouped_linear"]

OFFSET = 8  # added to codes of 4 bits, so that they are stored without sign
_EXACT = 2**24 // (255 * 127)  # so many products of codes add up to whole numbers that float32 holds


@torch.library.custom_op("sizewise::decode", mutates_args=())
def decode(codes: Tensor, scales: Tensor | None, zeros: Tensor | None, shape: list[int], axis: int) -> Tensor:
    """The weight in float32.

    Args:
        codes: a matrix, see above.
        scales: [rows] or [rows, groups]; None for float16 and bfloat16.
        zeros: as scales, or None.
        shape: of the weight.
        axis: which of its axes the rows are; the columns are the others, in order.
    """
    rest = [size for index, size in enumerate(shape) if index != axis]
    columns = torch.Size(rest).numel()
    return _values(codes, scales, zeros, columns).reshape(shape[axis], *rest).movedim(0, axis).contiguous()


@torch.library.custom_op("sizewise::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, columns: int) -> Tensor:
    """A linear layer on x [..., columns] whose weight has groups: [..., rows]."""
    return F.linear(x, _values(codes, scales, zeros, columns), bias)


@torch.library.custom_op("sizewise::coded_embedding", mutates_args=())
def coded_embedding(codes: Tensor, scales: Tensor | None, zeros: Tensor | None, ids: Tensor, columns: int) -> Tensor:
    """Rows of a table by number; only those that are asked for are decoded: [*ids, columns]."""
    flat = ids.flatten()
    rows, factors, shifts = (None if part is None else part.index_select(0, flat) for part in (codes, scales, zeros))
    assert rows is not None
    return _values(rows, factors, shifts, columns).reshape(*ids.shape, columns)


@torch.library.custom_op("sizewise::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer in integers: x [..., columns] becomes uint8 with one scale for the call; codes are int8 [rows, columns].

    The sum of products is the very integer, which is then a float32 times (scale of x * scale of the row), plus the bias.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = (-low / scale).round().clamp(0, 255)
    integers = ((x / scale).round() + zero).clamp(0, 255) - zero
    exact = torch.float32 if x.shape[-1] <= _EXACT else torch.float64
    out = F.linear(integers.to(exact), codes.to(exact)).float() * (scale * scales)
    return out if bias is None else out + bias


def _values(codes: Tensor, scales: Tensor | None, zeros: Tensor | None, columns: int) -> Tensor:
    """Decoded rows [rows, columns]; a copy, even of float32."""
    if scales is None:
        return codes.to(torch.float32, copy=True)
    whole = unpack_int4(codes.flatten(), 2 * codes.numel(), signed=False) - OFFSET if codes.dtype == torch.uint8 else codes
    groups = whole.reshape(len(codes), scales.shape[-1] if scales.ndim > 1 else 1, -1).float()
    if zeros is not None:
        groups = groups - zeros.reshape(*groups.shape[:2], 1)
    return (groups * scales.reshape(*groups.shape[:2], 1)).flatten(1)[:, :columns].contiguous()


@decode.register_fake
def _(codes: Tensor, _scales: Tensor | None, _zeros: Tensor | None, shape: list[int], _axis: int) -> Tensor:
    return codes.new_empty(shape, dtype=torch.float32)


@coded_embedding.register_fake
def _(codes: Tensor, _scales: Tensor | None, _zeros: Tensor | None, ids: Tensor, columns: int) -> Tensor:
    return codes.new_empty(*ids.shape, columns, dtype=torch.float32)


@grouped_linear.register_fake
@dynamic_linear.register_fake
def _(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


OPERATORS = {
    "decode": torch.ops.sizewise.decode.default,
    "grouped_linear": torch.ops.sizewise.grouped_linear.default,
    "coded_embedding": torch.ops.sizewise.coded_embedding.default,
    "dynamic_linear": torch.ops.sizewise.dynamic_linear.default,
}


# so that a coded model counts the MACs of the float one; decoding is not counted: runtimes do it once, while they load
@register_flop_formula([torch.ops.sizewise.grouped_linear, torch.ops.sizewise.dynamic_linear])
def _linear_flops(x: torch.Size, codes: torch.Size, *_: object, **__: object) -> int:
    return 2 * x.numel() * codes[0]


@register_flop_formula([torch.ops.sizewise.decode, torch.ops.sizewise.coded_embedding])
def _no_flops(*_: object, **__: object) -> int:
    return 0
