"""Which activations are alive when: memory that a graph needs when its operators run one after the other.

Storage is taken when an operator writes its output and given back after the last operator that reads it or a view of it.
Views share their source's storage. A pointwise operator (a normalization with fixed statistics among them) writes over an
input of the same size that dies there, as the planners of runtimes do. Weights are not counted, nor is scratch space inside an
operator. Inputs are alive until they are last read; outputs stay alive to the end.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

__all__ = ["is_mutable", "is_view", "live_bytes", "nbytes"]

_DROPOUTS = ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout")

_POINTWISE = ("aten::hardswish", "aten::prelu", "aten::log_sigmoid", "aten::floor_divide")  # torch does not tag them


def nbytes(value: Any) -> int:
    """Bytes of every tensor in a value."""
    return sum(int(t.numel()) * t.element_size() for t in pytree.tree_leaves(value) if isinstance(t, Tensor))


def is_view(node: Node) -> bool:
    """Whether the node only renames memory that exists: views, elements of a tuple, dropout at inference.

    Told from the traced tensors, not from the operator's schema: `reshape`, `contiguous` and `to` may give a view or a copy.
    """
    return node.op == "call_function" and _source(node) is not None and not is_mutable(node)


def is_mutable(node: Node) -> bool:
    """Whether the node writes into one of its inputs; renaming in place writes nothing, nor does dropout at inference."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or _keeps(node) or torch.Tag.inplace_view in node.target.tags:  # type: ignore[union-attr]
        return False
    return bool(schema.is_mutable)


def _source(node: Node) -> Node | None:
    """The input in whose memory the node's output lies: of a view, or of an operator that works in place."""
    if node.target is operator.getitem or _keeps(node):
        return node.all_input_nodes[0]
    mine = _storages(node)
    return next((source for source in node.all_input_nodes if mine & _storages(source)), None)


def _storages(node: Node) -> set[int]:
    return {t.untyped_storage()._cdata for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)}


def _keeps(node: Node) -> bool:
    """Dropout at inference, which gives back what it takes."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.rstrip("_") in _DROPOUTS and not node.args[2]


def live_bytes(graph: Graph, inputs: Iterable[str]) -> dict[str, int]:
    """Bytes of activations alive while each operator runs, by node name; `inputs` are the names of the user's inputs."""
    home = _homes(graph, frozenset(inputs))
    last = _last_uses(graph, home)
    size: dict[str, int] = {}
    alive: dict[str, int] = {}
    found: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.op == "output":
            break
        name = str(node.name)
        if home.get(name) == name:
            size[name] = nbytes(node.meta.get("val"))
            reused = _overwritten(node, home, last, size, index)
            if reused is not None:
                alive.pop(reused, None)
            alive[name] = size[name]
        found[node.name] = sum(alive.values())
        for done in [key for key in alive if last.get(key, index) <= index]:
            del alive[done]
    return found


def _homes(graph: Graph, inputs: Iterable[str]) -> dict[str, str]:
    """The node that owns each node's memory; constants and what only views them are absent."""
    home: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            home[node.name] = node.name
        elif node.op == "call_function":
            source = _source(node)
            if source is None:
                home[node.name] = node.name
            elif source.name in home:
                home[node.name] = home[source.name]
    return home


def _last_uses(graph: Graph, home: dict[str, str]) -> dict[str, int]:
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.all_input_nodes:
            if source.name in home:
                last[home[source.name]] = index
        if node.name in home:
            last.setdefault(home[node.name], index)
    return last


def _overwritten(node: Node, home: dict[str, str], last: dict[str, int], size: dict[str, int], index: int) -> str | None:
    """The storage of an input that this pointwise operator may write over, or None."""
    if node.op != "call_function" or not _pointwise(node):
        return None
    for source in node.all_input_nodes:
        owner = home.get(source.name)
        if owner is not None and last.get(owner) == index and size.get(owner) == size[node.name]:
            return owner
    return None


def _pointwise(node: Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    if name == "aten::batch_norm":
        return not node.args[5]  # with fixed statistics
    return name in _POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())
