"""Fold batch normalizations into the layers before them, on an exported graph in inference mode."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from sizewise.graph.flow import arguments

__all__ = ["fold_normalizations", "set_tensor", "tensor_of", "tensor_uses"]

_A = torch.ops.aten
_LAYERS = {_A.conv1d.default, _A.conv2d.default, _A.conv3d.default, _A.linear.default}
_TRANSPOSED = {_A.conv_transpose1d.default, _A.conv_transpose2d.input, _A.conv_transpose3d.input}
_NORMALIZATION = _A.batch_norm.default


def fold_normalizations(graph: GraphModule) -> list[str]:
    """Multiply every batch normalization into the convolution or linear layer that alone feeds it; `graph` itself is changed.

    y = g (W x + b - m) / sqrt(v + eps) + h is a layer with weight W g / sqrt(v + eps) and bias (b - m) g / sqrt(v + eps) + h.
    A layer whose weight others use too, or whose output does, keeps its normalization.

    Returns:
        names of the nodes that are gone.
    """
    folded = []
    for node in list(graph.graph.nodes):
        layer = node.args[0] if node.target is _NORMALIZATION and not arguments(node)["training"] else None
        if isinstance(layer, Node) and layer.target in _LAYERS | _TRANSPOSED and len(layer.users) == 1 and _own(graph, layer):
            _fold(graph, layer, node)
            folded.append(node.name)
    if folded:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return folded


def tensor_of(graph: GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a "get_attr" node stands for; None for anything else."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    found: Any = graph
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found.detach() if isinstance(found, Tensor) else None


def set_tensor(graph: GraphModule, name: str, value: Tensor) -> None:
    """Make `value` the parameter of that dotted name, whether there was one or not."""
    path, _, last = name.rpartition(".")
    owner = graph
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    setattr(owner, last, nn.Parameter(value.detach(), requires_grad=False))


def tensor_uses(graph: GraphModule) -> dict[str, int]:
    """How many nodes use the tensor of every name, under any of its names."""
    held = [(node, tensor) for node in graph.graph.nodes if (tensor := tensor_of(graph, node)) is not None]
    counts: dict[int, int] = {}
    for node, tensor in held:
        counts[tensor.data_ptr()] = counts.get(tensor.data_ptr(), 0) + len(node.users)
    return {str(node.target): counts[tensor.data_ptr()] for node, tensor in held}


def _own(graph: GraphModule, layer: Node) -> bool:
    """Whether weight and bias are parameters of this layer alone."""
    given = arguments(layer)
    held = [given["weight"], *([given["bias"]] if given.get("bias") is not None else [])]
    uses = tensor_uses(graph)
    return all(tensor_of(graph, node) is not None and uses[str(node.target)] == 1 for node in held)


def _fold(graph: GraphModule, layer: Node, norm: Node) -> None:
    given, stats = arguments(layer), arguments(norm)
    weight, bias = tensor_of(graph, given["weight"]), tensor_of(graph, given.get("bias"))
    mean, variance = tensor_of(graph, stats["running_mean"]), tensor_of(graph, stats["running_var"])
    assert weight is not None
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + stats["eps"]).rsqrt()
    gain, shift = tensor_of(graph, stats["weight"]), tensor_of(graph, stats["bias"])
    scale = scale if gain is None else scale * gain.double()
    constant = (0 if bias is None else bias.double()) - mean.double()
    constant = constant * scale + (0 if shift is None else shift.double())
    set_tensor(graph, str(given["weight"].target), _scaled(weight, scale, layer, given).to(weight))
    _set_bias(graph, layer, constant.to(weight))
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)


def _scaled(weight: Tensor, scale: Tensor, layer: Node, given: dict[str, Any]) -> Tensor:
    """The weight with every output channel multiplied; a transposed convolution keeps outputs on axis 1, per group."""
    if layer.target not in _TRANSPOSED:
        return weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = int(given["groups"])
    split = weight.double().reshape(groups, -1, *weight.shape[1:])
    return (split * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _set_bias(graph: GraphModule, layer: Node, value: Tensor) -> None:
    given = arguments(layer)
    if isinstance(given.get("bias"), Node):
        set_tensor(graph, str(given["bias"].target), value)
        return
    name = f"{str(given['weight'].target).rpartition('.')[0]}.folded_bias".lstrip(".")
    set_tensor(graph, name, value)
    with graph.graph.inserting_before(layer):
        bias = graph.graph.get_attr(name)
    bias.meta["val"] = value
    layer.args = (*layer.args[:2], bias, *layer.args[3:])
