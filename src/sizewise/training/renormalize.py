"""Batch normalizations that compute what they do in inference, with the gradients that they have in training."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sizewise.data.statistics import normalizations
from sizewise.protocols import Inputs

__all__ = ["renormalized", "statistics_apart"]

MOMENTUM = 0.02  # share of a batch's statistics that the model's take over, a fifth of torch's: they begin as good ones
FEWEST = 32  # numbers per channel; the statistics of fewer are mostly noise, and the model's own are taken as constants
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def statistics_apart(model: nn.Module, sample: Iterable[Inputs]) -> dict[str, Tensor]:
    """How the normalization statistics of a model differ from those of batches, as the model computes them in inference.

    Args:
        model: whose statistics were fitted; left in eval mode.
        sample: batches as in training.

    Returns:
        by the names of the buffers the difference of means, and the ratio of variances, each of the shape of the channels. A
        normalization that nothing reached has neither.
    """
    model.eval()
    norms = _renormalizable(model)
    moments: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in norms}
    with ExitStack() as stack, torch.no_grad():
        for path, norm in norms.items():
            stack.callback(norm.register_forward_pre_hook(partial(_measure, moments[path])).remove)
        for inputs in sample:
            inputs.call(model)
    found: dict[str, Tensor] = {}
    for path, measured in moments.items():
        if measured:
            norm, (mean, variance) = norms[path], _buffers(path)
            centre, now = (torch.stack(values).mean(0) for values in zip(*measured, strict=True))
            found[mean] = norm.get_buffer("running_mean") - centre
            found[variance] = (norm.get_buffer("running_var") + norm.eps) / (now + norm.eps)
    return found


def _measure(moments: list[tuple[Tensor, Tensor]], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    if _follows(args[0]):
        moments.append(_moments(args[0]))


def _follows(x: Tensor) -> bool:
    return x.ndim > 1 and x.numel() // max(x.shape[1], 1) >= FEWEST


def _moments(x: Float[Tensor, "n channels *places"]) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel, in one pass; `torch.var_mean` takes ten times as long on CPUs."""
    # statistics of single precision ask for the moments in it, also of halves
    unused = torch.zeros(x.shape[1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    return mean, variance


def _renormalizable(model: nn.Module) -> dict[str, _BatchNorm]:
    paths = {module: path for path, module in model.named_modules()}
    return {paths[norm]: norm for norm in normalizations(model) if type(norm) in KINDS}


def _buffers(path: str) -> tuple[str, str]:
    """Names of a normalization's mean and variance in its model, which may be itself."""
    prefix = f"{path}." if path else ""
    return f"{prefix}running_mean", f"{prefix}running_var"


@contextmanager
def renormalized(model: nn.Module, apart: Mapping[str, Tensor] = MappingProxyType({})) -> Iterator[None]:
    """Within it, batch normalizations in training mode put out what they would in inference, and follow the data slowly.

    A pruned model was fitted with the statistics that it has; those of batches would throw it back at the first step. Taken as
    constants they would let no more than small steps be made, since then nothing in the gradient knows that the scale of what is
    normalized does not matter. Batch renormalization has both: (x - mean) / deviation of the batch, times r, plus d, which are
    constants for the gradient and undo the difference of the statistics.

    Source: Ioffe, Batch Renormalization, NeurIPS 2017, algorithm 1. Deviation: r and d are not limited, since training begins
    with statistics of a trained model. On a quarter of an epoch of ResNet-56, pruned by half, Adam at 0.001 ended at a divergence of
    0.094 from the teacher, with constants and the half rate that they bear at 0.104; two steps at 0.001 cost one point of accuracy
    with renormalization and 46 with constants.

    Statistics that were fitted with the weights, and are better than the data's, would leave them for those at any learning rate, even
    none: what a student lost by 2 % of noise on its weights rose a hundredfold in 120 steps that changed no weight. So they follow
    what training changes, and stay apart from the data's by what they were at the start.

    Args:
        model: left as it was after; the statistics stay where they moved.
        apart: as `statistics_apart` says it; nothing where they are to become the data's.
    """
    norms = _renormalizable(model)
    for path, norm in norms.items():
        mean, variance = _buffers(path)
        norm.forward = partial(_forward, norm, apart.get(mean), apart.get(variance))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms.values():
            del norm.forward


def _forward(
    norm: _BatchNorm, apart: Tensor | None, times: Tensor | None, x: Float[Tensor, "n channels *places"]
) -> Float[Tensor, "n channels *places"]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    if not norm.training or not _follows(x):
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
    with torch.no_grad():
        deviation, (centre, now) = (variance + norm.eps).sqrt(), _moments(x)
        r, d = (now + norm.eps).sqrt() / deviation, (centre - mean) / deviation
        mean.lerp_(centre if apart is None else centre + apart, MOMENTUM)
        variance.lerp_(now if times is None else (now + norm.eps) * times - norm.eps, MOMENTUM)
    weight = norm.weight if norm.weight is not None else torch.ones_like(r)
    bias = norm.bias if norm.bias is not None else torch.zeros_like(d)
    return F.batch_norm(x, None, None, weight * r, weight * d + bias, True, 0.0, norm.eps)
