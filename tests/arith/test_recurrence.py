"""Strands run one by one against torch's layers, and against their equations written out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.arith.recurrence import Kind, previous, strands, unroll

KINDS: list[tuple[Kind, Any, dict[str, Any]]] = [
    ("gru", nn.GRU, {}),
    ("lstm", nn.LSTM, {}),
    ("rnn_tanh", nn.RNN, {}),
    ("rnn_relu", nn.RNN, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("kind", "make", "options"), KINDS)
def test_strands_one_after_the_other_are_torchs_layer(
    kind: Kind, make: Any, options: dict[str, Any], layers: int, bidirectional: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = make(3, 5, layers, bidirectional=bidirectional, bias=bias, **options).double()
    x = torch.randn(7, 2, 3).double()
    outputs: dict[int, list[Tensor]] = {}
    names = []
    for strand in strands(layers, bidirectional=bidirectional, bias=bias):
        names += list(strand.names)
        source = torch.cat(outputs[strand.layer - 1], -1) if strand.layer else x
        states = unroll(kind, source, [layer.get_parameter(name) for name in strand.names], reverse=strand.reverse)
        outputs.setdefault(strand.layer, []).append(states)
    assert names == [name for name, _ in layer.named_parameters()]
    assert torch.allclose(torch.cat(outputs[layers - 1], -1), layer(x)[0], atol=1e-12)


def test_a_gru_step_by_step() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, 4)
    x, state = torch.randn(5, 2, 3), torch.zeros(2, 4)
    weights = [p.detach() for p in layer.parameters()]
    states = unroll("gru", x, weights)
    assert torch.equal(previous(states)[0], state)
    for step in range(5):
        assert torch.allclose(previous(states)[step], state, atol=1e-6)
        (ir, iz, ii), (hr, hz, hh) = (
            torch.chunk(value @ weight.T + bias, 3, -1)
            for value, weight, bias in ((x[step], weights[0], weights[2]), (state, weights[1], weights[3]))
        )
        z = torch.sigmoid(iz + hz)
        state = (1 - z) * torch.tanh(ii + torch.sigmoid(ir + hr) * hh) + z * state
        assert torch.allclose(states[step], state, atol=1e-6)


def test_read_backwards_the_first_state_is_the_last_and_begins_with_the_second() -> None:
    torch.manual_seed(0)
    weights, x = [torch.randn(4, 3), torch.randn(4, 4)], torch.randn(6, 2, 3)
    states = unroll("rnn_tanh", x, weights, reverse=True)
    assert torch.allclose(states, unroll("rnn_tanh", x.flip(0), weights).flip(0))
    begins = previous(states, reverse=True)
    assert not begins[-1].any()
    assert torch.equal(begins[:-1], states[1:])
    assert torch.allclose(states, torch.tanh(x @ weights[0].T + begins @ weights[1].T), atol=1e-6)


def test_of_a_sequence_of_one_step_every_state_begins_with_zeros() -> None:
    states = torch.ones(1, 2, 3)
    assert not previous(states).any()
    assert not previous(states, reverse=True).any()
