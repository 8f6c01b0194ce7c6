"""The layout of weights in which convolutions train fastest on CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sizewise.protocols import Inputs

__all__ = ["channels_last"]


@contextmanager
def channels_last(model: nn.Module, inputs: Inputs | None) -> Iterator[None]:
    """The weights of 2-d convolutions with their channels innermost, which on CPUs trains up to twice as fast, and back.

    Activations follow the weights. A model that cannot run so (it reshapes activations by `view`) stays as it is. The model is
    left in eval mode.

    Args:
        model: changed in place while the block runs.
        inputs: to try whether it runs; None tries nothing.
    """
    convert = nn.utils.convert_conv2d_weight_memory_format
    convert(model, torch.channels_last)
    try:
        with torch.no_grad():
            _ = inputs and inputs.call(model.eval())
    except Exception:  # noqa: BLE001  # if the layout is not to blame, training meets the same error and reports it
        convert(model, torch.contiguous_format)
    try:
        yield
    finally:
        convert(model, torch.contiguous_format)
