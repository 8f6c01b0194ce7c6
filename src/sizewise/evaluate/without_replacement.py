"""Is the mean of a finite list of numbers above a limit? Answered while the list is read in random order, at any time.

Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS-B 86, 2024, section 5 (sampling
without replacement). A gambler bets on every next number being larger than what is left would be on average if the whole list
had the mean m: after t numbers with sum S, of a list of N, that is C = (N m - S) / (N - t). The wealth

    K = prod over numbers x of 1 + f (x - C) / (C - least)

is a martingale if the mean is m, and falls on average if it is less; at most once in 1/error runs does it ever reach 1/error
(Ville's inequality), whenever and however often one looks. It needs a lower bound of the numbers only, as it bets upwards only.
Deviations: instead of one adaptive bet, the average of the wealth under the eight fixed shares f of `SHARES`. Halving from one to
the next, one of them is near the best for rare as for frequent differences, the average costs at most log 8, and as every K falls
in m, so does the average: the limits that are refuted are exactly those below one number, `lower_bound`.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.special import logsumexp

__all__ = ["exceeded", "log_wealth", "lower_bound"]

Values = Float[ndarray, " n"]
SHARES = 0.96 * 0.5 ** np.arange(8)  # of the largest bet that cannot ruin: 96 % down to 0.75 %
ROUNDING = 1e-9  # relative: sums that differ by less are the same


def log_wealth(values: Values, count: int, mean: float, least: float) -> Float[ndarray, " n"]:
    """Logarithm of the wealth after every value; infinite from where the list's mean is above `mean` whatever comes.

    Args:
        values: what was read so far, in random order; none is below `least`.
        count: how many numbers the list has.
        mean: the list's mean is at most this, under the hypothesis.
        least: what no number of the list is below.
    """
    above = np.maximum(np.asarray(values, float) - least, 0.0)
    total = count * (mean - least)
    read = np.cumsum(above)
    expected = (total - (read - above)) / (count - np.arange(len(above)))
    slack = ROUNDING * max(abs(total), 1.0)
    # nothing is expected any more and nothing came: no bet
    gain = np.where(expected > slack / count, above / np.maximum(expected, slack / count) - 1.0, 0.0)
    wealth: Float[ndarray, " n"] = logsumexp(np.cumsum(np.log1p(SHARES[:, None] * gain), axis=1), axis=0) - math.log(len(SHARES))
    beyond: Bool[ndarray, " n"] = read > total + slack
    return np.where(beyond, math.inf, wealth)


def exceeded(values: Values, count: int, mean: float, least: float, error: float) -> bool:
    """Whether the whole list's mean is above `mean`, wrongly so in at most `error` of all orders, at whatever time one asks."""
    return bool(np.any(log_wealth(values, count, mean, least) >= -math.log(error)))


def lower_bound(values: Values, count: int, least: float, error: float) -> float:
    """What the whole list's mean is surely above or at: the supremum of the means that `exceeded` refutes; `least` if it refutes none."""
    low, high = least, max(float(np.max(values)), least)  # above all that was read, no bet ever paid
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeded(values, count, middle, least, error) else (low, middle)
    return low
