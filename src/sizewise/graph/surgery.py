"""The only code that changes the shape of a layer: keep some indices of one of its axes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel

__all__ = [
    "ATTRIBUTE",
    "WHOLE",
    "PassOn",
    "axes",
    "axis_size",
    "cut",
    "is_depthwise",
    "is_grouped",
    "keep_indices",
    "slices",
    "supports",
    "zero_indices",
]

ATTRIBUTE = "."  # begins the name of an axis that is a number in the module's code, such as ".num_heads"
WHOLE = "whole"  # the axis of a module that stays or goes as a whole

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
_GATES = {nn.GRU: 3, nn.GRUCell: 3, nn.LSTM: 4, nn.LSTMCell: 4}
_STATISTICS = ("weight", "bias", "running_mean", "running_var")

Slice = tuple[str, int, int]  # name of a tensor, its dimension, and how many blocks of the axis lie along it


class PassOn(nn.Module):
    """What stands in place of a block that was left out: it hands its first input on."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """Give `x` back."""
        return x


def is_depthwise(layer: nn.Module) -> bool:
    """A convolution in which every channel has its own single filter."""
    return isinstance(layer, _CONVS) and layer.groups == layer.in_channels == layer.out_channels > 1


def is_grouped(layer: nn.Module) -> bool:
    """A convolution in several groups, depthwise ones included; its groups go whole, outputs and inputs together."""
    return isinstance(layer, _CONVS) and layer.groups > 1


def axes(layer: nn.Module) -> dict[str, int]:
    """The axes that can lose indices, and their sizes; none where surgery does not know the layer.

    A normalization, an embedding and a grouped convolution have one axis, "out". A recurrent layer's "out" is its hidden size.
    """
    if isinstance(layer, _CONVS):
        return {"out": layer.out_channels} if layer.groups > 1 else {"out": layer.out_channels, "in": layer.in_channels}
    if isinstance(layer, _TRANSPOSED):
        return {"out": layer.out_channels, "in": layer.in_channels} if layer.groups == 1 else {}
    if isinstance(layer, nn.Linear) and type(layer) is not nn.modules.linear.NonDynamicallyQuantizableLinear:
        return {"out": layer.out_features, "in": layer.in_features}
    if isinstance(layer, nn.GRU | nn.LSTM | nn.RNN):
        return {"out": layer.hidden_size, "in": layer.input_size} if not layer.proj_size else {}
    if isinstance(layer, _CELLS):
        return {"out": layer.hidden_size, "in": layer.input_size}
    size = _features(layer)
    return {} if size is None else {"out": size}


def _features(layer: nn.Module) -> int | None:
    if isinstance(layer, _NORMS):
        return layer.num_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return layer.num_parameters
    return None


def supports(layer: nn.Module) -> bool:
    """Whether `keep_indices` knows this layer."""
    return bool(axes(layer))


def axis_size(layer: nn.Module, axis: str) -> int:
    """How many indices an axis has.

    Raises:
        UnsupportedModel: a layer, or an axis of it, that surgery does not know.
    """
    if axis.startswith(ATTRIBUTE):
        return int(getattr(layer, axis[1:]))
    known = axes(layer)
    if not known:
        raise UnsupportedModel("surgery does not know this layer", got=type(layer).__name__)
    if axis not in known:
        raise UnsupportedModel("this layer has no such axis", got=f"{axis} of {type(layer).__name__}", wanted=" or ".join(known))
    return known[axis]


def cut(model: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Keep the given indices of the given axes, by module path; parameters that were tied are tied again.

    A module of which nothing of the axis "whole" is kept is left out.

    Raises:
        UnsupportedModel: a layer, or an axis of it, that surgery does not know.
        AttributeError: a path that the model does not have.
    """
    before = [(module, name, id(p)) for module in model.modules() for name, p in module._parameters.items() if p is not None]
    gone = [path for path, by_axis in kept.items() if WHOLE in by_axis and not by_axis[WHOLE]]
    for path, by_axis in kept.items():
        for axis, rows in by_axis.items():
            if axis != WHOLE:
                keep_indices(model.get_submodule(path), axis, rows)
    for path in gone:
        model.set_submodule(path, PassOn())
    first: dict[int, nn.Parameter] = {}
    for module, name, identity in before:
        parameter: nn.Parameter = getattr(module, name)
        other = first.setdefault(identity, parameter)
        if other is not parameter and other.shape == parameter.shape:
            setattr(module, name, other)


