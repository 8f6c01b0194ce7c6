"""The operators of an exported graph, each with its work, the bytes it moves, and the module it belongs to."""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from sizewise.errors import UnsupportedModel
from sizewise.profile.inlining import CONTEXT, inlined
from sizewise.profile.liveness import is_mutable, is_view, live_bytes, nbytes
from sizewise.profile.operators import WorkCounter, is_recurrent, moves_only, recurrent_steps, unfused

__all__ = ["FAMILIES", "Operator", "module_path", "operators_of", "total_uncounted"]

_LOOKUPS = ("embedding", "embedding_bag")
FAMILIES = ("conv", "conv1d", "pointwise", "depthwise", "matmul", "recurrent", "memory")
_CONVOLUTION = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "_convolution")
_TRANSPOSED = 6  # position of `groups` among the arguments of conv_transpose
_TRAINING = 5  # position of `training` among those of batch_norm
# what runtimes fold into the layer before it: relu and its clipped forms, a few more behind convolutions, and the residual addition
_FOLDED = frozenset(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"))
_FOLDED_BEHIND_CONVOLUTIONS = frozenset(("sigmoid", "tanh", "hardsigmoid", "leaky_relu"))


@dataclass(frozen=True)
class Operator:
    """One node of the graph.

    Attributes:
        name: the node's, unique in the graph.
        kind: the operator's, such as "conv2d".
        path: of the module that runs it; "" is the model itself.
        module: that module's class.
        family: one of FAMILIES.
        macs, elementwise, uncounted: its work, see `profile.operators`.
        read_bytes: of activations it reads; a folded operator finds its first one in registers.
        weight_bytes: of parameters and constants it reads.
        write_bytes: of activations it writes; 0 for views and folded operators.
        live_bytes: of all activations alive while it runs.
        steps: that wait for one another, inside a recurrent layer; else 1.
        host: path of the layer inside which runtimes do its work (normalization after a convolution, relu, residual sum); None
            where it runs by itself.
    """

    name: str
    kind: str
    path: str
    module: str
    family: str
    macs: int
    elementwise: int
    uncounted: Mapping[str, int]
    read_bytes: int
    weight_bytes: int
    write_bytes: int
    live_bytes: int
    steps: int
    host: str | None

    @property
    def folded(self) -> bool:
        """Whether it does not run by itself."""
        return self.host is not None


def operators_of(program: ExportedProgram) -> tuple[Operator, ...]:
    """Every operator that computes or moves data, in the order of running.

    Raises:
        UnsupportedModel: the size of a tensor depends on the data, so that nothing can be counted ahead.
    """
    graph, inputs = inlined(program)
    _check_sizes(graph)
    live = live_bytes(graph, inputs)
    constants = {n.name for n in graph.nodes if n.op in ("placeholder", "get_attr") and n.name not in inputs}
    hosts: dict[str, str] = {}
    found = []
    with unfused(), torch.no_grad():
        for node in graph.nodes:
            if node.op != "call_function" or _silent(node):
                continue
            if _constant(node, constants):
                constants.add(node.name)
                continue
            if node.target is operator.getitem:
                continue
            if (before := _folds_into(node, constants, hosts)) is not None:
                hosts[node.name] = hosts.get(before.name, module_path(before)[0])
            found.append(_operator(node, constants, live[node.name], hosts.get(node.name)))
    return tuple(found)


def _check_sizes(graph: Graph) -> None:
    for node in graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(leaf, Tensor) and not all(isinstance(size, int) for size in leaf.shape):
                got = f"a size depends on the data: {_kind(node)} gives {tuple(leaf.shape)}"
                raise UnsupportedModel("nothing can be counted ahead", where=node.name, got=got)


def _silent(node: Node) -> bool:
    """Checks and arithmetic on sizes: neither work nor data."""
    gives = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))
    known = getattr(node.target, "namespace", None) in ("aten", "prims", None)
    return not gives and known and (moves_only(_kind(node)) or not node.all_input_nodes)


