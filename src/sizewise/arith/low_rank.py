"""A layer's weights as a product of smaller ones, nearest in what the layer puts out.

With H = E[x x'] the second moments of a layer's inputs, weights W' instead of W change its outputs by tr((W - W') H (W - W')') in the
mean. Three forms of W' are fitted so, all of them stacks of ordinary layers:

- "svd": the layer with fewer outputs, then one product. Closed form.
- "spatial": a k x k convolution as a k x 1 and a 1 x k one. The second is closed form for a given first; the first is found by turns.
- "tucker": a 1 x 1, a k x k and a 1 x 1 convolution. The last two are closed form for a given first (reduced rank regression).

All of them see a kernel's taps as those of a first layer (a) and those of a second (b): W is [out, in, a, b], of which "spatial" gives
the first the rows and the second the columns, and "tucker" gives all to the second.

Source: Eckart and Young, 1936, and Izenman, Reduced-rank regression, 1975, for the closed forms; Zhang et al., Accelerating very deep
convolutional networks, TPAMI 2016, for outputs instead of weights; Jaderberg et al., BMVC 2014 (spatial); Kim et al., ICLR 2016 (Tucker-2
by HOSVD). Deviation: the last two minimize errors of weights; here both are started in the metric of the inputs' moments, taken as a
product over channels and taps, and improved in the whole metric.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "SWEEPS",
    "Form",
    "composed",
    "damped",
    "factored",
    "full_ranks",
    "spatial_errors",
    "svd_errors",
    "truncated",
    "tucker_errors",
    "weighted_error",
]

Form = Literal["svd", "spatial", "tucker"]
Split = Float[Tensor, "out in_a b"]  # weights whose taps are divided between a first layer and a second
Moments = Float[Tensor, "columns columns"]

SWEEPS = 3  # turns of first and second factor
STEPS = 5  # of conjugate gradients per turn
STILL = 1e-10  # of the features' mean square, added where they are solved for
LEAST_DAMPING, MOST_DAMPING = 1e-5, 0.1  # of the mean square; the most where there are no more rows than columns


def damped(moments: Moments, rows: int) -> Moments:
    """Moments moved towards the identity: more where few rows tell about many columns, and never singular.

    Args:
        moments: E[x x'] or the covariance.
        rows: that they were estimated from.
    """
    share = min(max(MOST_DAMPING * len(moments) / max(rows, 1), LEAST_DAMPING), MOST_DAMPING)
    ridge = (share * moments.diagonal().mean()).clamp_min(1e-12)
    return moments.double() + ridge * torch.eye(len(moments), dtype=torch.float64, device=moments.device)


def weighted_error(weight: Tensor, other: Tensor, moments: Moments | None) -> float:
    """What outputs lose with other weights, tr((W - W') H (W - W')'), as a share of tr(W H W').

    Args:
        weight: W, [out, in, *kernel].
        other: W', the same shape.
        moments: H in the order of `weight.flatten(1)`; None for the identity.
    """
    return _energy(weight - other, moments) / max(_energy(weight, moments), 1e-300)


def truncated(
    weight: Float[Tensor, "out in"], moments: Moments | None, rank: int
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """The product of two matrices that is nearest in what it puts out; no product of that rank is nearer.

    With H = S S' and W S = U D V', the best W' of rank r has W' S = U_r U_r' W S (Eckart-Young), so that U_r U_r' W is one: S need not
    be inverted, and inputs that never vary keep what weights they had in these directions.

    Args:
        weight: W.
        moments: H of the inputs; None for the identity.
        rank: r, at most the smaller side of W.
    """
    weight = weight.double()
    outputs = _principal(weight, moments)[1][:, :rank]
    return outputs, outputs.T @ weight


def svd_errors(weight: Float[Tensor, "out in"], moments: Moments | None) -> list[float]:
    """The error of `truncated`, as `weighted_error` counts it, at ranks 0, 1, 2, ... up to the smaller side."""
    values = _principal(weight.double(), moments)[0]
    lost = values.flip(0).cumsum(0).flip(0) / values.sum().clamp_min(1e-300)
    return [*lost.tolist(), 0.0]


def spatial_errors(weight: Float[Tensor, "out in a b"], moments: Moments | None, ranks: Sequence[int]) -> list[float]:
    """The error of the spatial form without turns, an upper bound, at every rank.

    Args:
        weight: W.
        moments: H in the order of `weight.flatten(1)`; None for the identity.
        ranks: rising.
    """
    split, moments = _spatial(weight), _moments(weight, moments)
    cross, gram = _features(split, moments, _leading(split, moments)[: max(ranks)])
    whole = _energy(split, moments)
    return [_lost(whole, _captured(cross[:, :rank], gram[:rank, :, :rank]).trace()) for rank in ranks]


def tucker_errors(weight: Tensor, moments: Moments | None, firsts: Sequence[int], lasts: Sequence[int]) -> list[list[float]]:
    """The error of the Tucker form without turns, an upper bound, at every pair of ranks.

    Args:
        weight: W, [out, in, *kernel].
        moments: H in the order of `weight.flatten(1)`; None for the identity.
        firsts: channels behind the first layer.
        lasts: channels before the last one.

    Returns:
        per first rank, errors at every last rank.
    """
    split, moments = _tucker(weight), _moments(weight, moments)
    cross, gram = _features(split, moments, _leading(split, moments)[: max(firsts)])
    whole, errors = _energy(split, moments), []
    for rank in firsts:
        values = torch.linalg.eigvalsh(_captured(cross[:, :rank], gram[:rank, :, :rank])).flip(0).cumsum(0)
        errors.append([_lost(whole, values[last - 1]) for last in lasts])
    return errors


def full_ranks(shape: Sequence[int], form: Form) -> tuple[int, ...]:
    """The ranks beyond which a form of a layer gains nothing; there it is exact.

    Args:
        shape: of the weight, [out, in, *kernel].
        form: spatial wants two taps' dimensions.
    """
    outputs, inputs, *kernel = shape
    if form == "tucker":
        return inputs, outputs
    if form == "spatial":
        return (min(inputs * kernel[0], outputs * kernel[1]),)
    return (min(outputs, inputs * torch.Size(kernel).numel()),)


def factored(weight: Tensor, moments: Moments | None, form: Form, ranks: Sequence[int], sweeps: int = SWEEPS) -> tuple[Tensor, ...]:
    """Weights of the layers that together do nearly what one did, the first one first.

    Args:
        weight: W, [out, in, *kernel].
        moments: H in the order of `weight.flatten(1)`; None for the identity.
        form: of the stack.
        ranks: channels between its layers, in order.
        sweeps: turns of the first layer and those behind it, each nearer than the one before; "svd" needs none.

    Returns:
        double precision, in the shapes that torch's layers have.
    """
    outputs, inputs, *kernel = weight.shape
    ones = [1] * len(kernel)
    if form == "svd":
        left, right = truncated(weight.flatten(1), moments, ranks[0])
        return right.reshape(ranks[0], inputs, *kernel), left.reshape(outputs, ranks[0], *ones)
    moments = _moments(weight, moments)
    if form == "spatial":
        first, second = _by_turns(_spatial(weight), moments, ranks[0], outputs, sweeps)
        return first.reshape(ranks[0], inputs, kernel[0], 1), second.reshape(outputs, ranks[0], 1, kernel[1])
    split = _tucker(weight)
    first, second = _by_turns(split, moments, ranks[0], ranks[1], sweeps)
    cross, gram = _features(split, moments, first)
    last, core = _reduced(cross, gram, ranks[1])
    return first.reshape(ranks[0], inputs, *ones), core.reshape(ranks[1], ranks[0], *kernel), last.reshape(outputs, ranks[1], *ones)


def composed(form: Form, factors: Sequence[Tensor]) -> Tensor:
    """The one weight, [out, in, *kernel], of a stack of layers."""
    if form == "svd":
        first, last = factors
        return (last.flatten(1) @ first.flatten(1)).reshape(len(last), *first.shape[1:])
    if form == "spatial":
        return torch.einsum("orb,ria->oiab", factors[1].squeeze(2), factors[0].squeeze(3))
    first, core, last = factors
    taps = torch.einsum("op,pqk,qi->oik", last.flatten(1), core.flatten(2), first.flatten(1))
    return taps.reshape(len(last), first.shape[1], *core.shape[2:])


def _spatial(weight: Float[Tensor, "out in a b"]) -> Split:
    return weight.double().flatten(1, 2)


def _tucker(weight: Tensor) -> Split:
    return weight.double().flatten(2)


def _moments(weight: Tensor, moments: Moments | None) -> Moments:
    return torch.eye(weight[0].numel(), dtype=torch.float64, device=weight.device) if moments is None else moments.double()


def _energy(weight: Tensor, moments: Moments | None) -> float:
    """tr(W H W')."""
    flat = weight.double().flatten(1)
    return float(((flat if moments is None else flat @ moments) * flat).sum())


def _lost(whole: float, captured: Tensor) -> float:
    return max(0.0, 1 - float(captured) / max(whole, 1e-300))


def _principal(weight: Float[Tensor, "out in"], moments: Moments | None) -> tuple[Float[Tensor, " k"], Float[Tensor, "out k"]]:
    """Mean squares of the outputs along their principal axes, falling, and these axes; k is the smaller side."""
    if weight.shape[0] <= weight.shape[1]:
        values, axes = torch.linalg.eigh((weight if moments is None else weight @ moments) @ weight.T)
        return values.clamp_min(0).flip(0), axes.flip(1)
    axes, values, _ = torch.linalg.svd(weight if moments is None else weight @ _root(moments), full_matrices=False)
    return values.square(), axes


def _root(moments: Moments) -> Moments:
    """S with S S' = H."""
    values, vectors = torch.linalg.eigh(moments)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root


def _leading(weight: Split, moments: Moments) -> Float[Tensor, "in_a in_a"]:
    """Orthonormal rows that span, the first r of them, a good first factor of rank r.

    Taking H for a product of what channels and the first layer's taps have and of what the second layer's taps have, the first factor
    spans the leading right singular vectors of the weights in that metric.
    """
    inner, outer = _marginals(moments, weight.shape[2])
    products = torch.einsum("oxb,bc,oyc->xy", weight, outer, weight)
    root = _root(inner)
    vectors = torch.linalg.eigh(root.T @ products @ root).eigenvectors.flip(1)
    spans = products @ root @ vectors
    spans = spans / spans.norm(dim=0).clamp_min(1e-300)
    basis: Tensor = torch.linalg.qr(spans).Q
    return basis.T


def _marginals(moments: Moments, taps: int) -> tuple[Tensor, Tensor]:
    """Moments summed over the second layer's taps, and over all else."""
    apart = moments.reshape(len(moments) // taps, taps, len(moments) // taps, taps)
    outer = torch.einsum("xbxc->bc", apart)
    return apart.diagonal(dim1=1, dim2=3).sum(-1), outer / outer.trace().clamp_min(1e-300)


def _features(weight: Split, moments: Moments, first: Float[Tensor, "r in_a"]) -> tuple[Float[Tensor, "out r b"], Float[Tensor, "r b r b"]]:
    """Moments of the outputs with what the first factor passes on at every tap of the second, and of that by itself."""
    taps = weight.shape[2]
    apart = moments.reshape(weight.shape[1], taps, weight.shape[1], taps)
    seen = torch.einsum("xbyc,ry->xbrc", apart, first)
    return torch.einsum("oxb,xbrc->orc", weight, seen), torch.einsum("qx,xbrc->qbrc", first, seen)


def _solved(cross: Float[Tensor, "out r b"], gram: Float[Tensor, "r b r b"]) -> Float[Tensor, "out rb"]:
    """The best second factor: N G^-1."""
    square = gram.flatten(2).flatten(0, 1)
    ridge = (STILL * square.diagonal().mean()).clamp_min(1e-30)
    lower = torch.linalg.cholesky(square + ridge * torch.eye(len(square), dtype=square.dtype, device=square.device))
    return torch.cholesky_solve(cross.flatten(1).T, lower).T


def _captured(cross: Float[Tensor, "out r b"], gram: Float[Tensor, "r b r b"]) -> Float[Tensor, "out out"]:
    """Moments of what the best second factor puts out."""
    found = _solved(cross, gram) @ cross.flatten(1).T
    return (found + found.T) / 2


def _reduced(
    cross: Float[Tensor, "out r b"], gram: Float[Tensor, "r b r b"], outputs: int
) -> tuple[Float[Tensor, "out p"], Float[Tensor, "p r b"]]:
    """The best second factor of so many outputs p, and the product behind it: reduced rank regression."""
    best = _solved(cross, gram)
    product = best @ cross.flatten(1).T
    axes = torch.linalg.eigh((product + product.T) / 2).eigenvectors.flip(1)[:, :outputs]
    return axes, (axes.T @ best).reshape(outputs, *cross.shape[1:])


def _by_turns(
    weight: Split, moments: Moments, rank: int, outputs: int, sweeps: int
) -> tuple[Float[Tensor, "r in_a"], Float[Tensor, "out r b"]]:
    """First and second factor; the second is limited to `outputs` dimensions of its outputs."""
    first = _leading(weight, moments)[:rank]
    second = _second(weight, moments, first, outputs)
    for _ in range(sweeps if rank < weight.shape[1] else 0):
        first = torch.linalg.qr(_first(weight, moments, first, second).T).Q.T
        second = _second(weight, moments, first, outputs)
    return first, second


def _second(weight: Split, moments: Moments, first: Float[Tensor, "r in_a"], outputs: int) -> Float[Tensor, "out r b"]:
    cross, gram = _features(weight, moments, first)
    if outputs >= len(weight):
        return _solved(cross, gram).reshape(cross.shape)
    last, core = _reduced(cross, gram, outputs)
    return torch.einsum("op,prb->orb", last, core)


def _first(weight: Split, moments: Moments, first: Float[Tensor, "r in_a"], second: Float[Tensor, "out r b"]) -> Float[Tensor, "r in_a"]:
    """A nearer first factor for a given second one: some steps of conjugate gradients, none of which can do harm.

    The normal equations have as many unknowns as the factor has numbers, too many to be solved at once; applying them takes one
    product with the moments.
    """

    def pulled(outputs: Split) -> Tensor:
        return torch.einsum("oxb,orb->rx", (outputs.flatten(1) @ moments).reshape(outputs.shape), second)

    def applied(factor: Tensor) -> Tensor:
        return pulled(torch.einsum("orb,rx->oxb", second, factor))

    residual = pulled(weight) - applied(first)
    direction, size = residual, residual.square().sum()
    for _ in range(STEPS):
        curved = applied(direction)
        curvature = (direction * curved).sum()
        if not float(curvature) > 0:
            break
        first = first + size / curvature * direction
        residual = residual - size / curvature * curved
        now = residual.square().sum()
        direction, size = residual + now / size * direction, now
    return first
