"""Fit a layer's weights to the outputs that it should have."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sizewise.arith.moments import Gram

__all__ = ["DAMPINGS", "HeldOut", "Regression"]

STILL = 1e-5  # of the inputs' mean square is added too: what hardly varies would else be multiplied by huge weights
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)  # that are tried, as shares of the inputs' mean variance


@dataclass
class Regression:
    """A layer's weights fitted by least squares to outputs that it should have, batch by batch, group by group.

    Sums are in double precision; nothing else of the data is kept.

    Attributes:
        inputs: moments of the inputs.
        cross: sums of products of wanted outputs and inputs, [groups, out, in].
        outputs: sums of wanted outputs, [groups, out].
    """

    inputs: Gram
    cross: Float[Tensor, "groups out in"]
    outputs: Float[Tensor, "groups out"]

    @staticmethod
    def empty(groups: int, outputs: int, inputs: int) -> "Regression":
        """Nothing seen yet."""
        both = torch.zeros(groups, outputs, inputs + 1, dtype=torch.float64)
        return Regression(Gram.empty(groups, inputs), both[:, :, 1:], both[:, :, 0])

    def add(self, x: Float[Tensor, "groups rows in"], y: Float[Tensor, "groups rows out"]) -> None:
        """Take in rows of inputs and of wanted outputs."""
        x, y = x.float(), y.float()
        self.inputs.add(x)
        self.cross += (y.mT @ x).to(self.cross)
        self.outputs += y.sum(1).to(self.outputs)

    def merge(self, other: "Regression") -> "Regression":
        """Both together; the same layer's."""
        inputs = Gram(self.inputs.total.clone(), self.inputs.squares.clone(), self.inputs.n)
        inputs.merge(other.inputs)
        return Regression(inputs, self.cross + other.cross, self.outputs + other.outputs)

    def error(self, weight: Float[Tensor, "groups out in"], constant: Float[Tensor, "groups out"]) -> float:
        """Sum of squared errors on these rows, but for what no weight changes: the squares of the wanted outputs."""
        linear = torch.einsum("goi,gij,goj->", weight, self.inputs.squares, weight) - 2 * (weight * self.cross).sum()
        shift = 2 * (constant * (torch.einsum("goi,gi->go", weight, self.inputs.total) - self.outputs)).sum()
        return float(linear + shift + self.inputs.n * constant.square().sum())

    def solve(
        self, start: Float[Tensor, "groups out in"], *, intercept: bool, damping: float = 1e-3
    ) -> tuple[Float[Tensor, "groups out in"], Float[Tensor, "groups out"]]:
        """The weights nearest to the wanted outputs, and the constant to add to what they compute.

        Minimizes |Y - X W' - c|^2 / n + d |W - W_0|^2, whose solution is W = W_0 + (B - W_0 A) (A + d I)^-1 with A the inputs'
        covariance and B the outputs' with the inputs (second moments and c = 0 where there is no intercept).

        Args:
            start: W_0, to which directions that the data do not decide stay close.
            intercept: whether the layer can add a constant.
            damping: d as a share of the inputs' mean variance (a little of their mean square is added).

        Source: ridge regression; He et al., Channel Pruning, ICCV 2017, section 3.1, fit pruned layers so. Deviation: towards
        the weights there are instead of towards zero.
        """
        mean_x, mean_y = self.inputs.mean, self.outputs / self.inputs.n
        a, b = self.inputs.covariance if intercept else self.inputs.products, self.cross / self.inputs.n
        if intercept:
            b = b - mean_y.unsqueeze(2) * mean_x.unsqueeze(1)
        size = self.inputs.products.diagonal(dim1=1, dim2=2).mean(1)
        ridge = (damping * a.diagonal(dim1=1, dim2=2).mean(1) + min(damping, STILL) * size).clamp_min(1e-12)
        a_damped = a + ridge[:, None, None] * torch.eye(a.shape[1], dtype=a.dtype)
        w0 = start.double().cpu()
        weight = w0 + torch.linalg.solve(a_damped, (b - w0 @ a).mT).mT
        constant = mean_y - torch.einsum("goi,gi->go", weight, mean_x)
        return weight, constant if intercept else torch.zeros_like(constant)


@dataclass
class HeldOut:
    """A regression whose damping is told by rows that it was not fitted to.

    Every batch is halved: what the first halves give is judged on the second ones and the other way round. Few rows for many
    columns want much damping, and how much depends on the layer and on how alike the rows are.
    """

    parts: tuple[Regression, Regression]

    @staticmethod
    def empty(groups: int, outputs: int, inputs: int) -> "HeldOut":
        """Nothing seen yet."""
        return HeldOut((Regression.empty(groups, outputs, inputs), Regression.empty(groups, outputs, inputs)))

    @property
    def n(self) -> int:
        """Rows seen."""
        return self.parts[0].inputs.n + self.parts[1].inputs.n

    def add(self, x: Float[Tensor, "groups rows in"], y: Float[Tensor, "groups rows out"]) -> None:
        """Take in a batch, its rows in the order of the examples."""
        half = x.shape[1] // 2
        self.parts[0].add(x[:, :half], y[:, :half])
        self.parts[1].add(x[:, half:], y[:, half:])

    def solve(
        self, start: Float[Tensor, "groups out in"], *, intercept: bool
    ) -> tuple[Float[Tensor, "groups out in"], Float[Tensor, "groups out"]]:
        """As `Regression.solve` on all rows, with the damping that does best on rows held out."""
        return self.parts[0].merge(self.parts[1]).solve(start, intercept=intercept, damping=self._damping(start, intercept))

    def _damping(self, start: Float[Tensor, "groups out in"], intercept: bool) -> float:
        first, second = self.parts
        if not first.inputs.n or not second.inputs.n:
            return DAMPINGS[0]

        def error(damping: float) -> float:
            return sum(
                judge.error(*fit.solve(start, intercept=intercept, damping=damping)) for fit, judge in ((first, second), (second, first))
            )

        return min(DAMPINGS, key=error)
