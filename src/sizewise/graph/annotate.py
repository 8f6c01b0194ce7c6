"""Which nodes of an exported graph carry which quantization, for torchao's PT2E, from a runtime's scheme.

The rules mirror what integer runtimes fuse: a convolution or linear layer and the activation behind it share one output
scale; sums, products and concatenations take and give integers; operators that only move or pool values keep their input's
scale. Only layers begin integers: whatever else is quantized has an input that already is one, since to quantize it would cost
accuracy and gain no time.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from sizewise.graph.flow import arguments, operator, scope
from sizewise.graph.observers import ActivationObserver, WeightObserver
from sizewise.types import Scheme, Skip

__all__ = ["LAYERS", "SchemeQuantizer", "layer_path"]

LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_PAIRS = ("add", "add_", "mul", "mul_")
_OWN_OUTPUT = ("sigmoid", "sigmoid_", "leaky_relu", "leaky_relu_", "adaptive_avg_pool2d", "avg_pool2d", "mean")
_ACTIVATIONS = {"relu": ("relu", "relu_"), "relu6": ("hardtanh", "hardtanh_", "relu6", "relu6_")}
_SHARING = (
    *("max_pool1d", "max_pool2d", "upsample_nearest2d", "flatten", "unflatten", "view", "reshape", "_unsafe_view", "expand", "pad"),
    *("permute", "transpose", "squeeze", "unsqueeze", "slice", "select", "dropout", "dropout_", "clone", "contiguous", "alias"),
)
_BOOKKEEPING = ("sym_size", "getitem", "_assert_tensor_metadata", "detach")
_KEY = "quantization_annotation"
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


class SchemeQuantizer(Quantizer):  # type: ignore[misc]  # torchao ships no types
    """Annotates every node that the scheme's runtime executes as integers; `left` names the others.

    Args:
        scheme: of the runtime.
        skip: paths of modules that stay float, with all that they hold.
        bits: of weights, for all or by the path of the layer, 8 where it is not named; fewer run in the same kernels.
    """

    def __init__(self, scheme: Scheme, skip: Collection[str] = (), bits: Mapping[str, int] | int = 8) -> None:
        super().__init__()
        self.fused = {name for kind in scheme.fused_activations for name in _ACTIVATIONS.get(kind, ())}
        self.skip = tuple(skip)
        low, high = scheme.activation_range
        self.activation = QuantizationSpec(
            dtype=_DTYPES[scheme.activation],
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_tensor_affine,
            is_dynamic=False,
            observer_or_fake_quant_ctr=ActivationObserver,
        )
        self.bits, self.scheme = bits, scheme
        self.touched: list[str] = []
        self.left: list[Skip] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Put an annotation on every node that is to run as integers."""
        for node in model.graph.nodes:
            if node.op == "call_function" and not self._annotated(node):
                self._annotate(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every annotation above is one PT2E accepts."""

    def _annotate(self, node: Node) -> None:
        kind = operator(node)
        reason = self._reason(node, kind)
        if reason is None:
            self._mark_kind(node, kind)
            self.touched.append(layer_path(node))
        elif reason and _is_float(node):
            self.left.append(Skip(what=layer_path(node), reason=reason))

    def _reason(self, node: Node, kind: str) -> str | None:
        """Why a node stays float; empty where nobody needs to know, None where it does not."""
        if kind in _BOOKKEEPING or not _is_float(node):
            return ""
        path = scope(node)
        if any(path == name or path.startswith(f"{name}.") for name in self.skip):
            return "asked to stay float"
        if kind in LAYERS:
            return None if _read(node) and _is_float(_arg(node, 0)) else "its weight is computed"
        if kind == "pad" and not _zeros(node):
            return "padding with anything but zeros stays float"
        if kind in _PAIRS and not all(_is_float(argument) for argument in node.args[:2]):
            return f"{kind} with a number stays float"
        if kind in (*_PAIRS, *_OWN_OUTPUT, *_SHARING, "cat"):
            return None if any(self._integer(source) for source in _sources(node)) else ""
        if kind in self.fused and any(operator(source) in LAYERS and not self._annotated(source) for source in _sources(node)):
            return ""  # its layer is named
        return f"{kind} has no integer kernel in this scheme"

    def _mark_kind(self, node: Node, kind: str) -> None:
        sources = _sources(node)
        if kind in LAYERS:
            self._with_output(node, {_arg(node, 0): self.activation, _arg(node, 1): self._weight(node)}, always=kind != "linear")
        elif kind in _PAIRS or kind == "cat":
            self._with_output(node, dict.fromkeys(sources, self.activation), always=True)
        elif kind in _SHARING:
            self._mark(node, {sources[0]: self.activation}, SharedQuantizationSpec((sources[0], node)))
        else:
            self._mark(node, {sources[0]: self.activation}, self.activation)

    def _with_output(self, node: Node, inputs: dict[Node, QuantizationSpec], *, always: bool) -> None:
        """Quantize the output behind the fused activation where there is one, else behind the node itself.

        A linear layer gives float where nobody behind it wants integers: runtimes have such kernels, and logits keep their precision.
        """
        users = list(node.users)
        fused = len(users) == 1 and operator(users[0]) in self.fused
        self._mark(node, inputs, None if fused or not always else self.activation)
        if fused:
            self._mark(users[0], {}, self.activation)

    def _weight(self, node: Node) -> QuantizationSpec:
        """How the weight of a layer is stored."""
        bits = self.bits if isinstance(self.bits, int) else self.bits.get(layer_path(node), 8)
        largest = 2 ** (bits - 1) - 1
        low, high = (-largest, largest) if bits < 8 else self.scheme.weight_range
        # kernels of depthwise convolutions multiply in 32 bits, and narrow codes never add up to as much
        limit = self.scheme.pair_limit if bits == 8 and not _depthwise(node) else None
        return QuantizationSpec(
            dtype=_DTYPES[self.scheme.weight],
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            is_dynamic=False,
            observer_or_fake_quant_ctr=WeightObserver.with_args(pair_limit=limit),
        )

    def _mark(self, node: Node, inputs: dict[Node, QuantizationSpec], output: Any) -> None:
        node.meta[_KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)

    @staticmethod
    def _annotated(node: Node) -> bool:
        return _KEY in node.meta

    def _integer(self, node: Node) -> bool:
        """Whether what a node gives is an integer, or is one before it becomes float again."""
        return self._annotated(node) or (operator(node) in _BOOKKEEPING and any(self._integer(s) for s in node.all_input_nodes))


def layer_path(node: Node) -> str:
    """Path of the module whose layer a node is; the node's name where it is in no module."""
    weight = node.args[1] if operator(node) in LAYERS and len(node.args) > 1 else None
    if isinstance(weight, Node) and weight.op == "call_module":  # an observer
        weight = weight.all_input_nodes[0]
    if isinstance(weight, Node) and weight.op == "get_attr":
        return str(weight.target).rpartition(".")[0] or node.name
    return f"{path}.{node.name}" if (path := scope(node)) else node.name


def _zeros(node: Node) -> bool:
    """Whether a padding pads with zeros."""
    given = arguments(node)
    return given.get("mode", "constant") == "constant" and not given.get("value")


def _sources(node: Node) -> list[Node]:
    """The float tensors that a node reads; layers' weights are not among them."""
    if operator(node) == "cat":
        return [source for source in node.args[0] if isinstance(source, Node)]  # type: ignore[union-attr]
    many = 2 if operator(node) in _PAIRS else 1
    return [source for source in node.args[:many] if isinstance(source, Node)]


def _read(node: Node) -> bool:
    weight = node.args[1]
    return isinstance(weight, Node) and weight.op == "get_attr"


def _depthwise(node: Node) -> bool:
    """Whether every channel has its own single filter."""
    groups = arguments(node).get("groups", 1) if operator(node) != "linear" else 1
    return bool(groups > 1 and groups == _arg(node, 1).meta["val"].shape[0])


def _arg(node: Node, index: int) -> Node:
    found = node.args[index]
    assert isinstance(found, Node)
    return found


def _is_float(value: Any) -> bool:
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.ndim > 0
