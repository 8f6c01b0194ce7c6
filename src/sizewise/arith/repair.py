"""Fit a layer's weights to the outputs that it should have."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Regression"]


@dataclass
class Regression:
    """A layer's weights fitted by least squares to outputs that it should have, batch by batch, group by group.

    Sums are in double precision; nothing else of the data is kept.

    Attributes:
        inputs: sums of products of inputs, [groups, in, in].
        cross: sums of products of wanted outputs and inputs, [groups, out, in].
        input_sum, output_sum: [groups, in], [groups, out].
        n: rows seen.
    """

    inputs: Float[Tensor, "groups in in"]
    cross: Float[Tensor, "groups out in"]
    input_sum: Float[Tensor, "groups in"]
    output_sum: Float[Tensor, "groups out"]
    n: int = 0

    @staticmethod
    def empty(groups: int, outputs: int, inputs: int) -> "Regression":
        """Nothing seen yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return Regression(zeros(groups, inputs, inputs), zeros(groups, outputs, inputs), zeros(groups, inputs), zeros(groups, outputs))

    def add(self, x: Float[Tensor, "groups rows in"], y: Float[Tensor, "groups rows out"]) -> None:
        """Take in rows of inputs and of wanted outputs."""
        x, y = x.float(), y.float()
        self.inputs += (x.mT @ x).double().cpu()
        self.cross += (y.mT @ x).double().cpu()
        self.input_sum += x.sum(1).double().cpu()
        self.output_sum += y.sum(1).double().cpu()
        self.n += x.shape[1]

    def solve(
        self, start: Float[Tensor, "groups out in"], *, intercept: bool, damping: float = 1e-3
    ) -> tuple[Float[Tensor, "groups out in"], Float[Tensor, "groups out"]]:
        """The weights nearest to the wanted outputs, and the constant to add to what they compute.

        Minimizes |Y - X W' - c|^2 / n + d |W - W_0|^2, whose solution is W = W_0 + (B - W_0 A) (A + d I)^-1 with A the inputs'
        covariance and B the outputs' with the inputs (second moments and c = 0 where there is no intercept).

        Args:
            start: W_0, to which directions that the data do not decide stay close.
            intercept: whether the layer can add a constant.
            damping: d as a share of the inputs' mean variance.

        Source: ridge regression; He et al., Channel Pruning, ICCV 2017, section 3.1, fit pruned layers so. Deviation: towards
        the weights there are instead of towards zero.
        """
        a, b = self.inputs / self.n, self.cross / self.n
        mean_x, mean_y = self.input_sum / self.n, self.output_sum / self.n
        if intercept:
            a = a - mean_x.unsqueeze(2) * mean_x.unsqueeze(1)
            b = b - mean_y.unsqueeze(2) * mean_x.unsqueeze(1)
        ridge = damping * a.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        a_damped = a + ridge[:, None, None] * torch.eye(a.shape[1], dtype=a.dtype)
        w0 = start.double().cpu()
        weight = w0 + torch.linalg.solve(a_damped, (b - w0 @ a).mT).mT
        constant = mean_y - torch.einsum("goi,gi->go", weight, mean_x)
        return weight, constant if intercept else torch.zeros_like(constant)
