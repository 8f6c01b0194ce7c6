"""Recurrent layers run one layer and one direction at a time, so that every hidden state is seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Kind", "Strand", "previous", "strands", "unroll"]

Kind = Literal["gru", "lstm", "rnn_tanh", "rnn_relu"]
States = Float[Tensor, "time batch hidden"]


@dataclass(frozen=True)
class Strand:
    """One layer in one direction.

    Attributes:
        layer: number of the layer, from 0.
        reverse: whether it reads the sequence backwards.
        names: of its weights as torch calls them: input to hidden, hidden to hidden, then their biases where there are any.
    """

    layer: int
    reverse: bool
    names: tuple[str, ...]


def strands(layers: int, *, bidirectional: bool, bias: bool) -> Iterator[Strand]:
    """All strands in torch's order."""
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ()))
    for layer in range(layers):
        for reverse in (False, True) if bidirectional else (False,):
            yield Strand(layer, reverse, tuple(f"{kind}_l{layer}{'_reverse' if reverse else ''}" for kind in kinds))


def unroll(kind: Kind, x: Float[Tensor, "time batch in"], weights: Sequence[Tensor], *, reverse: bool = False) -> States:
    """Hidden states after every step, from a state of zeros, in the order of the inputs.

    Args:
        kind: of cell.
        x: inputs.
        weights: of one strand, as `Strand.names` orders them.
        reverse: read backwards.
    """
    x = x.flip(0) if reverse else x
    state = x.new_zeros(1, x.shape[1], weights[1].shape[1])
    settings = (len(weights) > 2, 1, 0.0, False, False, False)  # biases, layers, dropout, training, bidirectional, batch first
    if kind == "lstm":
        out: Tensor = torch.lstm(x, (state, state), tuple(weights), *settings)[0]
    else:
        out = getattr(torch, kind)(x, state, tuple(weights), *settings)[0]
    return out.flip(0) if reverse else out


def previous(states: States, *, reverse: bool = False) -> States:
    """The state that each step begins with."""
    first = states.new_zeros(1, *states.shape[1:])
    return torch.cat([states[1:], first]) if reverse else torch.cat([first, states[:-1]])
