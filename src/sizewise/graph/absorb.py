"""Batch normalizations multiplied into the weights before them, in a module that keeps all its layers.

Rows of the weights then are in the unit that the next layer sees, and the normalization is left with constants and one bias.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from sizewise.graph.flow import arguments, operator
from sizewise.graph.folding import tensor_of, tensor_uses

__all__ = ["absorb", "merge_biases"]

_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def absorb(model: nn.Module, graph: GraphModule) -> list[str]:
    """Multiply batch normalizations into the convolutions or linear layers that alone feed them; `model` itself is changed.

    y = g (W x + b - m) / sqrt(v + eps) + h becomes W' x + h' with a normalization of mean 0, variance 1 - eps and gain 1. What others
    share, and what has nowhere to put a constant, stays.

    Args:
        model: in inference mode.
        graph: of it, exported; tensors have the same names.

    Returns:
        names of the weights that took one in.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    uses = tensor_uses(graph)
    taken = []
    for node in graph.graph.nodes:
        layer = node.args[0] if node.op == "call_function" and operator(node) == "batch_norm" else None
        if not isinstance(layer, Node) or layer.op != "call_function" or len(layer.users) != 1:
            continue
        if operator(layer) in (*_LAYERS, *_TRANSPOSED) and (held := _held(graph, layer, node, tensors, uses)) is not None:
            with torch.no_grad():
                _multiply(held, layer, arguments(node)["eps"])
            taken.append(str(arguments(layer)["weight"].target))
    return taken


def _held(graph: GraphModule, layer: Node, norm: Node, tensors: Mapping[str, Tensor], uses: Mapping[str, int]) -> dict[str, Tensor] | None:
    """The tensors of both that there are, by what they are; None where this pair has to stay."""
    given, stats = arguments(layer), arguments(norm)
    parts = {"weight": given["weight"], "bias": given.get("bias"), "gain": stats["weight"], "shift": stats["bias"]}
    parts |= {"mean": stats["running_mean"], "variance": stats["running_var"]}
    present = {kind: node for kind, node in parts.items() if node is not None}
    own = all(tensor_of(graph, node) is not None and uses[node.target] == 1 and node.target in tensors for node in present.values())
    usable = own and not stats["training"] and {"mean", "variance"} <= present.keys() and ("bias" in present or "shift" in present)
    return {kind: tensors[str(node.target)] for kind, node in present.items()} if usable and stats["eps"] < 1 else None


def _multiply(held: Mapping[str, Tensor], layer: Node, eps: float) -> None:
    one = torch.ones_like(held["mean"], dtype=torch.float64)
    scale = (held["variance"].double() + eps).rsqrt() * (held["gain"].double() if "gain" in held else one)
    bias = held["bias"].double() if "bias" in held else 0 * one
    constant = (bias - held["mean"].double()) * scale + (held["shift"].double() if "shift" in held else 0)
    held["weight"].copy_(_scaled(held["weight"].double(), scale, layer, arguments(layer)))
    for kind, value in (("mean", 0.0), ("variance", 1 - eps), ("gain", 1.0), ("bias", 0.0)):
        if kind in held:
            held[kind].fill_(value)
    held["shift" if "shift" in held else "bias"].copy_(constant)


def _scaled(weight: Tensor, scale: Tensor, layer: Node, given: Mapping[str, Any]) -> Tensor:
    """The weight with every output channel multiplied; a transposed convolution keeps outputs on axis 1, per group."""
    if operator(layer) not in _TRANSPOSED:
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = int(given["groups"])
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def merge_biases(model: nn.Module) -> list[str]:
    """Add up the two biases of recurrent layers' gates where only their sum counts, so that one of them holds zeros; in place.

    Of a GRU's last gate both are needed: the state's part is multiplied by another gate before it is added.

    Returns:
        names of the biases that hold zeros now, there or in part.
    """
    names = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.RNNBase) and module.bias]
    uses = [id(parameter) for _, module in names for parameter in module.parameters()]
    merged = []
    with torch.no_grad():
        for path, module in names:
            rows = slice(0, 2 * module.hidden_size) if isinstance(module, nn.GRU) else slice(None)
            for name, hidden in module.named_parameters():
                if not name.startswith("bias_hh"):
                    continue
                inputs: Tensor = getattr(module, name.replace("bias_hh", "bias_ih"))
                if uses.count(id(hidden)) == uses.count(id(inputs)) == 1:
                    inputs[rows] += hidden[rows]
                    hidden[rows] = 0
                    merged.append(f"{path}.{name}".lstrip("."))
    return merged
