"""Which weights multiply a group's channels, in which columns, and what flows into them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sizewise.arith.moments import Gram
from sizewise.arith.recurrence import Kind, previous, strands, unroll
from sizewise.arith.unfolding import input_rows
from sizewise.errors import PreconditionError
from sizewise.graph.groups import Group, Member
from sizewise.graph.hooks import hooked
from sizewise.protocols import Inputs

__all__ = ["Reading", "reading_grams", "readings", "recurrent_kind"]

WIDEST = 2304  # columns of a convolution whose taps are told apart; wider ones are judged channel by channel
WIDEST_LINEAR = 4096
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)


@dataclass(frozen=True)
class Reading:
    """One matrix that multiplies channels of a group.

    Attributes:
        path: module path of the layer.
        tensor: name of the weight in it.
        channel_of: for every index of the layer's axis, the group channel it belongs to, or -1.
        taps: columns per index, side by side (positions of an unfolded kernel).
        blocks: how many times the axis lies side by side in the columns (directions of the recurrent layer before).
    """

    path: str
    tensor: str
    channel_of: tuple[int, ...]
    taps: int = 1
    blocks: int = 1

    @property
    def size(self) -> int:
        """Columns of the matrix."""
        return len(self.channel_of) * self.taps * self.blocks

    def columns(self, channels: int) -> list[list[int]]:
        """The columns of every channel."""
        found: list[list[int]] = [[] for _ in range(channels)]
        for block in range(self.blocks):
            for row, channel in enumerate(self.channel_of):
                start = (block * len(self.channel_of) + row) * self.taps
                if channel >= 0:
                    found[channel] += range(start, start + self.taps)
        return found

    def matrix(self, layer: nn.Module) -> Float[Tensor, "out in"]:
        """The weights, one column per input."""
        weight = layer.get_parameter(self.tensor).detach().cpu()
        if self.taps > 1 or weight.ndim == 2:
            return weight.flatten(1)
        return weight.movedim(_input_dim(layer), -1).reshape(-1, weight.shape[_input_dim(layer)])

    def like(self, layer: nn.Module, matrix: Float[Tensor, "out in"]) -> Tensor:
        """The inverse of `matrix`: in the weight's shape."""
        weight = layer.get_parameter(self.tensor)
        if self.taps > 1 or weight.ndim == 2:
            return matrix.reshape(weight.shape)
        moved = weight.movedim(_input_dim(layer), -1)
        return matrix.reshape(moved.shape).movedim(-1, _input_dim(layer))


def _input_dim(layer: nn.Module) -> int:
    return 0 if isinstance(layer, _TRANSPOSED) else 1


def readings(model: nn.Module, group: Group) -> list[Reading]:
    """All matrices that multiply the group's channels and whose inputs can be told."""
    return [reading for member in group.members for reading in _of(model.get_submodule(member.path), member)]


def _of(layer: nn.Module, member: Member) -> Iterator[Reading]:
    path, channels = member.path, member.channel_of
    if isinstance(layer, nn.RNNBase):
        for strand in strands(layer.num_layers, bidirectional=layer.bidirectional, bias=layer.bias):
            first, own = strand.names[:2]
            if (strand.layer == 0) == (member.axis == "in"):
                yield Reading(path, first, channels, blocks=2 if strand.layer and layer.bidirectional else 1)
            if member.axis == "out":
                yield Reading(path, own, channels)
    elif isinstance(layer, _CELLS):
        yield Reading(path, "weight_ih" if member.axis == "in" else "weight_hh", channels)
    elif member.axis == "in" and isinstance(layer, nn.Linear) and layer.in_features <= WIDEST_LINEAR:
        yield Reading(path, "weight", channels)
    elif member.axis == "in" and isinstance(layer, _CONVS):
        taps = layer.weight[0, 0].numel()
        yield Reading(path, "weight", channels, taps if layer.in_channels * taps <= WIDEST else 1)
    elif member.axis == "in" and isinstance(layer, _TRANSPOSED):
        yield Reading(path, "weight", channels)


