"""A study that several runs share: what they learn from each other, and what becomes of trials that are lost with their run."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.postgres import server, why_not
from tests.search.spaces import BASES, REFERENCE, goal, measured, small_space, truth

from sizewise.errors import MissingExtra, UsageError
from sizewise.search import storage as module
from sizewise.search.frontier import best
from sizewise.search.planner import Planner
from sizewise.search.proxy import Observation
from sizewise.search.space import Point
from sizewise.search.storage import sqlite_url
from sizewise.search.study import Study
from sizewise.types import Budget, Candidate

SPACE = small_space()
BUDGET = Budget(latency="2.5 ms", size="2 MB", max_drop="1 %")
MILD = [point for point in SPACE.points if point.levels == ("off", "off", "off", "int8")]
FIRST, SECOND = SPACE.points[3], SPACE.points[7]
Make = Callable[..., Study]


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield "sqlite"
        return
    if reason := why_not():
        pytest.skip(reason)
    with server() as url:
        yield url


@pytest.fixture
def make(database: str, tmp_path: Path) -> Iterator[Make]:
    """A study by its owner and device, on one storage per test."""
    url = sqlite_url(tmp_path / "study.db") if database == "sqlite" else database
    with ExitStack() as stack:

        def made(owner: str, device: str = "here") -> Study:
            study = Study(SPACE, url, str(tmp_path), owner, seed=0, device=device, shared=True)
            stack.enter_context(closing(study))
            return study

        yield made


def planner(study: Study, known: list[Candidate] | None = None) -> Planner:
    return Planner(SPACE, BUDGET, goal(BUDGET), BASES, study, MILD, REFERENCE, known or [])


def tell(study: Study, point: Point, candidate: Candidate | None = None) -> None:
    trial, got = study.ask_for(point)
    assert got == point
    found = candidate or measured(SPACE, point)
    study.tell(trial, found, truth(point) if found.measured else None, {})


def other(point: Point, status: str) -> Candidate:
    plan = SPACE.plan(point)
    return Candidate(id=plan.id, plan=plan, status=status, reason="it is", seconds=1.0)  # type: ignore[arg-type]


def test_what_another_run_on_such_a_device_measured_is_known_and_not_tried_again(make: Make) -> None:
    tell(make("b"), FIRST)
    found, taken = make("a").elsewhere()
    assert [(o.point, o.latency, o.size, o.memory, o.loss) for o in found] == [(FIRST, *truth(FIRST))]
    assert taken == {FIRST}
    assert make("b").elsewhere() == ([], set()), "what a run has done itself its folder says"


def test_of_another_device_sizes_and_losses_count_and_latencies_do_not(make: Make) -> None:
    tell(make("b", "there"), FIRST)
    found, taken = make("a").elsewhere()
    _, size, _, loss = truth(FIRST)
    assert found == [Observation(FIRST, size=size, loss=loss)]
    assert taken == set(), "its latency here is not known"


@pytest.mark.parametrize(("status", "here", "there"), [("stopped", True, True), ("failed", True, True), ("beaten", True, False)])
def test_what_became_of_a_plan_elsewhere_counts_as_far_as_the_device_did_not_decide(
    status: str, here: bool, there: bool, make: Make
) -> None:
    tell(make("b", "here"), FIRST, other(FIRST, status))
    tell(make("c", "there"), SECOND, other(SECOND, status))
    found, taken = make("a").elsewhere()
    assert found == []
    assert (FIRST in taken, SECOND in taken) == (here, there)


def test_who_asks_first_tries_a_plan(make: Make) -> None:
    one, two, three = make("a"), make("b"), make("c", "there")
    asked = [study.ask_for(FIRST)[0] for study in (one, two, three)]
    assert [study.first_at(trial, FIRST) for study, trial in zip((one, two, three), asked, strict=True)] == [True, False, True]
    assert one.running_elsewhere() == 2
    two.withdraw(asked[1])
    assert one.running_elsewhere() == 1
    assert FIRST in two.elsewhere()[1]


def test_searches_beside_each_other_share_out_the_plans_and_find_what_one_finds(make: Make) -> None:
    with_nobody = list(whole(planner(make("alone"))))
    tried: dict[str, list[Candidate]] = {"a": [], "b": []}
    planners = {owner: planner(make(owner)) for owner in tried}
    under_way = {owner: planners[owner].next() for owner in tried}
    while any(under_way.values()):
        for owner, proposal in under_way.items():
            if proposal is not None:
                tried[owner].append(measured(SPACE, proposal.point))
                planners[owner].tell(proposal, tried[owner][-1])
        under_way = {owner: planners[owner].next() for owner in tried}
    mild = {SPACE.plan(point).id for point in MILD}
    twice = {c.id for c in tried["a"]} & {c.id for c in tried["b"]}
    assert len(twice - mild) <= 1, "the best of one run is made by the other, too"
    found, wanted = (best(candidates, BUDGET) for candidates in ([*tried["a"], *tried["b"]], with_nobody))
    assert found is not None
    assert wanted is not None
    assert found.measured is not None
    assert wanted.measured is not None
    costs = [m.latency.value * m.size_bytes for m in (found.measured, wanted.measured)]
    assert costs[0] <= 1.05 * costs[1]


def whole(found: Planner) -> Iterator[Candidate]:
    while (proposal := found.next()) is not None:
        candidate = measured(SPACE, proposal.point)
        found.tell(proposal, candidate)
        yield candidate


def test_a_worker_does_not_make_the_best_of_others_again(make: Make) -> None:
    for candidate in whole(planner(make("b"))):
        assert candidate.measured
    study = make("a")
    tried = [c.id for c in whole(Planner(SPACE, BUDGET, goal(BUDGET), BASES, study, [], REFERENCE, borrows=False))]
    assert tried == []
    study = make("c")
    (made,) = whole(Planner(SPACE, BUDGET, goal(BUDGET), BASES, study, [], REFERENCE))
    assert made.measured


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 1)
    monkeypatch.setattr(module, "GRACE_S", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_a_trial_that_is_lost_with_its_run_is_tried_by_another_and_one_that_lives_is_not(make: Make) -> None:
    def ask(point: Point, pipe: object) -> None:
        make("lost").ask_for(point)
        pipe.send_bytes(b"asked")  # type: ignore[attr-defined]
        time.sleep(60)

    mine, theirs = multiprocessing.get_context("fork").Pipe()
    lost = multiprocessing.get_context("fork").Process(target=ask, args=(FIRST, theirs))
    lost.start()
    mine.recv_bytes()
    living = make("living")
    trial, _ = living.ask_for(SECOND)
    os.kill(lost.pid or 0, signal.SIGKILL)
    lost.join()
    lost.close()
    study = make("a")
    assert study.elsewhere()[1] == {FIRST, SECOND}
    limit = time.monotonic() + 20
    while not study.waiting():
        assert time.monotonic() < limit
        time.sleep(0.2)
    proposal = planner(study).next()
    assert proposal is not None
    assert proposal.point == FIRST
    assert study.elsewhere()[1] == {SECOND}
    living.tell(trial, measured(SPACE, SECOND), truth(SECOND), {})
    assert [o.point for o in study.elsewhere()[0]] == [SECOND]


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_what_a_run_finishes_after_the_others_gave_it_up_counts(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, watching = make("silent"), make("a")
    assert silent._heart is not None
    trial, _ = silent.ask_for(FIRST)
    silent._heart.end(trial._trial_id)  # as on a machine that slept
    limit = time.monotonic() + 20
    while not watching.waiting():
        assert time.monotonic() < limit
        time.sleep(0.2)
    silent.tell(trial, measured(SPACE, FIRST), truth(FIRST), {})
    assert [o.point for o in watching.elsewhere()[0]] == [FIRST]
    proposal = planner(watching).next()
    assert proposal is not None
    assert proposal.point != FIRST, "that it was put back is forgotten"


def test_a_password_is_not_told() -> None:
    with pytest.raises((UsageError, MissingExtra)) as caught:
        Study(SPACE, "postgresql+psycopg://me:secret@127.0.0.1:1/x", "s", "a", seed=0)
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(find_spec("psycopg2") is not None, reason="it is installed")
def test_a_driver_that_is_missing_is_named_with_how_to_install_it() -> None:
    with pytest.raises(MissingExtra, match=r"sizewise\[postgresql\]"):
        Study(SPACE, "postgresql+psycopg2://me@127.0.0.1:1/x", "s", "a", seed=0)
