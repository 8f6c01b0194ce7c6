"""Folding of normalizations and moving of ranges: the graph computes what it did, and is what was wanted."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.graph.equalization import equalize, links, smooth
from sizewise.graph.flow import operator
from sizewise.graph.folding import fold_normalizations
from sizewise.graph.trace import quiet, trace
from sizewise.protocols import Inputs


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def graph_of(model: nn.Module, x: Tensor) -> Any:
    return trace(model.eval(), Inputs((x,))).program.module(check_guards=False)


def awake(model: nn.Module) -> nn.Module:
    """With normalizations that do something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return model.eval()


NETS: dict[str, tuple[nn.Module, Tensor]] = {
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), torch.ones(2, 3, 5, 5)),
    "grouped": (nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.BatchNorm1d(8)), torch.ones(2, 4, 6)),
    "linear": (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, affine=False)), torch.ones(2, 5)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), torch.ones(2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_folded_graph_computes_the_same(name: str) -> None:
    model, x = NETS[name]
    awake(model)
    graph = graph_of(model, x)
    assert len(fold_normalizations(graph)) == 1
    assert not any(operator(node) == "batch_norm" for node in graph.graph.nodes if node.op == "call_function")
    y = torch.randn(3, *x.shape[1:])
    torch.testing.assert_close(graph(y), model(y), rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        found: Tensor = self.norm(y) + y
        return found


def test_an_output_that_others_read_keeps_its_normalization() -> None:
    model, x = awake(Branching()), torch.randn(2, 3, 4, 4)
    graph = graph_of(model, x)
    assert fold_normalizations(graph) == []
    torch.testing.assert_close(graph(x), model(x))


def test_equalized_layers_have_the_same_range_on_both_sides_of_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        next(model.parameters()).mul_(torch.logspace(-2, 2, 8)[:, None, None, None])
    x = torch.randn(2, 3, 8, 8)
    graph = graph_of(model, x)
    before = model(x)
    found = links(graph)
    assert [(len(link.writers), link.readers[0][1]) for link in found] == [(2, 0), (2, 1)]
    for _ in range(5):
        equalize(graph, found)
    torch.testing.assert_close(graph(x), before, rtol=1e-3, atol=1e-5)
    state = graph.state_dict()
    write, read = state["2.weight"].abs().flatten(1).amax(1), state["5.weight"].abs().amax((0, 2, 3))
    torch.testing.assert_close(write, read, rtol=0.05, atol=0)


def test_relu6_and_readers_besides_layers_let_no_scale_pass() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert links(graph_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 1)), x)) == []
    assert links(graph_of(Branching(), x)) == []


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        found: Tensor = self.q(y) * self.k(y)
        return found


def test_smoothing_moves_the_spread_of_activations_into_weights() -> None:
    model, x = Block().eval(), torch.randn(2, 5, 6)
    with torch.no_grad():
        model.norm.weight[2] = 50  # an outlier channel
    before, graph = model(x), graph_of(model, x)
    (link,) = links(graph)
    assert link.normalized
    ranges = {link.node.name: model.norm(x).abs().flatten(0, 1).amax(0)}
    with quiet():
        twin = copy.deepcopy(graph)
    smooth(graph, links(graph), ranges, 0.5)
    torch.testing.assert_close(graph(x), before, rtol=1e-4, atol=1e-5)

    def spread(found: Any) -> float:
        gain = found.state_dict()["norm.weight"].abs()
        return float(gain.max() / gain.min())

    assert spread(graph) < spread(twin) / 2
