"""How far a changed model's outputs are from what they were, on some data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.data.statistics import normalizations, reestimate_normalization
from sizewise.errors import PreconditionError, blaming
from sizewise.protocols import Inputs

__all__ = ["OutputChange", "output_tensors", "reestimate_if_nearer"]


def output_tensors(found: Any) -> list[Tensor]:
    """The floating-point tensors among a model's outputs, however they are nested.

    Raises:
        PreconditionError: there are none.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim]
    if not leaves:
        raise PreconditionError("the model's output holds no tensor of real numbers", got=type(found).__name__)
    return leaves


class OutputChange:
    """The mean squared change of every output as a share of its variance, averaged over the outputs.

    The variance is that between examples, number by number; where examples differ in shape, that of all numbers together.

    Args:
        model: whose present outputs are wanted, in inference mode.
        batches: inputs to compare on; at least one.

    Raises:
        PreconditionError: the model failed on these inputs, or its outputs are not finite.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        self._batches = batches
        with blaming("the model failed on these inputs", "calibration data"):
            self._wanted = [self._outputs(model, batch) for batch in batches]
        if not all(bool(tensor.isfinite().all()) for outputs in self._wanted for tensor in outputs):
            raise PreconditionError(
                "the model's outputs are not finite", where="calibration data", hint="look at the data and at the model's weights"
            )
        self._variance = [_variance([outputs[place] for outputs in self._wanted]) for place in range(len(self._wanted[0]))]

    def __call__(self, model: nn.Module) -> float:
        """The change of `model` on the same inputs; infinite where its outputs are not finite."""
        lost, count = torch.zeros(len(self._variance), dtype=torch.float64), torch.zeros(len(self._variance), dtype=torch.float64)
        for batch, wanted in zip(self._batches, self._wanted, strict=True):
            for place, (got, want) in enumerate(zip(self._outputs(model, batch), wanted, strict=True)):
                lost[place] += float((got.double() - want.double()).square().sum())
                count[place] += want.numel()
        change = float((lost / count / torch.tensor(self._variance, dtype=torch.float64)).mean())
        return change if change == change else float("inf")

    @staticmethod
    def _outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
        with torch.no_grad():
            return output_tensors(batch.call(model))


def _variance(wanted: Sequence[Tensor]) -> float:
    alike = len({tensor.shape[1:] for tensor in wanted}) == 1
    rows = torch.cat(list(wanted)).double().flatten(1 if wanted[0].ndim > 1 else 0) if alike else None
    if rows is not None and len(rows) > 1:
        return max(float(rows.var(0, correction=0).mean()), 1e-12)
    return max(float(torch.cat([tensor.double().flatten() for tensor in wanted]).var(correction=0)), 1e-12)


def reestimate_if_nearer(model: nn.Module, batches: Sequence[Inputs], change: OutputChange) -> bool:
    """Re-estimate normalization statistics, in place, where that brings the outputs nearer to what they were; says whether it did."""
    if not normalizations(model):
        return False
    before, old = change(model), {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_normalization(model, batches)
    if change(model) <= before:
        return True
    model.load_state_dict(old)
    return False
