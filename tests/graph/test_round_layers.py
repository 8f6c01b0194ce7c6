"""Rounded weights held as codes and put back."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sizewise.graph.observers import mode
from sizewise.graph.prepared import Prepared, convert, folded, prepare
from sizewise.graph.round_layers import pack_weights, round_layers, weight_observer
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs, Silent
from sizewise.runtimes._schemes import U8S8


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 16))
        self.tied = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.tied[1].weight = self.tied[0].weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        for layer in self.tied:
            x = layer(x).relu()
        return x


def rounded(bits: int) -> tuple[Prepared, Tensor]:
    x = torch.randn(6, 3, 8, 8)
    prepared = prepare(folded(trace(Net().eval(), Inputs((x,)))), U8S8, bits=bits)
    prepared.watch([Inputs((x,))])
    prepared.set_ranges("minmax")
    round_layers(prepared.graph, [Inputs((x,))], 0, Silent())
    return prepared, x


def state(prepared: Prepared) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in prepared.graph.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_come_back_to_the_bit(bits: int) -> None:
    prepared, x = rounded(bits)
    before = state(prepared)
    with torch.no_grad(), mode(prepared.graph, "simulate"):
        want = prepared.graph(x)
    unpack = pack_weights(prepared.graph)
    packed = state(prepared)
    for path in ("layers.0", "layers.2", "layers.4"):
        assert packed[f"{path}.weight"].numel() == 0
    unpack()
    after = state(prepared)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad(), mode(prepared.graph, "simulate"):
        assert torch.equal(prepared.graph(x), want)


def test_shared_weights_and_those_that_are_no_codes_stay_while_others_are_packed() -> None:
    prepared, _ = rounded(8)
    before = state(prepared)
    before["layers.4.weight"][0, 0] += 1e-4  # between two codes
    pack_weights(prepared.graph)
    packed = state(prepared)
    for name in ("tied.0.weight", "layers.4.weight"):
        assert torch.equal(packed[name], before[name])
    assert packed["layers.0.weight"].numel() == 0


def test_codes_of_an_observer_are_those_of_its_scale() -> None:
    prepared, _ = rounded(8)
    node = next(node for node in prepared.graph.graph.nodes if weight_observer(prepared.graph, node) is not None)
    observer = weight_observer(prepared.graph, node)
    assert observer is not None
    weight = state(prepared)["layers.0.weight"]
    codes = observer.codes(weight)
    assert codes is not None
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= 127
    assert torch.equal(observer.values(codes, weight.dtype), weight)
    assert observer.codes(weight * 1.001) is None


def test_graphs_that_were_prepared_and_converted_are_let_go() -> None:
    prepared, x = rounded(8)
    weights = [weakref.ref(parameter) for parameter in prepared.graph.parameters()]
    converted = convert(prepared)
    del prepared
    gc.collect()
    assert [weight() for weight in weights if not _held(converted, weight())] == []
    assert converted(x).shape == (6, 16)


def _held(module: nn.Module, parameter: nn.Parameter | None) -> bool:
    return parameter is None or any(parameter is other for other in module.parameters())
