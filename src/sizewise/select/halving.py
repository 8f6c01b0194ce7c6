"""Which scales are not worth training on more examples: successive halving with a bound instead of a bare ranking.

Source: Jamieson and Talwalkar, Non-stochastic best arm identification, AISTATS 2016, who keep the better half at every
rung. Deviation: small scales lead on few examples and fall behind on many, so a scale goes only when it could not catch up
even if every further doubling of the data helped it as much as the last one, while the leader stayed where it is; and never
more than half of them go at one rung. "As much" is the same share of its error where errors have a least possible value, else
the same amount. Both are generous: on a power law above any floor the shares and the amounts shrink with every doubling. Not
covered is a scale that has learned nothing yet and takes off later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Progress", "hopeless_scales", "rungs"]


@dataclass(frozen=True)
class Progress:
    """A scale's mean error at its last two rungs, and the half-widths of what is known of them."""

    before: float
    now: float
    half: float


def hopeless_scales(scales: Mapping[str, Progress], doublings: float, tolerance: float, least: float | None = None) -> dict[str, str]:
    """The scales to stop, each with the reason in words; the worst half at most, and never so many that fewer than two are left.

    Args:
        scales: those still in the race, after at least two rungs.
        doublings: of the data between this rung and all examples.
        tolerance: in the error's unit.
        least: the least possible error, where there is one.
    """
    leader = min(scales, key=lambda name: scales[name].now)
    pessimistic = scales[leader].now + scales[leader].half
    stopped: list[tuple[float, str, str]] = []
    for name, p in scales.items():
        reach = _reach(p, doublings, least)
        if name != leader and reach > pessimistic + tolerance:
            text = f"could reach an error of {reach:.4g} at best, while {leader} has {scales[leader].now:.4g} already"
            stopped.append((reach, name, text))
    allowed = min(len(scales) // 2, len(scales) - 2)
    return {name: text for _, name, text in sorted(stopped, reverse=True)[: max(allowed, 0)]}


def _reach(p: Progress, doublings: float, least: float | None) -> float:
    """The least error after so many doublings that each help as much as the last one."""
    now, before = p.now - p.half, max(p.before, p.now - p.half)
    if least is None:
        return now - doublings * (max(0.0, p.before - p.now) + p.half)
    left, was = max(0.0, now - least), max(before - least, 1e-12)
    return least + left * float((left / was) ** doublings)


def rungs(examples: int, least: int, most_rungs: int = 4) -> Sequence[int]:
    """Numbers of examples, each twice the one before, the last one all of them; as many as `least` allows."""
    sizes = [examples]
    while len(sizes) < most_rungs and sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]
