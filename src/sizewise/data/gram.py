"""Second moments of what a layer multiplies its weights with, over calibration data; activations themselves are never kept."""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.arith.moments import Gram
from sizewise.arith.unfolding import input_rows
from sizewise.graph.hooks import hooked
from sizewise.protocols import Inputs

__all__ = ["input_grams", "unfolded"]

CHUNK = 2**22  # unfolded values held at once, 32 MiB in double precision


Unfold = Callable[[nn.Module, Tensor], Iterable[Float[Tensor, "groups n in"]]]


def unfolded(module: nn.Module, x: Tensor) -> Iterator[Float[Tensor, "groups n in"]]:
    """Rows that a layer multiplies its weights with, in the order of `weight.flatten(1)` and double precision, some at a time."""
    if isinstance(module, nn.Linear):
        yield from torch.split(x.reshape(1, -1, x.shape[-1]).double(), max(1, CHUNK // x.shape[-1]), dim=1)
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    x = x if x.ndim == len(module.kernel_size) + 2 else x.unsqueeze(0)
    x = F.pad(x, module._reversed_padding_repeated_twice, "constant" if module.padding_mode == "zeros" else module.padding_mode)
    dimensions = zip(x.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True)
    positions = prod((side - stretch * (size - 1) - 1) // step + 1 for side, size, step, stretch in dimensions)
    each = module.in_channels * prod(module.kernel_size) * positions
    for part in torch.split(x, max(1, CHUNK // max(1, each))):
        yield input_rows(part.double(), module.kernel_size, module.stride, "valid", module.dilation, module.groups)


def input_grams(model: nn.Module, paths: Collection[str], inputs: Iterable[Inputs], unfold: Unfold = unfolded) -> dict[str, Gram]:
    """Second moments of what flows into the named layers.

    One pass over `inputs`, whatever the number of layers. A layer that runs several times per call is counted each time; one
    that never runs is left out. Sums are in double precision, batch by batch.

    Args:
        model: in inference mode.
        paths: of its layers.
        inputs: calibration data.
        unfold: makes rows of a layer's input; by default those that linear layers and convolutions (1-d to 3-d, any padding,
            grouped) multiply their weights with.
    """
    found: dict[str, Gram] = {}

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = (args[0] if args else kwargs["input"]).detach()
        for rows in unfold(module, x):
            if path not in found:
                found[path] = Gram.empty(rows.shape[0], rows.shape[2], rows.device)
            found[path].add(rows)

    handles = [model.get_submodule(path).register_forward_pre_hook(partial(hook, path), with_kwargs=True) for path in paths]
    with hooked(handles), torch.no_grad():
        for batch in inputs:
            batch.call(model)
    return found
