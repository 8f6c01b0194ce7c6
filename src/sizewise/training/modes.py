"""A model made ready to be trained, and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.rnn import RNNBase

from sizewise.errors import PreconditionError

__all__ = ["on_device", "set_modes", "trainable"]


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on a device, and back where its first parameter was."""
    home = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


@contextmanager
def trainable(model: nn.Module) -> Iterator[None]:
    """Parameters that are frozen stay so; a model of which all are was frozen for inference, and trains while the block runs.
    No gradients are left behind.

    Raises:
        PreconditionError: no parameters of real numbers.
    """
    real = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if not real:
        raise PreconditionError("there are no parameters to train", where="student")
    thawed = [] if any(parameter.requires_grad for parameter in real) else real
    for parameter in thawed:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in real:
            parameter.grad = None
        for parameter in thawed:
            parameter.requires_grad_(False)


def set_modes(model: nn.Module) -> None:
    """As in inference, so that outputs are those that the teacher has: no dropout, no outputs that only training knows.

    Those batch normalizations are in training mode that `renormalized` has in hand, the others keep their statistics. Recurrent layers
    without dropout are too, since GPUs compute their gradients in no other.
    """
    model.eval()
    for module in model.modules():
        if (isinstance(module, RNNBase) and not module.dropout) or (isinstance(module, _BatchNorm) and "forward" in vars(module)):
            module.train()
