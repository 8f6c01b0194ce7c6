"""The plans that a search may try: scales and levers, the order that traits give to steps, and which plans only can be worse."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Protocol

from sizewise.types import Plan, Step, Trait

__all__ = ["HEALER", "OFF", "Belief", "Level", "Lever", "Point", "Space", "Traits", "harsher", "learns_more", "ordered_steps"]

OFF = "off"
WHOLE = Trait.FLOAT | Trait.MODULE
RATE = "rate"


class Traits(Protocol):
    """What a technique declares of the models that it takes and leaves; its class does."""

    @property
    def needs(self) -> Trait:
        """What a model must still be."""
        ...

    @property
    def removes(self) -> Trait:
        """What it no longer is afterwards."""
        ...

    @property
    def gives(self) -> Trait:
        """What it becomes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Belief:
    """What a level is thought to do before anything is measured, as mean and standard deviation.

    Attributes:
        latency: added to the logarithm of the latency.
        size: added to that of the file's size.
        loss: of quality, in hundredths of the reference's.
    """

    latency: tuple[float, float] = (0.0, 0.0)
    size: tuple[float, float] = (0.0, 0.0)
    loss: tuple[float, float] = (0.0, 0.0)

    @property
    def memory(self) -> tuple[float, float]:
        """Added to the logarithm of the memory: about half of what the file loses, since a runtime needs more than weights."""
        mean, spread = self.size
        return (0.5 * mean, 0.5 * spread + 0.3 * abs(mean))


@dataclass(frozen=True, kw_only=True)
class Level:
    """One position of a lever.

    Attributes:
        name: unique within the lever.
        step: what is done; None where nothing is.
        strength: where it lies on an ordered lever, such as a rate.
        repairs: name of the level of the same lever whose loss this one avoids; it is of use where that one was tried and lost too much.
        alone: of a lever that heals, whether it is of use where nothing was shrunk.
        belief: what it is thought to do.
    """

    name: str
    step: Step | None = None
    strength: float = 0.0
    repairs: str | None = None
    alone: bool = False
    belief: Belief = field(default_factory=Belief)


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One thing that can be done to a scale, off or at one of some levels.

    Attributes:
        name: of the parameter.
        levels: the first is off.
        ordered: whether a higher strength does more of the same.
        shrinks: whether it takes away what training can give back.
        heals: whether it is that training; where something shrinks, it is never off.
    """

    name: str
    levels: tuple[Level, ...]
    ordered: bool = False
    shrinks: bool = False
    heals: bool = False

    def level(self, name: str) -> Level:
        """The level of that name; off where this scale has none.

        Names of ordered levels are numbers, and the nearest one is meant, of two the milder.
        """
        if self.ordered:
            wanted = float(name) if name != OFF else 0.0
            return min(self.levels, key=lambda level: (round(abs(level.strength - wanted), 9), level.strength))
        return next((level for level in self.levels if level.name == name), self.levels[0])


@dataclass(frozen=True, order=True)
class Point:
    """A scale and the name of a level of every lever."""

    scale: str
    levels: tuple[str, ...]


class Space:
    """All plans that levers make of scales, each once.

    Args:
        levers: per scale the same levers in the same order, each with the levels that it has there.
        traits: of every technique that a level names.
        seed: of everything random in the plans.
    """

    def __init__(self, levers: Mapping[str, Sequence[Lever]], traits: Mapping[str, Traits], seed: int) -> None:
        self._levers = {scale: tuple(own) for scale, own in levers.items()}
        self._traits, self._seed = traits, seed
        self._plans: dict[Point, Plan] = {}
        self._points: dict[str, Point] = {}
        self._found: dict[Point, tuple[Level, ...]] = {}
        for scale, own in self._levers.items():
            for levels in product(*([level.name for level in lever.levels] for lever in own)):
                self._add(self._meant(scale, levels))

    def _add(self, point: Point) -> None:
        steps = [level.step for level in self.levels(point) if level.step is not None]
        order = ordered_steps(steps, self._traits)
        if order is not None:
            plan = Plan(scale=point.scale, steps=order, seed=self._seed)
            self._plans.setdefault(self._points.setdefault(plan.id, point), plan)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """One per plan, always in the same order."""
        return tuple(self._plans)

    @property
    def scales(self) -> tuple[str, ...]:
        """In the order given."""
        return tuple(self._levers)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the levers."""
        return tuple(lever.name for lever in next(iter(self._levers.values()), ()))

    def levers(self, scale: str) -> tuple[Lever, ...]:
        """As they are there."""
        return self._levers[scale]

    def levels(self, point: Point) -> tuple[Level, ...]:
        """Of every lever."""
        if point not in self._found:
            self._found[point] = tuple(lever.level(name) for lever, name in zip(self._levers[point.scale], point.levels, strict=True))
        return self._found[point]

    def plan(self, point: Point) -> Plan:
        """What a point of this space means."""
        return self._plans[point]

    def find(self, plan: Plan) -> Point | None:
        """The point that means a plan; None where the space does not hold it."""
        point = self._points.get(plan.id)
        return point if point is not None and self._plans[point].seed == plan.seed else None

    def canonical(self, scale: str, levels: Sequence[str]) -> Point | None:
        """The one point that stands for these levels; None where their steps do not go together."""
        meant = self._meant(scale, tuple(levels))
        steps = [level.step for level in self.levels(meant) if level.step is not None]
        order = ordered_steps(steps, self._traits)
        return None if order is None else self._points[Plan(scale=scale, steps=order, seed=self._seed).id]

    def longer(self, point: Point) -> Point | None:
        """The same with the whole training; None where a point has no training, or the whole already."""
        for at, lever in enumerate(self._levers[point.scale]):
            whole = next((level.name for level in lever.levels if lever.heals and level.repairs == point.levels[at]), None)
            if whole is not None:
                return self.at_level(point, at, whole)
        return None

    def shorter(self, point: Point) -> Point | None:
        """The same with a part of the training; None where a point has none, or there is no part of it."""
        for at, (lever, level) in enumerate(zip(self._levers[point.scale], self.levels(point), strict=True)):
            if lever.heals and level.repairs is not None:
                return self.at_level(point, at, level.repairs)
        return None

    def at_level(self, point: Point, at: int, name: str) -> Point | None:
        """The same with another level of one lever; None where its steps do not go together then."""
        return self.canonical(point.scale, (*point.levels[:at], name, *point.levels[at + 1 :]))

    def as_strong(self, point: Point, than: Point) -> bool:
        """Whether a point does the same as another, or more of it: it has the same levels but of ordered levers, and no weaker ones."""
        if point.scale != than.scale:
            return False
        rows = zip(self._levers[point.scale], self.levels(point), self.levels(than), strict=True)
        return all(mine.strength >= theirs.strength if lever.ordered else mine.name == theirs.name for lever, mine, theirs in rows)

    def _meant(self, scale: str, levels: tuple[str, ...]) -> Point:
        """Levels that exist there; healing goes with shrinking."""
        own = self._levers[scale]
        found = [lever.level(name) for lever, name in zip(own, levels, strict=True)]
        shrunk = any(lever.shrinks and level.step is not None for lever, level in zip(own, found, strict=True))
        for index, (lever, level) in enumerate(zip(own, found, strict=True)):
            if lever.heals and shrunk and level.step is None:
                found[index] = next((other for other in lever.levels if other.step is not None), level)
            elif lever.heals and not shrunk and not level.alone:
                found[index] = lever.levels[0]
        return Point(scale, tuple(level.name for level in found))


