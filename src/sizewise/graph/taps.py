"""Places of an exported graph that training looks at, by the names that two graphs of the same code share.

An exported graph is flat: a block's output is a node, and no module that a hook could be put on. A tap is an empty module that is
called with a node's value, so that whatever watches modules can watch nodes too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

__all__ = ["Runnable", "block_outputs", "tapped"]


class Runnable(nn.Module):
    """An exported graph as a module that bears `train` and `eval`, which change nothing in it: a graph has one mode.

    Args:
        graph: that runs; its parameters are this module's.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        return self.graph(*args, **kwargs)

    def train(self, mode: bool = True) -> "Runnable":
        """Note the mode here; graphs refuse to be told."""
        self.training = mode
        return self


def block_outputs(graph: GraphModule) -> list[str]:
    """Names of the nodes that stand for outputs of modules that hold others, in the order of running; of layers where there are none.

    A module's output is taken to be the last real tensor that its code makes.
    """
    last: dict[str, Node] = {}
    for node in graph.graph.nodes:
        if _is_feature(node):
            for path in _paths(node):
                last[path] = node
    holders = {path for path in last if any(other.startswith(f"{path}.") for other in last)}
    chosen = {last[path] for path in holders or last}
    return [node.name for node in graph.graph.nodes if node in chosen]


def _paths(node: Node) -> list[str]:
    """Of the modules whose code makes a node, the whole model left out; calls of one module are told apart."""
    return [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values() if path]


def _is_feature(node: Node) -> bool:
    value = node.meta.get("val") if node.op == "call_function" else None
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1


@contextmanager
def tapped(graph: GraphModule, names: Sequence[str]) -> Iterator[None]:
    """Within it, the module "tap_NAME" is called with the value of every node of these names; names that the graph lacks have none.

    Args:
        graph: changed in place while the block runs.
        names: of nodes, as `block_outputs` finds them, perhaps in another graph of the same code.
    """
    wanted = set(names)
    taps = {node.name: node for node in graph.graph.nodes if node.name in wanted}
    calls = []
    for name, node in taps.items():
        graph.add_module(f"tap_{name}", nn.Identity())
        with graph.graph.inserting_after(node):
            calls.append(graph.graph.call_module(f"tap_{name}", (node,)))
    graph.recompile()
    try:
        yield
    finally:
        for call in calls:
            graph.graph.erase_node(call)
            delattr(graph, str(call.target))
        graph.recompile()
