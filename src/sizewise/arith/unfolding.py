"""Convolutions and linear layers as products of matrices: one row per output position, one column per input and tap."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["input_rows", "output_rows"]

Rows = Float[Tensor, "groups rows columns"]


def input_rows(
    x: Float[Tensor, "batch channels *space"],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int = 1,
    chosen: Int[Tensor, " rows"] | None = None,
) -> Rows:
    """What a convolution of any number of dimensions multiplies its weights with.

    Args:
        x: input of the layer.
        kernel, stride, padding, dilation: per dimension; padding, with zeros, may be "same" or "valid".
        groups: of the convolution.
        chosen: numbers of the rows that are wanted, counted over the batch and its output positions; all by default.

    Returns:
        for every group a matrix whose columns are in the order of `weight.flatten(1)`.
    """
    x = F.pad(x, _sides(kernel, padding, dilation))
    for dim, size, step, stretch in zip(range(2, x.ndim), kernel, stride, dilation, strict=True):
        x = x.unfold(dim, stretch * (size - 1) + 1, step)[..., ::stretch]
    # now [batch, channels, *positions, *kernel], a view of the padded input until flatten copies it
    batch, channels = x.shape[:2]
    if chosen is not None:  # picked before anything is copied
        places = torch.unravel_index(chosen, (batch, *x.shape[2 : 2 + len(kernel)]))
        picked = x.movedim(1, 1 + len(kernel))[places]
        return picked.reshape(len(chosen), groups, -1).transpose(0, 1)
    apart = x.reshape(batch, groups, channels // groups, *x.shape[2:]).movedim(2, 2 + len(kernel))
    return apart.transpose(0, 1).flatten(2 + len(kernel)).flatten(1, -2)


def _sides(kernel: Sequence[int], padding: Sequence[int] | str, dilation: Sequence[int]) -> list[int]:
    """Zeros before and after, the last dimension first."""
    sides: list[int] = []
    for index in reversed(range(len(kernel))):
        if isinstance(padding, str):
            whole = dilation[index] * (kernel[index] - 1) if padding == "same" else 0
            sides += [whole // 2, whole - whole // 2]
        else:
            sides += [padding[index]] * 2
    return sides


def output_rows(y: Float[Tensor, "batch channels *space"], groups: int = 1) -> Rows:
    """A convolution's output, its rows in the order of `input_rows`."""
    batch, channels = y.shape[:2]
    flat = y.reshape(batch, groups, channels // groups, -1)
    return flat.permute(1, 0, 3, 2).reshape(groups, -1, channels // groups)
