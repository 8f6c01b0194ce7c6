"""Normalization statistics re-estimated on data, after the layers before them changed."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sizewise.protocols import Inputs

__all__ = ["normalizations", "reestimate_normalization"]


def normalizations(model: nn.Module) -> list[_BatchNorm]:
    """The batch normalizations that keep statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def reestimate_normalization(model: nn.Module, inputs: Iterable[Inputs]) -> int:
    """Replace every batch normalization's running mean and variance by those of `inputs`, in place.

    The statistics are plain averages over batches (torch's momentum=None), as in Sun et al., Hybrid 8-bit training and
    Li et al., EagleEye (ECCV 2020), who show that stale statistics explain most of the loss right after pruning.

    Returns:
        how many normalizations were treated. The model is left in eval mode; without a batch, or when one fails, the old
        statistics stay.
    """
    norms = normalizations(model)
    model.eval()
    if not norms:
        return 0
    before = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    batches = 0
    try:
        with torch.no_grad():
            for batch in inputs:
                batch.call(model)
                batches += 1
    except BaseException:
        batches = 0  # statistics of a part of the data are worse than the old ones
        raise
    finally:
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()
            if not batches:
                norm.load_state_dict(buffers, strict=False)
    return len(norms)
