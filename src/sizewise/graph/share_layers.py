"""Walk a graph beside a twin whose weights are being replaced, and tell for every weight what it should be there, and what errors cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from sizewise.arith.moments import Gram
from sizewise.arith.repair import HeldOut
from sizewise.arith.rounding import damped
from sizewise.errors import PreconditionError
from sizewise.graph.coded import Weight
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.weight_slots import Slot, Slots
from sizewise.protocols import Inputs, Progress

__all__ = ["Aim", "SharedWalk"]

DAMPING = 0.01  # of the moments, as a share of their mean diagonal, where there are rows enough;
STILL = 1e-5  # of the inputs' mean square, where these do not do
ENOUGH = 20  # rows for each column; with fewer it grows as they get scarcer
WHERE = "weight_sharing"


@dataclass(frozen=True)
class Aim:
    """What a weight should be, and what an error of it does.

    Attributes:
        slot: where it is used.
        weight: that makes of the twin's inputs what the whole model makes of its own, as nearly as weights can [groups, out, in]. Where
            there are no data, all weights as so many outputs of one input.
        moments: of the inputs, damped [groups, in, in]; ones where there are no data.
        inputs: moments of the inputs as they are; None without data.
        outputs: mean of the wanted outputs [groups, out].
    """

    slot: Slot
    weight: Tensor
    moments: Tensor
    inputs: Gram | None
    outputs: Tensor | None

    def settle(self, values: Tensor) -> None:
        """Give the twin these values of `weight`'s shape, and let biases take up what its outputs then lack on average."""
        values = values.reshape(self.slot.matrix.shape)
        self.slot.put(values)
        if self.inputs is not None and self.outputs is not None and self.slot.sinks:
            self.slot.lift(self.lacking(values))

    def vector_steps(self, density: float) -> dict[str, float]:
        """Steps of vectors that constants go into, by name, whose errors are as large in the outputs as `density`, squared."""
        if self.inputs is None:
            return {}
        gain = 1.0 if self.slot.gain is None else float(self.slot.gain.abs().median())
        return {name: gain * math.sqrt(12 * density) for name, _ in self.slot.sinks}

    def lacking(self, values: Tensor) -> Tensor:
        """Means of the wanted outputs less those of the values [groups * out]."""
        assert self.inputs is not None
        assert self.outputs is not None
        means = torch.einsum("goi,gi->go", values.double(), self.inputs.mean)
        return (self.outputs - means).flatten()


class SharedWalk:
    """One walk through a graph.

    Args:
        graph: exported.
        weights: of it.
        batches: calibration inputs; all activations of one place are held at a time, twice. None are good, too.
        seed: of the choice of positions where there are more than enough.
        progress: told which weight is being worked on.

    Source: as in `graph/refit.py`.
    """

    def __init__(self, graph: GraphModule, weights: Sequence[Weight], batches: Sequence[Inputs], seed: int, progress: Progress) -> None:
        self._lockstep = Lockstep(graph, batches)
        self._slots = Slots(self._lockstep, weights)
        self._generator = torch.Generator().manual_seed(seed)
        self._progress = progress

    def aims(self, *, fit: bool) -> Iterator[Aim]:
        """Every weight at its first use, in the order of running; the next one's inputs come from what is settled before it is asked for.

        Args:
            fit: whether weights may move to what the whole model's outputs want of them; else they stay what they are.

        Raises:
            PreconditionError: activations are not finite.
        """
        for node in self._lockstep.walk():
            for slot in self._slots.at(node):
                self._progress.working(f"values of {slot.weight.label}")
                yield _aim(slot, slot.regression(self._generator), fit)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The twin's, by name."""
        return self._lockstep.weights


def _aim(slot: Slot, regression: HeldOut, fit: bool) -> Aim:
    if not regression.n:
        flat = slot.matrix.reshape(1, -1, 1)
        return Aim(slot, flat, torch.ones(1, 1, 1, dtype=torch.float64), None, None)
    both = regression.parts[0].merge(regression.parts[1])
    if not bool(both.inputs.squares.isfinite().all() & both.cross.isfinite().all()):
        raise PreconditionError("activations on the calibration data are not finite", where=f"{WHERE}, {slot.weight.label}")
    moments = both.inputs.covariance if slot.sinks else both.inputs.products
    weight = regression.solve(slot.matrix, intercept=bool(slot.sinks))[0] if fit and slot.fitted else slot.matrix
    scarce = ENOUGH * moments.shape[1] / both.inputs.n
    return Aim(slot, weight, _definite(damped(moments, DAMPING * max(1.0, scarce)), both.inputs), both.inputs, both.outputs / both.inputs.n)


def _definite(moments: Tensor, inputs: Gram) -> Tensor:
    """Damped moments, and more so where inputs hardly vary about their mean: sums in single precision then leave negative variances."""
    if not bool(torch.linalg.cholesky_ex(moments).info.any()):
        return moments
    size = inputs.products.diagonal(dim1=1, dim2=2).mean(1)
    ridge = STILL * size + 2 * torch.linalg.eigvalsh(moments)[:, 0].clamp_max(0).abs()
    return moments + torch.diag_embed(ridge[:, None].expand(moments.shape[:2]))
