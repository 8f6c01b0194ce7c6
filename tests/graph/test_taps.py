"""Nodes that stand for blocks' outputs, and taps on them."""

import torch
from torch import Tensor, nn

from sizewise.graph.hooks import hooked
from sizewise.graph.prepared import folded
from sizewise.graph.taps import Runnable, block_outputs, tapped
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs
from sizewise.testing import TinyConv

X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_taps_see_what_blocks_give_and_are_gone_after() -> None:
    model = TinyConv().eval()
    graph = folded(trace(model, Inputs((X,))))
    names, before = block_outputs(graph), str(graph.graph)
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), tapped(graph, [*names, "nowhere"]):
        taps = {name: graph.get_submodule(f"tap_{name}") for name in names}
        handles = [tap.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out})) for name, tap in taps.items()]
        with hooked(handles):
            graph(X)
    want: list[Tensor] = []
    blocks = [model.get_submodule(path) for path in ("stem", "inner")]
    with torch.no_grad(), hooked([block.register_forward_hook(lambda _, __, out: want.append(out)) for block in blocks]):
        model(X)
    assert len(names) == len(want)
    for name, wanted in zip(names, want, strict=True):
        torch.testing.assert_close(seen[name], wanted)
    assert str(graph.graph) == before
    assert not any("tap" in name for name, _ in graph.named_modules())


def test_layers_stand_for_themselves_where_no_module_holds_others() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    assert len(block_outputs(folded(trace(model, Inputs((torch.randn(2, 3),)))))) == 3


def test_a_graph_can_be_told_its_mode() -> None:
    graph = folded(trace(TinyConv().eval(), Inputs((X,))))
    runnable = Runnable(graph)
    with torch.no_grad():
        assert torch.equal(runnable.train()(X), runnable.eval()(X))
    assert not runnable.training
