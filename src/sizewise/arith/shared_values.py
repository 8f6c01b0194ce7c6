"""The few values that weights share: chosen by least squared error, and fitted once it is known which weight has which."""

import itertools

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sizewise.arith.rounding import LEAST, damped
from sizewise.errors import PreconditionError, UsageError

__all__ = ["fitted_levels", "fitted_scale", "shared_values"]

POINTS = 256  # that exact clustering is done on; more weights are binned first
TURNS = 20  # of Lloyd's iteration, at most
PULL = 1e-6  # towards the levels there were, as a share of what the fit knows
WHERE = "values that weights share"


def shared_values(values: Float[Tensor, " n"], count: int, importance: Float[Tensor, " n"] | None = None) -> Float[Tensor, " levels"]:
    """At most `count` values, rising, of least importance * (value - nearest of them)^2.

    Exact for up to `POINTS` different values: dynamic programming over the places where sorted values are parted. More are first put
    into bins of equal width, and the outcome is improved by Lloyd's iteration on all values.

    Args:
        values: to be shared.
        count: of levels, at least 1.
        importance: of every value, not negative; equal by default.

    Raises:
        UsageError: fewer than one level, nothing to share, or importance that is negative or of another length.
        PreconditionError: values or importance that are not finite.

    Source: Wang and Song, Ckmeans.1d.dp, R Journal 2011, for the dynamic programming; Lloyd, Least Squares Quantization in PCM, 1982.
    Weighting by second derivatives: Choi, El-Khamy and Lee, Towards the Limit of Network Quantization, ICLR 2017.
    """
    x = values.detach().double().flatten()
    w = torch.ones_like(x) if importance is None else importance.detach().double().flatten()
    _check(x, w, count)
    w = torch.where(w.sum() > 0, w, 1.0)
    points, weights = _points(x, w)
    levels = torch.from_numpy(_parted(points.numpy(), weights.numpy(), count))
    return levels if len(points) < POINTS else _lloyd(x, w, levels)


def fitted_levels(
    weight: Float[Tensor, "groups out in"],
    moments: Float[Tensor, "groups in in"],
    codes: Int[Tensor, "groups out in"],
    levels: Float[Tensor, " levels"],
) -> Float[Tensor, " levels"]:
    """Values of least output error d H d' for given codes; those of codes that no weight has stay.

    Args:
        weight: that the codes stand for.
        moments: of every group's inputs.
        codes: places in `levels`.
        levels: that the codes were chosen with.

    Raises:
        PreconditionError: moments that are not finite.
    """
    moments, target = damped(moments, LEAST), weight.detach().double()
    used, places = torch.unique(codes, return_inverse=True)
    table = torch.zeros(len(used), len(used), dtype=torch.float64)
    wanted = torch.zeros(len(used), dtype=torch.float64)
    for row in range(len(used)):  # one at a time: all together would be as many matrices
        image = (places == row).double() @ moments
        table[row].scatter_add_(0, places.flatten(), image.flatten())
        wanted[row] = (image * target).sum()
    old = levels.double()[used]
    ridge = PULL * table.diagonal().mean() * torch.eye(len(used), dtype=torch.float64)
    found = levels.double().clone()
    found[used] = old + torch.linalg.solve(table + ridge, wanted - table @ old)
    return found


def fitted_scale(
    weight: Float[Tensor, "groups out in"], moments: Float[Tensor, "groups in in"], values: Float[Tensor, "groups out in"]
) -> float:
    """The factor of `values` of least output error; 1 where it would not be positive."""
    moments, values = damped(moments, LEAST), values.double()
    image = values @ moments
    below = float((image * values).sum())
    factor = float((image * weight.detach().double()).sum()) / below if below > 0 else 1.0
    return factor if factor > 0 else 1.0


def _check(x: Tensor, w: Tensor, count: int) -> None:
    if count < 1 or not len(x) or len(w) != len(x) or bool((w < 0).any()):
        got = f"{count} levels for {len(x)} values with {len(w)} weights"
        raise UsageError("values, not negative weights for each, and one level are the least", where=WHERE, got=got)
    if not bool(x.isfinite().all() & w.isfinite().all()):
        raise PreconditionError("values are not finite", where=WHERE)


def _points(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Different values, or the means of bins, rising, with what they count; what counts nothing is left out if anything counts."""
    unique, place = torch.unique(x, return_inverse=True)
    if len(unique) > POINTS:
        low, high = x.min(), x.max()
        place = ((x - low) / (high - low) * POINTS).long().clamp_max(POINTS - 1)
    size = int(place.max()) + 1
    weights = torch.zeros(size, dtype=torch.float64).scatter_add_(0, place, w)
    sums = torch.zeros(size, dtype=torch.float64).scatter_add_(0, place, w * x)
    kept = weights > 0
    return sums[kept] / weights[kept], weights[kept]


def _parted(
    x: "np.ndarray[tuple[int], np.dtype[np.float64]]", w: "np.ndarray[tuple[int], np.dtype[np.float64]]", count: int
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Means of the best parts of sorted points."""
    count, n = min(count, len(x)), len(x)
    mass, first, second = (np.concatenate([[0.0], np.cumsum(w * power)]) for power in (1.0, x - x[0], (x - x[0]) ** 2))
    starts, stops = np.arange(n + 1)[:, None], np.arange(n + 1)[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        within = mass[stops] - mass[starts]
        cost = second[stops] - second[starts] - (first[stops] - first[starts]) ** 2 / within
    cost = np.where(stops > starts, np.maximum(cost, 0), np.where(stops == starts, 0, np.inf))
    best, came = cost[0], []
    for _ in range(count - 1):
        through = best[:, None] + cost
        came.append(through.argmin(0))
        best = through.min(0)
    ends = [n]
    for table in reversed(came):
        ends.append(int(table[ends[-1]]))
    edges = sorted({0, *ends})
    return np.array([np.average(x[a:b], weights=w[a:b]) for a, b in itertools.pairwise(edges)])


def _lloyd(x: Tensor, w: Tensor, levels: Tensor) -> Tensor:
    """Values move to the nearest level and levels to the means of theirs, in turns; a level without any stays."""
    for _ in range(TURNS):
        codes = torch.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        mass = torch.zeros_like(levels).scatter_add_(0, codes, w)
        moved = torch.where(mass > 0, torch.zeros_like(levels).scatter_add_(0, codes, w * x) / mass.clamp_min(1e-300), levels)
        if torch.equal(moved, levels):
            break
        levels = moved
    rising: Tensor = torch.unique(levels)
    return rising
