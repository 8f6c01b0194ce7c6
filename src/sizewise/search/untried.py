"""Plans next to the chosen one that the search left out, with what it expected of them."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

from sizewise.search.contrast import change, difference, levers_of
from sizewise.search.planner import Planner
from sizewise.search.promise import LEAST_CHANCE
from sizewise.search.proxy import FIGURES, Forecast
from sizewise.search.space import Point, Space, harsher
from sizewise.types import Candidate, Interval, Neighbour, Why

__all__ = ["Outlook", "outlook", "untried_neighbours"]

TWO_SIDED = 1.959964  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Outlook:
    """What a search expects at its end.

    Attributes:
        space: all plans.
        forecast: of every point.
        chances: of every point, to be the best that fits.
        left: what is worth a trial.
    """

    space: Space
    forecast: Forecast
    chances: Float[ndarray, " n"]
    left: Collection[Point]


def outlook(planner: Planner) -> Outlook:
    """What is expected as things are."""
    forecast = planner.forecast()
    return Outlook(planner.space, forecast, planner.chances(forecast), planner.left(forecast))


def untried_neighbours(
    known: Outlook, chosen: Candidate, candidates: Sequence[Candidate], scales: Collection[str]
) -> tuple[Neighbour, ...]:
    """Plans that differ from the chosen one in one lever and were not tried, each with a reason.

    Those are left out that the search kept from for another reason than what it expected of them, as where another run tries them.

    Args:
        known: of the search at its end.
        chosen: one of the candidates.
        candidates: all of them, whatever became of them.
        scales: all that the run knows.
    """
    here = known.space.find(chosen.plan)
    if here is None:
        return ()
    tried, bad = {c.plan.id for c in candidates}, [c for c in candidates if c.status in ("stopped", "failed")]
    found = []
    for point in _around(known.space, here):
        plan = known.space.plan(point)
        if plan.id in tried or len(difference(levers_of(chosen.plan, scales), levers_of(plan, scales))) != 1:
            continue
        milder = next((c for c in bad if harsher(plan, c.plan)), None)
        why = _why(known, here, point, milder)
        if why is not None:
            found.append(_neighbour(known, here, point, scales, why, milder))
    return tuple(found)


def _around(space: Space, here: Point) -> Iterator[Point]:
    """Every point with another scale, or another level of one lever."""
    found = [space.canonical(scale, here.levels) for scale in space.scales]
    for at, lever in enumerate(space.levers(here.scale)):
        for level in lever.levels:
            found.append(space.canonical(here.scale, (*here.levels[:at], level.name, *here.levels[at + 1 :])))
    yield from dict.fromkeys(point for point in found if point is not None and point != here)


def _why(known: Outlook, here: Point, point: Point, milder: Candidate | None) -> Why | None:
    if milder is not None:
        return "harsher"
    if point in known.left:
        return "open"
    if _only_repairs(known.space, here, point):
        return "needless"
    return "unpromising" if known.chances[known.space.points.index(point)] < LEAST_CHANCE else None


def _only_repairs(space: Space, here: Point, point: Point) -> bool:
    """Whether a plan only loses less quality than the chosen one, which loses little enough."""
    levels = zip(space.levels(point), here.levels, strict=True)
    return point.scale == here.scale and any(level.repairs is not None and level.repairs == name for level, name in levels)


def _neighbour(known: Outlook, here: Point, point: Point, scales: Collection[str], why: Why, milder: Candidate | None) -> Neighbour:
    plan, own = known.space.plan(point), known.space.plan(here)
    mine, its = levers_of(own, scales), levers_of(plan, scales)
    (lever,) = difference(mine, its)
    at, base = known.space.points.index(point), known.space.points.index(here)
    latency, size, loss = (FIGURES.index(name) for name in ("latency", "size", "loss"))
    mean, sd = known.forecast.mean, known.forecast.sd
    return Neighbour(
        plan=plan,
        change=change(mine, its, lever),
        lever=lever,
        why=why,
        latency=_exp(_around_mean(mean[latency, at] - mean[latency, base], sd[latency, at])),
        size_ratio=math.exp(float(mean[size, at] - mean[size, base])),
        because=milder.id if milder is not None else None,
        drop=_around_mean(mean[loss, at], sd[loss, at]),
        chance=float(known.chances[at]),
    )


def _around_mean(mean: float, sd: float) -> Interval:
    low, high = (float(mean + sign * TWO_SIDED * sd) for sign in (-1, 1))
    return Interval(value=float(mean), low=low, high=high, n=0, how="predicted")


def _exp(figure: Interval) -> Interval:
    value, low, high = (math.exp(x) for x in (figure.value, figure.low, figure.high))
    return Interval(value=value, low=low, high=high, n=0, how="predicted")