def keep_indices(layer: nn.Module, axis: str, kept: Sequence[int]) -> None:
    """Keep only the indices `kept` of one axis, in that order, in place.

    Raises:
        UnsupportedModel: a layer, or an axis of it, that surgery does not know.
        IndexError: an index that the axis does not have.
    """
    size = axis_size(layer, axis)
    if axis.startswith(ATTRIBUTE):
        setattr(layer, axis[1:], len(kept))
        return
    for name, dim, blocks in slices(layer, axis):
        old = getattr(layer, name)
        index = torch.tensor([block * size + row for block in range(blocks) for row in kept], dtype=torch.long)
        new = old.detach().index_select(dim, index.to(old.device)).clone()
        setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    _resize(layer, axis, size, len(kept))


def zero_indices(layer: nn.Module, axis: str, rows: Sequence[int]) -> None:
    """Put zeros in place of some indices of one axis: what is written there, or what reads from there.

    Raises:
        UnsupportedModel: a layer, or an axis of it, that surgery does not know.
    """
    size = axis_size(layer, axis)
    if axis.startswith(ATTRIBUTE):
        return
    for name, dim, blocks in slices(layer, axis):
        values: Tensor = getattr(layer, name)
        if isinstance(values, nn.Parameter):
            index = torch.tensor([block * size + row for block in range(blocks) for row in rows], dtype=torch.long)
            values.data.index_fill_(dim, index.to(values.device), 0)


def slices(layer: nn.Module, axis: str) -> list[Slice]:
    """The tensors that run along an axis: name, dimension, and how many blocks of the axis lie along it."""
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        return _recurrent_slices(layer, axis)
    if isinstance(layer, nn.Embedding):
        return [("weight", 1, 1)]
    if isinstance(layer, _TRANSPOSED):
        found = [("weight", 1, 1), ("bias", 0, 1)] if axis == "out" else [("weight", 0, 1)]
    elif axis == "in":
        found = [("weight", 1, 1)]
    else:
        found = [(name, 0, 1) for name in _STATISTICS]
    return [item for item in found if getattr(layer, item[0], None) is not None]


def _recurrent_slices(layer: nn.RNNBase | nn.RNNCellBase, axis: str) -> list[Slice]:
    """Gates are blocks of rows; a further layer reads the directions of the one before as blocks of columns."""
    gates = _GATES.get(type(layer), 1)
    directions = 2 if isinstance(layer, nn.RNNBase) and layer.bidirectional else 1
    found: list[Slice] = []
    for name, _ in layer.named_parameters(recurse=False):
        reads_input = name.startswith("weight_ih") and not any(name.startswith(f"weight_ih_l{n}") for n in range(1, 100))
        if axis == "in":
            found += [(name, 1, 1)] if reads_input else []
            continue
        found.append((name, 0, gates))
        if name.startswith("weight_hh"):
            found.append((name, 1, 1))
        elif name.startswith("weight_ih") and not reads_input:
            found.append((name, 1, directions))
    return found


def _resize(layer: nn.Module, axis: str, before: int, after: int) -> None:
    """Set the numbers that a layer's code reads."""
    if isinstance(layer, _CONVS) and layer.groups > 1:
        layer.in_channels = layer.in_channels * after // before
        layer.groups = layer.groups * after // before
        layer.out_channels = after
    elif isinstance(layer, _CONVS + _TRANSPOSED):
        setattr(layer, f"{axis}_channels", after)
    elif isinstance(layer, nn.Linear):
        setattr(layer, f"{axis}_features", after)
    elif isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        setattr(layer, "hidden_size" if axis == "out" else "input_size", after)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups, layer.num_channels = layer.num_groups * after // before, after
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = after
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = after
    elif isinstance(layer, _NORMS):
        layer.num_features = after
