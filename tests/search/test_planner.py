"""The search against a make-believe machine: what it finds, in how many trials, and that interruptions and companions do not matter."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
from tests.search.spaces import BASES, REFERENCE, TRAITS, goal, measured, partly, small_space

from sizewise.errors import UsageError
from sizewise.evaluate.proof import level_after, proof_chance
from sizewise.pipeline.searching import no_time
from sizewise.search.frontier import best, rank_key
from sizewise.search.levers import precision_lever, pruning_lever, recovery_lever
from sizewise.search.planner import Planner, Proposal, Unseen
from sizewise.search.proxy import FIGURES
from sizewise.search.space import Point, Space
from sizewise.search.spare import spare_of
from sizewise.search.storage import sqlite_url
from sizewise.search.study import Study
from sizewise.types import Budget, Candidate, Change, Interval, Quality, Step

SPACE = small_space()
BUDGET = Budget(latency="2.5 ms", size="2 MB", max_drop="1 %")
MILD = [point for point in SPACE.points if point.levels in (("off", "off", "off", "int8"), ("off", "off", "off", "off"))]
Measure = Callable[[Point], Candidate]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def study(folder: Path, owner: str = "a", name: str = "s") -> Study:
    return Study(SPACE, sqlite_url(folder / "study.db"), name, owner, seed=0)


def planner(made: Study, budget: Budget = BUDGET, known: list[Candidate] | None = None) -> Planner:
    return Planner(SPACE, budget, goal(budget), BASES, made, MILD, REFERENCE, known or [])


def run(found: Planner, measure: Measure, most: int = 100) -> Iterator[Candidate]:
    for _ in range(most):
        proposal = found.next()
        if proposal is None:
            return
        candidate = measure(proposal.point)
        found.tell(proposal, candidate)
        yield candidate


def real(point: Point) -> Candidate:
    return measured(SPACE, point)


def states(folder: Path, name: str = "s") -> dict[str, int]:
    trials = optuna.load_study(study_name=name, storage=sqlite_url(folder / "study.db")).get_trials()
    return {state: len(list(own)) for state, own in itertools.groupby(sorted(t.state.name for t in trials))}


def exhaustive(budget: Budget) -> Candidate | None:
    return best([real(point) for point in SPACE.points], budget)


@pytest.mark.parametrize(
    "budget",
    [
        BUDGET,
        Budget(size="700 kB"),
        pytest.param(Budget(latency="0.5 ms", size="300 kB", max_drop="2 %"), marks=pytest.mark.slow),
        pytest.param(Budget(max_drop="0.3 %"), marks=pytest.mark.slow),
        pytest.param(Budget(latency="0.4 ms", min_quality="93 %"), marks=pytest.mark.slow),
    ],
)
def test_it_finds_what_trying_everything_finds_in_a_fraction_of_the_trials(budget: Budget, folder: Path) -> None:
    with closing(study(folder)) as made:
        tried = list(run(planner(made, budget), real))
    wanted, found = exhaustive(budget), best(tried, budget)
    assert wanted is not None
    assert found is not None
    assert wanted.measured is not None
    assert found.measured is not None
    if budget.max_drop is None and budget.min_quality is None:
        assert found.measured.quality.score.value >= wanted.measured.quality.score.value - 0.0005
    else:
        costs = [math.log(c.latency.value * c.size_bytes) for c in (found.measured, wanted.measured)]
        assert costs[0] <= costs[1] + 0.05
    assert len(tried) <= 24 < len(SPACE.points) / 5
    assert len({c.id for c in tried}) == len(tried)


def test_the_same_seed_and_results_give_the_same_search(folder: Path) -> None:
    found = []
    for name in ("one", "two"):
        with closing(study(folder, name=name)) as made:
            found.append([c.id for c in run(planner(made), real)])
    assert found[0] == found[1]


@pytest.mark.parametrize("after", [0, 7])
def test_a_search_that_is_killed_within_a_trial_goes_on_as_if_nothing_had_happened(after: int, folder: Path) -> None:
    with closing(study(folder, name="whole")) as made:
        whole = [c.id for c in run(planner(made), real)]
    with closing(study(folder)) as made:
        first = planner(made)
        kept = list(run(first, real, most=after))
        lost = first.next()  # asked, never told
    assert lost is not None
    with closing(study(folder)) as made:
        again = planner(made, known=kept)
        proposal = again.next()
        assert proposal is not None
        assert proposal.plan == lost.plan, "what was interrupted comes first"
        again.tell(proposal, real(proposal.point))
        rest = [proposal.plan.id, *(c.id for c in run(again, real))]
    assert not {c.id for c in kept} & set(rest), "nothing that is finished is repeated"
    assert {c.id for c in kept} | set(rest) >= {whole[-1]}
    assert best([measured(SPACE, p) for p in SPACE.points if SPACE.plan(p).id in {*rest, *(c.id for c in kept)}], BUDGET) is not None
    assert "RUNNING" not in states(folder)
    assert states(folder)["COMPLETE"] == len(kept) + len(rest)


def test_a_trial_that_finished_just_before_the_kill_is_told_to_the_study(folder: Path) -> None:
    with closing(study(folder)) as made:
        proposal = planner(made).next()
    assert proposal is not None
    finished = real(proposal.point)  # its file says that it is finished; the study never heard of it
    with closing(study(folder)) as made:
        again = planner(made, known=[finished])
        following = again.next()
    assert following is not None
    assert following.plan != proposal.plan
    assert states(folder)["COMPLETE"] == 1


def slower(candidate: Candidate) -> Candidate:
    """The same file, timed while the whole machine was half as fast; so was the reference beside it."""
    assert candidate.measured is not None
    latency = replace(candidate.measured.latency, value=2 * candidate.measured.latency.value)
    return replace(candidate, measured=replace(candidate.measured, latency=latency))


def test_a_machine_that_is_slower_for_a_while_misleads_nobody(folder: Path) -> None:
    known = [real(point) for point in SPACE.points[:5]]
    forecasts = []
    for name, candidates in (("steady", known), ("slower", [*known[:4], slower(known[4])])):
        with closing(study(folder, name=name)) as made:
            forecasts.append(planner(made, known=candidates).forecast().mean)
    np.testing.assert_allclose(forecasts[0], forecasts[1])
    cheap = min(known, key=lambda c: c.measured.latency.value * c.measured.size_bytes)  # type: ignore[union-attr]
    everything = Budget(max_drop="50 %")
    assert best([slower(c) if c is cheap else c for c in known], everything) == slower(cheap)


def test_a_lost_study_is_made_anew_from_what_is_finished(folder: Path) -> None:
    with closing(study(folder)) as made:
        kept = list(run(planner(made), real, most=5))
    (folder / "study.db").unlink()
    with closing(study(folder)) as made:
        rest = list(run(planner(made, known=kept), real))
    assert not {c.id for c in kept} & {c.id for c in rest}
    assert states(folder)["COMPLETE"] == len(kept) + len(rest)


def test_what_is_stopped_beaten_or_fails_is_never_repeated_nor_tried_harder(folder: Path) -> None:
    def measure(point: Point) -> Candidate:
        plan = SPACE.plan(point)
        if any(step.technique == "low_rank" for step in plan.steps):
            at = [step.technique for step in plan.steps].index("low_rank")
            return Candidate(id=plan.id, plan=plan, status="failed", reason="no layer gets cheaper", failed_step=at)
        if point.levels[0] not in ("off", "0.2", "0.3"):
            return Candidate(id=plan.id, plan=plan, status="stopped", reason="hopeless", seconds=1.0)
        return partly(real(point), 0.003) if point.scale == "small" else real(point)

    with closing(study(folder)) as made:
        tried = list(run(planner(made, Budget(max_drop="2 %")), measure))
    assert len({c.id for c in tried}) == len(tried)
    for scale in SPACE.scales:
        failed = [c for c in tried if c.status == "failed" and c.plan.scale == scale]
        assert len(failed) <= 5, "what low rank cannot do is soon not tried any more"
    found = best(tried, Budget(max_drop="2 %"))
    assert found is not None
    assert found.status == "measured"


def test_two_runs_that_share_a_study_share_out_the_plans_and_end_with_the_same_best(folder: Path) -> None:
    with closing(study(folder, "a")) as first, closing(study(folder, "b")) as second:
        runs = {"a": planner(first), "b": planner(second)}
        done: dict[str, list[Candidate]] = {"a": [], "b": []}
        going = ["a", "b"]
        while going:
            for name in list(going):
                proposal = runs[name].next()
                if proposal is None:
                    going.remove(name)
                    continue
                candidate = real(proposal.point)
                runs[name].tell(proposal, candidate)
                done[name].append(candidate)
    tops = [best(done[name], BUDGET) for name in ("a", "b")]
    assert tops[0] is not None
    assert tops[1] is not None
    assert tops[0].id == tops[1].id, "the better one's best is made by the other, too"
    twice = {c.id for c in done["a"]} & {c.id for c in done["b"]}
    assert len(twice - {plan.id for plan in (SPACE.plan(p) for p in MILD)}) <= 1


def test_mixed_precision_is_tried_only_where_integers_lost_too_much(folder: Path) -> None:
    for name, budget in (("easy", BUDGET), ("hard", Budget(max_drop="0.05 %"))):
        with closing(study(folder, name=name)) as made:
            tried = {c.plan.id: c for c in run(planner(made, budget), real)}
        mixed = [plan_id for plan_id in tried if plan_id.endswith("max_drop-0.005")]
        for plan_id in mixed:
            twin = tried[plan_id.removesuffix("-max_drop-0.005")]
            assert budget.violations(twin.measured)  # type: ignore[arg-type]
        assert mixed or name == "easy"


BRIEF, WHOLE = (Step(technique="recovery", settings={"epochs": epochs}) for epochs in (1, 4))
TRAINED = Space(
    {"large": (pruning_lever("macs", recovers=True), recovery_lever({"source": WHOLE}, {"source": BRIEF}), precision_lever({}))},
    TRAITS,
    seed=0,
)


def trained(folder: Path) -> Study:
    return Study(TRAINED, sqlite_url(folder / "long.db"), "s", "a", seed=0)


def trains(made: Study) -> Planner:
    budget = Budget(max_drop="1 %")
    return Planner(TRAINED, budget, goal(budget), BASES, made, [TRAINED.points[0]], REFERENCE)


def healed(point: Point, seconds: float = 100.0) -> Candidate:
    """Four epochs give back all but a third of what one leaves; one takes so many seconds, and a trial nothing besides."""
    pruned, recovery, _ = point.levels
    found = measured(SPACE, Point("large", (pruned, "off", "off", "off")))
    assert found.measured is not None
    drop = found.measured.quality.drop
    assert drop is not None
    lost = drop.value * (0.3 if recovery == "source, long" else 1.0)
    quality = replace(found.measured.quality, score=Interval.exact(REFERENCE - lost), drop=Interval.exact(lost))
    plan = TRAINED.plan(point)
    times = [seconds * (4 if step == WHOLE else 1) if step in (BRIEF, WHOLE) else 0.0 for step in plan.steps]
    changes = tuple(Change(seconds=time) for time in times)
    took = max(sum(times), 1.0)
    return replace(found, id=plan.id, plan=plan, measured=replace(found.measured, quality=quality), seconds=took, changes=changes)


def test_a_long_training_is_tried_only_after_a_short_one_lost_too_much_where_no_less_was_taken_away(folder: Path) -> None:
    budget = Budget(max_drop="1 %")
    with closing(trained(folder)) as made:
        tried = list(run(trains(made), healed))
    longer = [c.plan for c in tried if c.plan.steps and c.plan.steps[1] == WHOLE]
    assert longer
    for plan in longer:
        before = tried[: [c.plan for c in tried].index(plan)]
        short = [c for c in before if c.plan.steps and c.plan.steps[1] == BRIEF]
        rates = [c.plan.steps[0].settings["rate"] for c in short if budget.violations(c.measured)]  # type: ignore[arg-type]
        assert plan.steps[0].settings["rate"] <= max(rates)
    chosen = best(tried, budget)
    assert chosen is not None
    assert chosen.plan in longer


def test_what_takes_long_is_tried_later(folder: Path) -> None:
    firsts = []
    for seconds in (0.0, 1e5):
        (folder / f"{seconds}").mkdir()
        with closing(trained(folder / f"{seconds}")) as made:
            tried = list(run(trains(made), partial(healed, seconds=seconds), most=12))
        firsts.append(next(at for at, c in enumerate(tried) if WHOLE in c.plan.steps))
    assert firsts[0] < firsts[1]


def test_no_short_training_is_begun_that_leaves_no_time_for_a_whole_one(folder: Path) -> None:
    with closing(trained(folder)) as made:
        search, done = trains(made), list[Candidate]()
        proposal: Proposal | None = None
        while not search.whole_trainings():
            proposal = search.next()
            assert proposal is not None
            assert no_time(500, done, search, proposal) is None, "nothing whole is promising yet"
            done.append(healed(proposal.point))
            search.tell(proposal, done[-1])
        assert proposal is not None
        wanted = search.whole_trainings()[0]
        brief = next(point for point in search.left() if TRAINED.longer(point) is not None)
        (short, long) = (replace(proposal, point=point, plan=TRAINED.plan(point)) for point in (brief, wanted))
        assert [no_time(left, done, search, short) is None for left in (None, 501, 499, 399, 99)] == [True, True, False, True, False]
        assert TRAINED.plan(wanted).label in str(no_time(499, done, search, short))
        assert [no_time(left, done, search, long) is None for left in (401, 399)] == [True, False]


def test_what_is_put_off_is_not_proposed_again_but_by_a_later_run(folder: Path) -> None:
    with closing(study(folder)) as made:
        first = planner(made)
        done = list(run(first, real, most=3))
        proposal = first.next()
        assert proposal is not None
        first.put_off(proposal, "too long")
        assert proposal.point not in first.left()
        assert proposal.plan not in [c.plan for c in run(first, real, most=5)]
    with closing(study(folder)) as made:
        assert proposal.point in planner(made, known=done).left()


def test_an_impossible_budget_ends_soon_near_what_is_nearest(folder: Path) -> None:
    budget = Budget(size="1 kB", max_drop="1 %")
    with closing(study(folder)) as made:
        tried = list(run(planner(made, budget), real))
    assert best(tried, budget) is None
    assert len(tried) <= len(MILD) + 4
    smallest = min(real(point).measured.size_bytes for point in SPACE.points)  # type: ignore[union-attr]
    assert min(c.measured.size_bytes for c in tried if c.measured) < 3 * smallest


def test_no_plan_is_tried_that_does_less_than_a_file_that_costs_too_much(folder: Path) -> None:
    """Half of the channels leave a file just above the limit: fewer than half leave no smaller one, whatever is expected of them."""
    half, third = (Point("large", (rate, "off", "off", "int8")) for rate in ("0.5", "0.3"))
    known = [real(Point("large", ("off", "off", "off", "int8"))), real(half), real(Point("small", ("off", "off", "off", "int8")))]
    size = known[1].measured.size_bytes if known[1].measured else 0
    chances = []
    for limit in (size + 1, size - 1):
        with closing(study(folder, name=str(limit))) as made:
            found = planner(made, Budget(size=f"{limit} B"), known)
            chances.append(found.chances(found.forecast())[SPACE.points.index(third)])
            left = found.left()
    assert chances[0] > chances[1] == 0
    assert left
    assert not any(SPACE.as_strong(half, point) for point in left)


def test_what_will_hardly_be_proved_is_neither_best_nor_looked_for(folder: Path) -> None:
    """Files answer otherwise than the reference so often that a loss near the limit is not proved on the test split."""
    budget, unseen = Budget(max_drop="2 %"), Unseen(examples=1500, level=0.04)

    def measure(point: Point) -> Candidate:
        found = real(point)
        assert found.measured is not None
        drop = found.measured.quality.drop
        assert drop is not None
        noisy = replace(drop, low=drop.value - 0.008, high=drop.value + 0.008, n=1000, confidence=0.95)
        quality = replace(found.measured.quality, drop=noisy)
        first, later = (proof_chance(quality, budget, unseen.examples, level) for level in (unseen.level, level_after(unseen.level)))
        return replace(found, measured=replace(found.measured, quality=quality), proof_chance=first, later_chance=later)

    with closing(study(folder)) as made:
        tried = list(run(Planner(SPACE, budget, goal(budget), BASES, made, MILD, REFERENCE, test=unseen), measure))
    every = [measure(point) for point in SPACE.points]
    wanted, found = best(every, budget), best(tried, budget)
    assert wanted is not None
    assert found is not None
    values = [rank_key(candidate, budget, spare_of(every, budget))[0] for candidate in (found, wanted)]
    assert values[0] <= values[1] + 0.1
    assert found.proof_chance is not None
    assert found.proof_chance > 0.4
    cheapest = best([real(point) for point in SPACE.points], budget)
    assert cheapest is not None
    assert cheapest.id != found.id, "it loses nearly two hundredths"


def test_what_a_module_lost_before_it_was_given_up_tells_of_its_like(folder: Path) -> None:
    """That it was given up says that it lost more than the limit; how much it lost says what half as much would lose."""
    given_up, milder = (SPACE.plan(Point("large", (rate, "off", "off", "off"))) for rate in ("0.6", "0.5"))
    lost = Interval(value=0.06, low=0.05, high=0.07, n=800)
    seen = Quality(metric="accuracy", higher_is_better=True, score=Interval.exact(REFERENCE - 0.06), drop=lost)
    forecasts = []
    for name, unlowered in (("vague", None), ("told", seen)):
        stopped = Candidate(id=given_up.id, plan=given_up, status="stopped", seconds=1.0, unlowered=unlowered)
        with closing(study(folder, name=name)) as made:
            forecasts.append(planner(made, known=[stopped]).forecast())
    at = [SPACE.points.index(SPACE.find(plan)) for plan in (milder, given_up)]
    loss = FIGURES.index("loss")
    vague, told = (forecast.mean[loss, at] for forecast in forecasts)
    assert told[0] > 1.5 * vague[0]
    assert told[1] == pytest.approx(0.06, abs=0.01)
    assert forecasts[1].sd[loss, at[1]] < forecasts[0].sd[loss, at[1]]


def test_what_a_file_did_not_read_yet_stays_open(folder: Path) -> None:
    point = Point("large", ("0.3", "off", "off", "off"))
    whole, part = real(point), partly(real(point), 0.01).partly
    forecasts = []
    for name, known in (("whole", whole), ("part", replace(whole, measured=part, unread=500))):
        with closing(study(folder, name=name)) as made:
            found = planner(made, Budget(max_drop="10 %"), known=[known])
            forecasts.append(found.forecast())
            assert found.best() == known, "it may be chosen all the same"
    at, loss = SPACE.points.index(point), FIGURES.index("loss")
    assert forecasts[1].sd[loss, at] > 3 * forecasts[0].sd[loss, at]


def test_trials_say_what_they_were_for_the_dashboard(folder: Path) -> None:
    with closing(study(folder)) as made:
        list(run(planner(made), real))
    trials = optuna.load_study(study_name="s", storage=sqlite_url(folder / "study.db")).get_trials()
    for trial in trials:
        assert trial.user_attrs["label"]
        assert '"steps"' in trial.user_attrs["plan"]
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert all(len(t.values) == 3 and t.user_attrs["candidate"] and t.user_attrs["status"] == "measured" for t in complete)
    assert all(set(t.constraints) == {"latency", "size", "loss"} for t in complete)
    aside = [t for t in trials if t.user_attrs.get("status") == "not tried"]
    assert all(t.state.name == "PRUNED" and t.user_attrs["reason"] for t in aside)


def test_a_storage_that_cannot_be_used_says_so(folder: Path) -> None:
    for url in ("nonsense", "sqlite:////nowhere/at/all/study.db", "oracle+nothing://x/y"):
        with pytest.raises(UsageError, match="cannot be kept there"):
            Study(SPACE, url, "s", "a", 0)


def test_plans_under_way_are_not_chosen_again_and_are_believed_to_turn_out_as_predicted(folder: Path) -> None:
    with closing(study(folder)) as made:
        found = planner(made)
        for _ in range(6):
            proposal = found.next()
            assert proposal is not None
            found.tell(proposal, real(proposal.point))
        under_way = [found.next() for _ in range(4)]
        chosen = [proposal.point for proposal in under_way if proposal is not None]
        assert len(set(chosen)) == 4
        forecast = found.forecast()
        open_without_belief = found.left(forecast)
        assert not set(chosen) & set(open_without_belief)
        assert under_way[1] is not None
        found.withdraw(under_way[1])
        assert under_way[1].point in found.left(found.forecast()), "what was broken off may be tried again"
    assert states(folder)["RUNNING"] == 3
    assert states(folder)["FAIL"] == 1


def test_two_at_a_time_find_what_one_at_a_time_finds(folder: Path) -> None:
    with closing(study(folder, name="one")) as made:
        alone = best(list(run(planner(made), real)), BUDGET)
    tried: list[Candidate] = []
    with closing(study(folder, name="two")) as made:
        found = planner(made)
        under_way = [found.next(), found.next()]
        while proposal := next((p for p in under_way if p is not None), None):
            under_way.remove(proposal)
            tried.append(real(proposal.point))
            found.tell(proposal, tried[-1])
            under_way.append(found.next())
    beside = best(tried, BUDGET)
    assert alone is not None
    assert alone.measured is not None
    assert beside is not None
    assert beside.measured is not None
    costs = [m.latency.value * m.size_bytes for m in (beside.measured, alone.measured)]
    assert costs[0] <= 1.05 * costs[1]
    assert len(tried) <= 26
