"""How long a training lasts, how far it is, and the learning rate there."""

import math
from dataclasses import dataclass

from sizewise.errors import UsageError

__all__ = ["Length", "learning_rate"]

WARM = 0.05  # share of the run in which the rate rises: a pruned model's first gradients are large
WARM_STEPS = 20  # and steps, at least: Adam's first ones are all as long as the rate, since it has seen no gradients yet


@dataclass(frozen=True)
class Length:
    """Of a training: passes over the data, or wall-clock time; exactly one of the two.

    Attributes:
        epochs: passes, not necessarily whole.
        seconds: of training, with the checks in between.

    Raises:
        UsageError: both, none, or not more than zero.
    """

    epochs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.seconds is None):
            raise UsageError("a length is either epochs or a time", where="length", got=f"epochs={self.epochs}, seconds={self.seconds}")
        value = self.epochs if self.epochs is not None else self.seconds
        assert value is not None
        if not (value > 0 and math.isfinite(value)):
            raise UsageError("a length must be finite and more than 0", where="length", got=f"{value:g}")

    def steps(self, per_epoch: int) -> int | None:
        """Optimizer steps in all, at least one; None where time decides."""
        return None if self.epochs is None else max(1, math.ceil(self.epochs * per_epoch - 1e-9))

    def position(self, step: int, elapsed: float, per_epoch: int) -> float:
        """How far the training is, 0 at the start and 1 or more at the end, after so many steps and seconds."""
        total = self.steps(per_epoch)
        if total is not None:
            return step / total
        assert self.seconds is not None
        return elapsed / self.seconds


def learning_rate(peak: float, position: float, step: int) -> float:
    """A linear rise over the first twentieth, and over twenty steps, then half a cosine wave down to zero at the end.

    Args:
        peak: the highest rate; a training that is shorter than the rise does not reach it.
        position: how far the training is, from 0 to 1.
        step: done before.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017, without restarts; the warm-up as in Goyal et al., 2017.
    """
    risen = peak * min((step + 1) / WARM_STEPS, max(position, WARM / 20) / WARM, 1.0)
    return risen * 0.5 * (1 + math.cos(math.pi * min(max(position - WARM, 0.0) / (1 - WARM), 1.0)))
