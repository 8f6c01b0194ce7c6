"""Which nodes of an exported graph carry which quantization, for torchao's PT2E, from a runtime's scheme.

The rules mirror what integer runtimes fuse: a convolution or linear layer and the activation behind it share one output
scale; an addition takes and gives integers; operators that only move or pool values keep their input's scale.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from sizewise.types import Scheme, Skip

__all__ = ["SchemeQuantizer"]

_A = torch.ops.aten
_LAYERS = {_A.conv1d.default, _A.conv2d.default, _A.conv3d.default, _A.linear.default}
_ADDS = {_A.add.Tensor, _A.add_.Tensor}
_ACTIVATIONS = {
    "relu": {_A.relu.default, _A.relu_.default},
    "relu6": {_A.hardtanh.default, _A.hardtanh_.default, _A.relu6.default},
}
_SHARING = {
    _A.max_pool2d.default,
    _A.adaptive_avg_pool2d.default,
    _A.avg_pool2d.default,
    _A.flatten.using_ints,
    _A.view.default,
    _A.reshape.default,
    _A.permute.default,
    _A.transpose.int,
    _A.dropout.default,
    _A.dropout_.default,
}
_BOOKKEEPING = {_A.sym_size.int}
_EPS = 2.0**-20
_KEY = "quantization_annotation"
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


class SchemeQuantizer(Quantizer):  # type: ignore[misc]  # torchao ships no types
    """Annotates every node that the scheme's runtime executes as integers; `left` names the others."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.fused = {target for name in scheme.fused_activations for target in _ACTIVATIONS.get(name, ())}
        low, high = scheme.activation_range
        self.activation = QuantizationSpec(
            dtype=_DTYPES[scheme.activation],
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_tensor_affine,
            is_dynamic=False,
            observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=_EPS),
        )
        low, high = scheme.weight_range
        self.weight = QuantizationSpec(
            dtype=_DTYPES[scheme.weight],
            quant_min=low,
            quant_max=high,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            is_dynamic=False,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_EPS),
        )
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
        if node.target in _LAYERS:
            self._with_output(node, {_arg(node, 0): self.activation, _arg(node, 1): self.weight})
        elif node.target in _ADDS and all(_is_float(a) for a in node.args[:2]):
            self._with_output(node, {_arg(node, 0): self.activation, _arg(node, 1): self.activation})
        elif node.target in _SHARING:
            source = _arg(node, 0)
            self._mark(node, {source: self.activation}, SharedQuantizationSpec((source, node)))
        elif node.target not in _BOOKKEEPING and _is_float(node):
            self.left.append(Skip(what=node.name, reason=f"{node.target} has no integer kernel in this scheme"))
            return
        else:
            return
        self.touched.append(node.name)

    def _with_output(self, node: Node, inputs: dict[Node, QuantizationSpec]) -> None:
        """Quantize the output behind the fused activation where there is one, else behind the node itself."""
        users = list(node.users)
        fused = len(users) == 1 and users[0].target in self.fused
        self._mark(node, inputs, None if fused else self.activation)
        if fused:
            self._mark(users[0], {}, self.activation)

    def _mark(self, node: Node, inputs: dict[Node, QuantizationSpec], output: Any) -> None:
        node.meta[_KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)

    @staticmethod
    def _annotated(node: Node) -> bool:
        return _KEY in node.meta


def _arg(node: Node, index: int) -> Node:
    found = node.args[index]
    assert isinstance(found, Node)
    return found


def _is_float(value: Any) -> bool:
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.ndim > 0
