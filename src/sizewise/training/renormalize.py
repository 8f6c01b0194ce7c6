"""Batch normalizations that compute what they do in inference, with the gradients that they have in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sizewise.data.statistics import normalizations

__all__ = ["renormalized"]

MOMENTUM = 0.02  # share of a batch's statistics that the model's take over, a fifth of torch's: they begin as good ones
FEWEST = 32  # numbers per channel; the statistics of fewer are mostly noise, and the model's own are taken as constants


@contextmanager
def renormalized(model: nn.Module) -> Iterator[None]:
    """Within it, batch normalizations in training mode put out what they would in inference, and follow the data slowly.

    A pruned model was fitted with the statistics that it has; those of batches would throw it back at the first step. Taken as
    constants they would let no more than small steps be made, since then nothing in the gradient knows that the scale of what is
    normalized does not matter. Batch renormalization has both: (x - mean) / deviation of the batch, times r, plus d, which are
    constants for the gradient and undo the difference of the statistics.

    Source: Ioffe, Batch Renormalization, NeurIPS 2017, algorithm 1. Deviation: r and d are not limited, since training begins
    with statistics of a trained model. On a quarter of an epoch of ResNet-56, pruned by half, Adam at 0.001 ended at a divergence of
    0.094 from the teacher, with constants and the half rate that they bear at 0.104; two steps at 0.001 cost one point of accuracy
    with renormalization and 46 with constants.

    Args:
        model: left as it was after; the statistics stay where they moved.
    """
    norms = [norm for norm in normalizations(model) if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)]
    for norm in norms:
        norm.forward = partial(_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, x: Float[Tensor, "n channels *places"]) -> Float[Tensor, "n channels *places"]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    count = x.numel() // max(len(mean), 1)
    if not norm.training or count < FEWEST or x.ndim < 2:
        return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
    with torch.no_grad():
        deviation, before = (variance + norm.eps).sqrt(), mean.clone()
        # one pass for both moments, in single precision also of halves; `torch.var_mean` takes ten times as long on CPUs
        centre, now = torch.batch_norm_update_stats(x, mean, variance, MOMENTUM)
        r, d = (now + norm.eps).sqrt() / deviation, (centre - before) / deviation
    weight = norm.weight if norm.weight is not None else torch.ones_like(r)
    bias = norm.bias if norm.bias is not None else torch.zeros_like(d)
    return F.batch_norm(x, None, None, weight * r, weight * d + bias, True, 0.0, norm.eps)
