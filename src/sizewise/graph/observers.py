"""What stands between operators of a graph that torchao's PT2E prepares: it looks on, or simulates integers, or does nothing.

PT2E puts an observer on every edge that will carry integers and asks it for scale and zero point in the end. These observers
can also simulate the integers while the graph is still float, so that ranges and roundings can be tried, and weights trained with
them, before anything is converted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.observer import UniformQuantizationObserverBase

from sizewise.arith.pairs import least_scale
from sizewise.arith.ranges import RangeStatistics
from sizewise.errors import PreconditionError

__all__ = ["ActivationObserver", "Mode", "WeightObserver", "mode", "observers"]

Mode = Literal["pass", "watch", "simulate"]
EPS = 2.0**-20  # the least scale, for tensors that are all zero
CODES_PER_UNIT = 8  # times the count of positive codes and zero: a step of Adam is then the same share of a channel's largest weight


class ActivationObserver(UniformQuantizationObserverBase):  # type: ignore[misc]  # torchao ships no types
    """One scale and zero point for a tensor.

    Attributes:
        mode: what `forward` does: pass values on, look at them too, or pass on what is left of them after rounding.
        statistics: of all values watched.
        low, high: the range that integers stand for; None before one is chosen.
        growth: natural logarithm of what the scale has grown by; None unless it is being learned.
    """

    growth: nn.Parameter | None

    def __init__(self, dtype: torch.dtype = torch.uint8, qscheme: Any = torch.per_tensor_affine, **options: Any) -> None:
        super().__init__(dtype=dtype, qscheme=qscheme, eps=EPS, **options)
        self.mode: Mode = "watch"
        self.statistics = RangeStatistics()
        self.low: float | None = None
        self.high: float | None = None
        self.register_parameter("growth", None)

    def forward(self, x: Tensor) -> Tensor:
        """Do as the mode says."""
        if self.mode == "watch":
            self.statistics.add(x.detach())
        elif self.mode == "simulate" and self.low is not None:
            scale, zero = self.calculate_qparams()
            if self.growth is not None:
                return self._learned(x, scale, zero)
            found: Tensor = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), self.quant_min, self.quant_max)
            return found
        return x

    def learn(self) -> None:
        """Let gradients move the scale; a range without width stays as it is."""
        if self.low is not None and self.low != self.high:
            self.growth = nn.Parameter(torch.zeros(1))

    def settle(self) -> None:
        """Take the range over that was learned."""
        if self.growth is not None:
            scale, zero = self.calculate_qparams()
            grown = float(scale) * math.exp(float(self.growth.detach()))
            self.low, self.high = (self.quant_min - int(zero)) * grown, (self.quant_max - int(zero)) * grown
            self.growth = None

    def _learned(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        assert self.growth is not None
        grown = scale.to(x.device) * self.growth.exp()
        slowed = 1 / math.sqrt(x.numel() * self.quant_max)
        found: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x, grown, zero.to(grown).reshape(1), self.quant_min, self.quant_max, slowed
        )
        return found

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the chosen range."""
        if self.low is None or self.high is None:
            raise PreconditionError("no range was chosen for an activation", where="quantization")
        found: tuple[Tensor, Tensor] = self._calculate_qparams(*torch.tensor((self.low, self.high), device=self.eps.device))
        return found


class WeightObserver(UniformQuantizationObserverBase):  # type: ignore[misc]
    """One scale per output channel of a weight, with no zero point.

    Attributes:
        scale: of every channel; the largest absolute value over the largest code until it is set.
        growth: natural logarithms of what the scales have grown by; None unless they are being learned.
        unit: how many codes one unit of the weight given to `forward` is, while weights are trained; None where that is the weight
            itself.

    Args:
        pair_limit: what the codes of two neighbours may add up to (`arith/pairs.py`); None sets no limit.
    """

    scale: Tensor | None
    growth: nn.Parameter | None

    def __init__(
        self,
        dtype: torch.dtype = torch.int8,
        qscheme: Any = torch.per_channel_symmetric,
        ch_axis: int = 0,
        pair_limit: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dtype=dtype, qscheme=qscheme, eps=EPS, **options)
        self.mode: Mode = "watch"
        self.ch_axis, self.pair_limit = ch_axis, pair_limit
        self.unit: int | None = None
        self.register_buffer("scale", None)
        self.register_parameter("growth", None)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, or what is left of it after rounding."""
        if self.scale is None:
            self.scale = self.plain_scale(weight)
        if self.unit is not None:
            return self._rounded(weight)
        if self.mode != "simulate":
            return weight
        zeros = torch.zeros(len(self.scale), dtype=torch.int32, device=self.scale.device)
        found: Tensor = torch.fake_quantize_per_channel_affine(weight, self.scale, zeros, self.ch_axis, self.quant_min, self.quant_max)
        return found

    def plain_scale(self, weight: Tensor) -> Tensor:
        """The scale that clips nothing, and lets no pair of codes exceed its limit."""
        largest: Tensor = weight.detach().abs().movedim(self.ch_axis, 0).flatten(1).amax(1)
        scale: Tensor = (largest / self.quant_max).clamp(min=EPS).float()
        return torch.maximum(scale, least_scale(weight, self.pair_limit))

    def grown_scale(self) -> Tensor:
        """The scales with what was learned."""
        if self.scale is None:
            raise PreconditionError("a weight was never seen", where="quantization")
        return self.scale if self.growth is None else self.scale * self.growth.exp()

    def codes(self, weight: Tensor) -> Tensor | None:
        """Codes that `values` makes the very same weight of; None where it is not on the grid."""
        assert self.scale is not None
        found = torch.round(weight / self._spread(self.scale, weight)).clamp_(self.quant_min, self.quant_max).to(torch.int8)
        return found if torch.equal(self.values(found, weight.dtype), weight) else None

    def values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """What codes are worth."""
        assert self.scale is not None
        return (codes.float() * self._spread(self.scale, codes)).to(dtype)

    def learn(self, weight: Tensor) -> Tensor:
        """Let gradients move codes, and scales; gives what the weight has to be replaced by while they do."""
        if self.scale is None:
            self.scale = self.plain_scale(weight)
        self.growth = nn.Parameter(torch.zeros_like(self.scale))
        self.unit = CODES_PER_UNIT * (self.quant_max + 1)
        return weight.detach() / (self.unit * self._spread(self.scale, weight))

    def settle(self, weight: Tensor) -> Tensor:
        """Take over what was learned; gives the rounded weight."""
        found = self._rounded(weight).detach()
        self.scale, self.growth, self.unit = self.grown_scale().detach(), None, None
        return found

    def _rounded(self, weight: Tensor) -> Tensor:
        assert self.unit is not None
        # units are powers of two, so that the product is the code times the scale, with one rounding
        codes: Tensor = torch.fake_quantize_per_tensor_affine(weight, 1 / self.unit, 0, self.quant_min, self.quant_max)
        return codes * (self.unit * self._spread(self.grown_scale(), weight))

    def _spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        return scale.reshape([-1 if axis == self.ch_axis else 1 for axis in range(weight.ndim)])

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales, and zeros."""
        scale = self.grown_scale().detach()
        return scale, torch.zeros(len(scale), dtype=torch.int64)


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
