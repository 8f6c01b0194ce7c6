"""Learning curves: how the error falls with the number of training examples, and what is left of it in the end.

Model: e(n) = floor + amplitude n^-exponent, with amplitude and floor not negative, the form that Cortes et al. (Learning
curves: asymptotic values and rate of convergence, NIPS 1993) and Hestness et al. (Deep learning scaling is predictable,
2017) find across tasks. For a given exponent the fit is a least-squares problem in two unknowns; the exponent is searched
on a grid. Deviation: exponents are kept to [0.1, 2], since a few noisy points would otherwise be explained by a curve that
falls for ever or at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

__all__ = ["EXPONENTS", "PowerLaws", "fit_power_laws"]

EXPONENTS = np.geomspace(0.1, 2.0, 25)


@dataclass(frozen=True)
class PowerLaws:
    """One fitted curve per draw.

    Attributes:
        amplitude: of every draw, for n in units of `unit`.
        exponent: of every draw.
        floor: of every draw.
        unit: examples that n is divided by.
    """

    amplitude: Float[ndarray, " draws"]
    exponent: Float[ndarray, " draws"]
    floor: Float[ndarray, " draws"]
    unit: float

    def at(self, examples: float) -> Float[ndarray, " draws"]:
        """The error of every curve at so many examples."""
        return self.floor + self.amplitude * (examples / self.unit) ** -self.exponent


def fit_power_laws(
    examples: Sequence[float],
    errors: Float[ndarray, "draws sizes"],
    *,
    least: float | None = 0.0,
    exponents: Float[ndarray, " e"] = EXPONENTS,
) -> PowerLaws:
    """Fit one curve to every row of errors by least squares.

    Args:
        examples: training examples of every column; at least two different ones.
        errors: one row per draw.
        least: lower bound of the floor (0 for shares and losses), or None where errors may be negative.
        exponents: that are tried; the smallest residual wins, ties go to the larger exponent, which extrapolates less.

    Cost: draws x exponents x sizes.
    """
    unit = float(max(examples))
    n = np.asarray(examples, float) / unit
    best: tuple[ndarray, ...] | None = None
    for exponent in sorted(exponents, reverse=True):
        power = n**-exponent
        amplitude, floor = _two_unknowns(power, errors, least)
        residual = np.square(floor[:, None] + amplitude[:, None] * power - errors).sum(1)
        found = (residual, amplitude, np.full(len(errors), exponent), floor)
        if best is None:
            best = found
        else:
            wins = residual < best[0] - 1e-15  # by more than rounding
            best = tuple(np.where(wins, new, old) for new, old in zip(found, best, strict=True))
    assert best is not None
    return PowerLaws(best[1], best[2], best[3], unit)


def _two_unknowns(power: Float[ndarray, " sizes"], errors: Float[ndarray, "draws sizes"], least: float | None) -> tuple[ndarray, ndarray]:
    """Least squares of errors on (1, power) with amplitude >= 0 and floor >= least: the free solution, or the better bound."""
    centred = power - power.mean()
    spread = float(centred @ centred)
    amplitude = np.maximum(errors @ centred / spread if spread > 0 else np.zeros(len(errors)), 0.0)
    floor = errors.mean(1) - amplitude * power.mean()
    if least is None:
        return amplitude, floor
    below = floor < least
    bound = np.maximum((errors - least) @ power / float(power @ power), 0.0)
    return np.where(below, bound, amplitude), np.where(below, least, floor)
