"""The search: plans are chosen one by one from what was measured, tried, and told to the study."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import msgspec
import numpy as np

from sizewise.errors import UsageError
from sizewise.evaluate.scoring import module_call, quality
from sizewise.files import write_bytes
from sizewise.pipeline.crew import Hands
from sizewise.pipeline.race import hopeless
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.settle import score_in_full
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.trial import Bench, outcome
from sizewise.profile.timing import time_interleaved
from sizewise.search.duration import expected_seconds
from sizewise.search.frontier import best, has_margin
from sizewise.search.planner import Planner, Proposal, Unseen
from sizewise.search.promise import Goal, goal_of
from sizewise.search.proxy import Base
from sizewise.search.reading import Reading
from sizewise.search.rivals import settled
from sizewise.search.space import Point, Space, harsher, learns_more
from sizewise.search.study import Study
from sizewise.types import Candidate, Plan, SearchRecord, to_json
from sizewise.units import format_seconds

__all__ = ["Limits", "finished_before", "mild_points", "module_latencies", "no_time", "plan_search", "search"]

HUNDREDTH = 0.01
NO_LOSS = 1e-9
OTHERS_S = 1.0  # between looks at what other runs do
LATE = "the time limit was reached"

Ended = Literal["done", "trials", "time", "target"]


@dataclass(frozen=True)
class Limits:
    """How long a search goes on.

    Attributes:
        trials: most plans that are tried, whatever comes of them.
        stop_at_target: stop as soon as something fits the budget.

    Raises:
        UsageError: no plan may be tried.
    """

    trials: int
    stop_at_target: bool = False

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError("at least one plan is tried", where="trials", got=str(self.trials))


@dataclass
class _Run:
    """A search on its way.

    Attributes:
        asked: plans whose trials were begun and of which the planner does not know yet what became, in the order of their choice.
        ended: of those, what became of the ones whose trials have ended.
        done: every candidate that the planner knows of, be it tried or given up.
        put_off: plans that this run does not come to.
    """

    setup: Setup
    bench: Bench
    prepared: Mapping[str, Prepared]
    planner: Planner
    hands: Hands
    asked: list[Proposal] = field(default_factory=list)
    ended: dict[Point, Candidate] = field(default_factory=dict)
    done: list[Candidate] = field(default_factory=list)
    put_off: list[Plan] = field(default_factory=list)


def module_latencies(setup: Setup, prepared: Mapping[str, Prepared]) -> dict[str, float]:
    """Seconds of every scale's module, which predictions begin with; measured once per run folder."""
    path = setup.store.trials / "latencies.json"
    known: dict[str, float] = msgspec.json.decode(path.read_bytes(), type=dict[str, float]) if path.exists() else {}
    if set(known) >= set(prepared):
        return {scale: known[scale] for scale in prepared}
    setup.progress.working("timing the scales")
    calls = {scale: partial(module_call(found.module), setup.task.example) for scale, found in prepared.items()}
    timed = time_interleaved(calls, rounds=5, block_s=0.01, seed=setup.seed)
    found = {scale: timed.latency(scale).value for scale in prepared}
    write_bytes(path, to_json(found))
    return found


def plan_search(
    setup: Setup,
    bench: Bench,
    prepared: Mapping[str, Prepared],
    reference: str,
    space: Space,
    study: Study,
    latencies: Mapping[str, float],
    finished: Sequence[Candidate],
    *,
    borrows: bool = True,
) -> Planner:
    """What chooses the plans of this run.

    Args:
        setup: the run.
        bench: what trials share.
        prepared: the scales.
        reference: name of the one that drops are counted from.
        space: of plans.
        study: the record.
        latencies: of the scales' modules.
        finished: what the run folder holds already.
        borrows: whether the best of other runs that share the study is made here, too.
    """
    score = float(np.mean(bench.reference_scores))
    sign = 1 if setup.task.metric.higher_is_better else -1
    bases = {}
    for scale, found in prepared.items():
        cost = found.record.cost
        held = cost.weight_bytes + (cost.peak_bytes or 0)
        loss = sign * (score - float(np.mean(found.scores)))
        bases[scale] = Base(math.log(latencies[scale]), math.log(max(cost.weight_bytes, 1)), math.log(max(held, 1)), loss)
    goal, mild = _goal(setup, score), mild_points(space, reference)
    test = Unseen(bench.test_examples, bench.level) if bench.test_examples > 1 else None
    reading = Reading(len(bench.sample.order.drawn), bench.sample.order.count)
    return Planner(space, setup.budget, goal, bases, study, mild, score, finished, test=test, reading=reading, borrows=borrows)


def finished_before(setup: Setup, bench: Bench, prepared: Mapping[str, Prepared]) -> list[Candidate]:
    """What the run folder holds of these scales; what was beaten under another budget, and may not be under this one, is scored in full."""
    found = [candidate for candidate in setup.store.finished() if candidate.plan.scale in prepared]
    again = [c for c in found if c.status == "beaten" and not settled(c, found, setup.budget)]
    return score_in_full(found, again, setup, bench)


