"""A weight that is a product of two matrices, with codes in both.

With W = L R, L orthonormal and H the moments of the inputs, an error E of R changes outputs by tr(E H E'), as one of a weight would,
since L leaves lengths as they are; then L is solved anew for what the coded R passes on, and an error of it counts in the metric
C = R H R'. The first directions of R pass on far more than the last, so that every column of L has a step of its own, in inverse proportion
to the root of C's diagonal: what is rounded with one step is L diag(C)^1/2, in the metric of correlations. Where a step costs as much
output error in both factors, no bit is better spent in the other.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sizewise.arith.low_rank import truncated
from sizewise.arith.rate_rounding import rate_rounded, uniform_levels
from sizewise.arith.rounding import damped
from sizewise.arith.shared_codes import Shared, on_grid
from sizewise.data.shared_forms import matrix_form
from sizewise.data.shared_size import Fineness, Judge, Kind, Table, judged, share, table, table_at
from sizewise.graph.share_layers import Aim
from sizewise.storage.forms import Form, Integers, Product

__all__ = ["plain_factor", "product_finenesses", "share_product", "shared_product"]

MOST = 127  # codes of one byte reach from -127 to 127
SCALE = 2  # bytes
STILL = 1e-6  # of the mean square of what the right factor passes on, added where the left one is solved for


def shared_product(aim: Aim, rank: int, right: Callable[[Aim], Shared], left: Callable[[Aim, float], Form]) -> tuple[Product, float]:
    """The product of a rank, both factors coded, that makes of the inputs what the weight should; and what an error may cost elsewhere.

    Args:
        aim: of the weight, one matrix.
        rank: of the product.
        right: codes the factor that meets the inputs.
        left: codes the other, and is told what an error of the first costs on average.
    """
    aim = _as_matrix(aim)
    _, rows = truncated(aim.weight[0], aim.moments[0], rank)
    first = right(replace(aim, weight=rows.unsqueeze(0)))
    passed = _passed(first.values[0], aim.moments)
    cross = aim.weight[0].double() @ aim.moments[0] @ first.values[0].double().T
    columns = torch.linalg.solve(passed[0], cross.T).T
    second = left(replace(aim, weight=columns.unsqueeze(0), moments=passed), first.density)
    outputs, inputs = aim.weight.shape[1:]
    return Product(second, matrix_form(first, (rank, inputs)), (outputs, inputs)), first.density


def share_product(aim: Aim, rank: int, kind: Kind, size: float, *, single: bool = False) -> tuple[Product, float]:
    """A product at one fineness: the step, or number of values, of its right factor."""

    def left(own: Aim, density: float) -> Form:
        if kind == "grid":
            return _with_steps(own, density)
        return plain_factor(share(own, kind, size, single=single), own)

    return shared_product(aim, rank, lambda own: share(own, kind, size, single=single), left)


def plain_factor(shared: Shared, aim: Aim) -> Form:
    """The form of a factor's codes."""
    outputs, rank = aim.weight.shape[1:]
    return matrix_form(shared, (outputs, rank))


def product_finenesses(aim: Aim, rank: int, kind: Kind, bits: float, judge: Judge, seed: int) -> Fineness:
    """What such a weight costs at all finenesses, and what it then loses; as `data/shared_size.finenesses`.

    Args:
        aim: of the weight; nothing is settled.
        rank: of the product.
        kind: of values.
        bits: per stored number, about what there will be.
        judge: of changes.
        seed: of the choice of rows.
    """
    aim = _as_matrix(aim)
    columns, rows = truncated(aim.weight[0], aim.moments[0], rank)
    passed = _passed(rows, aim.moments)
    right = table(rows.unsqueeze(0), aim.moments, kind, seed)
    if kind == "grid":
        weight, alike, _ = _balanced(columns.unsqueeze(0), passed)
        steps = [_step(weight, alike, size**2 / 12 * _cost(aim.moments)) for size in right.sizes]
        left = table_at(weight, alike, steps, seed)
    else:
        left = table(columns.unsqueeze(0), passed, kind, seed)
    more = SCALE * rank if kind == "grid" else 0
    both = Table(
        right.sizes,
        tuple(a + b + more for a, b in zip(right.bytes, left.bytes, strict=True)),
        tuple(a + b for a, b in zip(right.errors, left.errors, strict=True)),
    )
    count = columns.numel() + rows.numel()
    return judged(aim, both, lambda size: share_product(aim, rank, kind, size)[0].decode().unsqueeze(0), bits, judge, count)


def _with_steps(aim: Aim, density: float) -> Form:
    """A left factor whose columns have steps of their own, so that errors cost the same in all of them."""
    weight, alike, roots = _balanced(aim.weight, aim.moments)
    step = _step(weight, alike, density)
    found = on_grid(weight, alike, step, most=MOST)
    assert found.scale is not None
    scales = (found.scale / roots).float().unsqueeze(1)
    half = scales.half()
    fits = bool((half.float() - scales).abs().le(scales * 2.0**-10).all())
    outputs, rank = aim.weight.shape[1:]
    return Integers(found.codes[0].T.to(torch.int8).contiguous(), half if fits else scales, (outputs, rank), axis=1)


def _balanced(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A factor with columns so scaled that each passes on as much, its moments, and the scales."""
    roots = moments[0].diagonal().sqrt()
    return weight.double() * roots, moments / roots[:, None] / roots, roots


def _as_matrix(aim: Aim) -> Aim:
    """The weight as rows that meet inputs; of no scale of their own where there are no data, which leave all weights in one column."""
    if aim.inputs is not None:
        return aim
    eye = torch.eye(aim.slot.matrix.shape[2], dtype=torch.float64)
    return replace(aim, weight=aim.slot.matrix.double(), moments=eye.unsqueeze(0))


def _passed(rows: Tensor, moments: Tensor) -> Tensor:
    """Moments of what a right factor makes of the inputs."""
    return damped(rows.double() @ moments @ rows.double().T, STILL)


def _step(weight: Tensor, moments: Tensor, density: float) -> float:
    """The step whose errors cost so much on average; one at which codes fit one byte."""
    least = max(float(weight.abs().max()) / MOST, torch.finfo(torch.float32).tiny)
    return max(math.sqrt(12 * density / _cost(moments)), least)


def _cost(moments: Tensor) -> float:
    """What a squared error costs on average, once other weights have made up for it; the weights do not matter."""
    step = torch.ones(1, dtype=torch.float64)
    return rate_rounded(torch.zeros(1, 1, moments.shape[1]), moments, uniform_levels(step, 1), step, rounds=1).cost
