"""Times of models as they will ship: in integers, whose layers cost otherwise than in float, so that other channels are worth removing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from sizewise.graph.trace import noise, trace
from sizewise.protocols import Inputs, Timer
from sizewise.types import Cost, LayerShape, Scheme

__all__ = ["IntegerTimer"]

KINDS = ("conv", "linear")  # that have integer kernels wherever a runtime has any


class IntegerTimer:
    """A timer that quantizes what it is given before it times it.

    Ranges are those of one random call and nothing is fitted, which is as fast as any other file with the same layers. In
    ResNet-56, for one, a layer of 16 channels takes 1.3 times what one of 64 takes in float, and twice as long in integers.

    Args:
        timer: of the runtime that counts.
        scheme: how that wants graphs quantized.
    """

    def __init__(self, timer: Timer, scheme: Scheme) -> None:
        self._timer, self._scheme = timer, scheme

    @property
    def name(self) -> str:
        """The runtime's, and that it is integers that are timed."""
        return f"{self._timer.name}, in integers"

    @property
    def facts(self) -> str:
        """As of the other timer; the same layers take other times."""
        return f"{self._timer.facts} int8"

    @property
    def folder(self) -> Path:
        """As of the other timer."""
        return self._timer.folder

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        """Seconds of every layer by itself, in order; of those without an integer kernel, in float."""
        return self._timer.kernel_seconds([replace(shape, integer=shape.kind in KINDS) for shape in shapes])

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        """What one call of the quantized model costs, by layers of the model."""
        return self._timer.profile(self._quantized(model, example), example)

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        """A function that tells which share of the latency another model takes, both quantized."""
        share = self._timer.beside(self._quantized(model, example), example)
        return lambda other: share(self._quantized(other, example))

    def _quantized(self, model: nn.Module, example: Inputs) -> nn.Module:
        from sizewise.graph.prepared import folded, rough

        return rough(folded(trace(model, example)), self._scheme, [noise(example)])
