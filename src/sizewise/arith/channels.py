"""How much a channel counts, and how many to keep."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["contribution", "group_magnitude", "kept_count", "strongest"]


def group_magnitude(
    weights: Sequence[Float[Tensor, "rows cols"]], channel_of: Sequence[Sequence[int]], channels: int
) -> Float[Tensor, " channels"]:
    """Magnitude of every channel of a group: root of the summed squares of all weights that would go with it.

    Each layer's squares are divided by their mean per channel, so that neither a layer with large weights nor one with many
    rows per channel decides for the whole group.

    Args:
        weights: one matrix per member, rows along the axis that is cut.
        channel_of: for every row of a member, the channel it belongs to.
        channels: channels of the group.

    Source: Fang et al., DepGraph, CVPR 2023, section 3.3 (group norm). Deviation: normalized per layer.
    """
    total = torch.zeros(channels, dtype=torch.float64)
    for matrix, owner in zip(weights, channel_of, strict=True):
        squares = matrix.detach().double().cpu().square().sum(1)
        whole = squares.sum()
        if whole > 0:
            total.index_add_(0, torch.tensor(list(owner)), squares / whole * channels)
    return total.sqrt()


def contribution(
    weights: Sequence[Float[Tensor, "rows cols"]],
    variances: Sequence[Float[Tensor, " rows"]],
    channel_of: Sequence[Sequence[int]],
    channels: int,
) -> Float[Tensor, " channels"]:
    """How much of what the next layers compute varies because of each channel.

    A channel c adds W[:, c] x_c to a layer that reads it; the variance of that is var(x_c) |W[:, c]|^2 when channels are
    taken as uncorrelated. A constant part does not count: re-estimated normalization absorbs it. Each reading layer's
    values are divided by their sum, so that every reader has the same say.

    Args:
        weights: one matrix per layer that reads the group, rows along its input axis.
        variances: per reading layer, the variance of each input.
        channel_of: for every row of a reader, the channel it belongs to.
        channels: channels of the group.

    Source: the diagonal of the layer-wise error of He et al., Channel Pruning for Accelerating Very Deep Neural Networks,
    ICCV 2017, and of Wanda (Sun et al., ICLR 2024), for whole channels. Deviation: variance in place of the second moment.
    """
    total = torch.zeros(channels, dtype=torch.float64)
    for matrix, variance, owner in zip(weights, variances, channel_of, strict=True):
        values = matrix.detach().double().cpu().square().sum(1) * variance.double().cpu()
        whole = values.sum()
        if whole > 0:
            total.index_add_(0, torch.tensor(list(owner)), values / whole)
    return total


def kept_count(channels: int, ratio: float, multiple: int) -> int:
    """Channels to keep when a share `ratio` goes: the nearest multiple, at least one multiple, never more than there are.

    A group with fewer than two multiples is rounded to single channels and keeps at least one.
    """
    if channels < 2 * multiple:
        return max(1, min(channels, round(channels * (1 - ratio))))
    return min(channels, max(multiple, round(channels * (1 - ratio) / multiple) * multiple))


def strongest(scores: Float[Tensor, " channels"], count: int) -> list[int]:
    """Indices of the `count` largest scores, in rising order; ties go to the lower index."""
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return sorted(int(i) for i in order)