def ordered_steps(steps: Iterable[Step], traits: Mapping[str, Traits]) -> tuple[Step, ...] | None:
    """An order in which every step finds what it needs, or None; steps that do not care keep their order.

    Args:
        steps: in the order in which they were thought of.
        traits: of their techniques.
    """
    left, order, now = list(steps), list[Step](), WHOLE
    while left:
        chosen = next((step for step in left if _can_go_first(step, left, traits, now)), None)
        if chosen is None:
            return None
        own = traits[chosen.technique]
        now = now & ~own.removes | own.gives
        left.remove(chosen)
        order.append(chosen)
    return tuple(order)


def _can_go_first(step: Step, left: Sequence[Step], traits: Mapping[str, Traits], now: Trait) -> bool:
    """Whether it finds what it needs and takes nothing away that the others need."""
    own = traits[step.technique]
    lost = now & own.removes & ~own.gives
    return not own.needs & ~now and all(not traits[other.technique].needs & lost for other in left if other is not step)


HEALED = ("channel_pruning", "weight_pruning", "low_rank")
HEALER = "recovery"
OWN = "source"  # the teacher where a plan names no other


def harsher(plan: Plan, than: Plan) -> bool:
    """Whether `plan` does all that `than` does to the same scale, at least as strongly, so that it can only be worse.

    Steps are compared by their rates, all else being equal. A recovery makes better what was pruned before it: plans that prune
    are compared only when they recover alike. One that learns more than its scale knew can become better than that ever was.
    """
    if plan.scale != than.scale or not than.steps:
        return plan.scale == than.scale
    if (learns_more(plan) or any(step.technique in HEALED for step in than.steps)) and _healing(plan) != _healing(than):
        return False
    return all(any(_at_least(mine, theirs) for mine in plan.steps) for theirs in than.steps if theirs.technique != HEALER)


def learns_more(plan: Plan) -> bool:
    """Whether training may make a plan better than its scale is: by another teacher, or by targets."""
    return any(step.settings.get("teacher", OWN) != OWN or step.settings.get("labels") for step in _healing(plan))


def _healing(plan: Plan) -> list[Step]:
    return [step for step in plan.steps if step.technique == HEALER]


def _at_least(mine: Step, theirs: Step) -> bool:
    if mine.technique != theirs.technique:
        return False
    same = {k: v for k, v in mine.settings.items() if k != RATE} == {k: v for k, v in theirs.settings.items() if k != RATE}
    return same and float(mine.settings.get(RATE, math.inf)) >= float(theirs.settings.get(RATE, 0.0))
