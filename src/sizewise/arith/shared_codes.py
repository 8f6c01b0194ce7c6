"""A weight matrix as codes and the few values that they stand for."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sizewise.arith.rate_rounding import SLOPE, nearest_codes, rate_rounded, uniform_levels
from sizewise.arith.rounding import output_errors
from sizewise.arith.shared_values import fitted_levels, fitted_scale, shared_values
from sizewise.errors import UsageError

__all__ = ["Shared", "Values", "finest_step", "on_codebook", "on_grid"]

Values = Literal["auto", "uniform", "codebook"]
MOST = 127  # codes of one byte reach from -127 to 127
FAR = 1023  # codes of a grid reach to, if there are at most
LISTED = 256  # different ones, as where few weights are far from all others
COARSER = 1.2  # the next step where there are more
FINEST = 24  # steps to the root mean square of weights
FEW = 32  # different codes up to which single values are fitted: the work grows with them, and what it gains falls

Weight = Float[Tensor, "groups out in"]
Moments = Float[Tensor, "groups in in"]


@dataclass(frozen=True)
class Shared:
    """Codes and values.

    Attributes:
        codes: from `low` on.
        levels: what codes are worth, the first that of `low`; in single precision.
        low: the least code there can be.
        scale: of a grid, where a code is worth itself times that; None for single values.
        density: output error per weight that one step or cell costs on average: what an error elsewhere may cost too.
    """

    codes: Int[Tensor, "groups out in"]
    levels: Float[Tensor, " levels"]
    low: int
    scale: float | None
    density: float

    @property
    def values(self) -> Weight:
        """What the codes are worth."""
        return self.levels[self.codes - self.low]


def finest_step(weight: Weight) -> float:
    """The finest step at which codes still fit one byte, nearly: that of the largest weight, or of most weights where few are far out.

    In BERT's layers the largest weight is up to twenty root mean squares, so that with 127 codes up to there a step is 0.15 of these.
    """
    largest, rms = float(weight.abs().max()), float(weight.double().square().mean().sqrt())
    return max(largest / FAR, min(largest / MOST, rms / FINEST))


def on_grid(
    weight: Weight, moments: Moments, step: float, most: int | None = None, slope: float = SLOPE, *, single: bool = False
) -> Shared:
    """Multiples of one scale, small in output error and bits together (`arith/rate_rounding.py`).

    Args:
        weight: to be rounded.
        moments: of its inputs, damped.
        step: that codes are chosen with; the scale is fitted afterwards.
        most: largest code; as many as the weights need by default.
        slope: price of bits.
        single: whether every value may be fitted by itself, where few codes are used and it is worth the bytes.

    Raises:
        UsageError: a step that is not positive.
        PreconditionError: what is not finite.
    """
    if not step > 0:
        raise UsageError("the step must be positive", where="values that weights share", got=str(step))
    most = most or max(1, min(FAR, math.ceil(float(weight.abs().max()) / step)))
    steps = torch.tensor([step], dtype=torch.float64)
    found = rate_rounded(weight, moments, uniform_levels(steps, most), steps, slope=slope)
    codes = found.codes[0] - most
    used, places = torch.unique(codes, return_inverse=True)
    if len(used) > LISTED:
        return on_grid(weight, moments, COARSER * step, None, slope, single=single)
    density = step**2 / 12 * found.cost
    scale = float(torch.tensor(step * fitted_scale(weight, moments, found.values[0]), dtype=torch.float32))
    if int(codes.abs().max()) > MOST:
        return Shared(places, used.float() * scale, 0, None, density)
    grid = Shared(codes, torch.arange(-MOST, MOST + 1).float() * scale, -MOST, scale, density)
    return _single(weight, moments, grid) if single else grid


def on_codebook(weight: Weight, moments: Moments, count: int, slope: float = SLOPE) -> Shared:
    """At most `count` values, clustered by what they do to outputs and fitted once codes are known.

    Raises:
        UsageError: fewer than one value.
        PreconditionError: what is not finite.
    """
    importance = moments.diagonal(dim1=1, dim2=2).unsqueeze(1).expand_as(weight)
    levels = shared_values(weight, count, importance).unsqueeze(0)
    near = levels[0][nearest_codes(weight, levels)[0]]
    spacing = (12 * (near - weight.double()).square().mean()).sqrt().reshape(1)
    found = rate_rounded(weight, moments, levels, spacing, slope=slope)
    few = count <= FEW
    fitted = _rising(fitted_levels(weight, moments, found.codes[0], levels[0]), levels[0]) if few else levels[0]
    return Shared(found.codes[0], _stored(fitted), 0, None, float(spacing) ** 2 / 12 * found.cost)


def _single(weight: Tensor, moments: Tensor, grid: Shared) -> Shared:
    """With values of their own, where that is worth the bytes that they take."""
    used, codes = torch.unique(grid.codes, return_inverse=True)
    if len(used) > FEW:
        return grid
    levels = _stored(_rising(fitted_levels(weight, moments, codes, grid.levels[used - grid.low]), grid.levels[used - grid.low]))
    found = Shared(codes, levels, 0, None, grid.density)
    errors = [float(output_errors(weight, one.values, moments).sum()) for one in (grid, found)]
    price = 12 * SLOPE * grid.density * 16 * len(used)
    return found if errors[1] + price < errors[0] else grid


def _rising(levels: Tensor, old: Tensor) -> Tensor:
    """Fitted values, or the old ones if two have changed places, which only data of very few dimensions make them do."""
    return levels if bool((levels.diff() > 0).all()) else old.double()


def _stored(levels: Tensor) -> Tensor:
    """As they are stored: in half precision, if that is small beside the distance between them."""
    half = levels.half().double()
    least = float(levels.diff().min()) if len(levels) > 1 else float("inf")
    return half.float() if bool(((half - levels).abs() <= least / 100).all()) else levels.float()
