"""Which weights of a matrix go, alone, N of every M or block by block, and how the remaining ones make up for them.

A row of a matrix holds the weights of one output, a column those of one input. Masks are true where a weight stays.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sizewise.errors import UsageError

__all__ = ["Pattern", "joint_masks", "parse_pattern", "prune_mask", "refit_kept", "surgeon_prune", "wanda"]


@dataclass(frozen=True)
class Pattern:
    """What goes together, and how much goes.

    Attributes:
        rows: consecutive outputs of a block.
        columns: consecutive inputs of a block, or M of N:M.
        kept: N of N:M, or None for blocks (a single weight is a block of 1x1).
        rate: share removed, in [0, 1).
    """

    rows: int
    columns: int
    kept: int | None
    rate: float

    def misfit(self, outputs: int, inputs: int) -> str | None:
        """Why a matrix of that shape cannot be pruned in this pattern, or None when it can."""
        if inputs % self.columns:
            return f"its {inputs} inputs are not a multiple of {self.columns}"
        if outputs % self.rows:
            return f"its {outputs} outputs are not a multiple of {self.rows}"
        return None

    def removed(self, units: int) -> int:
        """How many of so many weights or blocks go: the share, rounded, but never all."""
        return min(round(self.rate * units), units - 1)


def parse_pattern(text: str, rate: float) -> Pattern:
    """Read a pattern: "weight" for single weights, "2:4" for N of every M inputs kept, "4x1" for blocks of outputs x inputs.

    Args:
        text: the pattern.
        rate: share of the weights removed; N:M ignores it, since it fixes the share at 1 - N/M.

    Raises:
        UsageError: another text, an N that is not between 1 and M - 1, a block without weights, or a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise UsageError("rate must be at least 0 and less than 1", where="pruning of weights", got=str(rate))
    if text == "weight":
        return Pattern(1, 1, None, rate)
    found = re.fullmatch(r"([1-9][0-9]{0,5})([:x])([1-9][0-9]{0,5})", text)
    if found:
        first, second = int(found[1]), int(found[3])
        if found[2] == "x":
            return Pattern(first, second, None, rate)
        if first < second:
            return Pattern(1, second, first, 1 - first / second)
    raise UsageError(
        "not a pattern of weights",
        where="pruning of weights",
        got=repr(text),
        wanted='"weight", N:M with N less than M such as "2:4", or a block of outputs x inputs such as "4x1"',
    )


def wanda(weight: Float[Tensor, "out in"], norms: Float[Tensor, "#out in"]) -> Float[Tensor, "out in"]:
    """Scores |W| |x|: what a weight adds to its output when inputs are taken as uncorrelated.

    Args:
        weight: of the layer.
        norms: root of the mean square of every input.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, equation 1, where scores are
    compared within each output (`by_row` of `prune_mask`). The norm over all examples differs by a constant factor only.
    """
    return weight.detach().double().abs() * norms.double()


def prune_mask(scores: Float[Tensor, "out in"], pattern: Pattern, *, by_row: bool = False) -> Bool[Tensor, "out in"]:
    """Remove what scores least: exactly `pattern.removed` blocks, ties at the lower index first; of N:M, M - N of each group.

    Args:
        scores: how much each weight counts; a block counts their sum.
        pattern: what goes together, and how much.
        by_row: whether blocks are compared with those of the same rows only; the count is then spread over rows as evenly as
            it can be. N:M always compares within its group.

    Raises:
        UsageError: a shape that the pattern does not fit.
    """
    _check_fit(scores, pattern)
    if pattern.kept is not None:
        groups = scores.reshape(-1, pattern.columns)
        return _all_but_lowest(groups, [pattern.columns - pattern.kept] * len(groups)).reshape(scores.shape)
    units = _units(scores, pattern)
    removed = pattern.removed(units.numel())
    lines = units if by_row else units.reshape(1, -1)
    counts = _spread(removed, [lines.shape[1]] * len(lines))
    return _whole(_all_but_lowest(lines, counts).reshape(units.shape), pattern)


def joint_masks(scores: Sequence[Float[Tensor, "..."]], pattern: Pattern) -> list[Bool[Tensor, "..."]]:
    """Remove what scores least in all matrices together; the best block of each stays.

    Args:
        scores: one matrix [out, in] per layer, in units that can be compared.
        pattern: single weights or blocks, and the share of them that goes, over all layers.

    Raises:
        UsageError: N:M, whose share is the same in every group, or a shape that the pattern does not fit.
    """
    if pattern.kept is not None:
        raise UsageError("N:M removes the same share everywhere and cannot be chosen across layers", where="pruning of weights")
    for matrix in scores:
        _check_fit(matrix, pattern)
    units = [_units(matrix, pattern) for matrix in scores]
    ranked = [_best_is_safe(matrix.flatten()) for matrix in units]
    whole = sum(len(r) for r in ranked)
    kept = _all_but_lowest(torch.cat(ranked)[None], [min(round(pattern.rate * whole), whole - len(ranked))])[0]
    parts = torch.split(kept, [len(r) for r in ranked])
    return [_whole(part.reshape(matrix.shape), pattern) for part, matrix in zip(parts, units, strict=True)]


