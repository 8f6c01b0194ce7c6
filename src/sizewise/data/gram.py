"""Second moments of what a layer multiplies its weights with, over calibration data; activations themselves are never kept."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.protocols import Inputs

__all__ = ["Gram", "input_grams"]

CHUNK = 2**22  # unfolded values held at once, 32 MiB in double precision


@dataclass
class Gram:
    """Sums over examples and positions of a layer's unfolded inputs, per group of the layer.

    Attributes:
        total: sums of every input, in the order of the columns of `weight.flatten(1)`.
        squares: sums of the products of every two inputs.
        n: rows counted, one per example and position.
    """

    total: Float[Tensor, "groups in"]
    squares: Float[Tensor, "groups in in"]
    n: int = 0

    def add(self, rows: Float[Tensor, "groups n in"]) -> None:
        """Take in more observations."""
        self.total += rows.sum(1)
        self.squares += rows.mT @ rows
        self.n += rows.shape[1]

    def merge(self, other: "Gram") -> None:
        """Take in another layer's observations, for weights that both share."""
        self.total += other.total
        self.squares += other.squares
        self.n += other.n

    @property
    def mean(self) -> Float[Tensor, "groups in"]:
        """Mean of every input."""
        return self.total / self.n

    @property
    def products(self) -> Float[Tensor, "groups in in"]:
        """Mean product of every two inputs, E[x x'], not centred."""
        return self.squares / self.n

    @property
    def covariance(self) -> Float[Tensor, "groups in in"]:
        """Covariance of every two inputs."""
        return self.products - self.mean[:, :, None] * self.mean[:, None, :]


def input_grams(model: nn.Module, paths: Collection[str], inputs: Iterable[Inputs]) -> dict[str, Gram]:
    """Second moments of the unfolded inputs of the named linear layers and convolutions (1-d to 3-d, any padding, grouped).

    One pass over `inputs`, whatever the number of layers. A layer that runs several times per call is counted each time; one
    that never runs is left out. Sums are in double precision, batch by batch.
    """
    found: dict[str, Gram] = {}

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = (args[0] if args else kwargs["input"]).detach()
        for rows in _unfolded(module, x):
            groups, _, size = rows.shape
            if path not in found:
                empty = rows.new_zeros(groups, size + 1, size)
                found[path] = Gram(empty[:, 0], empty[:, 1:])
            found[path].add(rows)

    handles = [model.get_submodule(path).register_forward_pre_hook(partial(hook, path), with_kwargs=True) for path in paths]
    try:
        with torch.no_grad():
            for batch in inputs:
                batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _unfolded(module: nn.Module, x: Tensor) -> Iterator[Float[Tensor, "groups n in"]]:
    """Rows that the layer multiplies its weights with, some examples at a time."""
    if isinstance(module, nn.Linear):
        yield from torch.split(x.reshape(1, -1, x.shape[-1]).double(), max(1, CHUNK // x.shape[-1]), dim=1)
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    taps = len(module.kernel_size)
    x = x if x.ndim == taps + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    for dim, size, step, stretch in zip(range(2, x.ndim), module.kernel_size, module.stride, module.dilation, strict=True):
        x = x.unfold(dim, stretch * (size - 1) + 1, step)[..., ::stretch]
    # now [batch, channels, *positions, *kernel], a view of the padded input until reshape copies it
    channels = x.reshape(len(x), module.groups, module.in_channels // module.groups, *x.shape[2:]).movedim(2, 2 + taps)
    for part in torch.split(channels, max(1, CHUNK * len(x) // max(1, x.numel()))):
        yield part.transpose(0, 1).flatten(2 + taps).double().flatten(1, -2)
