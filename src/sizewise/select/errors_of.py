"""Scores as errors: one scale of figures on which less is better, and back."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sizewise.types import Interval

__all__ = ["ErrorScale", "error_scale"]


@dataclass(frozen=True)
class ErrorScale:
    """How a metric's scores become errors.

    Attributes:
        kind: "share" (scores from 0 to 1, more is better: 1 - score), "more" (more is better: -score), "less" (a loss: the
            score itself).
        least: lower bound of an error, or None.
    """

    kind: Literal["share", "more", "less"]
    least: float | None

    def error(self, score: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Errors of scores."""
        return {"share": 1 - score, "more": -score, "less": score}[self.kind]

    def quality(self, error: float) -> float:
        """The score that has this error."""
        return {"share": 1 - error, "more": -error, "less": error}[self.kind]

    def difference(self, worse: float, better: float) -> float:
        """How much lower the error of the second score is than that of the first."""
        return better - worse if self.kind != "less" else worse - better

    def qualities(self, errors: Interval) -> Interval:
        """An interval of errors as one of scores."""
        ends = sorted((self.quality(errors.low), self.quality(errors.high)))
        return replace(errors, value=self.quality(errors.value), low=ends[0], high=ends[1])


def error_scale(scores: Iterable[Float[ndarray, "..."]], *, higher_is_better: bool) -> ErrorScale:
    """The scale that fits a metric's scores."""
    low, high = 0.0, 0.0
    for block in scores:
        low, high = min(low, float(np.min(block))), max(high, float(np.max(block)))
    if higher_is_better:
        return ErrorScale("share", 0.0) if low >= 0 and high <= 1 else ErrorScale("more", None)
    return ErrorScale("less", 0.0 if low >= 0 else None)
