"""Keep pruned weights at zero while the others are trained."""

import torch
from torch import nn

__all__ = ["ZeroKeeper"]


class ZeroKeeper:
    """Remembers where the weights of a model are zero, and puts the zeros back.

    Call it after every step of the optimizer. Only tensors of two or more dimensions are kept: biases and normalizations
    often begin at zero and are meant to leave it.

    Args:
        model: as pruned; its parameters may be trained and moved, but not replaced by others.
    """

    def __init__(self, model: nn.Module) -> None:
        zeros = [(parameter, parameter.detach() == 0) for parameter in model.parameters() if parameter.ndim >= 2]
        self._zeros = [(parameter, mask) for parameter, mask in zeros if bool(mask.any())]

    def __call__(self) -> None:
        """Put the zeros back, in place."""
        with torch.no_grad():
            for parameter, mask in self._zeros:
                parameter.masked_fill_(mask.to(parameter.device), 0)
