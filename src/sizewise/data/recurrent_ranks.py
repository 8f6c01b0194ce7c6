"""What a model loses when matrices of its recurrent layers become products of two: for every matrix, ranks with bytes and losses.

As `data/rank_losses.py`, but that a rank saves stored numbers only: the decoded matrix is multiplied as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import svd_errors
from sizewise.arith.moments import Gram
from sizewise.data.batches import apart
from sizewise.data.outputs import OutputChange
from sizewise.data.rank_losses import LEVELS, PROBE, FactorOption, Moments, moments_of, rank_steps, scaled
from sizewise.graph.factorize import Factoring
from sizewise.graph.hooks import hooked
from sizewise.graph.recurrent_matrices import Matrix, matrix_inputs
from sizewise.protocols import Inputs, Progress, Silent
from sizewise.types import Skip

__all__ = ["matrix_losses", "matrix_moments"]


def matrix_losses(
    model: nn.Module, matrices: Sequence[Matrix], batches: Sequence[Inputs], progress: Progress | None = None
) -> tuple[dict[str, list[FactorOption]], tuple[Skip, ...]]:
    """The options of every matrix by its name, with losses that can be compared with those of `rank_losses`, and matrices without.

    Args:
        model: in inference mode; as it was afterwards.
        matrices: of its recurrent layers.
        batches: calibration inputs, or none: then losses are those of weights, as shares of each matrix's.
        progress: told which matrix is being looked at.

    Raises:
        PreconditionError: the model fails on the data, or its outputs are not finite.
    """
    seen, probe = apart(batches, PROBE)
    change = OutputChange(model, probe) if probe and matrices else None
    moments = matrix_moments(model, matrices, seen)
    found: dict[str, list[FactorOption]] = {}
    skips: list[Skip] = []
    for matrix in matrices:
        (progress or Silent()).working(f"judging the ranks of {matrix.name}")
        known = moments.get(matrix.name)
        if batches and known is None:
            skips.append(Skip(what=matrix.name, reason="is never called as a layer on the calibration data"))
        elif known is not None and known.matrix is not None and not bool(known.matrix.isfinite().all()):
            skips.append(Skip(what=matrix.name, reason="its inputs on the calibration data are not finite"))
        else:
            weight = model.get_parameter(matrix.name).detach().double()
            own = _options(weight, known.matrix if known else None)
            if change is not None and known:
                own = scaled(own, weight.numel(), partial(_measured, model, matrix, known, change))
            found[matrix.name] = own
    return found, tuple(skips)


def matrix_moments(model: nn.Module, matrices: Sequence[Matrix], batches: Sequence[Inputs]) -> dict[str, Moments]:
    """Of what every matrix multiplies, by its name; of those that run on the data."""
    grams: dict[str, Gram] = {}
    paths = tuple(dict.fromkeys(matrix.path for matrix in matrices))

    def note(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.RNNBase)
        for name, rows in matrix_inputs(module, args[0]):
            whole = f"{path}.{name}" if path else name
            gram = grams.setdefault(whole, Gram.empty(1, rows.shape[1], rows.device))
            gram.add(rows.unsqueeze(0))

    with hooked([model.get_submodule(path).register_forward_pre_hook(partial(note, path)) for path in paths]), torch.no_grad():
        for batch in batches:
            batch.call(model)
    return {matrix.name: moments_of(grams[matrix.name], matrix.bias is not None) for matrix in matrices if matrix.name in grams}


def _options(weight: Tensor, moments: Tensor | None) -> list[FactorOption]:
    """Any rank is as good for the kernel as another, since it does not see it."""
    losses, count = svd_errors(weight, moments), sum(weight.shape)
    return [
        FactorOption(factoring=Factoring("svd", (rank,)), params=rank * count, macs=weight.numel(), loss=losses[rank])
        for rank in rank_steps(min(weight.shape), 1, LEVELS["svd"])
    ]


def _measured(model: nn.Module, matrix: Matrix, moments: Moments, change: OutputChange, factoring: Factoring) -> float:
    """What the model's outputs lose with one matrix factorized."""
    weight = model.get_parameter(matrix.name).detach().double()
    new = factoring.composed(factoring.solved(weight, moments.matrix))
    values = {matrix.name: new}
    if matrix.bias is not None and moments.mean is not None:
        values[matrix.bias] = model.get_parameter(matrix.bias).detach().double() + (weight - new) @ moments.mean
    with _other_values(model, values):
        found = change(model)
    return min(found, 1e6)  # infinite losses cannot be interpolated


@contextmanager
def _other_values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    old = {name: model.get_parameter(name).detach().clone() for name in values}
    try:
        _put(model, values)
        yield
    finally:
        _put(model, old)


def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
