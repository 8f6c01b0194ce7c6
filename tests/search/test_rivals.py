"""Who can still win, by costs and by what was measured."""

import math
from dataclasses import replace

import pytest

from sizewise.search.frontier import best
from sizewise.search.rivals import opponents, outranked, settled
from sizewise.search.spare import spare_of
from sizewise.types import Budget, Candidate, Interval, Measurement, Parity, Plan, Quality

DROP = Budget(max_drop="2 %")


def candidate(name: str, latency: float, size: int, drop: float, *, chance: float | None = None, spread: float = 0.02) -> Candidate:
    measured = Measurement(
        latency=Interval(value=latency, low=latency * (1 - spread), high=latency * (1 + spread), n=9),
        latency_ratio=latency / 10,
        size_bytes=size,
        memory=Interval.exact(1e6),
        quality=Quality(metric="accuracy", higher_is_better=True, score=Interval.exact(0.9 - drop), drop=Interval.exact(drop)),
        parity=Parity(max_abs=0, mean_abs=0, output_scale=1, top1_agreement=1.0, n=1),
        threads=1,
        batch=1,
    )
    return Candidate(id=name, plan=Plan(scale=name), status="measured", measured=measured, proof_chance=chance)


def costs(latency: float, size: int) -> Measurement:
    found = candidate("x", latency, size, 0).measured
    assert found is not None
    return found


WHOLE = candidate("whole", 10, 400, 0.0, chance=1.0)  # the model as it was


def test_a_bold_file_is_best_where_another_can_do_if_it_is_not_proved() -> None:
    bold, sure = candidate("bold", 1, 100, 0.015, chance=0.4), candidate("sure", 4, 100, 0.0, chance=0.95)
    assert best([WHOLE, bold, replace(sure, later_chance=0.9)], DROP) == bold
    vain, doubtful = replace(bold, proof_chance=0.05), replace(sure, later_chance=0.6)
    assert best([WHOLE, vain, doubtful], DROP) == doubtful, "the sure one would not be as sure at the second look"
    free = [replace(c, proof_chance=None) for c in (WHOLE, bold, sure)]
    assert best(free, DROP) == free[1], "no proof is to be had"


def test_where_nothing_will_be_proved_cost_alone_decides() -> None:
    hopeless = [candidate("a", 2, 100, 0.01, chance=0.0), candidate("b", 1, 100, 0.019, chance=0.0)]
    assert best(hopeless, DROP) == hopeless[1]


def test_a_file_is_not_spare_for_itself() -> None:
    bold, sure = candidate("bold", 1, 100, 0.0, chance=0.9), candidate("sure", 4, 100, 0.0, chance=1.0)
    spare = spare_of([WHOLE, bold, sure], DROP)
    assert spare.holder == "bold"
    assert spare.beside("bold") == pytest.approx(math.log(0.4 * 100)), "that of the sure one"
    assert spare.beside("sure") == pytest.approx(0.9 * math.log(0.1 * 100) + 0.1 * math.log(400)), "else the model stays as it was"
    assert spare_of([bold], DROP).beside("bold") == pytest.approx(math.log(100))
    assert spare_of([replace(bold, proof_chance=None)], DROP).beside("x") is None


def test_a_reference_that_would_surely_be_proved_does_not_win_by_that_alone() -> None:
    int8, daring = candidate("int8", 4, 100, 0.0, chance=0.78), candidate("x", 3, 80, 0.01)
    assert best([WHOLE, int8], DROP) == int8
    assert best([WHOLE, replace(int8, later_chance=0.6), replace(daring, proof_chance=0.2)], DROP) == replace(int8, later_chance=0.6)


def test_a_file_whose_proof_is_improbable_is_outranked_although_it_is_cheaper() -> None:
    leader = candidate("leader", 4, 100, 0.0, chance=0.9)
    others = [WHOLE, replace(leader, later_chance=0.7)]
    assert outranked(costs(1, 100), others, DROP, 0.5) is None
    assert outranked(costs(1, 100), others, DROP, 0.1) == others[1]


