"""Run a traced model and a changed twin side by side, operator by operator, on all batches at once.

Whoever changes a layer of the twin sees what the whole model makes of the same inputs at that place, and what the twin's
earlier changes have made of them: one pass repairs a network of any depth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from sizewise.protocols import Inputs

__all__ = ["Lockstep"]


class Lockstep:
    """Two runs of one graph.

    Args:
        module: what runs: an exported graph.
        batches: its inputs.
        between: by the name of a module that the graph calls, what the twin does there. The whole model passes on what comes.

    Attributes:
        graph: what runs; weights are "get_attr" nodes whose target is the tensor's name.
        weights: the twin's tensors by `name`; those of the whole model until they are replaced.
    """

    def __init__(self, module: Any, batches: Sequence[Inputs], between: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> None:
        self.graph = module.graph
        self._between = between or {}
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        first: dict[int, str] = {}
        self._names = {name: first.setdefault(id(tensor), name) for name, tensor in named}
        self._whole = {name: tensor.detach() for name, tensor in named if self._names[name] == name}
        self._constant = {n.target: _attribute(module, n.target) for n in self.graph.nodes if n.op == "get_attr"}
        self.weights = dict(self._whole)
        self._inputs = [pytree.tree_leaves((b.args, dict(b.kwargs or {})), is_leaf=lambda leaf: leaf is None) for b in batches]
        self._places = {node: place for place, node in enumerate(n for n in self.graph.nodes if n.op == "placeholder")}
        self._values: dict[bool, dict[Node, list[Any]]] = {True: {}, False: {}}
        self._last = {used: node for node in self.graph.nodes for used in node.all_input_nodes}

    def walk(self) -> Iterator[Node]:
        """Every node; while it is given, the whole model's value is known and the twin's not yet, so its weights may change."""
        with torch.no_grad():
            for node in self.graph.nodes:
                self._run(node, twin=False)
                yield node
                self._run(node, twin=True)
                for used in node.all_input_nodes:
                    if self._last[used] is node:
                        self._values[False].pop(used, None)
                        self._values[True].pop(used, None)

    def whole(self, node: Node) -> list[Any]:
        """The whole model's value of a node, per batch."""
        return self._values[False][node]

    def twin(self, node: Node) -> list[Any]:
        """The twin's, per batch."""
        return self._values[True][node]

    def twin_of(self, node: Node, batch: int) -> Any:
        """What the twin makes of a node that is being looked at, with the weights that it has now."""
        return self._call(node, batch, twin=True)

    def name(self, weight: Node | str) -> str:
        """The name that a weight goes by in `weights`: tied ones, which have several, share the first."""
        name = weight if isinstance(weight, str) else str(weight.target)
        return self._names.get(name, name)

    def whole_tensor(self, name: str) -> Tensor:
        """A weight of the whole model."""
        found: Tensor = self._whole[name]
        return found

    def known(self, node: Node) -> bool:
        """Whether both have computed the node and still hold it."""
        return node in self._values[True] and node in self._values[False]

    def _run(self, node: Node, *, twin: bool) -> None:
        values = self._values[twin]
        if node.op == "placeholder":
            values[node] = [leaves[self._places[node]] for leaves in self._inputs]
        elif node.op == "call_function":
            values[node] = [self._call(node, batch, twin=twin) for batch in range(len(self._inputs))]
        elif node.op == "call_module" and node.all_input_nodes[0].op != "get_attr":
            passed = values[node.all_input_nodes[0]]
            change = self._between.get(str(node.target)) if twin else None
            values[node] = passed if change is None else [change(value) for value in passed]

    def _call(self, node: Node, batch: int, *, twin: bool) -> Any:
        weights = self.weights if twin else self._whole

        def look(used: Node) -> Any:
            if used.op == "call_module" and used.all_input_nodes[0].op == "get_attr":
                used = used.all_input_nodes[0]
            if used.op == "get_attr":  # looked up late: the graph names all weights before it uses any
                return weights.get(self.name(used), self._constant[used.target])
            return self._values[twin][used][batch]

        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function(*map_arg(node.args, look), **map_arg(node.kwargs, look))


def _attribute(module: Any, name: Any) -> Any:
    for part in str(name).split("."):
        module = getattr(module, part)
    return module.detach() if isinstance(module, Tensor) else module
