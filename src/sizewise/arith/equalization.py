"""Scales that move the range of channels from one tensor to the next without changing what a network computes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sizewise.errors import UsageError

__all__ = ["cross_layer_scales", "smoothing_scales"]

Ranges = Float[Tensor, " channels"]


def cross_layer_scales(written: Ranges, read: Sequence[Ranges], limit: float = 100.0) -> Ranges:
    """What to divide the weights that write each channel by, and to multiply those that read it with.

    Both then have the range sqrt(r1 r2). The layer between must let positive factors pass, as relu does (relu6 does not); the
    bias of the writing layer is divided too. Along a chain of layers, pairs depend on each other: repeat until all scales are
    about 1.

    Args:
        written: largest |weight| of each channel in the layer that writes it, r1.
        read: the same in every layer that reads it; r2 is the largest of them.
        limit: scales stay within 1 / limit and limit.

    Returns:
        s = sqrt(r1 / r2) in double precision, 1 where a channel is not written or not read.

    Raises:
        UsageError: ranges that are negative or not finite or of different lengths, no layer that reads, or a limit below 1.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, equation 11, with
    largest magnitudes for ranges. Deviations: several readers; dead channels and the limit, without which a channel of nearly
    no weight would get a bias or weights of any size.
    """
    first, second = _checked(written, read, limit, "cross-layer equalization")
    return _bounded(first, second, (first / second).sqrt(), limit)


def smoothing_scales(inputs: Ranges, weights: Sequence[Ranges], alpha: float = 0.5, limit: float = 1e4) -> Ranges:
    """What to divide every input channel by, and to multiply the weights that read it with.

    Args:
        inputs: largest |x| of each channel on calibration data.
        weights: largest |weight| of each channel in every layer that reads it.
        alpha: how much of the difficulty moves into the weights, 0 for none (but for their own) to 1 for all.
        limit: scales stay within 1 / limit and limit.

    Returns:
        s = max|x|^alpha / max|w|^(1 - alpha) in double precision, 1 where a channel is always zero or not read.

    Raises:
        UsageError: as in `cross_layer_scales`, or an alpha outside [0, 1].

    Source: Xiao et al., SmoothQuant, ICML 2023, equation 4; layers that read the same inputs share the scales of the largest
    of their weights, as in the authors' code. Deviations: dead channels and the limit.
    """
    if not 0 <= alpha <= 1:
        raise UsageError("alpha must be from 0 to 1", where="smoothing", got=str(alpha))
    first, second = _checked(inputs, weights, limit, "smoothing")
    return _bounded(first, second, first**alpha / second ** (1 - alpha), limit)


def _checked(first: Ranges, others: Sequence[Ranges], limit: float, where: str) -> tuple[Ranges, Ranges]:
    if not others:
        raise UsageError("at least one layer must read the channels", where=where)
    if not limit >= 1:
        raise UsageError("the limit of scales must be at least 1", where=where, got=str(limit))
    lengths = [len(ranges) for ranges in (first, *others)]
    if len(set(lengths)) > 1:
        raise UsageError("ranges of different numbers of channels", where=where, got=", ".join(map(str, lengths)))
    for ranges in (first, *others):
        if not bool((ranges.isfinite() & (ranges >= 0)).all()):
            raise UsageError("ranges must be finite and not negative", where=where)
    return first.detach().double(), torch.stack([ranges.detach().double() for ranges in others]).amax(0)


def _bounded(first: Ranges, second: Ranges, scales: Ranges, limit: float) -> Ranges:
    return torch.where((first > 0) & (second > 0), scales.clamp(1 / limit, limit), 1.0)
