"""Static int8 quantization after training, in the scheme that the target runtime executes as integer kernels.

What it does: weights become int8, one scale per output channel; activations 8-bit, one scale per tensor, from the range
seen on calibration data; batch normalization is folded first. Helps: convolutions and linear layers on runtimes with integer
kernels, about 4 times smaller. Hurts: activations with rare large values, since the range is the plain minimum and
maximum. Needs: calibration inputs (128 to 512 examples suffice). Cost: one pass over them. What stays float is named.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR
2018; graph passes by torchao's PT2E.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from sizewise.errors import PreconditionError, UnsupportedModel
from sizewise.graph.trace import quiet, trace
from sizewise.protocols import Context, Trait
from sizewise.types import Change

__all__ = ["TECHNIQUE", "Int8Static"]


@dataclass(frozen=True)
class Int8Static:
    """Quantize weights and activations to 8 bits; no settings."""

    needs: ClassVar[Trait] = Trait.FLOAT
    removes: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    gives: ClassVar[Trait] = Trait.QUANTIZED

    def requires(self, model: nn.Module, context: Context) -> None:
        """Calibration data and a runtime with integer kernels.

        Raises:
            PreconditionError: either is missing.
        """
        if context.scheme is None:
            raise PreconditionError("this runtime has no integer kernels to quantize for", where="int8_static")
        if context.calibration is None:
            raise PreconditionError(
                "static quantization needs calibration data",
                where="int8_static",
                hint="give the task calibration=... or train=...; targets are ignored",
            )

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Observe ranges on the calibration inputs, then convert.

        Raises:
            UnsupportedModel: torch cannot export the model, or nothing in it can be quantized.
            PreconditionError: activations that are not finite.
        """
        prepared, quantizer = _prepare(model, context)
        if not quantizer.touched:
            raise UnsupportedModel("nothing in this model runs as integers", where="int8_static")
        with quiet(), torch.no_grad():
            for inputs in context.calibration or ():
                inputs.call(prepared)
        ranges = {name: _range(name, observer) for name, observer in _observers(prepared)}
        touched, left = tuple(quantizer.touched), tuple(quantizer.left)
        change = Change(touched=touched, skipped=left, notes=_constant(ranges), record={"ranges": ranges})
        return _convert(prepared), change

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The same graph with the recorded ranges; weights are loaded afterwards.

        Raises:
            PreconditionError: the record does not fit the model.
        """
        prepared, _ = _prepare(model, context)
        ranges = record["ranges"]
        observers = dict(_observers(prepared))
        if set(observers) != set(ranges):
            raise PreconditionError(
                "the recorded ranges do not fit this model", where="int8_static", hint="is it the model the plan was made for?"
            )
        with quiet(), torch.no_grad():
            context.example.call(prepared)  # weight observers take their shapes from the weights they see
        for name, observer in observers.items():
            low, high = ranges[name]
            observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
        return _convert(prepared)


def _prepare(model: nn.Module, context: Context) -> tuple[Any, Any]:
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        from sizewise.graph.annotate import SchemeQuantizer

        if context.scheme is None:
            raise PreconditionError("this runtime has no integer kernels to quantize for", where="int8_static")
        quantizer = SchemeQuantizer(context.scheme)
        graph = trace(model, context.example).program.module(check_guards=False)
        return prepare_pt2e(graph, quantizer), quantizer


def _convert(prepared: Any) -> nn.Module:
    with quiet():
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted: nn.Module = allow_exported_model_train_eval(convert_pt2e(prepared))
    _drop_unused(converted)
    return converted


def _drop_unused(graph: Any) -> None:
    """Remove the float weights that conversion leaves beside the int8 ones."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph.state_dict() if name not in used]:
        path, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(path), attribute)


def _observers(prepared: nn.Module) -> list[tuple[str, Any]]:
    """Per-tensor observers by name; one that several nodes share is listed once, under its first name."""
    return [(name, m) for name, m in prepared.named_modules() if type(m).__name__ == "MinMaxObserver"]


def _range(name: str, observer: Any) -> list[float]:
    low, high = float(observer.min_val), float(observer.max_val)
    if not low <= high or low in (float("inf"), float("-inf")) or high in (float("inf"), float("-inf")):
        raise PreconditionError("activations on the calibration data are not finite", where=f"int8_static, {name}", got=f"{low} to {high}")
    return [low, high]


def _constant(ranges: Mapping[str, list[float]]) -> tuple[str, ...]:
    flat = [name for name, (low, high) in ranges.items() if low == high]
    return (f"{len(flat)} activations are constant on the calibration data: {', '.join(flat[:5])}",) if flat else ()


TECHNIQUE = Int8Static
