"""A small space of plans, and a make-believe machine that measures them."""

import math
from dataclasses import replace

from sizewise import registry
from sizewise.search.levers import low_rank_lever, precision_lever, pruning_lever, recovery_lever
from sizewise.search.promise import Goal, goal_of
from sizewise.search.proxy import Base, Observation
from sizewise.search.space import Point, Space
from sizewise.types import Budget, Candidate, Interval, Measurement, Parity, Quality, Step

REFERENCE = 0.95
UNIT = 0.01 * REFERENCE
LOSS = {"large": 0.0, "small": 0.004}
COST = {"large": (4e-3, 4e6), "small": (1e-3, 1e6)}
STEPS = {
    "int8": (Step(technique="int8_static"), "static8"),
    "mixed": (Step(technique="int8_static", settings={"max_drop": 0.005}), "mixed"),
    "int4": (Step(technique="int8_static", settings={"weight_bits": 4}), "static4"),
}
# factors of latency and size, and what is lost
PRECISION = {"off": (1.0, 1.0, 0.0), "int8": (0.6, 0.27, 0.001), "mixed": (0.75, 0.5, 0.0002), "int4": (0.6, 0.15, 0.02)}
TRAITS = {name: registry.get("techniques", name) for name in ("channel_pruning", "low_rank", "recovery", "int8_static")}
BASES = {
    scale: Base(math.log(1.7 * latency), math.log(0.98 * size), math.log(3 * size), LOSS[scale]) for scale, (latency, size) in COST.items()
}


def small_space(scales: tuple[str, ...] = ("large", "small")) -> Space:
    own = (
        pruning_lever("macs", recovers=False),
        low_rank_lever("params", recovers=False),
        recovery_lever({}),
        precision_lever(STEPS),
    )
    return Space(dict.fromkeys(scales, own), TRAITS, seed=0)


def truth(point: Point) -> tuple[float, float, float, float]:
    """Latency, size, memory and loss, of a law that is not quite the one that the proxy believes in."""
    latency, size = COST[point.scale]
    loss = LOSS[point.scale]
    pruned, low_rank, _, precision = point.levels
    rate, rank = (0.0 if level == "off" else float(level) for level in (pruned, low_rank))
    latency *= (1 - rate) ** 0.6 * (1 - rank) ** 0.2
    size *= (1 - rate) ** 1.1 * (1 - rank)
    loss += 0.02 * rate**2 / (1 - rate) + 0.03 * rank
    faster, smaller, lost = PRECISION[precision]
    latency, size, loss = faster * latency, smaller * size, loss + lost
    return latency, size, 2e6 + 1.2 * size, loss


def observed(point: Point) -> Observation:
    return Observation(point, *truth(point))


def measured(space: Space, point: Point, proof: float | None = None) -> Candidate:
    latency, size, memory, loss = truth(point)
    found = Measurement(
        latency=Interval.exact(latency),
        latency_ratio=latency,
        size_bytes=round(size),
        memory=Interval.exact(memory),
        quality=Quality(metric="accuracy", higher_is_better=True, score=Interval.exact(REFERENCE - loss), drop=Interval.exact(loss)),
        parity=Parity(max_abs=0, mean_abs=0, output_scale=1, top1_agreement=1.0, n=1),
        threads=1,
        batch=1,
    )
    plan = space.plan(point)
    return Candidate(id=plan.id, plan=plan, status="measured", measured=found, seconds=1.0, proof_chance=proof)


def goal(budget: Budget) -> Goal:
    return goal_of(budget, REFERENCE, higher_is_better=True, unit=UNIT)


def partly(candidate: Candidate, half: float) -> Candidate:
    """The same, had its evaluation been stopped early."""
    assert candidate.measured is not None
    drop = candidate.measured.quality.drop
    assert drop is not None
    wide = replace(drop, low=drop.value - half, high=drop.value + half, confidence=0.95)
    seen = replace(candidate.measured, quality=replace(candidate.measured.quality, drop=wide))
    return replace(candidate, status="beaten", measured=None, partly=seen, reason="beaten")
