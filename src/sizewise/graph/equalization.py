"""Move ranges between layers of an exported graph, so that 8 bits lose less; the model computes the same as before.

Channels that one tensor-wide scale must serve differ in range, sometimes by orders of magnitude. Where a channel is only scaled
between the weights that write it and the weights that read it, the scale can be moved from one to the other. Two places of that
kind: a layer, a function that lets positive scales pass, a layer (cross-layer equalization); and a layer normalization whose
gain and bias write what several linear layers read (SmoothQuant).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from sizewise.arith.equalization import cross_layer_scales, smoothing_scales
from sizewise.graph.flow import arguments, operator
from sizewise.graph.folding import set_tensor, tensor_of, tensor_uses

__all__ = ["Link", "equalize", "links", "smooth"]

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_POOLS = tuple(f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3))
_SCALE_PASSES = (*_POOLS, "relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "dropout_", "alias", "contiguous", "clone", "detach")
_SWEEPS = 3


@dataclass(frozen=True)
class Link:
    """A vector of channels with those who write it and those who read it.

    Attributes:
        node: whose output the channels are.
        writers: names of tensors that scale with the channel, along their first axis.
        readers: names of tensors that scale against it, each with the axis that reads it.
        normalized: whether a layer normalization writes it.
    """

    node: Node
    writers: tuple[str, ...]
    readers: tuple[tuple[str, int], ...]
    normalized: bool


def links(graph: GraphModule) -> list[Link]:
    """All places of a graph where scales can be moved, in the order of running."""
    uses = tensor_uses(graph)
    found = []
    for node in graph.graph.nodes:
        writers = _writers(graph, node, uses)
        readers = _readers(graph, node, uses) if writers else ()
        if writers and readers:
            found.append(Link(node, writers, readers, operator(node) == "layer_norm"))
    return found


def equalize(graph: GraphModule, found: Sequence[Link]) -> None:
    """Cross-layer equalization of all links without normalization, in place; several sweeps, since layers are in two links."""
    for _ in range(_SWEEPS):
        for link in found:
            if not link.normalized:
                _divide(graph, link, cross_layer_scales(_range(_tensor(graph, link.writers[0]), 0), _read(graph, link)))


def smooth(graph: GraphModule, found: Sequence[Link], ranges: Mapping[str, Tensor], strength: float) -> None:
    """SmoothQuant of all links with normalization, in place.

    Args:
        graph: to change.
        found: its links.
        ranges: by node name, the largest absolute value per channel that calibration data gave; links without stay.
        strength: alpha in [0, 1]: how much of the activations' spread the weights take.
    """
    for link in found:
        if link.normalized and link.node.name in ranges:
            _divide(graph, link, smoothing_scales(ranges[link.node.name], _read(graph, link), strength))


def _read(graph: GraphModule, link: Link) -> list[Tensor]:
    """Per reader, its largest absolute weight on every channel."""
    return [_range(_tensor(graph, name), axis) for name, axis in link.readers]


def _divide(graph: GraphModule, link: Link, scale: Tensor) -> None:
    """Divide what writes by `scale` per channel and multiply what reads."""
    for name in link.writers:
        tensor = _tensor(graph, name)
        set_tensor(graph, name, tensor / _along(scale, 0, tensor))
    for name, axis in link.readers:
        tensor = _tensor(graph, name)
        set_tensor(graph, name, tensor * _along(scale, axis, tensor))


def _writers(graph: GraphModule, node: Node, uses: Mapping[str, int]) -> tuple[str, ...]:
    """Tensors along whose first axis the channels of a node scale; empty where they do not."""
    if node.op != "call_function" or operator(node) not in (*_CONVOLUTIONS, "linear", "layer_norm"):
        return ()
    given = arguments(node)
    if operator(node) == "layer_norm" and len(given["normalized_shape"]) != 1:
        return ()
    held = [given[key] for key in ("weight", "bias") if given.get(key) is not None]
    names = _names(graph, held, uses)
    return names if given.get("weight") is not None else ()


def _readers(graph: GraphModule, node: Node, uses: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Weights that alone read the channels of a node, with the axis; empty where anything else reads them.

    A depthwise convolution reads and writes the same channel, so that its readers' axis is the outputs'.
    """
    found: list[tuple[str, int]] = []
    for user in node.users:
        kind = operator(user) if user.op == "call_function" else ""
        if kind in _SCALE_PASSES and user.args[0] is node:
            inner = _readers(graph, user, uses)
            if not inner:
                return ()
            found += inner
            continue
        if kind not in (*_CONVOLUTIONS, "linear") or user.args[0] is not node:
            return ()
        given = arguments(user)
        names = _names(graph, [given["weight"]], uses)
        groups = int(given.get("groups", 1))
        tensor = tensor_of(graph, given["weight"])
        if not names or tensor is None or (groups > 1 and tensor.shape[1] > 1) or (groups > 1 and tensor.shape[0] != groups):
            return ()
        found.append((names[0], 0 if groups > 1 else 1))
    return tuple(found)


def _names(graph: GraphModule, held: Sequence[object], uses: Mapping[str, int]) -> tuple[str, ...]:
    """Names of tensors that one node alone uses; empty where one is shared or computed."""
    names = [str(node.target) for node in held if isinstance(node, Node) and tensor_of(graph, node) is not None]
    return tuple(names) if len(names) == len(held) and all(uses[name] == 1 for name in names) else ()


def _tensor(graph: GraphModule, name: str) -> Tensor:
    found = graph.get_parameter(name) if _is_parameter(graph, name) else graph.get_buffer(name)
    return found.detach()


def _is_parameter(graph: GraphModule, name: str) -> bool:
    path, _, last = name.rpartition(".")
    return last in graph.get_submodule(path)._parameters


def _range(tensor: Tensor, axis: int) -> Tensor:
    return tensor.abs().movedim(axis, 0).flatten(1).amax(1)


def _along(scale: Tensor, axis: int, tensor: Tensor) -> Tensor:
    return scale.to(tensor).reshape([-1 if dim == axis else 1 for dim in range(tensor.ndim)])
