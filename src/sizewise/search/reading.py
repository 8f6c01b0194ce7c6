"""What a part of the validation split says of the whole."""

import math
from dataclasses import dataclass

from scipy.stats import norm

from sizewise.types import Quality

__all__ = ["Reading", "deviation"]

OTHERS = 0.1  # of what the examples that are read first lose, the others may lose besides: 2 to 19 % on ResNets (`evaluate/racing.py`)


def deviation(seen: Quality) -> float:
    """Standard deviation of the loss that its interval stands for, in the metric's unit."""
    found = seen.drop or seen.score
    return (found.high - found.low) / 2 / float(norm.ppf(0.5 + found.confidence / 2))


@dataclass(frozen=True)
class Reading:
    """How the split is read.

    Attributes:
        drawn: how many examples come first, in random order: those whose scores change most easily, or all.
        count: examples of the split.
    """

    drawn: int
    count: int

    def off(self, seen: Quality) -> float:
        """By how much the loss on the whole split may be off what was seen of it, as standard deviation, in the metric's unit.

        That of a mean drawn without replacement vanishes once all that come first are read; of the others some may be lost.

        Source: Cochran, Sampling Techniques, 1977, section 2.6, for the finite population correction.
        """
        found = seen.drop or seen.score
        left = max(0.0, 1 - found.n / self.drawn)
        unread = min(self.count - self.drawn, self.count - found.n)
        others = OTHERS * abs(found.value) * unread / (self.count - self.drawn) if seen.drop and self.count > self.drawn else 0.0
        return math.hypot(deviation(seen) * math.sqrt(left), others)

    def whole(self, seen: Quality) -> float:
        """What the deviation would be, had the whole split been read."""
        found = seen.drop or seen.score
        return deviation(seen) * math.sqrt(min(1.0, found.n / self.drawn))
