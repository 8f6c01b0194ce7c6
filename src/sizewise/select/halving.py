"""Which scales are not worth training on more examples: successive halving with a bound instead of a bare ranking.

Source: Jamieson and Talwalkar, Non-stochastic best arm identification, AISTATS 2016, who keep the better half at every
rung. Deviation: small scales lead on few examples and fall behind on many, so a scale goes only when it could not catch up
even if every further doubling of the data helped it as much as the last one (learning curves flatten, so that is generous),
while the leader stayed where it is; and never more than half of them go at one rung.
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


def hopeless_scales(scales: Mapping[str, Progress], doublings: float, tolerance: float) -> dict[str, str]:
    """The scales to stop, each with the reason in words; the worst half at most, and never so many that fewer than two are left.

    Args:
        scales: those still in the race, after at least two rungs.
        doublings: of the data between this rung and all examples.
        tolerance: in the error's unit.
    """
    leader = min(scales, key=lambda name: scales[name].now)
    pessimistic = scales[leader].now + scales[leader].half
    stopped: list[tuple[float, str, str]] = []
    for name, p in scales.items():
        gain = max(0.0, p.before - p.now) + p.half
        reach = p.now - p.half - doublings * gain
        if name != leader and reach > pessimistic + tolerance:
            text = f"could reach an error of {max(reach, 0):.4g} at best, while {leader} has {scales[leader].now:.4g} already"
            stopped.append((reach, name, text))
    allowed = min(len(scales) // 2, len(scales) - 2)
    return {name: text for _, name, text in sorted(stopped, reverse=True)[: max(allowed, 0)]}


def rungs(examples: int, least: int, most_rungs: int = 4) -> Sequence[int]:
    """Numbers of examples, each twice the one before, the last one all of them; as many as `least` allows."""
    sizes = [examples]
    while len(sizes) < most_rungs and sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]
