"""Regions of a graph that only set a mode (autocast, gradients on or off), written out as the operators inside them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

__all__ = ["CONTEXT", "inlined"]

CONTEXT = "sizewise_context"  # key in a node's meta: makes the context in which the node runs
_Context = Callable[[], AbstractContextManager[Any]]
_REGIONS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}  # position of the region's body among the arguments


def inlined(program: ExportedProgram) -> tuple[Graph, frozenset[str]]:
    """A copy of the program's graph in which every region stands as its operators, and the names of the user's inputs in it.

    Nodes keep their `meta`; a few get other names.
    """
    graph = Graph()
    copies: dict[Node, Any] = {}
    graph.output(_copy(graph, program.graph_module, copies, nullcontext))
    given = frozenset(program.graph_signature.user_inputs)
    return graph, frozenset(copy.name for node, copy in copies.items() if node.op == "placeholder" and node.name in given)


def _copy(into: Graph, source: GraphModule, values: dict[Node, Any], context: _Context) -> Any:
    """Copy the nodes behind those that `values` has already; what the source's output node returns."""
    for node in source.graph.nodes:
        if node.op == "output":
            return pytree.tree_map_only(Node, values.__getitem__, node.args[0])
        if node in values:
            continue
        if (place := _REGIONS.get(getattr(node.target, "__name__", ""))) is not None and node.op == "call_function":
            values[node] = _region(into, source, node, place, values, context)
        elif isinstance(node.args[0] if node.args else None, Node) and isinstance(values[node.args[0]], tuple | list):
            values[node] = values[node.args[0]][node.args[1]]  # an element of what a region returns
        else:
            values[node] = into.node_copy(node, values.__getitem__)
            values[node].meta[CONTEXT] = context
    return None


def _region(into: Graph, source: GraphModule, node: Node, place: int, values: Mapping[Node, Any], context: _Context) -> Any:
    body = getattr(source, str(node.args[place].target))  # type: ignore[union-attr]
    inputs = (n for n in body.graph.nodes if n.op == "placeholder")
    given = dict(zip(inputs, (values[a] for a in node.args[place + 1 :]), strict=True))  # type: ignore[index]
    if place == _REGIONS["wrap_with_autocast"]:
        device, dtype, enabled, cache = node.args[:4]
        context = partial(torch.autocast, device, dtype=dtype, enabled=enabled, cache_enabled=cache)  # type: ignore[arg-type]
    return _copy(into, body, given, context)
