"""What cannot be done to a scale, by the plans that failed.

A plan that failed says that some of its parts do not go, alone or together. Where the step is known that failed, it is to blame: at once
if nothing was shrunk before it, else as soon as a second plan says so, since the first may have been left too little by what came before.
Where a step says which rate it could have had, all rates beyond that failed, and those far beyond it are to blame at once, whatever came
before.
Where no step is known, any of the parts may be at fault that no other plan shows to work; plans with all of them are kept from, and as
soon as one is left, plans with that one.
"""

from collections.abc import Collection, Mapping

from sizewise.search.space import Point, Space
from sizewise.types import Candidate

__all__ = ["Parts", "impossible", "uses"]

Part = tuple[str, int, str]  # scale, place of the lever, name of the level
Parts = frozenset[Part]
GUILTY = 1.0
ONE_OF_TWO = 0.5
FAR = 2.5  # times what can be reached: what was shrunk before hardly takes so much of what a step could do


def impossible(space: Space, done: Mapping[Point, Candidate]) -> list[Parts]:
    """Parts that cannot be done together; see the module.

    Args:
        space: of plans.
        done: what became of those that were tried.
    """
    fine = [point for point, c in done.items() if c.status in ("measured", "beaten") or (c.status == "stopped" and c.seconds > 0)]
    found: list[Parts] = []
    blamed: dict[Part, float] = {}
    for point, candidate in done.items():
        if candidate.status != "failed" or not candidate.plan.steps:
            continue
        culprit = _culprit(space, point, candidate)
        if culprit is None:
            found.append(_suspects(space, point, fine))
            continue
        before = _shrunk_before(space, point, candidate)
        culprit = _mildest(space, culprit, beyond=candidate.failed_reach)
        blamed[culprit] = blamed.get(culprit, 0.0) + (ONE_OF_TWO if before else GUILTY)
        found.append(frozenset((culprit, *before)))
        if candidate.failed_reach is not None:
            far = _mildest(space, culprit, beyond=FAR * candidate.failed_reach)
            if _strength(space, far) > FAR * candidate.failed_reach:
                blamed[far] = GUILTY
    return found + [frozenset([part]) for part in blamed if _blame(space, part, blamed) >= GUILTY]


def uses(space: Space, point: Point, parts: Collection[Part]) -> bool:
    """Whether a plan has all the parts, each at least as strongly."""
    return all(_milder(space, part, (point.scale, part[1], point.levels[part[1]])) for part in parts)


def _blame(space: Space, part: Part, blamed: Mapping[Part, float]) -> float:
    """Of a part, with what falls on the same lever at less: what cannot be done a little cannot be done much."""
    return sum(amount for other, amount in blamed.items() if _milder(space, other, part))


def _milder(space: Space, part: Part, than: Part) -> bool:
    """Whether it is the same lever of the same scale, at the same level or less."""
    if part[:2] != than[:2]:
        return False
    lever = space.levers(part[0])[part[1]]
    return _strength(space, part) <= _strength(space, than) if lever.ordered else part == than


def _mildest(space: Space, part: Part, *, beyond: float | None) -> Part:
    """The mildest level of the part's lever that is beyond a rate; the part itself where there is none, or no rate is told."""
    lever = space.levers(part[0])[part[1]]
    if beyond is None or not lever.ordered:
        return part
    levels = sorted((level for level in lever.levels if level.strength > beyond), key=lambda level: level.strength)
    return (part[0], part[1], levels[0].name) if levels else part


def _strength(space: Space, part: Part) -> float:
    return space.levers(part[0])[part[1]].level(part[2]).strength


def _suspects(space: Space, point: Point, fine: Collection[Point]) -> Parts:
    """What no other plan shows to work; all parts where every one works elsewhere."""
    parts = [(point.scale, at, level.name) for at, level in enumerate(space.levels(point)) if level.step is not None]
    return frozenset([part for part in parts if not any(uses(space, other, [part]) for other in fine)] or parts)


def _culprit(space: Space, point: Point, candidate: Candidate) -> Part | None:
    """The part whose step failed, where it is known."""
    if candidate.failed_step is None:
        return None
    step = candidate.plan.steps[candidate.failed_step]
    return next(((point.scale, at, level.name) for at, level in enumerate(space.levels(point)) if level.step == step), None)


def _shrunk_before(space: Space, point: Point, candidate: Candidate) -> list[Part]:
    """Parts that shrank the model before the step that failed."""
    earlier = candidate.plan.steps[: candidate.failed_step]
    parts = enumerate(zip(space.levers(point.scale), space.levels(point), strict=True))
    return [(point.scale, at, level.name) for at, (lever, level) in parts if lever.shrinks and level.step in earlier]
