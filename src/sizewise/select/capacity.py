"""What a scale's errors come from, which scale is the smallest that suffices, and what would decide if that is open.

Words: errors are per example and less is better. A scale is *behind* by its error on validation at all training examples
minus the best scale's. Its *gap* is validation error minus training error. Its *gain* is how far its learning curve says
the error would fall with twice the examples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from sizewise.advice import Diagnosis
from sizewise.types import Interval

__all__ = ["Choice", "Figures", "SeedNoise", "choose", "diagnose", "shortfall"]

CONFIDENCE = 0.9  # two-sided; a bound against the tolerance errs one time in twenty
Errors = Float[ndarray, "seeds examples"]


@dataclass(frozen=True)
class Figures:
    """Bootstrap draws of what a diagnosis rests on; every array has one entry per draw.

    Attributes:
        train: error on training examples.
        validation: error on validation at all examples.
        gain: fall of the fitted error with twice the examples.
    """

    train: Float[ndarray, " draws"]
    validation: Float[ndarray, " draws"]
    gain: Float[ndarray, " draws"]


def diagnose(scales: Mapping[str, Figures], tolerance: float, order: Sequence[str]) -> dict[str, tuple[Diagnosis, float]]:
    """What each scale's errors come from, and the share of draws that say so.

    In every draw, with t the tolerance:

    - within t of the best and the gain at most t / 2: *saturated*, neither size nor data would buy more than the tolerance;
    - within t of the best and a larger gain: *data-limited*;
    - further behind: what it lacks is the part of its training error above the best scale's validation error, and its gap.
      Where the first is the larger part, the scale cannot even fit its training data as well as another does unseen data:
      *underfits*. Else *overfits*.
    - the largest scale, where it is best by more than t, errs on its training data by more than t, and its gap is no more
      than half of that: *underfits*, since nothing says that the next size up would not be better still.

    Args:
        scales: draws per scale, aligned: the k-th entries of all scales belong to one draw.
        tolerance: in the error's unit.
        order: the scales from smallest to largest.
    """
    errors = np.stack([scales[name].validation for name in order])
    best = errors.min(0)
    found = {}
    for index, name in enumerate(order):
        f = scales[name]
        behind, gap = f.validation - best, f.validation - f.train
        near = behind <= tolerance
        kind = np.where(near, np.where(f.gain <= tolerance / 2, "saturated", "data-limited"), "")
        kind = np.where(~near, np.where(f.train - best > behind / 2, "underfits", "overfits"), kind)
        if index == len(order) - 1 and len(order) > 1:
            others = np.delete(errors, index, axis=0).min(0)
            small = (others - f.validation > tolerance) & (f.train > tolerance) & (gap <= f.train / 2)
            kind = np.where(small, "underfits", kind)
        names, counts = np.unique(kind, return_counts=True)
        most = int(np.argmax(counts))
        found[name] = (str(names[most]), float(counts[most] / counts.sum()))
    return found  # type: ignore[return-value]


@dataclass(frozen=True)
class SeedNoise:
    """How much a training's mean error varies with the seed, learned from all scales together.

    Attributes:
        coefficient: the variance itself, or for shares its ratio to e (1 - e): trainings that err rarely also differ rarely,
            and a poor scale's noise must not be taken for a good one's.
        share: errors are shares of 1.
        freedom: degrees of freedom behind it; 0 where every scale has one seed, and nothing is known.
    """

    coefficient: float
    share: bool
    freedom: int

    @classmethod
    def of(cls, finals: Sequence[Errors], *, share: bool) -> "SeedNoise":
        """Pool over scales; those with one seed tell nothing."""
        total, freedom = 0.0, 0
        for matrix in finals:
            means = matrix.mean(1)
            total += float(((means - means.mean()) ** 2).sum()) / _spread(means.mean(), matrix.shape[1], share=share)
            freedom += len(means) - 1
        return cls(total / freedom if freedom else 0.0, share, freedom)

    def variance(self, errors: Errors) -> float:
        """Of one training's mean error."""
        return self.coefficient * _spread(float(errors.mean()), errors.shape[1], share=self.share)


def _spread(error: float, examples: int, *, share: bool) -> float:
    if not share:
        return 1.0
    least = 1 / (examples + 2)  # no error seen is not no error
    inside = min(max(error, least), 1 - least)
    return inside * (1 - inside)


def shortfall(
    best: Errors, other: Errors, noise: SeedNoise, confidence: float = CONFIDENCE, trained: tuple[bool, bool] = (True, True)
) -> tuple[Interval, float]:
    """How much worse `other` is than `best` in expectation over trainings and examples, paired by example.

    The mean difference varies with the examples (paired, each averaged over seeds) and with the trainings' seeds. The
    seeds' variance is taken from all scales together, since two or three seeds of one scale tell little of it. Degrees of
    freedom by Welch and Satterthwaite.

    Args:
        best: errors of the best scale.
        other: of another one, on the same examples.
        noise: between seeds.
        confidence: two-sided.
        trained: whether each was trained here; a given model has no other seed.

    Returns:
        the interval, and the part of its variance that more seeds would not remove.
    """
    difference = other.mean(0) - best.mean(0)
    n = len(difference)
    by_example = float(difference.var(ddof=1)) / n if n > 1 else math.inf
    by_seed = sum(noise.variance(errors) / len(errors) for errors, seeded in zip((best, other), trained, strict=True) if seeded)
    total = by_example + by_seed
    if not math.isfinite(total):
        half = 1e300
    elif total == 0:
        half = 0.0
    else:
        parts = by_example**2 / (n - 1) + (by_seed**2 / noise.freedom if noise.freedom else 0.0)
        half = float(stats.t.ppf(0.5 + confidence / 2, max(total**2 / parts, 1.0))) * math.sqrt(total) if parts else 0.0
    value = float(difference.mean())
    return Interval(value=value, low=value - half, high=value + half, n=n, confidence=confidence), by_example


@dataclass(frozen=True)
class Choice:
    """Which scale suffices.

    Attributes:
        recommended: the smallest that is expected to be within the tolerance, when it is known to be; else None.
        safe: the smallest known to be within.
        undecided: smaller than `safe` (or all, where nothing is safe) and expected to be within, but not known to be.
    """

    recommended: str | None
    safe: str | None
    undecided: tuple[str, ...]


def choose(behind: Mapping[str, Interval], tolerance: float, order: Sequence[str]) -> Choice:
    """The smallest scale whose whole interval is within the tolerance, unless a smaller one's estimate is within, too.

    A smaller scale whose estimate is outside does not stand in the way, even if its interval reaches inside: taking it would
    more likely than not cost quality, while passing it over can only cost size.

    Args:
        behind: per scale, how much worse than the best; the best itself is exactly 0.
        tolerance: in the error's unit.
        order: the scales from cheapest to dearest; those without an interval are left out.
    """
    undecided: list[str] = []
    for name in order:
        if name not in behind:
            continue
        if behind[name].high <= tolerance:
            return Choice(None if undecided else name, name, tuple(undecided))
        if behind[name].value <= tolerance:
            undecided.append(name)
    return Choice(None, None, tuple(undecided))