def module_path(node: Node) -> tuple[str, str]:
    """Path and class of the innermost module that the node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(stack.values()), ("", ""))
    kind = kind if isinstance(kind, str) else kind.__name__
    return path.partition("@")[0], kind.rpartition(".")[2]


def _constant(node: Node, constants: set[str]) -> bool:
    """Whether the node only renames, rearranges or looks up constants: nothing that a call costs."""
    sources = node.all_input_nodes
    return bool(sources) and all(s.name in constants for s in sources) and (is_view(node) or _moves_constants(node))


def _moves_constants(node: Node) -> bool:
    return getattr(node.target, "namespace", None) == "aten" and moves_only(_kind(node)) and not is_mutable(node)


def _operator(node: Node, constants: set[str], live: int, host: str | None) -> Operator:
    kind = _kind(node)
    path, module = module_path(node)
    sources = node.all_input_nodes
    moved = not is_view(node)
    counter = _count(node) if moved else WorkCounter()
    written = _written(node) if moved else 0
    read = sum(nbytes(s.meta.get("val")) for s in sources if s.name not in constants) if moved else 0
    weights = sum(nbytes(s.meta.get("val")) for s in sources if s.name in constants)
    if kind in _LOOKUPS:
        weights = min(weights, _looked_up(node))
    return Operator(
        name=node.name,
        kind=kind,
        path=path,
        module=module,
        family=_family(node, kind, counter.macs),
        macs=counter.macs,
        elementwise=counter.elementwise,
        uncounted=dict(counter.uncounted),
        read_bytes=max(0, read - written) if host is not None else read,
        weight_bytes=weights if moved else 0,
        write_bytes=0 if host is not None else written,
        live_bytes=live,
        steps=recurrent_steps(kind, _values(node.args)) if is_recurrent(kind) else 1,
        host=host,
    )


def _written(node: Node) -> int:
    """Bytes of what the node gives back; of what it changes where it gives nothing back."""
    if gives := nbytes(node.meta.get("val")):
        return gives
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    changed = [value for argument, value in zip(arguments, node.args, strict=False) if argument.is_write]
    return nbytes(_values(changed))


def _looked_up(node: Node) -> int:
    """Bytes of the rows that the indices name, repeated ones every time."""
    table, rows = _values(node.args[:2])
    return int(rows.numel()) * int(table.shape[-1]) * int(table.element_size())


def _kind(node: Node) -> str:
    packet = getattr(node.target, "_overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _count(node: Node) -> WorkCounter:
    counter = WorkCounter()
    if not isinstance(node.target, torch._ops.OpOverload):
        counter.uncounted[_kind(node)] += 1  # a higher-order operator, such as a condition
        return counter
    args, kwargs = _values(node.args), _values(node.kwargs)
    with _mode(node, args), node.meta.get(CONTEXT, nullcontext)():
        counter.run(node.target, args, kwargs)
    return counter


def _values(args: Any) -> Any:
    return pytree.tree_map_only(Node, lambda n: n.meta.get("val"), args)


def _mode(node: Node, args: Any) -> Any:
    leaves = pytree.tree_leaves((args, node.meta.get("val")))
    modes = (leaf.fake_mode for leaf in leaves if isinstance(leaf, torch._subclasses.FakeTensor))
    return next(modes, None) or FakeTensorMode()


def _family(node: Node, kind: str, macs: int) -> str:
    if not macs:
        return "memory"
    if is_recurrent(kind):
        return "recurrent"
    if kind not in _CONVOLUTION:
        return "matmul"
    source, weight = _values(node.args[:2])
    channels = source.shape[1 - weight.ndim]  # counted from the end: the batch may be missing
    if channels > 1 and channels == _groups(node, kind, channels, weight):
        return "depthwise"
    if weight.ndim == 3:
        return "conv1d"
    return "pointwise" if prod(weight.shape[2:]) == 1 else "conv"


def _groups(node: Node, kind: str, channels: int, weight: Tensor) -> int:
    if "transpose" not in kind and not (kind.endswith("convolution") and node.args[6]):  # the weight is [out, in / groups, ...]
        return int(channels // weight.shape[1])
    place = 8 if kind.endswith("convolution") else _TRANSPOSED
    groups: Any = node.args[place] if len(node.args) > place else 1
    return int(groups)


def _folds_into(node: Node, constants: Iterable[str], hosts: Mapping[str, str]) -> Node | None:
    """The operator before this one inside which a runtime does its work, if nobody else reads that one's output."""
    kind = _kind(node).rstrip("_")
    sources = [s for s in node.all_input_nodes if s.name not in constants and len(s.users) == 1 and _same_size(s, node)]
    if kind == "add":
        sums = len(node.all_input_nodes) == 2
        return next((s for s in reversed(sources) if sums and _ends_convolution(s, hosts)), None)
    if not sources or (kind == "batch_norm" and node.args[_TRAINING]):
        return None
    before = _kind(sources[0])
    if kind in _FOLDED_BEHIND_CONVOLUTIONS:
        return sources[0] if _ends_convolution(sources[0], hosts) else None
    if kind not in ("batch_norm", *_FOLDED):
        return None
    if before in (*_CONVOLUTION, "linear", "addmm"):
        return sources[0]
    return sources[0] if kind != "batch_norm" and (before == "batch_norm" or sources[0].name in hosts) else None


def _same_size(source: Node, node: Node) -> bool:
    return nbytes(source.meta.get("val")) == nbytes(node.meta.get("val"))


def _ends_convolution(node: Node, hosts: Mapping[str, str]) -> bool:
    return _kind(node) in _CONVOLUTION or (_kind(node) == "batch_norm" and node.name in hosts)


def total_uncounted(operators: Iterable[Operator]) -> dict[str, int]:
    """Operators that no handler knows, over all of them, sorted by name."""
    total: Counter[str] = Counter()
    for op in operators:
        total.update(op.uncounted)
    return dict(sorted(total.items()))
