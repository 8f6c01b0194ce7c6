"""Weights rounded to few values so that output error and entropy-coded size are small together.

A row's output error after a change d of its weights is d H d' (`arith/rounding.py`). Codes are entropy coded afterwards, so that
a code costs -log2 of its share, and what is minimized is error + slope * bits. Where error falls with the rate R as c 2^(-2R), which
holds for uniform steps D that are small beside the weights, error is D^2 / 12 per weight and its slope 2 ln 2 D^2 / 12: with that slope
one bit more is worth what it costs, and steps of all layers fit one another when their slopes in the loss of the model are the same.

On layer2.4.conv2 and layer3.5.conv1 of ResNet-56 (covariances of 200 pictures, bits by entropy), errors at the same bits as shares of those
of nearest codes: at 1.5 bits 0.68 and 0.60 with compensation, 0.62 and 0.54 with prices too; at 3 bits 0.63 and 0.55 either way. Half
and twice the slope are about as good there, but over many layers half of it was better: at 1.4 bits the outputs of a GRU changed by
1.1 % of their variance instead of 2.6 %, and those of ResNet-20 by 3.6 % instead of 3.8 %. Prices draw weights towards zero, and what
single layers do not show adds up. A step for every column, in proportion to its U_ii (below), would be worth another 0.03 to 0.12 bits,
about what storing such steps takes; it was left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sizewise.arith.code_rates import code_bits, code_counts, entropy_bits
from sizewise.arith.rounding import damped, output_errors
from sizewise.errors import PreconditionError, UsageError

__all__ = ["SLOPE", "Rounded", "nearest_codes", "rate_rounded", "uniform_levels"]

SLOPE = math.log(2) / 12  # in squared steps per bit: half of that of the error at high rates
ROUNDS = 2  # rounding, then prices by the codes it gave, then rounding again
LEAST = 1e-9  # damping that makes moments invertible in double precision
SLAB = 128  # columns whose changes are passed on to the others at once
MOST = 2**21  # weights held at once; rows are independent and taken in parts
WHERE = "rounding of weights"

Weight = Float[Tensor, "groups out in"]
Moments = Float[Tensor, "groups in in"]
Levels = Float[Tensor, "options levels"]


@dataclass(frozen=True)
class Rounded:
    """Codes of one matrix under several sets of values.

    Attributes:
        codes: places in the set of values.
        values: what they are worth.
        errors: output errors d H d', all rows together.
        bits: of the codes, by their own distribution.
        cost: what a squared error of one weight costs on average, once others have made up for it.
    """

    codes: Int[Tensor, "options groups out in"]
    values: Float[Tensor, "options groups out in"]
    errors: Float[Tensor, " options"]
    bits: Float[Tensor, " options"]
    cost: float


def uniform_levels(steps: Float[Tensor, " options"], most: int) -> Levels:
    """Values of uniform grids: every step times -most to most."""
    return steps.double().unsqueeze(1) * torch.arange(-most, most + 1, dtype=torch.float64)


def nearest_codes(weight: Weight, levels: Levels) -> Int[Tensor, "options groups out in"]:
    """The codes of the nearest values."""
    middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    flat = weight.detach().double().reshape(1, -1).expand(len(levels), -1).contiguous()
    return torch.searchsorted(middles, flat).reshape(len(levels), *weight.shape)


def rate_rounded(
    weight: Weight,
    moments: Moments,
    levels: Levels,
    spacing: Float[Tensor, " options"],
    importance: Float[Tensor, "groups out"] | None = None,
    slope: float = SLOPE,
    rounds: int = ROUNDS,
) -> Rounded:
    """Round column by column; columns that are left make up for each one's error, and a code is taken for its price too.

    With columns before i settled, an error e of w_i costs (e / U_ii)^2 (`arith/rounding.gptq`). Tried are the two nearest values
    and the one whose code is cheapest, mostly zero. Prices come from the distribution of nearest codes, then from that of the
    codes found.

    Args:
        weight: one matrix per group of the layer.
        moments: of every group's inputs, `damped` if there were few.
        levels: values that there are, rising; several sets are rounded to side by side.
        spacing: distance of neighbouring values: the step of a grid.
        importance: what an error of every output counts; 1 by default.
        slope: price of a bit, in squared spacings times what an error of that size costs on average; 0 rounds for the error alone.
        rounds: how often, at least 1.

    Returns:
        codes for which importance * error + price * bits, with bits by the codes' last known distribution, is in no row larger
        than that of nearest values: rows for which it would be are rounded to nearest.

    Raises:
        UsageError: no value, values that do not rise, or no round.
        PreconditionError: weights or moments that are not finite.

    Source: Frantar et al., OPTQ (GPTQ), ICLR 2023, for order and compensation. Prices: entropy-constrained quantization by Chou,
    Lookabaugh and Gray, IEEE ASSP 1989; for networks Choi, El-Khamy and Lee, Towards the Limit of Network Quantization, ICLR 2017, and
    Wiedemann et al., DeepCABAC, IEEE JSTSP 2020, who price every weight by itself, without compensation.
    """
    _check(weight, levels, rounds)
    problem = _Problem.of(weight, damped(moments, LEAST), levels, importance)
    near = nearest_codes(weight, levels)
    bits = code_bits(_counts(near, levels))
    cost = problem.mean_cost()
    price = slope * spacing.double().square() * cost
    codes, near_errors = near, problem.errors(near)
    for _ in range(rounds):
        prices = price.unsqueeze(1) * bits
        codes = problem.cheaper(near, near_errors, problem.rounded(prices), prices)
        bits = code_bits(_counts(codes, levels))
    values = problem.values(codes)
    errors = torch.stack([output_errors(weight, own, moments).sum() for own in values])
    return Rounded(codes, values, errors, entropy_bits(_counts(codes, levels)), cost)


def _check(weight: Tensor, levels: Tensor, rounds: int) -> None:
    if not levels.shape[1] or bool((levels.diff(dim=1) <= 0).any()) or rounds < 1:
        raise UsageError("values must rise, and one round is the least", where=WHERE, got=f"{levels.shape[1]} values, {rounds} rounds")
    if not bool(weight.isfinite().all()):
        raise PreconditionError("weights are not finite", where=WHERE)


def _counts(codes: Tensor, levels: Tensor) -> Tensor:
    return code_counts(codes.flatten(1), levels.shape[1])


@dataclass(frozen=True)
class _Problem:
    """Columns in the order in which they are settled, in double precision.

    Attributes:
        weight: permuted, [groups, out, in].
        plain, moments: not permuted.
        factor: upper triangular U with U'U the inverse of the permuted moments.
        place: where each column was before.
        levels: of all options.
        importance: of every output.
    """

    weight: Tensor
    plain: Tensor
    moments: Tensor
    factor: Tensor
    place: Tensor
    levels: Tensor
    importance: Tensor

    @staticmethod
    def of(weight: Tensor, moments: Tensor, levels: Tensor, importance: Tensor | None) -> "_Problem":
        plain = weight.detach().double()
        order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        sorted_moments = moments.gather(1, order[:, :, None].expand_as(moments)).gather(2, order[:, None].expand_as(moments))
        ones = torch.ones(plain.shape[:2], dtype=torch.float64)
        return _Problem(
            plain.gather(2, order[:, None].expand_as(plain)),
            plain,
            moments,
            _inverse_factor(sorted_moments),
            order,
            levels.double(),
            ones if importance is None else importance.double(),
        )

    def mean_cost(self) -> float:
        """What a squared error costs on average, of a column whose followers make up for it."""
        return float((self.importance.mean(1) * self.factor.diagonal(dim1=1, dim2=2).square().reciprocal().mean(1)).mean())

    def rounded(self, prices: Tensor) -> Tensor:
        """Codes by the prices [options, levels]."""
        rows = max(1, MOST // max(1, len(self.levels) * self.weight.shape[0] * self.weight.shape[2]))
        parts = [self._part(prices, slice(start, start + rows)) for start in range(0, self.weight.shape[1], rows)]
        codes = torch.cat(parts, 2)
        return torch.empty_like(codes).scatter_(3, self.place[None, :, None].expand_as(codes), codes)

    def _part(self, prices: Tensor, rows: slice) -> Tensor:
        settle = _Settle(self.levels, prices, self.importance[:, rows])
        left = self.weight[:, rows].unsqueeze(0).repeat(len(self.levels), 1, 1, 1)
        codes = torch.zeros(left.shape, dtype=torch.int64)
        for start, stop in _slabs(left.shape[3]):
            errors = torch.zeros_like(left[..., start:stop])
            for i in range(start, stop):
                codes[..., i], errors[..., i - start] = settle(left[..., i], self.factor[:, i, i])
                left[..., i:stop] -= errors[..., i - start, None] * self.factor[:, None, i, i:stop]
            left[..., stop:] -= errors @ self.factor[:, start:stop, stop:]
        return codes

    def values(self, codes: Tensor) -> Tensor:
        """What codes are worth."""
        return self.levels.gather(1, codes.flatten(1)).reshape(codes.shape)

    def errors(self, codes: Tensor) -> Tensor:
        """Output errors of codes, row by row."""
        return torch.stack([output_errors(self.plain, own, self.moments) for own in self.values(codes)])

    def cheaper(self, old: Tensor, old_errors: Tensor, new: Tensor, prices: Tensor) -> Tensor:
        """Row by row, the codes whose error and bits together cost less."""
        costs = []
        for codes, errors in ((old, old_errors), (new, self.errors(new))):
            bits = prices.gather(1, codes.flatten(1)).reshape(codes.shape).sum(-1)
            costs.append(errors * self.importance + bits)
        return torch.where((costs[1] < costs[0]).unsqueeze(-1), new, old)


class _Settle:
    """Settles one column of all rows."""

    def __init__(self, levels: Tensor, prices: Tensor, importance: Tensor) -> None:
        self.levels, self.prices, self.importance = levels, prices, importance
        self.middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        self.cheapest = prices.argmin(1)

    def __call__(self, column: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and errors e / U_ii of a column [options, groups, out], whose groups' U_ii are given."""
        options, flat = len(column), column.flatten(1)
        near = torch.searchsorted(self.middles, flat.contiguous())
        value = self.levels.gather(1, near)
        other = (near + torch.where(flat > value, 1, -1)).clamp_(0, self.levels.shape[1] - 1)
        tried = torch.stack([near, other, self.cheapest[:, None].expand_as(near)], 2).flatten(1)
        worth = self.levels.gather(1, tried).reshape(options, -1, 3)
        weight = (self.importance / diagonal.square().unsqueeze(1)).flatten()[:, None]
        cost = (flat.unsqueeze(2) - worth).square() * weight + self.prices.gather(1, tried).reshape(options, -1, 3)
        best = cost.argmin(2, keepdim=True)
        code = tried.reshape(options, -1, 3).gather(2, best).squeeze(2)
        error = (flat - worth.gather(2, best).squeeze(2)).reshape(column.shape) / diagonal[:, None]
        return code.reshape(column.shape), error


def _slabs(inputs: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + SLAB, inputs)) for start in range(0, inputs, SLAB))


def _inverse_factor(moments: Tensor) -> Tensor:
    """inv(R) of H = R R', R upper triangular."""
    upper = torch.linalg.cholesky(moments.flip(1, 2)).flip(1, 2)
    eye = torch.eye(moments.shape[1], dtype=moments.dtype)
    factor: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    return factor
