"""What a model loses when its layers are factorized, told from calibration inputs: for every layer, ranks with costs and losses."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import Form, damped, full_ranks, spatial_errors, svd_errors, tucker_errors
from sizewise.arith.moments import Gram
from sizewise.arith.packing import packed
from sizewise.data.batches import apart
from sizewise.data.gram import input_grams, unfolded
from sizewise.data.outputs import OutputChange
from sizewise.graph.factorize import Factoring, factor_shapes, forms, out_sides
from sizewise.protocols import Inputs, Progress, Silent
from sizewise.types import LayerShape, Skip

__all__ = [
    "LEVELS",
    "PROBE",
    "FactorOption",
    "Moments",
    "factor_options",
    "layer_moments",
    "moments_of",
    "rank_losses",
    "rank_steps",
    "scaled",
]

CHUNK_BYTES = 500_000_000  # of statistics held at a time
WIDEST = 8192  # inputs per output of a layer whose moments fit
ROWS, ROWS_PER_COLUMN = 2**14, 20  # that moments are taken from, where there are so many
PROBE = 32  # examples on which outputs are compared
KNOTS = (0.6, 0.3)  # of a layer's parameters, at which they are
ROOM = 8  # multiples that a rank should at least be able to take
LEVELS = {"svd": 48, "spatial": 16, "tucker": 8}  # ranks tried along one axis


@dataclass(frozen=True, kw_only=True)
class FactorOption:
    """One way to factorize one layer.

    Attributes:
        factoring: form and ranks.
        params: of the new layers.
        macs: of the new layers, in one call.
        loss: what the layer's outputs lose as a share of their mean square, or in units of the model's outputs where it was scaled.
    """

    factoring: Factoring
    params: int
    macs: int
    loss: float


@dataclass(frozen=True)
class Moments:
    """Of what a layer reads.

    Attributes:
        matrix: covariance where the layer can add a constant, else mean products; None where they are not known.
        mean: of every input where the layer can add a constant, else zeros.
    """

    matrix: Tensor | None
    mean: Tensor | None = None


def factor_options(layer: nn.Module, shape: LayerShape, moments: Tensor | None, multiple: int = 1) -> list[FactorOption]:
    """All forms and ranks worth looking at, with the loss of the layer's own outputs; those that save nothing are among them.

    Args:
        layer: linear, or a convolution without groups.
        shape: what it works on.
        moments: of its inputs; None for a loss of weights alone.
        multiple: ranks are multiples of this, or of its half, quarter, ... where there would not be eight of them.
    """
    weight = layer.get_parameter("weight").detach().double()
    found = []
    for form in forms(shape.kernel):
        if form == "svd" or weight[0].numel() <= WIDEST:
            found += [(Factoring(form, ranks), loss) for ranks, loss in _losses(weight, moments, form, multiple)]
    return [_option(shape, factoring, loss, layer.get_parameter("bias").numel() if _bias(layer) else 0) for factoring, loss in found]


def _bias(layer: nn.Module) -> bool:
    return layer._parameters.get("bias") is not None


def _option(shape: LayerShape, factoring: Factoring, loss: float, bias: int) -> FactorOption:
    parts = factor_shapes(shape, factoring)
    params = bias + sum(part.out_channels * part.in_channels * prod(part.kernel) for part in parts)
    return FactorOption(factoring=factoring, params=params, macs=sum(map(layer_macs, parts)), loss=loss)


def layer_macs(shape: LayerShape) -> int:
    """Multiplications of a linear layer or a convolution."""
    positions = prod(out_sides(shape)) if shape.kind == "conv" else 1
    return shape.batch * positions * shape.out_channels * shape.in_channels * prod(shape.kernel)


def _losses(weight: Tensor, moments: Tensor | None, form: Form, multiple: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Ranks and the layer's own loss."""
    ranks = [rank_steps(most, multiple, LEVELS[form]) for most in full_ranks(weight.shape, form)]
    if form == "svd":
        every = svd_errors(weight.flatten(1), moments)
        yield from (((rank,), every[rank]) for rank in ranks[0])
    elif form == "spatial":
        yield from (((rank,), loss) for rank, loss in zip(ranks[0], spatial_errors(weight, moments, ranks[0]), strict=True))
    else:
        table = tucker_errors(weight, moments, ranks[0], ranks[1])
        yield from zip(product(*ranks), (loss for row in table for loss in row), strict=True)


def rank_steps(most: int, multiple: int, count: int) -> list[int]:
    """Ranks to look at, rising: all multiples, or so many in about equal proportions, and the whole, at which nothing is lost.

    Args:
        most: the whole.
        multiple: ranks are multiples of this, or of its half, quarter, ... where there would not be eight of them.
        count: how many are enough.
    """
    step = multiple
    while step % 2 == 0 and most < ROOM * step:
        step //= 2
    step = step if most >= step else 1
    places = most // step
    chosen = range(1, places + 1) if places <= count else np.unique(np.geomspace(1, places, count).round().astype(int)).tolist()
    return sorted({*(step * place for place in chosen), most})