def _goal(setup: Setup, score: float) -> Goal:
    unit = max(HUNDREDTH * abs(score), NO_LOSS)
    return goal_of(setup.budget, score, higher_is_better=setup.task.metric.higher_is_better, unit=unit)


def mild_points(space: Space, reference: str) -> tuple[Point, ...]:
    """Every scale with all its parts, in integers where the runtime has them; of the reference in float besides."""
    found: list[Point] = []
    for scale in space.scales:
        off = ["off"] * len(space.names)
        whole = space.canonical(scale, off)
        off[space.names.index("precision")] = "int8"
        for point in (space.canonical(scale, off), whole if scale == reference else None):
            if point is not None and point not in found:
                found.append(point)
    return tuple(found)


def search(
    setup: Setup,
    bench: Bench,
    prepared: Mapping[str, Prepared],
    planner: Planner,
    hands: Hands,
    limits: Limits,
    finished: Sequence[Candidate],
) -> tuple[list[Candidate], SearchRecord]:
    """Try plans until nothing promising is left or a limit is reached.

    Args:
        setup: the run.
        bench: what trials share.
        prepared: the scales.
        planner: chooses the plans.
        hands: carry them out.
        limits: how long it goes on.
        finished: what the run folder holds already.

    Returns:
        every candidate that was tried, given up or left untried for lack of time, and what the search did.
    """
    run = _Run(setup, bench, prepared, planner, hands, done=list(finished))
    _give_up_scales(run)
    for candidate in run.done:
        setup.progress.advance(f"{candidate.plan.scale}: {candidate.plan.label}: {outcome(candidate)}", units=_was_tried(candidate))
    ended = _loop(run, limits)
    tried = sum(map(_was_tried, run.done))
    setup.progress.advance(_told(ended, tried, limits), units=max(0, limits.trials - tried))
    left = planner.left() if ended != "target" else []
    if ended == "time":
        plans = [*run.put_off, *(planner.space.plan(point) for point in left)][: limits.trials - tried]
        run.done += [Candidate(id=setup.store.identifier(plan), plan=plan, status="untried", reason=LATE) for plan in plans]
    record = SearchRecord(
        plans=len(planner.space.points),
        tried=tried,
        most=limits.trials,
        ended=ended,
        promising=len(left),
        set_aside=planner.study.set_asides(),
    )
    scales = list(prepared)
    return sorted(run.done, key=lambda c: (scales.index(c.plan.scale), len(c.plan.steps), c.id)), record


def _loop(run: _Run, limits: Limits) -> Ended:
    """Choose plans, begin their trials, and tell the planner what became of them, in the order of their choice.

    When a plan is chosen, what became of all plans before it is known but of the last few, whether or not those have ended meanwhile.
    What is chosen so does not depend on which worker is how fast, or dies: a search by several workers can be repeated. A worker waits
    only where it is further ahead of the slowest trial than `_ahead` allows.
    """
    while True:
        ended = _ended(run, limits)
        if ended == "target":
            _drop(run)
        if ended is None and len(run.asked) <= _ahead(run.hands.workers):
            if not run.hands.free:
                _wait(run)
                continue
            proposal = run.planner.next()
            if proposal is not None:
                _begin(run, proposal)
                continue
            ended = "time" if run.put_off else "done"
        if run.asked:
            _tell_oldest(run)
            continue
        assert ended is not None
        if ended != "done" or run.setup.late or not _others_are_at_it(run):
            return ended


def _ahead(workers: int) -> int:
    """How many plans that were chosen before another may be unknown when that is chosen.

    Those that are under way, and some more: else everybody would wait for the slowest trial each time.
    """
    return workers - 1 + workers // 2


def _wait(run: _Run) -> None:
    """For the next trial to end."""
    proposal, candidate = run.hands.next()
    run.ended[proposal.point] = candidate
    _told_user(run, candidate)


def _tell_oldest(run: _Run) -> None:
    """Tell the planner what became of the plan that was chosen first, once its trial has ended."""
    oldest = run.asked.pop(0)
    while oldest.point not in run.ended:
        _wait(run)
    _tell(run, oldest, run.ended.pop(oldest.point))


def _tell(run: _Run, proposal: Proposal, candidate: Candidate) -> None:
    run.planner.tell(proposal, candidate)
    run.done.append(candidate)


def _drop(run: _Run) -> None:
    """Break off what is under way."""
    for dropped in run.hands.drop():
        run.planner.withdraw(dropped)
        run.asked.remove(dropped)


def _others_are_at_it(run: _Run) -> bool:
    """Whether another run that shares the study tries a plan, after some time: what comes of it counts here, too."""
    if not run.planner.study.running_elsewhere():
        return False
    run.setup.progress.working("waiting for what other runs are trying")
    time.sleep(OTHERS_S)
    return True


def _ended(run: _Run, limits: Limits) -> Ended | None:
    """Why no further trial begins, or None."""
    begun = sum(map(_was_tried, run.done)) + len(run.asked)
    if begun and run.setup.late:
        return "time"
    if limits.stop_at_target and _reached(run):
        return "target"
    return "trials" if begun >= limits.trials else None


