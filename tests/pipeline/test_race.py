"""Races of modules and files: what stops them, what they say, how rarely they are wrong, and what they save."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sizewise.evaluate.metrics import METRICS, Metric
from sizewise.evaluate.proof import proof_chance
from sizewise.evaluate.racing import RACING_ERROR, Order, shuffled
from sizewise.evaluate.scoring import Split, quality
from sizewise.pipeline import turns
from sizewise.pipeline.race import race_file, race_module
from sizewise.pipeline.settle import matter_after_all
from sizewise.pipeline.store import save_scores
from sizewise.pipeline.trial import Bench
from sizewise.protocols import Context, Inputs
from sizewise.search.frontier import best
from sizewise.testing import NullRuntime
from sizewise.types import Budget, Candidate, Interval, Judgement, LimitVerdict, Measurement, Parity, Plan, Quality, Verdict

LIMIT = Budget(max_drop="1 %")
Scores = np.ndarray


@dataclass
class Known:
    """A sample whose models are their scores: what is "called" is an array."""

    order: Order
    read: int = 0

    def scores(self, call: Any, metric: Metric, reference: Any, start: int, stop: int) -> Scores:
        found: Scores = call[np.concatenate(self.order.parts[start:stop])]
        self.read += len(found)
        return found


class ArrayBench(Bench):
    """A bench whose models are their scores."""

    def quality_of(self, call: Any) -> tuple[Quality, Scores]:
        return quality(call, self.metric, self.reference_scores), call


def bench(reference: Scores, budget: Budget = LIMIT, *, seed: int = 0, metric: str | Metric = "accuracy", by: str = "examples") -> Bench:
    count = len(reference)
    return ArrayBench(
        runtime=NullRuntime(),
        context=Context(Inputs((torch.zeros(1),))),
        validation=Split("validation", []),
        metric=METRICS[metric] if isinstance(metric, str) else metric,
        budget=budget,
        threads=1,
        batch=1,
        reference=nn.Identity(),
        reference_scores=reference,
        sample=Known(shuffled([25] * (count // 25), seed, by)),  # type: ignore[arg-type]
    )


def population(count: int, drop: float, *, better: float = 0.01, seed: int = 0) -> tuple[Scores, Scores]:
    rng = np.random.default_rng(seed)
    wrong = round(0.1 * count)
    reference = np.repeat([1.0, 0.0], [count - wrong, wrong])
    return reference, other(reference, drop, better, rng)


def other(reference: Scores, drop: float, better: float, rng: np.random.Generator, ease: Scores | None = None) -> Scores:
    """One that loses and wins at random; with `ease`, it loses four in five among the tenth of examples where that is largest."""
    count, candidate = len(reference), reference.copy()
    right = np.flatnonzero(reference == 1)
    shares = None
    if ease is not None:
        shares = np.ones(len(right))
        shares[np.argsort(-ease[right])[: count // 10]] *= 4 * (len(right) - count // 10) / (count // 10)
        shares /= shares.sum()
    candidate[rng.choice(right, round((drop + better) * count), replace=False, p=shares)] = 0
    candidate[rng.choice(np.flatnonzero(reference == 0), round(better * count), replace=False)] = 1
    return candidate


def costs(latency: float, size: int = 1000) -> Measurement:
    return Measurement(
        latency=Interval(value=latency, low=0.98 * latency, high=1.02 * latency, n=9),
        latency_ratio=latency,
        size_bytes=size,
        memory=Interval.exact(1e6),
        quality=Quality(metric="accuracy", higher_is_better=True, score=Interval.exact(0)),
        parity=Parity(max_abs=0, mean_abs=0, output_scale=1, top1_agreement=1.0, n=1),
        threads=1,
        batch=1,
    )


def finished(name: str, latency: float, scores: Scores, bench: Bench, folder: Path) -> Candidate:
    save_scores(folder / name / "scores.npy", scores)
    found = quality(scores, bench.metric, bench.reference_scores)
    measured = replace(costs(latency), quality=found)
    return bench.with_chances(Candidate(id=name, plan=Plan(scale=name), status="measured", measured=measured))


def test_a_module_that_surely_breaks_the_limit_is_given_up_and_says_what_is_known() -> None:
    reference, bad = population(5000, 0.10)
    raced = race_module(bad, bench(reference))  # type: ignore[arg-type]
    assert raced.stopped is not None
    assert f"dropped after {raced.evaluated} of 5,000 validation examples: the drop on all of them is at least" in raced.stopped
    assert raced.stopped.endswith("more than 1.00 pt")
    assert raced.evaluated <= 1250


@pytest.mark.parametrize(("drop", "most"), [(0.0, 500), (0.012, 1300)])
def test_a_module_that_may_fit_is_let_go_on_after_a_part(drop: float, most: int) -> None:
    reference, fine = population(5000, drop)
    raced = race_module(fine, bench(reference))  # type: ignore[arg-type]
    assert raced.stopped is None
    assert raced.evaluated <= most


def test_a_module_is_not_scored_at_all_without_a_quality_limit() -> None:
    reference, bad = population(1000, 0.5)
    assert race_module(bad, bench(reference, Budget(size="1 MB"))).evaluated == 0  # type: ignore[arg-type]


def test_where_everything_is_read_a_module_is_given_up_only_when_no_luck_could_save_it() -> None:
    reference, slightly = population(25, 0.04, better=0.0)
    assert race_module(slightly, bench(reference, Budget(max_drop="1 %"))).stopped is None  # type: ignore[arg-type]
    _, clearly = population(25, 0.4, better=0.0)
    assert "drop on validation is at least" in str(race_module(clearly, bench(reference)).stopped)  # type: ignore[arg-type]


def test_scores_without_known_bounds_are_evaluated_in_full() -> None:
    own = Metric("own", METRICS["accuracy"].score)
    reference, bad = population(2000, 0.2)
    one = bench(reference, metric=own)
    raced = race_module(bad, one)  # type: ignore[arg-type]
    assert raced.evaluated == 2000
    assert raced.stopped is not None
    assert "drop on validation is at least" in raced.stopped
    file = race_file(bad, costs(1), Path(), one, [])  # type: ignore[arg-type]
    assert (file.evaluated, file.status) == (2000, "measured")


@pytest.mark.parametrize("higher", [True, False])
def test_a_least_quality_is_a_largest_drop_from_what_the_reference_scores(higher: bool) -> None:
    reference, bad = population(5000, 0.10)
    metric = METRICS["accuracy"] if higher else replace(METRICS["accuracy"], higher_is_better=False, name="error")
    one = bench(reference if higher else 1 - reference, Budget(min_quality="89 %" if higher else "11 %"), metric=metric)
    raced = race_file(bad if higher else 1 - bad, costs(1), Path(), one, [])  # type: ignore[arg-type]
    assert raced.status == "stopped"
    assert raced.reason is not None
    words = "accuracy on all of them is at most" if higher else "error on all of them is at least"
    assert words in raced.reason
    assert raced.evaluated < 2000
    assert raced.found.score.n == raced.evaluated


@pytest.mark.parametrize("by", ["examples", "batches"])
def test_a_file_that_fits_is_scored_in_full_and_in_order(by: str) -> None:
    reference, good = population(2000, 0.002)
    raced = race_file(good, costs(1), Path(), bench(reference, by=by), [])  # type: ignore[arg-type]
    assert raced.scores is not None
    assert np.array_equal(raced.scores, good)
    assert (raced.status, raced.reason, raced.evaluated) == ("measured", None, 2000)
    assert raced.found == quality(good, METRICS["accuracy"], reference)


def test_a_file_that_cannot_win_by_its_costs_gets_the_first_lap_only(tmp_path: Path) -> None:
    reference, good = population(5000, 0.0)
    one = bench(reference)
    leader = finished("leader", 1.0, good, one, tmp_path)
    raced = race_file(good, costs(2.0), tmp_path / "x", one, [leader])  # type: ignore[arg-type]
    assert (raced.status, raced.evaluated) == ("beaten", 100)
    assert "leader, float fits the budget and is chosen first" in str(raced.reason)
    assert raced.scores is None
    assert raced.found.drop is not None
    assert raced.found.drop.low < raced.found.drop.value < raced.found.drop.high
    assert race_file(good, costs(0.5), tmp_path / "x", one, [leader]).status == "measured"  # type: ignore[arg-type]


def test_a_file_whose_proof_is_too_improbable_for_its_costs_is_beaten(tmp_path: Path) -> None:
    reference, good = population(5000, 0.004)
    ease = np.random.default_rng(0).random(5000)
    order = shuffled([25] * 200, 0, "examples", changeable=np.where(reference == 1, ease, np.inf))
    one = replace(bench(reference), test_examples=5000, sample=Known(order))  # type: ignore[arg-type]
    leader = finished("leader", 0.3, good, one, tmp_path)
    doubtful = other(reference, 0.0095, 0.005, np.random.default_rng(1), ease)  # it keeps the limit of one point
    raced = race_file(doubtful, costs(0.28), tmp_path / "x", one, [leader])  # type: ignore[arg-type]
    assert (raced.status, raced.beaten_by) == ("beaten", None)
    assert raced.evaluated < 5000
    assert "leader, float is chosen first: here a proof has a chance of at most" in str(raced.reason)
    assert raced.most_chance is not None
    actual = proof_chance(quality(doubtful, one.metric, reference), one.budget, one.test_examples, one.level)
    assert actual is not None
    assert actual <= raced.most_chance < 0.9
    cheap = race_file(doubtful, costs(1e-5), tmp_path / "x", one, [leader])  # type: ignore[arg-type]
    assert cheap.status == "measured", "so little latency is worth that doubt"
    unseen = race_file(doubtful, costs(0.28), tmp_path / "x", replace(one, test_examples=0), [leader])  # type: ignore[arg-type]
    assert unseen.status == "measured", "nothing is to be proved"


def test_a_file_that_may_be_chosen_waits_where_what_is_left_can_only_make_it_worse(tmp_path: Path) -> None:
    reference, good = population(5000, 0.004)
    ease = np.random.default_rng(0).random(5000)
    order = shuffled([25] * 200, 0, "examples", changeable=np.where(reference == 1, ease, np.inf))
    one = replace(bench(reference), test_examples=5000, sample=Known(order))  # type: ignore[arg-type]
    fair = other(reference, 0.002, 0.01, np.random.default_rng(1), ease)
    alone = race_file(fair, costs(0.2), tmp_path / "x", one, None)  # type: ignore[arg-type]
    assert (alone.status, alone.evaluated) == ("measured", 5000)
    dear = race_file(fair, costs(0.2), tmp_path / "x", replace(one, budget=Budget(max_drop="1 %", latency="1 ms")), [])  # type: ignore[arg-type]
    assert (dear.status, dear.evaluated) == ("measured", 5000), "it will not be chosen, but may be the nearest"
    leader = finished("leader", 0.3, good, one, tmp_path)
    raced = race_file(fair, costs(0.2), tmp_path / "x", one, [leader])  # type: ignore[arg-type]
    assert (raced.status, raced.scores, raced.evaluated, raced.reason) == ("measured", None, len(order.drawn), None)
    measured = replace(costs(0.2), quality=raced.found)
    waiting = one.with_chances(replace(leader, id="x", measured=measured, unread=5000 - raced.evaluated))
    read = one.with_chances(replace(leader, id="x", measured=replace(measured, quality=quality(fair, one.metric, reference))))
    assert waiting.proof_chance is not None
    assert read.proof_chance is not None
    assert waiting.proof_chance >= read.proof_chance > 0.5, "nothing that is left speaks for it"
    assert matter_after_all([leader, waiting], LIMIT) == [waiting]
    assert matter_after_all([leader, read], LIMIT) == []
    alike = replace(one, sample=Known(shuffled([25] * 200, 0, "examples")))  # type: ignore[arg-type]
    assert race_file(fair, costs(0.2), tmp_path / "x", alike, [leader]).evaluated == 5000  # type: ignore[arg-type]


def verdict(judgement: Judgement) -> Verdict:
    row = LimitVerdict(limit="max_drop", judgement=judgement, figure=Interval.exact(0), allowed=0.01, reason="")
    return Verdict(judgement=judgement, limits=(row,))


def test_a_file_that_waits_is_read_to_its_end_before_a_look_is_spent_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "looks_of", lambda _: SimpleNamespace(next_level=0.008))
    monkeypatch.setattr(turns, "looked_at", lambda *_: False)
    reference, good = population(5000, 0.0)
    one = replace(bench(reference), test_examples=5000)
    safe = finished("safe", 0.5, good, one, tmp_path)
    ends = {
        name: finished(name, latency, other(reference, drop, 0.01, np.random.default_rng(1)), one, tmp_path)
        for name, latency, drop in (("first", 0.2, 0.009), ("bold", 0.3, 0.008))
    }
    waits = replace(safe, id="bold", measured=replace(costs(0.3), quality=safe.measured.quality), unread=3000)  # type: ignore[union-attr]
    read: list[str] = []

    def take(candidate: Candidate) -> turns.Turn:
        assert candidate.id == "safe", "the bold one is seen to be doubtful before"
        return turns.Turn(candidate, verdict("proved"))

    def whole(candidate: Candidate) -> Candidate:
        read.append(candidate.id)
        return ends[candidate.id]

    first = turns.Turn(ends["first"], verdict("undecided"))
    found = turns.in_turn(first, [waits, safe], SimpleNamespace(budget=LIMIT), one, take, whole)  # type: ignore[arg-type]
    assert found.candidate.id == "safe"
    assert read == ["bold"]


def test_a_file_that_is_no_better_than_a_cheaper_one_is_beaten(tmp_path: Path) -> None:
    reference, fair = population(5000, 0.012)
    one = bench(reference)
    worse = other(fair, 0.05, 0.0, np.random.default_rng(1))
    cheaper = finished("cheaper", 1.0, fair, one, tmp_path)
    strict = replace(one, budget=Budget(max_drop="9 %", size="10 B"))  # so that no limit is broken, and nothing fits
    raced = race_file(worse, costs(2.0), tmp_path / "x", strict, [cheaper])  # type: ignore[arg-type]
    assert (raced.status, raced.beaten_by) == ("beaten", "cheaper")
    assert "cheaper, float is surely as good at no greater cost" in str(raced.reason)
    assert raced.evaluated < 2000
    assert race_file(worse, costs(0.5), tmp_path / "x", strict, [cheaper]).status == "measured"  # type: ignore[arg-type]


def test_without_a_quality_limit_a_file_races_against_the_best_that_fits(tmp_path: Path) -> None:
    reference, good = population(5000, 0.0)
    one = bench(reference, Budget(size="1 MB"))
    leader = finished("leader", 5.0, good, one, tmp_path)
    bad = other(reference, 0.05, 0.01, np.random.default_rng(1))
    raced = race_file(bad, costs(1.0), tmp_path / "x", one, [leader])  # type: ignore[arg-type]
    assert (raced.status, raced.beaten_by) == ("beaten", "leader")
    assert race_file(good, costs(1.0), tmp_path / "x", one, [leader]).status == "measured"  # type: ignore[arg-type]


def test_what_is_told_of_a_dropped_file_is_of_the_whole_split() -> None:
    """Also where the examples that it was scored on are those that change most easily."""
    reference, ease = population(5000, 0)[0], np.random.default_rng(0).random(5000)
    bad = other(reference, 0.05, 0.01, np.random.default_rng(1), ease)
    order = shuffled([25] * 200, 0, "examples", changeable=np.where(reference == 1, ease, np.inf))
    raced = race_file(bad, costs(1), Path(), replace(bench(reference), sample=Known(order)), [])  # type: ignore[arg-type]
    assert raced.status == "stopped"
    assert raced.evaluated < 1000
    assert raced.found.drop is not None
    assert raced.found.drop.value == pytest.approx(0.05, abs=0.02)
    assert raced.found.drop.low < raced.found.drop.value < raced.found.drop.high
    score = raced.found.score
    assert score.value == pytest.approx(0.9 - raced.found.drop.value)
    assert score.low < score.value < score.high


@pytest.mark.parametrize("higher", [True, False])
def test_no_end_of_an_interval_is_better_than_the_best_score(higher: bool, tmp_path: Path) -> None:
    reference = np.repeat([1.0, 0.0], [1990, 10])
    candidate = other(reference, 0.002, 0.002, np.random.default_rng(0))
    metric = METRICS["accuracy"] if higher else replace(METRICS["accuracy"], higher_is_better=False, name="error")
    scores, good = (reference, candidate) if higher else (1 - reference, 1 - candidate)
    order = shuffled([25] * 80, 0, "examples", changeable=np.where(reference == 1, np.random.default_rng(0).random(2000), np.inf))
    one = replace(bench(scores, metric=metric), sample=Known(order))  # type: ignore[arg-type]
    leader = finished("leader", 0.3, scores, one, tmp_path)
    found = race_file(good, costs(2.0), tmp_path / "x", one, [leader]).found.score  # type: ignore[arg-type]
    assert found.n < 2000
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_file_at_the_limit_is_dropped_as_rarely_as_said() -> None:
    dropped, runs = 0, 200
    for seed in range(runs):
        reference, edge = population(2000, 0.01, seed=seed)
        dropped += race_file(edge, costs(1), Path(), bench(reference, seed=seed), []).status == "stopped"  # type: ignore[arg-type]
    assert dropped / runs <= RACING_ERROR + 2 * math.sqrt(RACING_ERROR * (1 - RACING_ERROR) / runs)


# drop, and latency of the file, in the order of trying: int8 first, then pruned ones
TYPICAL = ((0.002, 0.50), (0.01, 0.70), (0.02, 0.40), (0.05, 0.30), (0.10, 0.20))


def _search(
    count: int, seed: int, folder: Path, tries: Sequence[tuple[float, float]], tested: int = 0, *, eased: bool = False
) -> tuple[str | None, str | None, int, int]:
    """The choice of a search that races and of one that does not, and the examples that each of them scores files on."""
    rng = np.random.default_rng(seed)
    reference = population(count, 0)[0]
    ease = rng.random(count) if eased else None
    order = shuffled([25] * (count // 25), seed, "examples", changeable=None if ease is None else np.where(reference == 1, ease, np.inf))
    one = replace(bench(reference, seed=seed), test_examples=tested, sample=Known(order))  # type: ignore[arg-type]
    raced: list[Candidate] = []
    whole: list[Candidate] = []
    evaluated = 0
    for index, (drop, latency) in enumerate(tries):
        name, scores = f"c{index}", other(reference, drop, 0.005, rng, ease)
        whole.append(finished(name, latency, scores, one, folder))
        file = race_file(scores, costs(latency), folder / name, one, raced)  # type: ignore[arg-type]
        evaluated += file.evaluated
        if file.status == "measured":
            measured, unread = replace(costs(latency), quality=file.found), count - file.evaluated
            raced.append(one.with_chances(replace(whole[-1], measured=measured, unread=unread)))
    while wanted := [c for c in matter_after_all(raced, LIMIT) if c.unread]:
        evaluated += sum(c.unread for c in wanted)
        ends = {c.id: next(found for found in whole if found.id == c.id) for c in wanted}
        raced = [ends.get(c.id, c) for c in raced]
    ids = [chosen.id if chosen else None for chosen in (best(raced, LIMIT), best(whole, LIMIT))]
    return ids[0], ids[1], evaluated, count * len(tries)


@pytest.mark.parametrize(
    ("count", "tested", "eased", "saving"),
    [(2000, 0, False, 2.5), (5000, 0, False, 3.1), (10_000, 0, False, 3.5), (2000, 5000, False, 2.5), (2000, 5000, True, 3.2)],
)
def test_a_typical_search_chooses_the_same_and_scores_far_fewer_examples(
    count: int, tested: int, eased: bool, saving: float, tmp_path: Path
) -> None:
    same, evaluated, in_full = 0, 0, 0
    for seed in range(12):
        found, wanted, some, everything = _search(count, seed, tmp_path, TYPICAL, tested, eased=eased)
        same, evaluated, in_full = same + (found == wanted), evaluated + some, in_full + everything
    assert same == 12
    assert in_full / evaluated >= saving


@pytest.mark.parametrize(("tested", "eased"), [(0, False), (3000, False), (3000, True)])
def test_searches_near_the_limit_choose_what_full_evaluation_chooses(tested: int, eased: bool, tmp_path: Path) -> None:
    same, runs = 0, 25
    for seed in range(runs):
        rng = np.random.default_rng(1000 + seed)
        tries = [(float(rng.choice([0.0, 0.005, 0.009, 0.01, 0.011, 0.02, 0.04])), float(rng.uniform(0.1, 1))) for _ in range(6)]
        found, wanted, _, _ = _search(1000, seed, tmp_path, tries, tested, eased=eased)
        same += found == wanted
    assert same >= math.floor(runs * (1 - 3 * RACING_ERROR))
