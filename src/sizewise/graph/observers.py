"""What stands between operators of a graph that torchao's PT2E prepares: it looks on, or simulates integers, or does nothing.

PT2E puts an observer on every edge that will carry integers and asks it for scale and zero point in the end. These observers
can also simulate the integers while the graph is still float, so that ranges and roundings can be tried before anything is
converted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

from sizewise.arith.ranges import RangeStatistics
from sizewise.errors import PreconditionError

__all__ = ["ActivationObserver", "Mode", "WeightObserver", "mode", "observers"]

Mode = Literal["pass", "watch", "simulate"]
EPS = 2.0**-20  # the least scale, for tensors that are all zero


class ActivationObserver(UniformQuantizationObserverBase):  # type: ignore[misc]  # torchao ships no types
    """One scale and zero point for a tensor.

    Attributes:
        mode: what `forward` does: pass values on, look at them too, or pass on what is left of them after rounding.
        statistics: of all values watched.
        low, high: the range that integers stand for; None before one is chosen.
    """

    def __init__(self, dtype: torch.dtype = torch.uint8, qscheme: Any = torch.per_tensor_affine, **options: Any) -> None:
        super().__init__(dtype=dtype, qscheme=qscheme, eps=EPS, **options)
        self.mode: Mode = "watch"
        self.statistics = RangeStatistics()
        self.low: float | None = None
        self.high: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Do as the mode says."""
        if self.mode == "watch":
            self.statistics.add(x.detach())
        elif self.mode == "simulate" and self.low is not None:
            scale, zero = self.calculate_qparams()
            found: Tensor = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), self.quant_min, self.quant_max)
            return found
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the chosen range."""
        if self.low is None or self.high is None:
            raise PreconditionError("no range was chosen for an activation", where="quantization")
        found: tuple[Tensor, Tensor] = self._calculate_qparams(torch.tensor(self.low), torch.tensor(self.high))
        return found


class WeightObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
    """One scale per output channel of a weight, with no zero point.

    Attributes:
        scale: of every channel; the largest absolute value over the largest code until it is set.
    """

    def __init__(
        self, dtype: torch.dtype = torch.int8, qscheme: Any = torch.per_channel_symmetric, ch_axis: int = 0, **options: Any
    ) -> None:
        super().__init__(dtype=dtype, qscheme=qscheme, eps=EPS, **options)
        self.mode: Mode = "watch"
        self.ch_axis = ch_axis
        self.scale: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, or what is left of it after rounding."""
        if self.scale is None:
            self.scale = self.plain_scale(weight)
        if self.mode != "simulate":
            return weight
        zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        found: Tensor = torch.fake_quantize_per_channel_affine(weight, self.scale, zeros, self.ch_axis, self.quant_min, self.quant_max)
        return found

    def plain_scale(self, weight: Tensor) -> Tensor:
        """The scale that clips nothing."""
        largest: Tensor = weight.detach().abs().movedim(self.ch_axis, 0).flatten(1).amax(1)
        scale: Tensor = (largest / self.quant_max).clamp(min=EPS).float()
        return scale

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales, and zeros."""
        if self.scale is None:
            raise PreconditionError("a weight was never seen", where="quantization")
        return self.scale, torch.zeros(len(self.scale), dtype=torch.int64)


def observers(prepared: nn.Module) -> dict[str, ActivationObserver]:
    """Observers of activations by name; one that several edges share is there once, under its first name."""
    return {name: module for name, module in prepared.named_modules() if isinstance(module, ActivationObserver)}


@contextmanager
def mode(prepared: nn.Module, chosen: Mode) -> Iterator[None]:
    """Within it, all observers are in that mode."""
    found = [module for module in prepared.modules() if isinstance(module, ActivationObserver | WeightObserver)]
    before = [module.mode for module in found]
    for module in found:
        module.mode = chosen
    try:
        yield
    finally:
        for module, old in zip(found, before, strict=True):
            module.mode = old
