"""Weights that pruning set to zero stay zero while the others train."""

import torch
from torch import Tensor, nn

__all__ = ["Zeros"]

MEANT = 0.05  # share of exact zeros from which on they are meant: trained weights are zero by accident next to never


class Zeros:
    """The zeros of a model's weights as they are now.

    A weight of two or more dimensions counts when at least a twentieth of it is exactly zero. Zeros in biases and normalizations
    are no mask: layers often begin with them.

    Args:
        model: whose weights are looked at; a parameter that several modules share is kept once.
        pruned: where only those zeros are meant that another module has too: the one that was pruned, before its weights were
            rounded, which makes zeros of small weights that may grow again. Parameters go by their names.
    """

    def __init__(self, model: nn.Module, pruned: nn.Module | None = None) -> None:
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        before = dict(pruned.named_parameters()) if pruned is not None else {}
        for name, parameter in model.named_parameters():
            kept = parameter.detach() != 0
            if pruned is not None:
                kept |= before[name].detach().to(kept.device) != 0 if name in before else torch.ones_like(kept)
            if parameter.ndim >= 2 and parameter.is_floating_point() and 1 - float(kept.double().mean()) >= MEANT:
                self._kept.append((parameter, kept))

    @property
    def count(self) -> int:
        """How many weights stay zero."""
        return sum(int((~kept).sum()) for _, kept in self._kept)

    def mask_gradients(self) -> None:
        """Remove what would move a zero, so that neither clipping nor the optimizer's moments see it."""
        for parameter, kept in self._kept:
            if parameter.grad is not None:
                parameter.grad.mul_(kept)

    def mask_values(self) -> None:
        """Set to zero what was zero, after a step."""
        with torch.no_grad():
            for parameter, kept in self._kept:
                parameter.mul_(kept)
