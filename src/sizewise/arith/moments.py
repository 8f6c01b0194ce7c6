"""First and second moments of rows, summed batch by batch; the rows themselves are never kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Gram"]


@dataclass
class Gram:
    """Sums over a layer's inputs, one row per example and position, per group of the layer.

    Attributes:
        total: sums of every input.
        squares: sums of the products of every two inputs.
        n: rows counted.
    """

    total: Float[Tensor, "groups in"]
    squares: Float[Tensor, "groups in in"]
    n: int = 0

    @staticmethod
    def empty(groups: int, inputs: int, device: torch.device | None = None) -> "Gram":
        """Nothing seen yet; sums are in double precision."""
        both = torch.zeros(groups, inputs + 1, inputs, dtype=torch.float64, device=device)
        return Gram(both[:, 0], both[:, 1:])

    def add(self, rows: Float[Tensor, "groups n in"]) -> None:
        """Take in more observations, multiplied in the precision that they come in."""
        self.total += rows.sum(1).to(self.total)
        self.squares += (rows.mT @ rows).to(self.squares)
        self.n += rows.shape[1]

    def merge(self, other: "Gram") -> None:
        """Take in another layer's observations, for weights that both share."""
        self.total += other.total
        self.squares += other.squares
        self.n += other.n

    @property
    def mean(self) -> Float[Tensor, "groups in"]:
        """Mean of every input."""
        return self.total / self.n

    @property
    def products(self) -> Float[Tensor, "groups in in"]:
        """Mean product of every two inputs, E[x x'], not centred."""
        return self.squares / self.n

    @property
    def covariance(self) -> Float[Tensor, "groups in in"]:
        """Covariance of every two inputs."""
        return self.products - self.mean[:, :, None] * self.mean[:, None, :]