def _reached(run: _Run) -> bool:
    """Whether something fits, and will probably be proved to."""
    while True:
        ended = [*run.done, *run.ended.values()]
        found = best(ended, run.setup.budget)
        reached = [c for c in ended if c.fits(run.setup.budget) and (has_margin(c) or (c == found and c.proof_chance is None))]
        if not reached or not all(c.unread for c in reached):
            return bool(reached)
        _read_on(run, reached[0])


def _read_on(run: _Run, candidate: Candidate) -> None:
    """Score what is to end the search on the whole validation split."""
    (whole,) = score_in_full([candidate], [candidate], run.setup, run.bench)
    run.done = [whole if c.id == whole.id else c for c in run.done]
    run.ended = {point: whole if c.id == whole.id else c for point, c in run.ended.items()}
    run.planner.correct(whole)


def _begin(run: _Run, proposal: Proposal) -> None:
    """Begin to try a plan, or say why it is not worth it."""
    if reason := no_time(run.setup.seconds_left, run.done, run.planner, proposal):
        run.put_off.append(proposal.plan)
        run.planner.put_off(proposal, reason)
        return
    candidate = _given_up(run, proposal)
    if candidate is not None:
        run.setup.store.save_candidate(candidate)
        _tell(run, proposal, candidate)
        _told_user(run, candidate)
        return
    about = expected_seconds(run.done, proposal.plan)
    length = f", about {format_seconds(about)}" if about else ""
    run.setup.progress.working(f"{proposal.plan.scale}: {proposal.plan.label} ({proposal.why}{length})")
    proposal = replace(proposal, rivals=tuple(c.id for c in run.done))
    run.asked.append(proposal)
    run.hands.begin(proposal)


def no_time(left: float | None, done: Sequence[Candidate], planner: Planner, proposal: Proposal) -> str | None:
    """Why a plan is not begun this late, or None.

    What tries a training for a part of its time looks where the whole one would pay; it is of no use once that would not end in time.

    Args:
        left: seconds; None where there is no limit, and what is not above 0 stops nothing.
        done: what was tried.
        planner: of the search.
        proposal: the plan.
    """
    if left is None or left <= 0:
        return None
    about = expected_seconds(done, proposal.plan)
    if left < about:
        return f"it would take about {format_seconds(about)}, more than is left"
    if planner.space.longer(proposal.point) is None:
        return None
    for plan in map(planner.space.plan, planner.whole_trainings()):
        if (needed := expected_seconds(done, plan)) <= left:
            return f"it would leave no time for {plan.label}" if needed > left - about else None
    return None


def _told_user(run: _Run, candidate: Candidate) -> None:
    plan = candidate.plan
    run.setup.progress.advance(f"{plan.scale}: {plan.label}: {outcome(candidate)}", units=_was_tried(candidate))


def _given_up(run: _Run, proposal: Proposal) -> Candidate | None:
    """A plan that can only be worse than one that was stopped or failed; it may have been chosen before that was known."""
    milder = [c for c in run.done if c.status in ("stopped", "failed") and harsher(proposal.plan, c.plan)]
    if not milder:
        return None
    return _not_tried(run, proposal.plan, f"{milder[0].plan.label} {'was stopped' if milder[0].status == 'stopped' else 'failed'} already")


def _not_tried(run: _Run, plan: Plan, reason: str) -> Candidate:
    return Candidate(id=run.setup.store.identifier(plan), plan=plan, status="stopped", reason=f"not tried: {reason}")


def _no_hope(run: _Run, scale: str) -> str | None:
    """Why no plan of a scale can keep the limit of quality, or None."""
    found = quality(run.prepared[scale].scores, run.setup.task.metric, run.bench.reference_scores)
    why = hopeless(found, run.setup.budget)
    return f"in float, {why}" if why else None


def _give_up_scales(run: _Run) -> None:
    """Leave out what is done to scales that have no hope, unless they learn more; their mild plans say so in the record."""
    space, known = run.planner.space, {candidate.id for candidate in run.done}
    mild = set(mild_points(space, ""))
    for scale in space.scales:
        reason = _no_hope(run, scale)
        for point in space.points if reason is not None else ():
            plan = space.plan(point)
            if point.scale != scale or not plan.steps or learns_more(plan):
                continue
            run.planner.give_up(point, reason or "")
            candidate = _not_tried(run, plan, reason or "")
            if point in mild and candidate.id not in known:
                run.setup.store.save_candidate(candidate)
                run.done.append(candidate)


def _was_tried(candidate: Candidate) -> bool:
    """Whether it took a trial; what is given up by a rule takes none."""
    return candidate.status in ("measured", "failed", "beaten") or (candidate.status == "stopped" and candidate.seconds > 0)


def _told(ended: Ended, tried: int, limits: Limits) -> str:
    why = {
        "done": "nothing that is left is expected to be better",
        "trials": f"that is as many as were asked for; --trials {2 * limits.trials} --resume goes on",
        "time": f"{LATE}; --resume goes on",
        "target": "something fits the budget, which was all that was wanted",
    }
    return f"search: {tried} plans tried; {why[ended]}"