def reading_grams(model: nn.Module, wanted: Iterable[Reading], batches: Sequence[Inputs]) -> dict[tuple[str, str], Gram]:
    """Moments of what flows into every reading's matrix, by module path and name of the weight; one pass over the batches.

    A reading whose layer never runs is left out. A recurrent layer's hidden states are those from a state of zeros.

    Raises:
        PreconditionError: what flows there is not finite.
    """
    by_path: dict[str, dict[str, Reading]] = {}
    for reading in wanted:
        by_path.setdefault(reading.path, {})[reading.tensor] = reading
    found: dict[tuple[str, str], Gram] = {}

    def hook(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor, rows in _rows(layer, by_path[path], args, kwargs):
            if (path, tensor) not in found:
                found[path, tensor] = Gram.empty(1, rows.shape[2], rows.device)
            found[path, tensor].add(rows)

    handles = [model.get_submodule(path).register_forward_pre_hook(partial(hook, path), with_kwargs=True) for path in by_path]
    with hooked(handles), torch.no_grad():
        for batch in batches:
            batch.call(model)
    for (path, _), gram in found.items():
        if not bool(torch.isfinite(gram.squares).all()):
            raise PreconditionError("what flows into this layer is not finite", where=path, hint="look at the data and the weights")
    return found


Rows = Float[Tensor, "1 n in"]


def _rows(layer: nn.Module, wanted: Mapping[str, Reading], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Rows]]:
    """Rows whose columns are those of the readings' matrices; single precision."""
    x: Tensor = (args[0] if args else kwargs["input"]).float()
    if isinstance(layer, nn.RNNBase):
        yield from _recurrent_rows(layer, x, wanted)
    elif isinstance(layer, _CELLS):
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        state = state[0] if isinstance(state, tuple) else state
        sources = {"weight_ih": x, "weight_hh": x.new_zeros(len(x), layer.hidden_size) if state is None else state}
        yield from ((tensor, sources[tensor].reshape(1, -1, sources[tensor].shape[-1])) for tensor in wanted)
    elif isinstance(layer, nn.Linear):
        yield "weight", x.reshape(1, -1, x.shape[-1])
    elif isinstance(layer, _CONVS) and wanted["weight"].taps > 1:
        yield "weight", input_rows(_batched(layer, x), layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    else:
        x = _batched(layer, x)
        yield "weight", x.movedim(1, -1).reshape(1, -1, x.shape[1])


def _batched(layer: nn.Module, x: Tensor) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return x if x.ndim == weight.ndim else x.unsqueeze(0)


def recurrent_kind(layer: nn.RNNBase) -> Kind:
    """Which cell a recurrent layer has."""
    if isinstance(layer, nn.LSTM):
        return "lstm"
    if isinstance(layer, nn.GRU):
        return "gru"
    return "rnn_relu" if getattr(layer, "nonlinearity", "tanh") == "relu" else "rnn_tanh"


def _recurrent_rows(layer: nn.RNNBase, x: Tensor, wanted: Mapping[str, Reading]) -> Iterator[tuple[str, Rows]]:
    x = x.unsqueeze(1) if x.ndim == 2 else x.transpose(0, 1) if layer.batch_first else x
    outputs: dict[int, list[Tensor]] = {}
    for strand in strands(layer.num_layers, bidirectional=layer.bidirectional, bias=layer.bias):
        inputs = torch.cat(outputs[strand.layer - 1], -1) if strand.layer else x
        states = unroll(recurrent_kind(layer), inputs, [layer.get_parameter(name) for name in strand.names], reverse=strand.reverse)
        outputs.setdefault(strand.layer, []).append(states)
        begins = previous(states, reverse=strand.reverse)
        for tensor, values in zip(strand.names[:2], (inputs, begins), strict=True):
            if tensor in wanted:
                yield tensor, values.reshape(1, -1, values.shape[-1])
