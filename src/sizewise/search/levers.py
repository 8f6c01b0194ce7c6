"""The levers that the search has, and what is believed of them before anything is measured.

The beliefs are rules of thumb with wide margins, from the benchmarks of this project; a few measurements outweigh them (`search/proxy.py`).
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sizewise.search.space import OFF, Belief, Level, Lever
from sizewise.types import TIMED_TARGETS, Step

__all__ = ["LOW_RANK_RATES", "PRECISIONS", "RECOVERIES", "low_rank_lever", "precision_lever", "pruning_lever", "recovery_lever"]

PRUNING_RATES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)
LOW_RANK_RATES = (0.2, 0.4)
REPAIRS = {"mixed": "int8"}  # precisions that are of use where another loses too much
USUAL = {"channel_pruning": "macs", "low_rank": "params"}  # what a rate counts where a plan does not say it
SPREAD = 0.6  # of what a rate is thought to cost, as its standard deviation
WORSE = 2.0  # times as much as pruning to the same rate loses, low rank factors of convolutions do
FLOOR = 0.1  # points that every step may cost, whatever its rate

# of float32: latency and size as logarithms, loss in hundredths of the reference's quality; means and standard deviations
PRECISIONS: Mapping[str, Belief] = {
    "static8": Belief(latency=(math.log(0.5), 0.5), size=(math.log(0.28), 0.1), loss=(0.2, 0.5)),
    "static4": Belief(latency=(math.log(0.5), 0.5), size=(math.log(0.17), 0.15), loss=(2.0, 3.0)),
    "mixed": Belief(latency=(math.log(0.7), 0.4), size=(math.log(0.5), 0.4), loss=(0.1, 0.3)),
    "dynamic8": Belief(latency=(math.log(0.5), 0.4), size=(math.log(0.28), 0.1), loss=(0.3, 0.7)),
    "weights8": Belief(latency=(0.0, 0.15), size=(math.log(0.28), 0.1), loss=(0.1, 0.3)),
    "weights4": Belief(latency=(0.0, 0.2), size=(math.log(0.17), 0.15), loss=(1.5, 2.5)),
}

# the same of what training adds, beside what it gives back of what was lost (`recovers`)
RECOVERIES: Mapping[str, Belief] = {
    "source": Belief(),
    "targets": Belief(loss=(-0.3, 0.7)),
    "reference": Belief(loss=(-0.3, 0.7)),
    "reference, targets": Belief(loss=(-0.5, 0.9)),
}
LONGER = (-0.2, 0.3)  # the same of the whole training beside the short one


def pruning_lever(target: str, *, recovers: bool) -> Lever:
    """Channel pruning at rising rates.

    Args:
        target: what the rate counts: "latency", "int8_latency" or "macs".
        recovers: whether training follows, so that less is lost.
    """
    return _shrinking("pruning", "channel_pruning", PRUNING_RATES, target, recovers, exponent=0.7, harm=1.0)


def low_rank_lever(target: str, *, recovers: bool, rates: Sequence[float] = LOW_RANK_RATES) -> Lever:
    """Low rank factors at some rates.

    Args:
        target: what the rate counts: "latency" or "params".
        recovers: whether training follows, so that less is lost.
        rates: none where factors are not worth a look.
    """
    return _shrinking("low_rank", "low_rank", rates, target, recovers, exponent=0.4, harm=WORSE)


def _shrinking(name: str, technique: str, rates: Sequence[float], target: str, recovers: bool, *, exponent: float, harm: float) -> Lever:
    """Off, or a technique at rising rates; where they do not count the latency itself, it goes by what is left to the exponent."""
    power = 1.0 if target in TIMED_TARGETS else exponent
    levels = [_shrunk(technique, rate, target, power, harm * (0.5 if recovers else 1.0)) for rate in rates]
    return Lever(name=name, levels=(Level(name=OFF), *levels), ordered=True, shrinks=True)


def _shrunk(technique: str, rate: float, target: str, exponent: float, harm: float) -> Level:
    """A level that removes a share: cost goes by the rest to some power, loss by the square of what is gone over what is left."""
    kept = -math.log(1 - rate)
    lost = harm * (rate / (1 - rate)) ** 2
    belief = Belief(
        latency=(-exponent * kept, 0.05 + (0.1 if target in TIMED_TARGETS else 0.4) * kept),
        size=(-0.8 * kept, 0.05 + 0.4 * kept),
        loss=(lost, SPREAD * lost + FLOOR),
    )
    settings = {"rate": rate} if target == USUAL[technique] else {"rate": rate, "target": target}
    return Level(name=f"{rate:g}", step=Step(technique=technique, settings=settings), strength=rate, belief=belief)


def precision_lever(steps: Mapping[str, tuple[Step, str]]) -> Lever:
    """Float, or one of the quantizations that suit the scale.

    Args:
        steps: by level's name, what is done and the belief about it, a key of `PRECISIONS`.
    """
    levels = [Level(name=name, step=step, belief=PRECISIONS[kind], repairs=REPAIRS.get(name)) for name, (step, kind) in steps.items()]
    return Lever(name="precision", levels=(Level(name=OFF), *levels))


def recovery_lever(steps: Mapping[str, Step], short: Mapping[str, Step] = MappingProxyType({})) -> Lever:
    """No training, or one of those that suit the scale, the first by default; each perhaps short first, and whole where that is too little.

    Args:
        steps: by kind, a key of `RECOVERIES`, what is done; "source" only follows what shrinks a scale, the others may come alone.
        short: the same for a part of the time. Those are named by their kind, and the whole ones are of use where they lost too much.
    """
    levels = [Level(name=OFF)]
    for kind, step in steps.items():
        brief, belief, alone = short.get(kind), RECOVERIES[kind], kind != "source"
        if brief is not None:
            levels.append(Level(name=kind, step=brief, alone=alone, belief=belief))
            mean, spread = belief.loss
            belief = Belief(loss=(mean + LONGER[0], math.hypot(spread, LONGER[1])))
        name = kind if brief is None else f"{kind}, long"
        levels.append(Level(name=name, step=step, alone=alone, belief=belief, repairs=kind if brief is not None else None))
    return Lever(name="recovery", levels=tuple(levels), heals=True)