def test_a_doubtful_file_stays_beaten_while_its_doubt_outweighs_its_costs() -> None:
    leader = replace(candidate("leader", 4, 100, 0.0, chance=0.9), later_chance=0.7)
    slow = replace(candidate("slow", 8, 100, 0.0, chance=0.9), later_chance=0.7)
    doubtful = Candidate(id="d", plan=Plan(scale="d"), status="beaten", partly=costs(1, 100), most_chance=0.15)
    assert settled(doubtful, [WHOLE, leader], DROP)
    assert not settled(doubtful, [WHOLE, replace(slow, proof_chance=0.7)], DROP)
    assert not settled(replace(doubtful, most_chance=None), [WHOLE, leader], DROP)


def test_a_dearer_file_is_outranked_by_one_that_fits() -> None:
    leader = candidate("leader", 1, 100, 0.01)
    assert outranked(costs(2, 100), [leader], DROP) == leader
    assert outranked(costs(2, 40), [leader], DROP) is None, "cheaper by the product"
    assert outranked(costs(1.03, 100), [leader], DROP) is None, "within the noise of both latencies"
    assert outranked(costs(2, 100), [candidate("bad", 1, 100, 0.03)], DROP) is None, "which does not fit"
    assert outranked(costs(2, 100), [leader], Budget()) is None, "quality decides"


def test_a_slow_spell_of_the_machine_outranks_nothing() -> None:
    leader = candidate("leader", 1, 100, 0.01)
    slow = replace(costs(2, 100), latency_ratio=0.09)
    assert outranked(slow, [leader], DROP) is None


def test_a_doubtful_leader_outranks_only_what_is_so_dear_that_certainty_would_not_make_up_for_it() -> None:
    unsure = candidate("leader", 1, 100, 0.01, chance=0.5)
    assert outranked(costs(3, 100), [WHOLE, unsure], DROP) is None
    assert outranked(costs(15, 300), [WHOLE, unsure], DROP) is not None
    assert outranked(costs(3, 100), [WHOLE, replace(unsure, proof_chance=0.9)], DROP) is not None


@pytest.mark.parametrize("budget", [Budget(latency=3, max_drop="2 %"), Budget(latency=3)])
def test_a_file_that_surely_breaks_a_cost_limit_is_outranked_by_whatever_fits(budget: Budget) -> None:
    leader = candidate("leader", 2.5, 100, 0.01, chance=0.5)
    assert outranked(costs(4, 1), [leader], budget) == leader
    assert outranked(costs(3.02, 1), [leader], budget) is None
    assert outranked(costs(4, 1), [], budget) is None, "the nearest is wanted"


def test_opponents_cost_no_more_and_the_best_comes_first() -> None:
    others = [candidate("a", 1, 90, 0.05), candidate("b", 1, 90, 0.03), candidate("larger", 1, 101, 0), candidate("slower", 3, 90, 0)]
    assert [c.id for c in opponents(costs(2, 100), others, DROP)] == ["b", "a"]


def test_without_a_quality_limit_the_opponent_is_the_best_that_fits() -> None:
    others = [candidate("fast", 1, 90, 0.05), candidate("good", 5, 500, 0.0)]
    assert [c.id for c in opponents(costs(2, 100), others, Budget())] == ["good"]
    assert [c.id for c in opponents(costs(2, 100), others, Budget(latency=3))] == ["fast"]


def test_a_beaten_candidate_is_settled_only_while_its_reason_holds() -> None:
    leader = candidate("leader", 1, 100, 0.01)
    beaten = Candidate(id="x", plan=Plan(scale="x"), status="beaten", partly=costs(2, 100))
    assert settled(beaten, [leader], DROP)
    assert not settled(beaten, [leader], Budget(size="90 B", max_drop="2 %")), "the leader does not fit any more"
    assert not settled(beaten, [], DROP)
    by_quality = replace(beaten, beaten_by="bad")
    bad = candidate("bad", 1, 90, 0.05)
    assert settled(by_quality, [bad], DROP)
    assert not settled(by_quality, [candidate("bad", 3, 90, 0.05)], DROP), "it is slower, as it turned out"
