"""Races: laps, orders, hurdles, what is found broken, and how often wrongly."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.errors import UsageError
from sizewise.evaluate.racing import FIRST, FIRST_SHARE, Hurdle, Lap, Order, ScoreRange, laps, shuffled

RIGHT = ScoreRange(higher_is_better=True, best=1.0)


def run(scores: np.ndarray, order: Order, hurdles: list[Hurdle], known: ScoreRange = RIGHT) -> list[Lap]:
    """All laps until something is broken."""
    found = []
    for lap in laps(lambda start, stop: scores[np.concatenate(order.parts[start:stop])], order, hurdles, known):
        found.append(lap)
        if lap.broken:
            break
    return found


def pair(count: int, worse: int, better: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a reference that is right on nine in ten, and of a candidate that differs on some."""
    rng = np.random.default_rng(seed)
    reference = rng.permutation(np.repeat([1.0, 0.0], [count - count // 10, count // 10]))
    candidate = reference.copy()
    candidate[rng.choice(np.flatnonzero(reference == 1), worse, replace=False)] = 0
    candidate[rng.choice(np.flatnonzero(reference == 0), better, replace=False)] = 1
    return reference, candidate


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.sampled_from(["examples", "batches"]), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_every_example_is_read_once_and_comes_back_to_its_place(sizes: list[int], by: str, seed: int) -> None:
    order = shuffled(sizes, seed, by)  # type: ignore[arg-type]
    scores = np.random.default_rng(0).random(sum(sizes))
    found = run(scores, order, [])
    assert np.array_equal(order.restored(found[-1].scores), scores)
    assert [lap.whole for lap in found] == [False] * (len(found) - 1) + [True]
    assert sorted(map(len, order.parts)) == sorted(sizes), "pieces are as large as the loader's batches"
    for lap in found:
        assert np.array_equal(lap.scores, scores[lap.examples])
    assert order.count == sum(sizes)


def test_laps_grow_from_a_first_one_that_is_small() -> None:
    order = shuffled([10] * 500, 0, "examples")
    read = [len(lap.scores) for lap in run(np.zeros(5000), order, [])]
    assert read[0] == FIRST
    assert all(1.15 <= b / a <= 1.25 for a, b in itertools.pairwise(read[:-1]))
    assert read[-1] == 5000


def test_the_order_is_the_seeds() -> None:
    one, same, other = (shuffled([8] * 20, seed, "examples") for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one.parts, same.parts, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))


@pytest.mark.parametrize(("by", "most"), [("examples", 0.2), ("batches", 0.6)])
def test_a_clear_drop_is_broken_early_and_the_bound_is_below_the_truth(by: str, most: float) -> None:
    reference, candidate = pair(4000, 420, 20)
    order = shuffled([16] * 250, 0, by)  # type: ignore[arg-type]
    last = run(candidate, order, [Hurdle("max_drop", reference, 0.01)])[-1]
    assert last.broken is not None
    assert last.broken.hurdle.name == "max_drop"
    assert 0.01 < last.broken.least <= 0.1
    assert len(last.scores) < most * 4000


def test_the_first_hurdle_that_is_broken_is_named_and_the_rest_kept() -> None:
    reference, candidate = pair(4000, 420, 20)
    same = Hurdle("rival", candidate.copy(), 0.0)
    assert run(candidate, shuffled([16] * 250, 0, "examples"), [same])[-1].whole
    last = run(candidate, shuffled([16] * 250, 0, "examples"), [same, Hurdle("max_drop", reference, 0.01)])[-1]
    assert last.broken is not None
    assert last.broken.hurdle.name == "max_drop"


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_races_too_since_it_cannot_be_less_than_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.exponential(0.3, 4000)
    candidate = reference + rng.exponential(0.2, 4000)
    known = ScoreRange(higher_is_better=False, best=0.0)
    last = run(candidate, shuffled([16] * 250, seed, "examples"), [Hurdle("max_drop", reference, 0.05)], known)[-1]
    assert last.broken is not None
    assert 0.05 < last.broken.least <= float(np.mean(candidate - reference))
    assert not last.whole
    assert run(reference + 0.04, shuffled([16] * 250, seed, "examples"), [Hurdle("max_drop", reference, 0.05)], known)[-1].whole


def test_scores_without_a_best_are_never_broken_early() -> None:
    reference, candidate = pair(2000, 800, 0)
    last = run(candidate, shuffled([20] * 100, 0, "examples"), [Hurdle("max_drop", reference, 0.01)], ScoreRange(True, math.inf))[-1]
    assert last.whole
    assert last.broken is None


def test_scores_beyond_the_best_are_refused() -> None:
    with pytest.raises(UsageError, match="beyond the metric's bounds"):
        run(np.full(200, 1.5), shuffled([20] * 10, 0, "examples"), [])


def changeable(reference: np.ndarray, candidate: np.ndarray, seed: int, noise: float) -> np.ndarray:
    """Infinite where the reference is wrong; else what makes those that the candidate loses likely, but not sure, to come first."""
    rng = np.random.default_rng(seed)
    return np.where(reference < 1, np.inf, (candidate < reference) + rng.normal(0, noise, len(reference)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_what_changes_easily_comes_first_and_everything_once(sizes: list[int], seed: int) -> None:
    ease = np.random.default_rng(seed).permutation(np.repeat([np.inf, 1.0, 0.0], [1, sum(sizes) // 4, sum(sizes) - 1 - sum(sizes) // 4]))
    order = shuffled(sizes, seed, "examples", changeable=ease)
    assert order.first is not None
    assert [len(part) for part in order.parts] == sizes
    assert sorted(np.concatenate(order.parts)) == list(range(sum(sizes)))
    later = np.concatenate([*order.parts[order.first :], np.empty(0, int)]).astype(int)
    assert len(order.drawn) >= len(ease) / 3
    assert ease[order.drawn].min() >= max(ease[later], default=0)
    scores = np.random.default_rng(0).random(sum(sizes))
    laps_end = [len(lap.scores) for lap in run(scores, order, [])]
    least = min(FIRST, FIRST_SHARE * sum(sizes))
    assert len(order.drawn) in laps_end or len(order.drawn) < least, "a lap ends where nothing is left to estimate of them"
    assert laps_end[0] >= least, "and the first one is no shorter for that"


def test_a_small_loss_is_found_after_the_examples_that_change_easily() -> None:
    reference, candidate = pair(3000, 75, 30)  # one and a half points
    hurdle = Hurdle("max_drop", reference, 0.01)
    alike = run(candidate, shuffled([20] * 150, 0, "examples"), [hurdle])[-1]
    first = run(candidate, shuffled([20] * 150, 0, "examples", changeable=changeable(reference, candidate, 0, 0.3)), [hurdle])[-1]
    assert first.broken is not None
    assert len(first.scores) <= 1000
    assert len(first.scores) < 0.5 * len(alike.scores)
    assert 0.01 < first.broken.least <= 0.015


def test_beyond_the_first_group_only_what_is_sure_counts() -> None:
    """The one loss that decides lies among the last."""
    reference = np.repeat([0.0, 1.0], [100, 900])
    candidate = reference.copy()
    candidate[-12:] = 0
    ease = np.where(reference < 1, np.inf, -np.arange(1000.0))  # the last change least
    found = run(candidate, shuffled([20] * 50, 0, "examples", changeable=ease), [Hurdle("max_drop", reference, 0.01)])
    assert found[-1].broken is None or 0.01 < found[-1].broken.least <= 0.012
    assert len(found[-1].scores) > 340


@pytest.mark.parametrize("noise", [0.2, 1.0, 5.0])
def test_a_candidate_at_the_limit_is_dropped_as_rarely_whatever_comes_first(noise: float) -> None:
    error, dropped, runs = 0.05, 0, 150
    for seed in range(runs):
        reference, candidate = pair(1000, 30, 20, seed)  # exactly one point
        order = shuffled([20] * 50, seed, "examples", changeable=changeable(reference, candidate, seed, noise))
        dropped += run(candidate, order, [Hurdle("max_drop", reference, 0.01, error)])[-1].broken is not None
    assert dropped / runs <= error + 2 * math.sqrt(error * (1 - error) / runs)


@pytest.mark.parametrize("by", ["examples", "batches"])
def test_a_candidate_at_the_limit_is_dropped_as_rarely_as_said(by: str) -> None:
    error, dropped, runs = 0.05, 0, 150
    for seed in range(runs):
        reference, candidate = pair(1000, 30, 20, seed)  # exactly one point
        order = shuffled([20] * 50, seed, by)  # type: ignore[arg-type]
        dropped += run(candidate, order, [Hurdle("max_drop", reference, 0.01, error)])[-1].broken is not None
    assert dropped / runs <= error + 2 * math.sqrt(error * (1 - error) / runs)
