"""Exported graphs on their way to integers: folded, with observers where integers will be, and converted, by torchao's PT2E."""

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx.utils as torch_utils
import torchao.utils as torchao_utils
from torch import nn
from torch.fx import GraphModule

from sizewise.arith.ranges import Method, find_range
from sizewise.errors import PreconditionError
from sizewise.graph.annotate import SchemeQuantizer
from sizewise.graph.folding import fold_normalizations, tensor_of
from sizewise.graph.observers import ActivationObserver, mode, observers
from sizewise.graph.trace import Traced, eval_copy, quiet
from sizewise.protocols import Inputs
from sizewise.types import Scheme, Skip

__all__ = ["Prepared", "collect_graphs", "convert", "folded", "prepare", "rough"]

LARGE_BYTES = 2e7  # of parameters: less is not worth half a second of looking through everything that Python holds


@dataclass(frozen=True)
class Prepared:
    """A float graph that can simulate the integers it will have.

    Attributes:
        graph: with observers.
        touched: paths of layers and other operators that will run as integers.
        left: what stays float.
    """

    graph: Any
    touched: tuple[str, ...]
    left: tuple[Skip, ...]

    @property
    def ranges(self) -> dict[str, list[float]]:
        """Of every activation, by the name of its observer."""
        found = {name: (observer.low, observer.high) for name, observer in observers(self.graph).items()}
        return {name: [low, high] for name, (low, high) in found.items() if low is not None and high is not None}

    def watch(self, batches: Sequence[Inputs]) -> None:
        """Let the observers see what flows by.

        Raises:
            PreconditionError: activations that are not finite.
        """
        with quiet(), torch.no_grad(), mode(self.graph, "watch"):
            for inputs in batches:
                inputs.call(self.graph)
        for name, observer in observers(self.graph).items():
            bad = observer.statistics.nans + observer.statistics.infinities
            if bad or not observer.statistics.n:
                got = f"{bad} values that are NaN or infinite" if bad else "no values"
                raise PreconditionError("activations on the calibration data are not finite", where=f"quantization, {name}", got=got)

    def set_ranges(self, method: Method) -> None:
        """Choose a range for every activation from what was seen."""
        for observer in observers(self.graph).values():
            observer.low, observer.high = find_range(observer.statistics, method, observer.quant_max - observer.quant_min + 1)

    def load_ranges(self, ranges: Mapping[str, Sequence[float]]) -> None:
        """Take over recorded ranges.

        Raises:
            PreconditionError: they belong to another graph.
        """
        found = observers(self.graph)
        if set(found) != set(ranges):
            raise PreconditionError(
                "the recorded ranges do not fit this model", where="quantization", hint="is it the model the plan was made for?"
            )
        for name, observer in found.items():
            observer.low, observer.high = ranges[name]

    def seen(self) -> dict[str, ActivationObserver]:
        """Observers by the name of the node that they look at, which is the same however much of the graph becomes integers."""
        held = {}
        for node in self.graph.graph.nodes:
            module = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, ActivationObserver):
                held[node.all_input_nodes[0].name] = module
        return held


def folded(traced: Traced) -> GraphModule:
    """The exported graph with batch normalizations folded."""
    graph: GraphModule = traced.program.module(check_guards=False)
    fold_normalizations(graph)
    return graph


def prepare(graph: GraphModule, scheme: Scheme, skip: Collection[str] = (), bits: Mapping[str, int] | int = 8) -> Prepared:
    """A copy with observers, which shares parameters with the graph.

    Args:
        graph: exported, with normalizations folded.
        scheme: of the runtime.
        skip: paths of modules that stay float.
        bits: of weights, for all or by the path of the layer.
    """
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        quantizer = SchemeQuantizer(scheme, skip, bits)
        found = prepare_pt2e(eval_copy(graph, shared=True), quantizer)
    _forget()
    for node in found.graph.nodes:
        held = tensor_of(found, node.all_input_nodes[0]) if node.op == "call_module" else None
        if held is not None:
            found.get_submodule(str(node.target))(held)  # observers of weights take their scales
    return Prepared(found, tuple(dict.fromkeys(quantizer.touched)), tuple(quantizer.left))


def convert(prepared: Prepared) -> nn.Module:
    """The graph with integers; `prepared` is used up."""
    with quiet():
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        converted: nn.Module = allow_exported_model_train_eval(convert_pt2e(prepared.graph))
    _forget()
    _drop_unused(converted)
    return converted


def rough(graph: GraphModule, scheme: Scheme, batches: Sequence[Inputs], skip: Collection[str] = ()) -> nn.Module:
    """The converted graph with the ranges of a few inputs and nothing fitted: as fast as any other with the same layers in float.

    Args:
        graph, scheme, skip: as for `prepare`.
        batches: that ranges are told from.

    Raises:
        PreconditionError: activations that are not finite.
    """
    prepared = prepare(graph, scheme, skip)
    prepared.watch(batches)
    prepared.set_ranges("minmax")
    return convert(prepared)


def collect_graphs(like: nn.Module) -> None:
    """Free graphs that nothing refers to any more but they themselves, if they are as large as this one and that is worth the time."""
    if sum(parameter.nbytes for parameter in like.parameters()) >= LARGE_BYTES:
        gc.collect()


def _forget() -> None:
    """Let go of graphs: torch and torchao remember the device of every graph that they saw, in caches that keep them all for good."""
    for owner, name in ((torch_utils, "assert_and_get_unique_device"), (torchao_utils, "_assert_and_get_unique_device")):
        clear = getattr(getattr(owner, name, None), "cache_clear", None)
        if clear is not None:
            clear()


def _drop_unused(graph: Any) -> None:
    """Remove the float weights that conversion leaves beside the int8 ones."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name in graph.state_dict() if name not in used]:
        path, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(path), attribute)
