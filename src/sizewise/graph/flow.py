"""Follow channels through an exported graph: every dimension of every value gets labels, or none.

A layer that makes channels gives its output's dimension fresh labels, which every operator behind passes on, joins or
freezes by its rule (`graph/flow_rules.py`). What no rule knows freezes what flows into it, so that nothing is cut there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from sizewise.graph.labels import Indices, Labels
from sizewise.graph.surgery import axes

__all__ = ["FILLED", "Flow", "Split", "Value", "arguments", "operator", "scope", "shape_of"]

# operators that make tensors of one number
FILLED = ("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty", "scalar_tensor")

Rule = Callable[["Flow", Node, dict[str, Any]], "Value | tuple[Value, ...]"]


@dataclass(frozen=True)
class Value:
    """Labels of a tensor's dimensions, None where indices are no channels.

    Attributes:
        dims: one entry per dimension.
        blank: filled with one number, whatever its shape, so that it goes along with any cut.
    """

    dims: tuple[Indices | None, ...]
    blank: bool = False

    @property
    def labels(self) -> list[Indices]:
        """Of all dimensions that have some."""
        return [dim for dim in self.dims if dim is not None]


@dataclass(frozen=True)
class Split:
    """A reshape that takes channels apart, such as into heads.

    Attributes:
        node: its name in the graph.
        path: of the module whose code does it.
        flat: labels before.
        sizes: of the parts, from the outermost.
        part: which of them carries the labels on.
        other: the part to try next; None where there is none left.
    """

    node: str
    path: str
    flat: Indices
    sizes: tuple[int, ...]
    part: int
    other: int | None


class Flow:
    """The labels of one model's channels.

    Attributes:
        unknown: layers and parameters that make channels and that surgery does not know, by path, with the reason.

    Args:
        model: what was exported.
        program: its graph, of fixed shapes.
        parts: for splits by node name, which part carries the labels; the outermost along which they differ by default.
    """

    def __init__(self, model: nn.Module, program: ExportedProgram, rules: Mapping[str, Rule], parts: Mapping[str, int]) -> None:
        self.model = model
        self.labels = Labels()
        self.parts = parts
        self.splits: list[Split] = []
        self.unknown: dict[str, str] = {}
        self._rules = rules
        self._axes: dict[tuple[int, str], Indices] = {}
        self._values: dict[Node, Any] = {}
        signature = program.graph_signature
        self._parameters = dict(signature.inputs_to_parameters)
        self._tensors = {**self._parameters, **signature.inputs_to_buffers}
        self._holders: dict[int, list[tuple[str, nn.Module]]] = {}
        for path, module in model.named_modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._holders.setdefault(id(tensor), []).append((path, module))
        for node in program.graph.nodes:
            self._values[node] = self._run(node)

    def value(self, node: Any) -> Value:
        """Labels of one tensor."""
        found = self._values.get(node) if isinstance(node, Node) else None
        return found if isinstance(found, Value) else Value(())

    def layer(self, weight: Any, kind: type[nn.Module] | UnionType = nn.Module) -> tuple[str, nn.Module] | None:
        """Path and module of a kind that hold a weight, where surgery knows that module; tied weights have several holders."""
        name = self.tensor(weight)
        if name is None:
            return None
        path, _, own = name.rpartition(".")
        held = getattr(self.model.get_submodule(path), own)
        return next((found for found in self._holders.get(id(held), ()) if isinstance(found[1], kind) and axes(found[1])), None)

    def tensor(self, node: Any) -> str | None:
        """Name of a parameter or buffer of the model; None where a node is something else."""
        return self._tensors.get(node.name) if isinstance(node, Node) else None

    def strange(self, node: Node, weight: Any) -> str:
        """Note that a node's weights cannot be cut; the reason for what they read."""
        path, name = scope(node).partition(".parametrizations.")[0], self.tensor(weight)
        if not path:
            if name is not None:
                self.unknown[name] = "a parameter outside any layer"
            return f"read by {name or 'weights'} outside any layer"
        module = self.model.get_submodule(path)
        kind = type(module).__name__
        if axes(module):  # as under weight normalization
            self.unknown[path] = "its weights are computed from others"
            return f"read by {path}, whose weights are computed from others"
        self.unknown[path] = f"surgery does not know the weights of {kind}"
        return f"read by {path}, a {kind}, whose weights surgery does not know"

    def axis(self, module: nn.Module, axis: str) -> Indices:
        """Labels of a layer's axis; layers whose weights are tied have the same."""
        key = self._key(module, axis)
        if key not in self._axes:
            self._axes[key] = self.labels.fresh(axes(module)[axis])
        return self._axes[key]

    def known_axis(self, module: nn.Module, axis: str) -> Indices | None:
        """The same, or None where the graph never used it."""
        return self._axes.get(self._key(module, axis))

    def freeze(self, value: Value, reason: str) -> None:
        """Nothing that this value carries may go."""
        for labels in value.labels:
            self.labels.freeze(labels, reason)

    def join(self, a: Indices | None, b: Indices | None, reason: str) -> Indices | None:
        """Two dimensions meet index by index: both go together, or neither goes where one has no channels."""
        if a is None or b is None:
            for labels in (a, b):
                if labels is not None:
                    self.labels.freeze(labels, reason)
            return None
        self.labels.join(a, b)
        return a

    def _key(self, module: nn.Module, axis: str) -> tuple[int, str]:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            return id(module), axis
        across = isinstance(module, nn.Embedding | nn.modules.conv._ConvTransposeNd)
        dim = {"out": 1, "in": 0}[axis] if across else {"out": 0, "in": 1}[axis]
        return id(weight), str(dim)

    def _run(self, node: Node) -> Any:
        if node.op == "output":
            for made in node.all_input_nodes:
                self.freeze(self.value(made), "makes the model's output")
            return None
        if node.op != "call_function":
            return Value((None,) * len(shape_of(node)))
        if operator(node) == "getitem":
            several: Any = self._values.get(node.all_input_nodes[0])
            return several[cast(int, node.args[1])] if isinstance(several, tuple) else Value((None,) * len(shape_of(node)))
        if not isinstance(node.target, torch._ops.OpOverload) or operator(node).startswith("_assert"):
            return None
        sources = [self.value(source) for source in node.all_input_nodes]
        rule = self._rules.get(operator(node))
        if rule is None and torch.Tag.pointwise in node.target.tags:
            rule = self._rules["(pointwise)"]
        if rule is None or not self._rules_apply(node, sources):
            for source in sources:
                self.freeze(source, f"flows into {operator(node)}, through which channels are not followed")
            if rule is None:
                self._note(node)
            return _nothing(node)
        return rule(self, node, arguments(node))

    def _note(self, node: Node) -> None:
        """A layer that runs an operator without a rule on its own weights."""
        weight = next((s for s in node.all_input_nodes if s.name in self._parameters and len(shape_of(s)) > 1), None)
        if weight is not None and not any(True for _ in self.model.get_submodule(scope(node)).children()):
            self.strange(node, weight)

    def _rules_apply(self, node: Node, sources: list[Value]) -> bool:
        """Rules are asked only where there is something to tell: weights, channels, or a filled tensor."""
        named = any(self._tensors.get(source.name) for source in node.all_input_nodes)
        return named or operator(node) in FILLED or not sources or any(source.labels or source.blank for source in sources)


def _nothing(node: Node) -> Value | tuple[Value, ...]:
    found = node.meta.get("val")
    if isinstance(found, tuple | list):
        return tuple(Value((None,) * getattr(item, "ndim", 0)) for item in found)
    return Value((None,) * len(shape_of(node)))


def operator(node: Node) -> str:
    """Name of what a node calls, without overload."""
    return getattr(node.target, "_opname", getattr(node.target, "__name__", ""))


def scope(node: Node) -> str:
    """Path of the module whose code makes a node."""
    paths = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()][-1:] or [""]
    return paths[0].partition("@")[0]


def shape_of(node: Any) -> tuple[int, ...]:
    """Sizes of a node's value; none where it is no tensor."""
    return tuple(int(size) for size in getattr(node.meta.get("val") if isinstance(node, Node) else None, "shape", ()))


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    found = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    found.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    found.update(node.kwargs)
    return found
