"""The matrices of a model's recurrent layers that can be stored as products of two, and what they multiply.

A runtime's recurrent kernel multiplies whole matrices, so a product is decoded once, when the file is read: it saves bytes, no time. Gates
are factorized together, as torch stacks them: all share what a low rank keeps of the inputs.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sizewise.arith.recurrence import Kind, previous, strands, unroll
from sizewise.graph.factorize import calls_of, owners_of, used_besides
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["Matrix", "matrix_inputs", "recurrent_matrices"]

_LAYERS: tuple[type[nn.RNNBase], ...] = (nn.GRU, nn.LSTM, nn.RNN)


@dataclass(frozen=True)
class Matrix:
    """One matrix of one direction of a recurrent layer.

    Attributes:
        name: of the parameter in the model.
        bias: of the vector that is added to its products; None where there is none.
        path: of the module.
    """

    name: str
    bias: str | None
    path: str


def recurrent_matrices(model: nn.Module, example: Inputs) -> tuple[tuple[Matrix, ...], tuple[Skip, ...]]:
    """Matrices that can be stored as products, in the model's order, and the recurrent layers that are left alone, with the reason.

    Args:
        model: in inference mode.
        example: inputs of one call.
    """
    calls, owners = calls_of(model, (nn.RNNBase,), example, _with_tensor), owners_of(model)
    found: list[Matrix] = []
    skips: list[Skip] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.RNNBase):
            continue
        if (reason := _reason(path, module, calls, owners)) is not None:
            skips.append(Skip(what=path or type(module).__name__, reason=reason))
            continue
        inside = f"{path}." if path else ""
        for strand in strands(module.num_layers, bidirectional=module.bidirectional, bias=module.bias):
            biases = strand.names[2:] or (None, None)
            found += [Matrix(inside + name, bias and inside + bias, path) for name, bias in zip(strand.names[:2], biases, strict=True)]
    return tuple(found), tuple(skips)


def matrix_inputs(module: nn.RNNBase, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """By the name of a matrix, the rows [n, in] that it multiplies when the layer reads `x` from states of zeros."""
    x = x.unsqueeze(1) if x.ndim == 2 else x.transpose(0, 1) if module.batch_first else x
    kind = cast(Kind, module.mode.lower())
    layer, passed = 0, list[Tensor]()
    for strand in strands(module.num_layers, bidirectional=module.bidirectional, bias=module.bias):
        if strand.layer > layer:
            layer, x, passed = strand.layer, torch.cat(passed, -1), []
        states = unroll(kind, x, [module.get_parameter(name).detach() for name in strand.names], reverse=strand.reverse)
        yield strand.names[0], x.flatten(0, 1)
        yield strand.names[1], previous(states, reverse=strand.reverse).flatten(0, 1)
        passed.append(states)


def _with_tensor(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor)


def _reason(path: str, module: nn.RNNBase, calls: Counter[str], owners: dict[int, list[str]]) -> str | None:
    if type(module) not in _LAYERS:
        return f"weights of {type(module).__name__} are not factorized"
    if module.proj_size:
        return "its states are projected, which is not factorized"
    if any(name not in module._parameters for name in (name for names in module._all_weights for name in names)):
        return "its weights are computed from other parameters"
    if any(p is not None and p.dtype != torch.float32 for p in module._parameters.values()):
        return "its weights are not float32"
    return used_besides(path, module, calls, owners, "is never called with one tensor")
