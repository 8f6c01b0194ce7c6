"""What flows into layers on calibration data, as running statistics; activations themselves are never kept."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sizewise.protocols import Inputs

__all__ = ["Moments", "input_moments"]


@dataclass
class Moments:
    """Sums over examples and positions of a layer's input channels."""

    total: Float[Tensor, " channels"]
    products: Float[Tensor, "channels channels"]
    n: int = 0

    def add(self, rows: Float[Tensor, "n channels"]) -> None:
        """Take in more observations."""
        self.total += rows.sum(0)
        self.products += rows.T @ rows
        self.n += len(rows)

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        """Mean of every channel."""
        return self.total / self.n

    @property
    def variance(self) -> Float[Tensor, " channels"]:
        """Variance of every channel: the covariance's diagonal, without the rest."""
        return self.products.diagonal() / self.n - self.mean.square()

    @property
    def covariance(self) -> Float[Tensor, "channels channels"]:
        """Covariance between channels at the same position."""
        return self.products / self.n - torch.outer(self.mean, self.mean)


def input_moments(model: nn.Module, paths: Collection[str], inputs: Iterable[Inputs]) -> dict[str, Moments]:
    """First and second moments of the inputs of the named convolution and linear layers.

    Channels are dimension 1 of a convolution's input and the last one of a linear layer's. Sums are in double precision.
    """
    found: dict[str, Moments] = {}

    def hook(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0].detach()
        channel = x.ndim - 1 if isinstance(module, nn.Linear) else 1
        size = x.shape[channel]
        empty = torch.zeros(size + 1, size, dtype=torch.float64, device=x.device)
        moments = found.setdefault(path, Moments(empty[0], empty[1:]))
        moments.add(x.movedim(channel, -1).reshape(-1, size).double())

    handles = [model.get_submodule(path).register_forward_pre_hook(partial(hook, path)) for path in paths]
    try:
        with torch.no_grad():
            for batch in inputs:
                batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
