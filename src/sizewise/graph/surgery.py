"""The only code that changes the shape of a layer: keep some indices of its output or input axis."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel

__all__ = ["axis_size", "is_depthwise", "keep_indices", "supports"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_depthwise(layer: nn.Module) -> bool:
    """A convolution in which every channel has its own single filter."""
    return isinstance(layer, _CONVS) and layer.groups == layer.in_channels == layer.out_channels > 1


def supports(layer: nn.Module) -> bool:
    """Whether `keep_indices` knows this type of layer."""
    if isinstance(layer, _CONVS):
        return layer.groups == 1 or is_depthwise(layer)
    return isinstance(layer, (nn.Linear, *_NORMS))


def axis_size(layer: nn.Module, axis: Literal["out", "in"]) -> int:
    """How many indices an axis has.

    Raises:
        UnsupportedModel: a type of layer that surgery does not know.
    """
    if isinstance(layer, _CONVS):
        return layer.out_channels if axis == "out" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if axis == "out" else layer.in_features
    if isinstance(layer, _NORMS):
        return layer.num_features
    raise UnsupportedModel("surgery does not know this layer", got=type(layer).__name__)


def keep_indices(layer: nn.Module, axis: Literal["out", "in"], kept: Sequence[int]) -> None:
    """Keep only the indices `kept` of one axis, in that order, in place.

    A depthwise convolution and a normalization have one axis of channels, named "out".

    Raises:
        UnsupportedModel: a type of layer that surgery does not know.
    """
    index = torch.tensor(list(kept), dtype=torch.long)
    if isinstance(layer, _NORMS):
        _keep(layer, ("weight", "bias", "running_mean", "running_var"), 0, index)
        layer.num_features = len(index)
    elif is_depthwise(layer) and isinstance(layer, _CONVS):
        _keep(layer, ("weight", "bias"), 0, index)
        layer.groups = layer.in_channels = layer.out_channels = len(index)
    elif isinstance(layer, _CONVS) and layer.groups == 1:
        _keep(layer, ("weight", "bias"), 0, index) if axis == "out" else _keep(layer, ("weight",), 1, index)
        setattr(layer, "out_channels" if axis == "out" else "in_channels", len(index))
    elif isinstance(layer, nn.Linear):
        _keep(layer, ("weight", "bias"), 0, index) if axis == "out" else _keep(layer, ("weight",), 1, index)
        setattr(layer, "out_features" if axis == "out" else "in_features", len(index))
    else:
        raise UnsupportedModel("surgery does not know this layer", got=type(layer).__name__)


def _keep(layer: nn.Module, names: Sequence[str], dim: int, index: Tensor) -> None:
    for name in names:
        old = getattr(layer, name)
        if old is None:
            continue
        new = old.detach().index_select(dim, index.to(old.device)).clone()
        setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
