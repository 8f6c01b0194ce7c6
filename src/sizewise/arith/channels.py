"""How much a channel counts by its weights alone."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["group_magnitude"]


def group_magnitude(
    weights: Sequence[Float[Tensor, "rows cols"]], channel_of: Sequence[Sequence[int]], channels: int
) -> Float[Tensor, " channels"]:
    """Magnitude of every channel of a group: root of the summed squares of all weights that would go with it.

    Each layer's squares are divided by their mean per channel, so that neither a layer with large weights nor one with many
    rows per channel decides for the whole group.

    Args:
        weights: one matrix per member, rows along the axis that is cut.
        channel_of: for every row of a member, the channel it belongs to, -1 where it belongs to none.
        channels: channels of the group.

    Source: Fang et al., DepGraph, CVPR 2023, section 3.3 (group norm). Deviation: normalized per layer.
    """
    total = torch.zeros(channels, dtype=torch.float64)
    for matrix, owner in zip(weights, channel_of, strict=True):
        owned = torch.tensor(list(owner)) >= 0
        squares = matrix.detach().double().cpu().square().sum(1)[owned]
        whole = squares.sum()
        if whole > 0:
            total.index_add_(0, torch.tensor(list(owner))[owned], squares / whole * channels)
    return total.sqrt()
