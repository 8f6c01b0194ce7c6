"""What every layer of a model works on, told by running it once."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sizewise.graph.hooks import hooked
from sizewise.protocols import Inputs
from sizewise.types import LayerKind, LayerShape

__all__ = ["layer_shapes"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_CELLS: dict[type[nn.Module], LayerKind] = {nn.GRU: "gru", nn.LSTM: "lstm", nn.RNN: "rnn"}


def layer_shapes(model: nn.Module, example: Inputs) -> dict[str, tuple[LayerShape, ...]]:
    """The shapes of convolutions, linear and recurrent layers by module path, one per call and per stacked recurrent layer.

    A layer whose module is never called (attention multiplies with the weights of some by itself) has none.

    Args:
        model: in inference mode.
        example: inputs of one call.
    """
    found: dict[str, list[LayerShape]] = {}
    handles = [
        module.register_forward_pre_hook(partial(_note, found.setdefault(path, []), kind))
        for path, module in model.named_modules()
        if (kind := _kind(module)) is not None
    ]
    with hooked(handles), torch.no_grad():
        example.call(model)
    return {path: tuple(shapes) for path, shapes in found.items() if shapes}


Shapes = Callable[[Any, Tensor], list[LayerShape]]


def _kind(module: nn.Module) -> Shapes | None:
    if isinstance(module, _CONVOLUTIONS):
        return _convolution
    if isinstance(module, nn.Linear):
        return _linear
    return _recurrent if type(module) in _CELLS else None


def _note(found: list[LayerShape], shapes: Shapes, module: nn.Module, args: tuple[Any, ...]) -> None:
    source = args[0] if args else None
    if isinstance(source, Tensor):  # packed sequences have no shape of their own
        found += shapes(module, source)


def _convolution(module: Any, source: Tensor) -> list[LayerShape]:
    sides = source.shape[-len(module.kernel_size) :]
    transposed = isinstance(module, _TRANSPOSED)
    return [
        LayerShape(
            kind="conv_transpose" if transposed else "conv",
            out_channels=module.out_channels,
            in_channels=module.in_channels,
            batch=source.shape[0] if source.ndim == len(sides) + 2 else 1,
            sides=tuple(sides),
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            dilation=tuple(module.dilation),
            padding=_padding(module),
            groups=module.groups,
        )
    ]


def _padding(module: Any) -> tuple[int, ...]:
    """At the beginning of every side, then at the end of every side."""
    if module.padding == "valid":
        return (0,) * (2 * len(module.kernel_size))
    if module.padding == "same":
        total = [dilation * (kernel - 1) for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]
        begin = tuple(count // 2 for count in total)
        return (*begin, *(count - first for count, first in zip(total, begin, strict=True)))
    return (*module.padding, *module.padding)


def _linear(module: Any, source: Tensor) -> list[LayerShape]:
    rows = prod(source.shape[:-1])
    return [LayerShape(kind="linear", out_channels=module.out_features, in_channels=module.in_features, batch=rows)]


def _recurrent(module: Any, source: Tensor) -> list[LayerShape]:
    steps, batch = (source.shape[1], source.shape[0]) if module.batch_first else (source.shape[0], source.shape[1])
    if source.ndim == 2:
        steps, batch = source.shape[0], 1
    ways = 2 if module.bidirectional else 1
    first = LayerShape(
        kind=_CELLS[type(module)],
        out_channels=module.hidden_size,
        in_channels=module.input_size,
        batch=batch,
        sides=(steps,),
        directions=ways,
    )
    further = replace(first, in_channels=ways * module.hidden_size, stacked=True)
    return [first, *(further for _ in range(module.num_layers - 1))]
