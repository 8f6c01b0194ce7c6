"""Convolutions and linear layers as products of matrices: one row per output position, one column per input and tap."""

from collections.abc import Sequence

from jaxtyping import Float
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
) -> Rows:
    """What a convolution of one or two dimensions multiplies its weights with.

    Args:
        x: input of the layer.
        kernel, stride, padding, dilation: per dimension; padding may be "same" or "valid".
        groups: of the convolution.

    Returns:
        for every group a matrix whose columns are in the order of `weight.flatten(1)`.
    """
    if isinstance(padding, str):
        x, padding = _padded(x, kernel, dilation) if padding == "same" else x, [0] * len(kernel)
    if len(kernel) == 1:
        x, kernel, stride, padding, dilation = x.unsqueeze(2), (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    columns = F.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    batch, size, positions = columns.shape
    return columns.reshape(batch, groups, size // groups, positions).permute(1, 0, 3, 2).reshape(groups, batch * positions, size // groups)


def _padded(x: Tensor, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    sides: list[int] = []
    for size, step in zip(reversed(kernel), reversed(dilation), strict=True):
        whole = step * (size - 1)
        sides += [whole // 2, whole - whole // 2]
    return F.pad(x, sides)


def output_rows(y: Float[Tensor, "batch channels *space"], groups: int = 1) -> Rows:
    """A convolution's output, its rows in the order of `input_rows`."""
    batch, channels = y.shape[:2]
    flat = y.reshape(batch, groups, channels // groups, -1)
    return flat.permute(1, 0, 3, 2).reshape(groups, -1, channels // groups)