def rank_losses(
    model: nn.Module,
    shapes: Mapping[str, LayerShape],
    batches: Sequence[Inputs],
    absorbing: Collection[str],
    multiple: int = 1,
    progress: Progress | None = None,
) -> tuple[dict[str, list[FactorOption]], tuple[Skip, ...]]:
    """The options of every layer, with losses that can be compared between layers, and the layers without.

    Losses of a layer's own outputs are scaled so that with six and three tenths of its parameters left the loss is that of the model's
    outputs: their mean squared change, as a share of their variance, on examples that the statistics did not see. Without data losses
    are those of weights, as shares of each layer's.

    Args:
        model: in inference mode; as it was afterwards.
        shapes: what the layers work on, by path.
        batches: calibration inputs, or none.
        absorbing: paths of layers that can add a constant.
        multiple: ranks are multiples of this, where there is room (`factor_options`).
        progress: told which layer is being looked at.

    Raises:
        PreconditionError: the model fails on the data, or its outputs are not finite.
    """
    seen, probe = apart(batches, PROBE)
    change = OutputChange(model, probe) if probe else None
    found: dict[str, list[FactorOption]] = {}
    skips: list[Skip] = []
    for part, moments in layer_moments(model, shapes, seen, absorbing):
        for path in part:
            (progress or Silent()).working(f"judging the ranks of {path}")
            known = moments.get(path)
            layer = model.get_submodule(path)
            if batches and known is None:
                skips.append(Skip(what=path, reason="is never called as a layer on the calibration data"))
            elif known is not None and known.matrix is not None and not bool(known.matrix.isfinite().all()):
                skips.append(Skip(what=path, reason="its inputs on the calibration data are not finite"))
            else:
                own = factor_options(layer, shapes[path], known.matrix if known else None, multiple)
                if change is not None and known:
                    own = scaled(own, layer.get_parameter("weight").numel(), partial(_measured, model, layer, known, change))
                found[path] = own
    return {path: found[path] for path in shapes if path in found}, tuple(skips)


def layer_moments(
    model: nn.Module, shapes: Mapping[str, LayerShape], batches: Sequence[Inputs], absorbing: Collection[str]
) -> Iterator[tuple[list[str], dict[str, Moments]]]:
    """Layers in parts whose moments fit the memory meant for them, each with the moments of those that run.

    A layer with too many inputs has a matrix of None, and so has every layer without data.
    """
    paths = list(shapes)
    columns = {path: shapes[path].in_channels * prod(shapes[path].kernel) for path in paths}
    narrow = [path for path in paths if columns[path] <= WIDEST]
    wide = [path for path in paths if columns[path] > WIDEST]
    if wide or not batches:
        yield (wide if batches else paths), ({path: Moments(None) for path in wide} if batches else {})
    if not batches:
        return
    for part in packed((8 * columns[path] ** 2 for path in narrow), CHUNK_BYTES):
        named = [narrow[place] for place in part]
        grams = input_grams(model, named, batches, partial(_some, len(batches)))
        yield named, {path: moments_of(gram, path in absorbing) for path, gram in grams.items()}


def moments_of(gram: Gram, absorbs: bool) -> Moments:
    """What is known of a layer's inputs, damped; about their mean where the layer can add a constant."""
    mean = gram.mean[0] if absorbs else torch.zeros_like(gram.mean[0])
    return Moments(damped((gram.covariance if absorbs else gram.products)[0], gram.n), mean)


def _some(batches: int, module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Rows of as many examples of a batch as give enough over all batches, in single precision."""
    spread, columns = len(getattr(module, "kernel_size", ())), module.get_parameter("weight")[0].numel()
    if x.ndim > max(1, spread + 1):  # there is a batch
        rows = max(ROWS, ROWS_PER_COLUMN * columns) // batches
        x = x[: max(1, -(-rows // max(1, prod(x.shape[2:] if spread else x.shape[1:-1]))))]
    yield from (part.float() for part in unfolded(module, x))


def scaled(options: list[FactorOption], whole: int, measured: Callable[[Factoring], float]) -> list[FactorOption]:
    """Losses in units of the outputs' change, measured at two of them and interpolated.

    Args:
        options: with losses of the layer's own outputs.
        whole: weights of the layer.
        measured: what the outputs lose with the layer factorized so.
    """
    factors: dict[float, float] = {}
    for share in KNOTS:
        near = [option for option in options if option.params <= share * whole and option.loss > 0]
        if near:
            option = min(near, key=lambda option: option.loss)
            factors[option.loss] = measured(option.factoring) / option.loss
    if not factors:
        return options
    known = sorted(factors)
    scale = [factors[loss] for loss in known]
    return [replace(option, loss=option.loss * float(np.interp(option.loss, known, scale))) for option in options]


def _measured(model: nn.Module, layer: nn.Module, moments: Moments, change: OutputChange, factoring: Factoring) -> float:
    """What the model's outputs lose with one layer factorized."""
    weight = layer.get_parameter("weight")
    new = factoring.composed(factoring.solved(weight.detach(), moments.matrix, sweeps=0))
    constant = None if moments.mean is None else (weight.detach().double() - new).flatten(1) @ moments.mean
    with _other_weight(layer, new, constant):
        found = change(model)
    return min(found, 1e6)  # infinite losses cannot be interpolated


@contextmanager
def _other_weight(layer: nn.Module, new: Tensor, constant: Tensor | None) -> Iterator[None]:
    weight = layer.get_parameter("weight")
    old = weight.data

    def add(module: nn.Module, _: Any, out: Tensor) -> Tensor:
        spread = 0 if isinstance(module, nn.Linear) else old.ndim - 2
        return out if constant is None else out + constant.to(out).reshape(-1, *[1] * spread)

    handle = layer.register_forward_hook(add)
    weight.data = new.to(old)
    try:
        yield
    finally:
        weight.data = old
        handle.remove()
