"""The races of a trial: a module's before it is lowered, and its file's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sizewise.evaluate.proof import most_chance
from sizewise.evaluate.racing import RACING_ERROR, Hurdle, Lap, ScoreRange, laps, surely_worse
from sizewise.evaluate.scoring import Call, quality
from sizewise.pipeline.store import load_scores
from sizewise.report._format import limit_value, plan_name
from sizewise.search.frontier import largest_drops, limits_quality
from sizewise.search.rivals import Costs, breaks_costs, opponents, outranked
from sizewise.types import Budget, Candidate, Limit, Quality

if TYPE_CHECKING:
    from sizewise.pipeline.trial import Bench

__all__ = ["FileRace", "ModuleRace", "hopeless", "quality_limit", "race_file", "race_module"]

Scores = Float[ndarray, " n"]
MODULE_SHARE = 0.25  # of the split: what that leaves open is settled on the file, which is what counts, and is faster in most cases
RIVAL = "rival"
RIVAL_ERROR = 0.002  # part of a file's racing error, where it also races against another candidate


@dataclass(frozen=True)
class ModuleRace:
    """What a module's race says.

    Attributes:
        evaluated: examples that it was scored on.
        stopped: why its file would surely break a quality limit, or None.
        found: its quality then, as far as the examples read tell.
    """

    evaluated: int
    stopped: str | None
    found: Quality | None = None


@dataclass(frozen=True)
class FileRace:
    """What a file's race says.

    Attributes:
        found: its quality on the examples that it was scored on.
        scores: all of them in the split's order; None where it was stopped early.
        evaluated: how many.
        status: of its candidate.
        lap: the last one, where it was stopped early.
        reason: why it was stopped early, or None.
        beaten_by: id of a candidate that is surely as good, where that is the reason.
        most_chance: of a proof, where the reason is that it is too small for the costs.
    """

    found: Quality
    scores: Scores | None
    evaluated: int
    status: Literal["measured", "stopped", "beaten"] = "measured"
    lap: Lap | None = None
    reason: str | None = None
    beaten_by: str | None = None
    most_chance: float | None = None


def hopeless(found: Quality, budget: Budget) -> str | None:
    """Why no luck on other data could bring this quality within the budget, or None.

    The whole interval of the drop (or of the score) must break the limit.
    """
    if budget.max_drop is not None and found.drop is not None and found.drop.low > budget.max_drop:
        return _too_bad("max_drop", found.drop.low, budget.max_drop, found, "validation")
    if budget.min_quality is None:
        return None
    best, sign = (found.score.high, 1) if found.higher_is_better else (found.score.low, -1)
    worse = sign * best < sign * budget.min_quality
    return _too_bad("min_quality", best, budget.min_quality, found, "validation") if worse else None


def _too_bad(limit: Limit, figure: float, allowed: float, found: Quality, where: str) -> str:
    got, wanted = (limit_value(limit, value, found.metric) for value in (figure, allowed))
    if limit == "max_drop":
        return f"the drop on {where} is at least {got}, more than {wanted}"
    if found.higher_is_better:
        return f"the {found.metric} on {where} is at most {got}, less than {wanted}"
    return f"the {found.metric} on {where} is at least {got}, more than {wanted}"


def quality_limit(bench: "Bench") -> Hurdle | None:
    """The quality limit that binds, as a hurdle: the most that a candidate may be worse than the reference on the whole split."""
    mean = float(np.mean(bench.reference_scores))
    limits = largest_drops(bench.budget, mean, higher_is_better=bench.metric.higher_is_better)
    if not limits:
        return None
    allowed, name = min(limits)
    return Hurdle(name, bench.reference_scores, allowed)


def race_module(call: Call, bench: "Bench") -> ModuleRace:
    """Score a module as far as it takes to see that its file would break a quality limit, or that it may well not.

    It is given up when its drop on the whole split is surely too large. It passes as soon as its figure keeps the limit, or a quarter of
    the split was read. Where nothing can be told early (`Metric.bounds`), it is scored on everything, and given up when no luck on
    other data could save it; the same where the first lap reads everything.
    """
    hurdle = quality_limit(bench)
    if hurdle is None:
        return ModuleRace(0, None)
    if not np.isfinite(bench.metric.best):
        found, scores = bench.quality_of(call)
        return ModuleRace(len(scores), hopeless(found, bench.budget), found)
    for lap in _laps(call, bench, [hurdle]):
        seen = len(lap.scores)
        if lap.whole:
            return ModuleRace(seen, hopeless(_seen(lap, bench), bench.budget), _seen(lap, bench))
        if lap.broken:
            return ModuleRace(seen, _broken_limit(lap, bench), _seen(lap, bench))
        if _lost(lap, bench, hurdle.against) <= hurdle.allowed or seen >= MODULE_SHARE * len(hurdle.against):
            break
    return ModuleRace(seen, None)


def race_file(call: Call, costs: Costs, folder: Path, bench: "Bench", rivals: Sequence[Candidate] | None) -> FileRace:
    """Score a file until everything is read, or it cannot be chosen any more, or it may be and what is left can only make it worse.

    Then there is no need to read on until it is to be chosen (`settle.py`): the best of all files comes out the same if those that promise
    most are read to their end first, one after the other, until the best of all is one of them.

    Args:
        call: the file.
        costs: that were measured on it.
        folder: of its candidate; those of `rivals` are beside it.
        bench: what the trials share.
        rivals: finished candidates that it may lose against; None for a file that is tried alone, which is scored in full.
    """
    alone, rivals = rivals is None, rivals or ()
    winner = outranked(costs, rivals, bench.budget)
    opponent = next(iter(opponents(costs, rivals, bench.budget)), None)
    hurdles = _hurdles(bench, opponent, folder)
    waits = not alone and limits_quality(bench.budget) and not breaks_costs(costs, bench.budget)
    if not winner and (not hurdles or not np.isfinite(bench.metric.best)):
        found, scores = bench.quality_of(call)
        return FileRace(found, scores, len(scores))
    for lap in _laps(call, bench, hurdles):
        if lap.whole:
            scores = bench.sample.order.restored(lap.scores)
            return FileRace(quality(scores, bench.metric, bench.reference_scores), scores, len(scores))
        seen = FileRace(_seen(lap, bench), None, len(lap.scores), lap=lap)
        if lap.broken and lap.broken.hurdle.name != RIVAL:
            return replace(seen, status="stopped", reason=_broken_limit(lap, bench))
        if lap.broken and opponent:
            reason = f"{_after(lap, bench)}: {plan_name(opponent.plan)} is surely as good{_at_what(bench.budget)}"
            return replace(seen, status="beaten", reason=reason, beaten_by=opponent.id)
        if winner:
            reason = f"{_after(lap, bench)}: {plan_name(winner.plan)} fits the budget and is chosen first by its costs"
            return replace(seen, status="beaten", reason=reason)
        chance = _most_chance(lap, hurdles[0], bench) if rivals else None
        if chance is not None and (chosen := outranked(costs, rivals, bench.budget, chance)):
            reason = f"{_after(lap, bench)}: {plan_name(chosen.plan)} is chosen first: here a proof has a chance of at most {chance:.0%}"
            return replace(seen, status="beaten", reason=reason, most_chance=chance)
        if waits and bench.sample.order.can_only_lose(lap.parts):
            return seen
    raise AssertionError("the last lap is whole")


def _hurdles(bench: "Bench", opponent: Candidate | None, folder: Path) -> list[Hurdle]:
    limit = quality_limit(bench)
    if opponent is None:
        return [limit] if limit else []
    rival = Hurdle(RIVAL, load_scores(folder.parent / opponent.id / "scores.npy"), 0.0, RIVAL_ERROR if limit else RACING_ERROR)
    return [Hurdle(limit.name, limit.against, limit.allowed, RACING_ERROR - RIVAL_ERROR), rival] if limit else [rival]


def _most_chance(lap: Lap, limit: Hurdle, bench: "Bench") -> float | None:
    """Of a proof, whatever the rest of the split says; None where it is not told, or not wanted."""
    if bench.budget.max_drop is None:
        return None
    least = surely_worse(lap, bench.sample.order, limit, _range(bench))
    return most_chance(_seen(lap, bench), least, len(limit.against), bench.budget, bench.test_examples, bench.level)


def _laps(call: Call, bench: "Bench", hurdles: Sequence[Hurdle]) -> Iterator[Lap]:
    def read(start: int, stop: int) -> Scores:
        return bench.sample.scores(call, bench.metric, bench.reference_call, start, stop)

    return laps(read, bench.sample.order, hurdles, _range(bench))


def _range(bench: "Bench") -> ScoreRange:
    return ScoreRange(bench.metric.higher_is_better, bench.metric.best)


def _seen(lap: Lap, bench: "Bench") -> Quality:
    """The quality that the whole split has by what was read, where the examples that come first are not like the others."""
    found = quality(lap.scores, bench.metric, bench.reference_scores[lap.examples])
    if lap.whole or bench.sample.order.first is None or found.drop is None:
        return found
    seen, mean = found.drop, float(np.mean(bench.reference_scores))
    value, share = _lost(lap, bench, bench.reference_scores), max(len(bench.sample.order.drawn), len(lap.scores)) / bench.sample.order.count
    low, high = value - share * (seen.value - seen.low), value + share * (seen.high - seen.value)
    best, sign = bench.metric.best, 1 if found.higher_is_better else -1
    ends = sorted(sign * min(sign * best, sign * mean - loss) for loss in (low, high))  # none is better than the best
    score = replace(found.score, value=mean - sign * value, low=ends[0], high=ends[1])
    return replace(found, score=score, drop=replace(seen, value=value, low=low, high=high))


def _lost(lap: Lap, bench: "Bench", against: Scores) -> float:
    """What the whole split probably loses: those that come first as much as was read of them, the others, which hardly change, no more."""
    differences = _range(bench).worse(against[lap.examples], lap.scores)
    drawn, count = len(bench.sample.order.drawn), bench.sample.order.count
    first, others = differences[:drawn], differences[drawn:]
    return (drawn * float(np.mean(first)) + float(np.sum(others))) / count


def _after(lap: Lap, bench: "Bench") -> str:
    return f"dropped after {len(lap.scores):,} of {len(bench.reference_scores):,} validation examples"


def _broken_limit(lap: Lap, bench: "Bench") -> str:
    assert lap.broken is not None
    hurdle, found = lap.broken.hurdle, _seen(lap, bench)
    limit: Limit = "max_drop" if hurdle.name == "max_drop" else "min_quality"
    if limit == "max_drop":
        return f"{_after(lap, bench)}: {_too_bad(limit, lap.broken.least, hurdle.allowed, found, 'all of them')}"
    sign, mean = 1 if found.higher_is_better else -1, float(np.mean(bench.reference_scores))
    allowed = bench.budget.min_quality
    assert allowed is not None
    return f"{_after(lap, bench)}: {_too_bad(limit, mean - sign * lap.broken.least, allowed, found, 'all of them')}"


def _at_what(budget: Budget) -> str:
    return " at no greater cost" if limits_quality(budget) else ""
