"""A search by several workers, which may end their trials in whatever order: what it tries goes by the order of choice alone."""

import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from tests.search.spaces import BASES, REFERENCE, goal, measured, small_space

from sizewise.evaluate.metrics import find_metric
from sizewise.pipeline import searching
from sizewise.pipeline.searching import Limits, mild_points, search
from sizewise.pipeline.store import Store
from sizewise.protocols import Silent
from sizewise.search.frontier import best
from sizewise.search.planner import Planner, Proposal
from sizewise.search.storage import sqlite_url
from sizewise.search.study import Study
from sizewise.types import Budget, Candidate, Interval, SearchRecord

SPACE = small_space()
BUDGET = Budget(latency="2.5 ms", size="2 MB", max_drop="1 %")
TRIALS = 9


class Scattered:
    """Workers of which a random one ends its trial next, and which remember what they were given.

    Args:
        workers: how many.
        chance: which one; None for the one that began first.
    """

    def __init__(self, workers: int, chance: random.Random | None = None) -> None:
        self.workers, self._chance = workers, chance
        self.begun: list[Proposal] = []
        self.order: list[Proposal] = []
        self.most = 0
        self.furthest = 0

    @property
    def free(self) -> bool:
        return len(self.begun) < self.workers

    @property
    def busy(self) -> bool:
        return bool(self.begun)

    def begin(self, proposal: Proposal) -> None:
        assert self.free
        self.begun.append(proposal)
        self.order.append(proposal)
        self.most = max(self.most, len(self.begun))
        self.furthest = max(self.furthest, len(self.order) - 1 - self.order.index(self.begun[0]))

    def next(self) -> tuple[Proposal, Candidate]:
        ended = self._chance.choice(self.begun) if self._chance else self.begun[0]
        self.begun.remove(ended)
        return ended, measured(SPACE, ended.point)

    def drop(self) -> list[Proposal]:
        dropped, self.begun = self.begun, []
        return dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def study_in(path: Path) -> Study:
    return Study(SPACE, sqlite_url(path), "s", "a", seed=0)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with closing(study_in(tmp_path / "study.db")) as made:
        yield made


def searched(study: Study, hands: Scattered, limits: Limits, *, late: bool = False) -> tuple[list[Candidate], SearchRecord]:
    planner = Planner(SPACE, BUDGET, goal(BUDGET), BASES, study, mild_points(SPACE, "large"), REFERENCE)
    task = SimpleNamespace(metric=find_metric("accuracy"))
    store = SimpleNamespace(identifier=Store.identifier)
    setup: Any = SimpleNamespace(task=task, budget=BUDGET, progress=Silent(), late=late, seconds_left=None, store=store)
    scale: Any = SimpleNamespace(scores=np.ones(100))
    bench: Any = SimpleNamespace(reference_scores=np.ones(100))
    return search(setup, bench, dict.fromkeys(SPACE.scales, scale), planner, hands, limits, ())


def plans(hands: Scattered) -> list[str]:
    return [proposal.plan.id for proposal in hands.order]


@pytest.mark.parametrize("workers", [2, 3])
def test_whoever_is_faster_the_same_plans_are_tried_in_the_same_order(workers: int, tmp_path: Path) -> None:
    found = []
    for seed in (None, 0, 1, 2):
        hands = Scattered(workers, random.Random(seed) if seed is not None else None)
        with closing(study_in(tmp_path / f"{seed}.db")) as made:
            candidates, record = searched(made, hands, Limits(TRIALS))
        assert record.tried == len(candidates) == TRIALS
        assert hands.most == workers, "all are at work"
        found.append(hands)
    assert all(plans(hands) == plans(found[0]) for hands in found)
    assert all([p.rivals for p in hands.order] == [p.rivals for p in found[0].order] for hands in found), "and race against the same"
    assert max(hands.furthest for hands in found) > workers - 1, "a slow trial does not hold up the others at once"


def test_several_workers_find_nearly_what_one_finds(tmp_path: Path) -> None:
    costs = []
    for workers in (1, 2, 4):
        with closing(study_in(tmp_path / f"{workers}.db")) as made:
            candidates, _ = searched(made, Scattered(workers, random.Random(0)), Limits(24))
        leader = best(candidates, BUDGET)
        assert leader is not None
        assert leader.measured is not None
        costs.append(leader.measured.latency.value * leader.measured.size_bytes)
    assert max(costs) <= 1.05 * costs[0]


def test_one_worker_knows_all_that_was_tried_before(study: Study) -> None:
    hands = Scattered(1)
    searched(study, hands, Limits(TRIALS))
    assert [len(proposal.rivals) for proposal in hands.order] == list(range(TRIALS))


def test_it_stops_as_soon_as_something_fits_and_breaks_off_the_rest(study: Study) -> None:
    hands = Scattered(3, random.Random(0))
    candidates, record = searched(study, hands, Limits(TRIALS, stop_at_target=True))
    assert record.ended == "target"
    assert sum(c.fits(BUDGET) for c in candidates) == 1
    assert not hands.busy
    assert len(candidates) < len(hands.order), "what was under way is withdrawn"


class Partly(Scattered):
    """Workers that read a part of validation, the rest of which speaks against a file."""

    def next(self) -> tuple[Proposal, Candidate]:
        ended, candidate = super().next()
        assert candidate.measured is not None
        better = replace(candidate.measured.quality, drop=Interval.exact(0.0))
        return ended, replace(candidate, measured=replace(candidate.measured, quality=better), unread=500)


def test_what_ends_the_search_at_its_target_is_read_to_its_end(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def score_in_full(candidates: Sequence[Candidate], wanted: Sequence[Candidate], *_: Any) -> list[Candidate]:
        assert list(candidates) == list(wanted)
        point = SPACE.find(wanted[0].plan)
        assert point is not None
        read.append(wanted[0].id)
        whole = measured(SPACE, point)
        assert whole.measured is not None
        worse = replace(whole.measured.quality, drop=Interval.exact(0.05))
        return [replace(whole, measured=replace(whole.measured, quality=worse)) if len(read) < 3 else whole]

    monkeypatch.setattr(searching, "score_in_full", score_in_full)
    candidates, record = searched(study, Partly(1), Limits(30, stop_at_target=True))
    assert record.ended == "target"
    (reached,) = (c for c in candidates if c.fits(BUDGET) and not c.unread)
    assert read[-1] == reached.id
    assert len(read) >= 3, "the first fit as far as they were read only"
    assert not any(c.fits(BUDGET) for c in candidates if c.id in read[:-1])


def test_when_it_is_late_what_is_under_way_is_ended_and_nothing_begins(study: Study) -> None:
    hands = Scattered(2)
    candidates, record = searched(study, hands, Limits(TRIALS), late=True)
    assert record.ended == "time"
    assert len(hands.order) == 1
    assert [c.status for c in candidates].count("measured") == 1
    assert {c.status for c in candidates} == {"measured", "untried"}
