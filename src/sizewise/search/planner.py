"""What to try next, until nothing promising is left.

Mild plans come first, then what the proxy expects most of for the time it takes, and now and then what Optuna suggests.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from optuna.trial import Trial
from scipy.stats import norm

from sizewise.search.blame import impossible, uses
from sizewise.search.duration import expected_seconds
from sizewise.search.frontier import best, has_margin
from sizewise.search.promise import Goal, Promise, Proofs, observed_figures, observed_loss, promise
from sizewise.search.proxy import FIGURES, Base, Forecast, Observation, Proxy
from sizewise.search.reading import Reading, deviation
from sizewise.search.rivals import breaks_costs
from sizewise.search.space import Point, Space, harsher
from sizewise.search.spare import expected_cost, spare_of
from sizewise.search.study import Study
from sizewise.types import Budget, Candidate, Plan, Quality

__all__ = ["Planner", "Proposal", "Unseen"]

EVERY = 4  # of the trials after the mild ones, one follows Optuna's suggestions,
ASKED = 6  # of which so many are looked at
NEAREST = 4  # trials that come nearer to a budget that nothing seems to fit
PARTLY = 0.02  # hundredths: less is not left open by what saw a part of validation
SET_ASIDE = "predicted not to be the best that fits"

Mask = Bool[ndarray, " n"]
Column = Float[ndarray, " n"]


@dataclass(frozen=True)
class Proposal:
    """A plan to try.

    Attributes:
        trial: of the study, which is told what became of it.
        why: in words.
        rivals: ids of the candidates that its file may lose against: those that were known when it was chosen.
    """

    point: Point
    plan: Plan
    trial: Trial
    why: str
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unseen:
    """A test split.

    Attributes:
        examples: how many.
        level: one-sided error of the bound that must keep the limit.
    """

    examples: int
    level: float


class Planner:
    """Chooses plans one by one.

    Args:
        space: of plans.
        budget: the limits.
        goal: the same in the proxy's units, and what is better.
        bases: what every scale is thought to have as it is.
        study: the record.
        mild: plans that are tried first, those that leave a scale as it is whatever is predicted.
        reference: the reference's score on validation, where a measurement does not say its drop.
        measured: what is finished already.
        test: the split that will be asked for a proof; None where there is none.
        reading: how validation is read, of which some candidates saw a part; None where all saw all of it.
        borrows: whether the best of another run is made here, too.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        goal: Goal,
        bases: Mapping[str, Base],
        study: Study,
        mild: Sequence[Point],
        reference: float,
        measured: Sequence[Candidate] = (),
        *,
        test: Unseen | None = None,
        reading: Reading | None = None,
        borrows: bool = True,
    ) -> None:
        self.space, self.goal, self.study = space, goal, study
        self._budget, self._reference, self._test, self._reading, self._borrows = budget, reference, test, reading, borrows
        self._proxy = Proxy(space, bases, goal.unit)
        self._done: dict[Point, Candidate] = {}
        self._given_up: dict[Point, str] = {}
        self._under_way: set[Point] = set()
        self._tried = self._nearer = 0
        for candidate in measured:
            point = space.find(candidate.plan)
            if point is not None:
                self._done[point] = candidate
        figures = {point: found for point, candidate in self._done.items() if (found := self._figures(candidate)) is not None}
        study.resume(self._done, figures)
        forecast = self.forecast()
        self._own = set(mild)
        self._mild = [point for point in sorted(mild, key=lambda point: self._worth(forecast, point)) if point not in self._done]

    def _worth(self, forecast: Forecast, point: Point) -> tuple[float, ...]:
        """What is expected to be cheap and good comes first."""
        at = self.space.points.index(point)
        latency, size, loss = (float(forecast.mean[FIGURES.index(name), at]) for name in ("latency", "size", "loss"))
        over = max(0.0, loss - self.goal.limits[-1]) if math.isfinite(self.goal.limits[-1]) else 0.0
        return (over, latency + size) if self.goal.by_cost else (loss, latency + size)

    def forecast(self) -> Forecast:
        """Of every point, from all that is known."""
        return self._proxy.predict([*self._observations(), *self.study.elsewhere()[0]])

    def best(self) -> Candidate | None:
        """The best of this run that fits."""
        return best(list(self._done.values()), self._budget)

    def give_up(self, point: Point, reason: str) -> None:
        """A plan that is not worth trying."""
        self._given_up[point] = reason

    def left(self, forecast: Forecast | None = None) -> list[Point]:
        """Plans that are worth a trial as things are, the best first."""
        found = self._promise(forecast or self.forecast())
        order = np.argsort(-found.gain, kind="stable")
        return [self.space.points[at] for at in order if found.gain[at] > 0]

    def whole_trainings(self) -> list[Point]:
        """Of those, the ones with a whole training where a part of it can be tried."""
        return [point for point in self.left() if self.space.shorter(point) is not None]

    def chances(self, forecast: Forecast) -> Column:
        """Per point of the space, how probable it is that it is the best that fits."""
        return self._promise(forecast).chance

    def next(self) -> Proposal | None:
        """A plan to try, as `_next` says, and no other run has just chosen, too; some are every run's own."""
        while (proposal := self._next()) is not None:
            if proposal.point in self._own or self.study.first_at(proposal.trial, proposal.point):
                return proposal
            self.withdraw(proposal)
        return None

    def _next(self) -> Proposal | None:
        """A plan to try; None where nothing promising is left, or nothing until what is under way is told.

        Several can be under way. Each is believed to turn out as predicted, so that others are not chosen for the same promise.

        Source: Ginsbourger, Le Riche and Carraro, Kriging Is Well-Suited to Parallelize Optimization, 2010, for the kriging believer.
        Deviation: where nothing has a promise beside what is believed, but something has without it, that is chosen: a worker has
        nothing better to do.
        """
        if self.study.waiting():
            trial, point = self.study.ask()  # it was interrupted, or another run put it there
            if point is not None and self._open(point) and point not in self.study.elsewhere()[1]:
                return self._proposed(trial, point, "goes on where the search was interrupted")
            self.study.set_aside(trial, "done already", {})
        forecast = self.forecast()
        found = self._promise(forecast)
        if self._under_way:
            believed = self._promise(*self._believing(forecast))
            found = believed if believed.gain.any() else found
        while self._mild:
            point = self._mild.pop(0)
            # a whole model as it is tells what all else is worth; the others are tried as long as they may win
            if self._open(point) and (not self.space.plan(point).steps or found.gain[self.space.points.index(point)] > 0):
                return self._enqueued(point, "mild")
        if not found.gain.any():
            return self._borrowed() if self._borrows and not self._under_way else None
        self._tried += 1
        if self._tried % EVERY == 0 and (suggested := self._suggested(forecast, found)) is not None:
            return suggested
        at = int(np.argmax(found.gain / self._seconds(found.gain > 0)))
        self._nearer += found.nearing
        why = "expected to come nearest to the budget" if found.nearing else f"{_percent(found.chance[at])} to be the best that fits"
        return self._enqueued(self.space.points[at], why)

    def tell(self, proposal: Proposal, candidate: Candidate) -> None:
        """What became of a plan."""
        self._under_way.discard(proposal.point)
        self._done[proposal.point] = candidate
        figures = self._figures(candidate)
        self.study.tell(proposal.trial, candidate, figures, self._excesses(figures) if figures is not None else {})

    def correct(self, candidate: Candidate) -> None:
        """What is known better of a plan that was told already; the study keeps what it was told."""
        point = self.space.find(candidate.plan)
        if point in self._done:
            self._done[point] = candidate

    def withdraw(self, proposal: Proposal) -> None:
        """A plan whose trial was broken off; it may be tried again."""
        self._under_way.discard(proposal.point)
        self.study.withdraw(proposal.trial)

    def put_off(self, proposal: Proposal, reason: str) -> None:
        """A plan that this run does not come to; a later one may."""
        self._under_way.discard(proposal.point)
        self.give_up(proposal.point, reason)
        self.study.set_aside(proposal.trial, reason, {})

    def _open(self, point: Point) -> bool:
        return point not in self._done and point not in self._given_up and point not in self._under_way

    def _believing(self, forecast: Forecast) -> tuple[Forecast, list[Observation]]:
        """What is expected where plans under way turn out as predicted, and these predictions as if they were measured."""
        believed = []
        for point in sorted(self._under_way):
            latency, size, memory, loss = (float(value) for value in forecast.mean[:, self.space.points.index(point)])
            believed.append(Observation(point, math.exp(latency), math.exp(size), math.exp(memory), loss))
        return self._proxy.predict([*self._observations(), *self.study.elsewhere()[0], *believed]), believed

    def _promise(self, forecast: Forecast, believed: Sequence[Observation] = ()) -> Promise:
        """Of every point that may be tried: not done, not given up, not tried by another run, and not harsher than what was stopped."""
        own = self._observations()
        observed, taken = self.study.elsewhere()
        observed = [*observed, *believed]
        bad = [c.plan for c in self._done.values() if c.status in ("stopped", "failed")]
        points, broken = self.space.points, impossible(self.space, self._done)
        may = [
            self._open(p)
            and p not in taken
            and not any(uses(self.space, p, parts) for parts in broken)
            and self._has_what_to_repair(p)
            and not any(harsher(self.space.plan(p), plan) for plan in bad)
            for p in points
        ]
        found = self._better(forecast, np.array(may, dtype=bool), [*own, *observed], observed)
        return Promise(found.chance, np.zeros_like(found.gain)) if found.nearing and self._nearer >= NEAREST else found

    def _has_what_to_repair(self, point: Point) -> bool:
        """Whether a plan that loses less than another is of use: the other was tried, and does not keep the limit, or not by a margin.

        A whole training also is where a part of it did not suffice after more was taken away: what it would have left of this scale
        need not be known first.
        """
        for at, (lever, level) in enumerate(zip(self.space.levers(point.scale), self.space.levels(point), strict=True)):
            if level.repairs is None:
                continue
            twin = self.space.at_level(point, at, level.repairs)
            twins = [twin] if not lever.heals else [found for found in self._done if twin is not None and self.space.as_strong(found, twin)]
            tried = [self._done[twin] for twin in twins if twin in self._done]
            if not any(candidate.status != "failed" and not self._keeps_quality(candidate) for candidate in tried):
                return False
        return True

    def _keeps_quality(self, candidate: Candidate) -> bool:
        """Whether nothing is to be gained by losing less."""
        if candidate.measured is None or not self.goal.by_cost:
            return candidate.status == "beaten" and candidate.most_chance is None
        loss = observed_loss(candidate.measured.quality, self._reference)
        return loss <= self.goal.limits[-1] and (candidate.proof_chance is None or has_margin(candidate))

    def _better(self, forecast: Forecast, may: Mask, every: Sequence[Observation], elsewhere: Sequence[Observation]) -> Promise:
        """Than the best so far."""
        proofs, leader, own = self._proofs(), self.best(), spare_of(list(self._done.values()), self._budget)
        spare = self._in_seconds(own.cost)
        found = [self._rank(o, proofs, spare)[0] for o in elsewhere if self._fits(o)]
        if leader is not None:
            figures = self._figures(leader)
            assert figures is not None
            found.append(self._value(figures, leader.proof_chance, self._in_seconds(own.beside(leader.id)))[0])
        if found and spare is None:  # others found what fits: nothing but that is spare
            spare = min(found)
        top = min(found, default=None)
        return promise(forecast, self.goal, may, top, every, proofs, 0.0 if spare is None else spare, self._too_dear())

    def _too_dear(self) -> Mask:
        """Points that do no more than a file that surely breaks a limit of costs: what they leave is no less."""
        seen = [(point, c.measured or c.partly) for point, c in self._done.items()]
        broken = [point for point, measured in seen if measured is not None and breaks_costs(measured, self._budget)]
        return np.array([any(self.space.as_strong(other, point) for other in broken) for point in self.space.points], dtype=bool)

    def _in_seconds(self, cost: float | None) -> float | None:
        """The logarithm of latency times size, where the latency is a share of the reference's."""
        return None if cost is None else cost + math.log(self._pace)

    def _proofs(self) -> Proofs | None:
        """How probable proofs are, told from the files of each scale that answer most otherwise than the reference.

        What a loss is off by on validation and on the test split goes by how often a file and the reference disagree.
        """
        if self._test is None or not self.goal.by_cost:
            return None
        seen = [(point.scale, c.measured or c.partly) for point, c in self._done.items() if c.plan.steps]
        rows = [(scale, *self._noise(found.quality, self._test)) for scale, found in seen if found is not None]
        if not rows:
            return None
        rows.sort(key=lambda row: row[2])
        widest = {scale: next((row[1:] for row in reversed(rows) if row[0] == scale), rows[-1][1:]) for scale in self.space.scales}
        half, spread = np.array([widest[point.scale] for point in self.space.points]).T
        return Proofs(half, np.maximum(spread, 1e-6 * self.goal.unit))

    def _noise(self, quality: Quality, test: Unseen) -> tuple[float, float]:
        """The loss on validation that the test split proves to be within the limit every other time, and its standard deviation."""
        found, reading = quality.drop or quality.score, self._reading
        seen, count = (reading.whole(quality), reading.count) if reading else (deviation(quality), found.n)
        fresh = seen * math.sqrt(count / test.examples)
        return self.goal.limits[-1] - float(norm.isf(test.level)) * fresh, math.hypot(seen, fresh)

    def _suggested(self, forecast: Forecast, found: Promise) -> Proposal | None:
        """One of Optuna's suggestions that is promising; the others are told to the study with what was predicted of them."""
        for _ in range(ASKED):
            trial, point = self.study.ask()
            if point is None:
                self.study.set_aside(trial, "its steps do not go together", {})
                continue
            at = self.space.points.index(point)
            if found.gain[at] > 0:
                return self._proposed(trial, point, f"suggested by Optuna: {_percent(found.chance[at])} to be the best that fits")
            self.study.set_aside(trial, "done already" if point in self._done else SET_ASIDE, _told(forecast, found, at))
        return None

    def _borrowed(self) -> Proposal | None:
        """What another run found better than all of this one; it is made here, too."""
        leader, proofs = self.best(), self._proofs()
        spare = self._in_seconds(spare_of(list(self._done.values()), self._budget).cost)
        own = self._observed(self._point_of(leader), leader) if leader is not None else None
        better = [o for o in self.study.elsewhere()[0] if self._fits(o) and self._open(o.point)]
        better = [o for o in better if own is None or self._rank(o, proofs, spare) < self._rank(own, proofs, spare)]
        chosen = min(better, key=lambda o: (*self._rank(o, proofs, spare), o.point), default=None)
        if chosen is None:
            return None
        self._own.add(chosen.point)
        return self._enqueued(chosen.point, "the best of another run that shares the study")

    def _seconds(self, of: Mask) -> Column:
        """Per point how long its trial may take, where it is asked for; those unlike all that were made take as long as the others.

        Source: Snoek, Larochelle and Adams, Practical Bayesian Optimization, NeurIPS 2012, section 3.2, for the expected improvement per
        second. Deviation: durations are medians of similar trials, not a model of their own.
        """
        done = list(self._done.values())
        usual = float(np.median([c.seconds for c in done if c.seconds] or [1.0]))
        points = self.space.points
        return np.array([expected_seconds(done, self.space.plan(points[at])) or usual if of[at] else 1.0 for at in range(len(points))])

    def _enqueued(self, point: Point, why: str) -> Proposal:
        while True:
            trial, popped = self.study.ask_for(point)
            if popped is not None and self._open(popped):
                return self._proposed(trial, popped, why)
            self.study.set_aside(trial, "done already", {})  # it waited for somebody

    def _proposed(self, trial: Trial, point: Point, why: str) -> Proposal:
        self._under_way.add(point)
        return Proposal(point, self.space.plan(point), trial, why)

    def _figures(self, candidate: Candidate) -> tuple[float, ...] | None:
        return observed_figures(candidate.measured, self._reference, self._pace) if candidate.measured is not None else None

    @property
    def _pace(self) -> float:
        """Seconds that the reference takes, as a median over all files that it was timed beside; 1 before there is any."""
        every = [c.measured or c.partly for c in self._done.values()]
        return float(np.median([m.latency.value / m.latency_ratio for m in every if m is not None] or [1.0]))

    def _observations(self) -> list[Observation]:
        found = [self._observed(point, candidate) for point, candidate in self._done.items()]
        return [observed for observed in found if observed is not None]

    def _observed(self, point: Point, candidate: Candidate) -> Observation | None:
        """What a candidate says, be it that its loss is too large; None where it says nothing."""
        file = candidate.measured or candidate.partly
        if file is not None:
            whole = candidate.measured is not None and not candidate.unread
            figures = observed_figures(file, self._reference, self._pace)
            return Observation(point, *figures, loss_sd=0.0 if whole else self._off(file.quality))
        if candidate.unlowered is not None:
            return Observation(point, loss=observed_loss(candidate.unlowered, self._reference), loss_sd=self._off(candidate.unlowered))
        if candidate.status == "stopped" and math.isfinite(self.goal.limits[-1]):
            return Observation(point, loss=self.goal.limits[-1], at_least=True)
        return None

    def _off(self, seen: Quality) -> float:
        """By how much what was seen of validation may be off the whole of it; never 0, since such a plan cannot be chosen."""
        found = self._reading.off(seen) if self._reading else deviation(seen)
        return max(found, PARTLY * self.goal.unit)

    def _point_of(self, candidate: Candidate) -> Point:
        return next(point for point, known in self._done.items() if known is candidate)

    def _fits(self, observed: Observation) -> bool:
        return all(excess <= 0 for excess in self._excesses(_values(observed)).values()) if observed.whole else False

    def _rank(self, observed: Observation, proofs: Proofs | None, spare: float | None) -> tuple[float, float]:
        figures = _values(observed)
        if proofs is None:
            return self._value(figures, None, spare)
        at = self.space.points.index(observed.point)
        return self._value(figures, float(proofs.chance(np.array([[figures[-1]]]), [at])[0, 0]), spare)

    def _value(self, figures: Sequence[float], chance: float | None, spare: float | None) -> tuple[float, float]:
        """What is smaller where something is better."""
        latency, size, _, loss = figures
        cost = expected_cost(math.log(latency) + math.log(size), chance, spare)
        return (cost, loss) if self.goal.by_cost else (loss, cost)

    def _excesses(self, figures: Sequence[float]) -> dict[str, float]:
        """By how much every limit is exceeded: logarithms of costs, and the loss in the metric's unit."""
        *costs, loss = figures
        over = [math.log(cost) - limit for cost, limit in zip(costs, self.goal.limits[:-1], strict=True)]
        named = dict(zip(FIGURES, [*over, loss - self.goal.limits[-1] - 1e-12], strict=True))
        return {name: excess for name, excess in named.items() if math.isfinite(excess)}


def _values(observed: Observation) -> tuple[float, float, float, float]:
    assert observed.latency is not None
    assert observed.size is not None
    assert observed.loss is not None
    return observed.latency, observed.size, observed.memory or 1.0, observed.loss


def _told(forecast: Forecast, found: Promise, at: int) -> dict[str, float]:
    latency, size, memory, loss = (float(value) for value in forecast.mean[:, at])
    costs = {"latency_s": math.exp(latency), "size_bytes": math.exp(size), "memory_bytes": math.exp(memory)}
    return {**costs, "loss": loss, "chance": float(found.chance[at])}


def _percent(chance: float) -> str:
    return f"{100 * chance:.0f} %"
