"""Recurrent layers traced by their shapes alone.

While it traces a graph, torch runs every operator on tensors without data to learn shapes, and it takes recurrent layers
apart for that into a dozen operators per time step, several times per export: a minute for 200 steps. A recurrent layer's
output shapes follow from its inputs, so here they are written down instead. Only tensors without data are treated so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table
from torch._subclasses import FakeTensor

__all__ = ["recurrent_shapes"]

_OPERATORS = [torch.ops.aten.gru.input, torch.ops.aten.lstm.input, torch.ops.aten.rnn_tanh.input, torch.ops.aten.rnn_relu.input]
_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)


def _outputs(x: Tensor, hx: Any, *, bidirectional: bool, batch_first: bool) -> tuple[Tensor, ...]:
    """Empty outputs: the sequence [time, batch, directions * size] and each final state, shaped as the initial one."""
    states = list(hx) if isinstance(hx, list | tuple) else [hx]
    size = states[0].shape[-1] * (2 if bidirectional else 1)
    # the layer works time first, and gives a transposed view back where the batch comes first
    sequence = x.new_empty(x.shape[1], x.shape[0], size).transpose(0, 1) if batch_first else x.new_empty(*x.shape[:-1], size)
    return (sequence, *(torch.empty_like(state, memory_format=torch.contiguous_format) for state in states))


def _by_shape(original: Any) -> Any:
    def run(
        x: Tensor, hx: Any, params: Any, has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool
    ) -> Any:
        if isinstance(x, FakeTensor):
            return _outputs(x, hx, bidirectional=bidirectional, batch_first=batch_first)
        return original(x, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first)

    return run


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Within it, recurrent layers on tensors without data give outputs of the right shape and compute nothing."""
    kernels: list[tuple[dict[Any, Any], Any]] = [(decomposition_table, op) for op in _OPERATORS if op in decomposition_table]
    kernels += [(op.py_kernels, key) for op in _OPERATORS for key in _KEYS if key in op.py_kernels]
    before = [(table, key, table[key]) for table, key in kernels]
    for table, key, original in before:
        table[key] = _by_shape(original)
    _forget()
    try:
        yield
    finally:
        for table, key, original in before:
            table[key] = original
        _forget()


def _forget() -> None:
    """Operators remember which kernel they took."""
    for op in _OPERATORS:
        op._dispatch_cache.clear()