def surgeon_prune(
    weight: Float[Tensor, "groups out in"],
    products: Float[Tensor, "groups in in"],
    pattern: Pattern,
    damping: float = 1e-2,
    slab: int = 128,
) -> tuple[Float[Tensor, "groups out in"], Bool[Tensor, "groups out in"]]:
    """Remove weights column by column, and change those behind each so that the outputs on the data stay.

    The squared error of a row's outputs after a change d is d H d', with H the inputs' second moments. With columns before i
    settled, removing w_i costs w_i^2 / P_ii at least, by the change -w_i / P_ii P_i:, where P is the inverse of H without those
    columns (Hassibi and Stork). For all i these are the rows of one triangular factor U of the whole inverse, H^-1 = U'U:
    P_ii = U_ii^2 and P_i: = U_ii U_i:. Which weights go is decided slab by slab, by the cost at that moment summed over
    a block; a slab is a group for N:M.

    A change behind a column is undone in part when a later column goes too, and may then have done harm. Rows whose outputs
    would be nearer without any change are therefore left without: the error on the data is never larger than that of zeros alone.

    Args:
        weight: one matrix per group of the layer.
        products: second moments of each group's inputs; their covariance when a constant may be added to the outputs.
        pattern: what goes together, and how much; counted over all groups together.
        damping: added to the diagonal, as a share of its mean. Inputs that are always zero get less, cost next to
            nothing and go first.
        slab: columns decided at once.

    Returns:
        the new weights in double precision, and where they stay.

    Raises:
        UsageError: a shape that the pattern does not fit.

    Source: Frantar and Alistarh, SparseGPT, ICML 2023, algorithm 1. Deviations: the factor comes from a Cholesky factorization
    of H in reversed order instead of one of its inverse, which is more exact; blocks; groups of convolutions; weights of dead
    inputs that stay keep their value; the fallback for rows.
    """
    _check_fit(weight[0], pattern)
    old = weight.detach().double()
    factor = _inverse_factor(products.double(), damping)
    diagonal = factor.diagonal(dim1=1, dim2=2).unsqueeze(1)
    new, keep = old.clone(), torch.ones_like(old, dtype=torch.bool)
    starts = _slabs(old.shape[2], pattern, slab)
    units = old.numel() // (pattern.rows * pattern.columns)
    counts = _spread(pattern.removed(units), [stop - start for start, stop in starts])
    for (start, stop), count in zip(starts, counts, strict=True):
        part = new[:, :, start:stop]
        cost = (part / diagonal[:, :, start:stop]).square().flatten(0, 1)
        keep[:, :, start:stop] = _slab_mask(cost, pattern, count).reshape(part.shape)
        errors = _clear(part, keep[:, :, start:stop], factor[:, start:stop, start:stop])
        new[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return _nearer(old, new.masked_fill(~keep, 0), old.masked_fill(~keep, 0), products.double()), keep


def refit_kept(
    old: Float[Tensor, "groups out in"],
    new: Float[Tensor, "groups out in"],
    keep: Bool[Tensor, "groups out in"],
    products: Float[Tensor, "groups in in"],
    damping: float = 1e-2,
    steps: int = 20,
) -> Float[Tensor, "groups out in"]:
    """Change the weights that stay, all at once, so that the outputs on the data come nearer to the old ones.

    Every row is a least-squares problem over its own weights, d H d' with d zero beyond the change of the mask. Its exact
    solution needs one factorization per row; conjugate gradients need one product with H per step for all rows together.

    Args:
        old: weights before pruning.
        new: weights after it, where the steps begin.
        keep: where weights stay.
        products: as in `surgeon_prune`.
        damping: pull towards the old weights, as a share of the mean diagonal.
        steps: of conjugate gradients; few of them leave directions alone in which the data hardly vary.

    Returns:
        weights whose error on the data is in no row larger than that of `new`.

    Source: Meng et al., ALPS, NeurIPS 2024, section 3.2: conjugate gradients on a fixed support, preconditioned by the diagonal.
    Deviations: damping, and rows that damping made worse stay as they were.
    """
    old, new, moments = old.detach().double(), new.detach().double(), _damped(products.double(), damping)
    scale = moments.diagonal(dim1=1, dim2=2).unsqueeze(1)
    fitted, residual = new.clone(), ((old - new) @ moments).masked_fill(~keep, 0)
    direction = residual / scale
    slope = (residual * direction).sum(2, keepdim=True)
    for _ in range(steps):
        image = (direction @ moments).masked_fill(~keep, 0)
        length = _ratio(slope, (direction * image).sum(2, keepdim=True))
        fitted += length * direction
        residual -= length * image
        ahead = residual / scale
        before, slope = slope, (residual * ahead).sum(2, keepdim=True)
        direction = ahead + _ratio(slope, before) * direction
    return _nearer(old, fitted, new, products.double())


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """A quotient that is 0 where a row is solved already."""
    return torch.where(below > 0, above / below.clamp_min(1e-300), 0)


def _damped(products: Tensor, damping: float) -> Tensor:
    """Second moments with a share of the mean on the diagonal, which makes them invertible."""
    diagonal = products.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    ridge = torch.where(mean > 0, damping * mean, 1)  # a group that saw nothing but zeros is pruned by magnitude
    # no other input costs less than w^2 ridge, so that dead ones need less to come first
    return products + torch.diag_embed(torch.where(diagonal > 0, ridge, 1e-12 * ridge))


def _inverse_factor(products: Tensor, damping: float) -> Tensor:
    """The upper triangular U with U'U the inverse of the damped second moments: inv(R) of H = R R', R upper triangular."""
    upper = torch.linalg.cholesky(_damped(products, damping).flip(1, 2)).flip(1, 2)
    eye = torch.eye(products.shape[1], dtype=products.dtype, device=products.device)
    factor: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    return factor


def _slabs(inputs: int, pattern: Pattern, slab: int) -> list[tuple[int, int]]:
    width = pattern.columns if pattern.kept is not None else pattern.columns * max(1, slab // pattern.columns)
    return [(start, min(start + width, inputs)) for start in range(0, inputs, width)]


def _slab_mask(cost: Tensor, pattern: Pattern, count: int) -> Tensor:
    """The weights of a slab that stay; `count` blocks go."""
    if pattern.kept is not None:
        return prune_mask(cost, pattern)
    units = _units(cost, pattern)
    return _whole(_all_but_lowest(units.reshape(1, -1), [count]).reshape(units.shape), pattern)


def _clear(part: Tensor, keep: Tensor, factor: Tensor) -> Tensor:
    """Remove the masked weights of a slab and change those behind them within it, in place; returns w_i / U_ii of what went."""
    errors = torch.zeros_like(part)
    for i in range(part.shape[2]):
        gone = part[:, :, i].masked_fill(keep[:, :, i], 0)
        errors[:, :, i] = gone / factor[:, i, i, None]
        part[:, :, i:] -= errors[:, :, i, None] * factor[:, None, i, i:]
    return errors


def _nearer(old: Tensor, new: Tensor, plain: Tensor, products: Tensor) -> Tensor:
    """Row by row the one of two weights whose outputs are nearer to those of the old ones."""
    errors = [((w - old) @ products * (w - old)).sum(2, keepdim=True) for w in (new, plain)]
    return torch.where(errors[0] <= errors[1], new, plain)


def _check_fit(scores: Tensor, pattern: Pattern) -> None:
    reason = pattern.misfit(scores.shape[0], scores.shape[1])
    if reason:
        raise UsageError("the pattern does not fit this matrix", where="pruning of weights", got=reason)


def _units(scores: Tensor, pattern: Pattern) -> Tensor:
    """Sums over blocks, one entry per block."""
    rows, columns = scores.shape[0] // pattern.rows, scores.shape[1] // pattern.columns
    return scores.detach().double().reshape(rows, pattern.rows, columns, pattern.columns).sum((1, 3))


def _whole(units: Tensor, pattern: Pattern) -> Tensor:
    """One entry per weight from one per block."""
    return units.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)


def _spread(total: int, sizes: Sequence[int]) -> list[int]:
    """Parts of `total` in proportion to `sizes`, each rounded down or up, that add up to it."""
    whole, seen, parts = sum(sizes), 0, []
    for size in sizes:
        parts.append(total * (seen + size) // whole - total * seen // whole)
        seen += size
    return parts


def _all_but_lowest(lines: Tensor, counts: Sequence[int]) -> Tensor:
    """False for the `counts` lowest entries of each line, the lower index first among equals."""
    order = torch.sort(lines, dim=1, stable=True).indices
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(lines.shape[1], device=lines.device).expand_as(order))
    return ranks >= torch.tensor(list(counts), device=lines.device)[:, None]


def _best_is_safe(line: Tensor) -> Tensor:
    """The same scores with the highest, the last among equals, out of reach."""
    line = line.clone()
    line[len(line) - 1 - int(line.flip(0).argmax())] = torch.inf
    return line
