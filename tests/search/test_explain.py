"""What is said about a choice, on make-believe files."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.search.explain import Reference, companions, explain
from sizewise.types import Budget, Candidate, Explanation, Gain, Interval, Measurement, Neighbour, Parity, Plan, Quality, Step

INT8, INT4 = Step(technique="int8_static"), Step(technique="int8_static", settings={"weight_bits": 4})
RECOVERY = Step(technique="recovery", settings={"epochs": 1})
RANK = Step(technique="low_rank", settings={"rate": 0.4})
REFERENCE = Reference(scale="large", size_bytes=4000, runtime="onnxruntime", scales=("large", "small", "small@24"))
DROP = Budget(max_drop="2 %")


def prune(rate: float) -> Step:
    return Step(technique="channel_pruning", settings={"rate": rate})


def measurement(latency: float, size: int, drop: float, spread: float = 0.01) -> Measurement:
    return Measurement(
        latency=Interval(value=latency, low=latency / (1 + spread), high=latency * (1 + spread), n=9),
        latency_ratio=latency / 10,
        size_bytes=size,
        memory=Interval.exact(1e6),
        quality=Quality(metric="accuracy", higher_is_better=True, score=Interval.exact(0.9 - drop), drop=Interval.exact(drop)),
        parity=Parity(max_abs=0, mean_abs=0, output_scale=1, top1_agreement=1.0, n=1),
        threads=1,
        batch=1,
    )


def file(scale: str, *steps: Step, latency: float = 1, size: int = 1000, drop: float = 0.0, **fields: Any) -> Candidate:
    plan = Plan(scale=scale, steps=steps)
    fields = {"status": "measured", "measured": measurement(latency, size, drop), **fields}
    return Candidate(id=plan.id, plan=plan, **fields)


def unmeasured(scale: str, *steps: Step, status: str, reason: str = "why") -> Candidate:
    return file(scale, *steps, status=status, measured=None, reason=reason)


WHOLE = file("large", latency=8, size=4100)
WHOLE8 = file("large", INT8, latency=4, size=1100)
SMALL8 = file("small", INT8, latency=2, size=500, drop=0.005)
PRUNED8 = file("small", prune(0.5), INT8, latency=1, size=300, drop=0.01)
ALL = (WHOLE, WHOLE8, SMALL8, PRUNED8)


def told(*candidates: Candidate, chosen: Candidate = PRUNED8, budget: Budget = DROP, **other: Any) -> Explanation:
    return explain(candidates, chosen, budget, REFERENCE, **other)


def by_change(found: Explanation) -> dict[str, Neighbour]:
    return {neighbour.change: neighbour for neighbour in found.neighbours}


# ---- what each lever bought


def test_every_lever_is_priced_by_the_files_before_and_after_it() -> None:
    found = told(*ALL).waterfall
    assert [(gain.levers, gain.before, gain.after) for gain in found] == [
        (("runtime onnxruntime",), None, "large.float"),
        (("int8_static",), "large.float", "large.int8_static"),
        (("scale small",), "large.int8_static", "small.int8_static"),
        (("channel_pruning(rate=0.5)",), "small.int8_static", PRUNED8.id),
    ]
    assert [gain.latency.value for gain in found] == pytest.approx([0.8, 0.5, 0.5, 0.5])
    assert [gain.size_ratio for gain in found] == pytest.approx([4100 / 4000, 1100 / 4100, 500 / 1100, 0.6])


def test_what_was_not_measured_between_is_one_bar() -> None:
    found = told(WHOLE, PRUNED8).waterfall
    assert found[1].levers == ("scale small", "channel_pruning(rate=0.5)", "int8_static")
    assert [gain.levers for gain in told(PRUNED8).waterfall] == [
        ("runtime onnxruntime", "scale small", "channel_pruning(rate=0.5)", "int8_static")
    ]


def test_a_file_whose_evaluation_was_stopped_still_separates_levers() -> None:
    partly = replace(SMALL8, status="beaten", reason="beaten", measured=None, partly=SMALL8.measured)
    stopped = unmeasured("large", INT8, status="stopped")  # it has no file
    assert [gain.after for gain in told(WHOLE, stopped, partly, PRUNED8).waterfall] == ["large.float", "small.int8_static", PRUNED8.id]


def test_training_that_heals_is_told_with_what_it_heals() -> None:
    healed = file("small", prune(0.5), RECOVERY, INT8, latency=1)
    gain = told(*ALL[:3], healed, chosen=healed).waterfall[-1]
    assert gain.levers == ("channel_pruning(rate=0.5) + recovery(epochs=1)",)


def test_a_smaller_input_is_a_lever_of_its_own() -> None:
    resized = file("small@24", INT8, latency=1)
    levers = [gain.levers for gain in told(*ALL[:3], resized, chosen=resized).waterfall]
    assert levers[-2:] == [("scale small",), ("resolution 24",)]


@given(st.lists(st.sampled_from((WHOLE, WHOLE8, SMALL8, file("small", prune(0.5)), file("large", prune(0.5)))), unique_by=lambda c: c.id))
@settings(max_examples=60, deadline=None)
def test_the_bars_multiply_to_what_the_file_costs(measured: list[Candidate]) -> None:
    found = told(*measured, PRUNED8).waterfall
    assert math.prod(gain.latency.value for gain in found) == pytest.approx(0.1)
    assert math.prod(gain.size_ratio for gain in found) == pytest.approx(300 / 4000)
    assert found[0].before is None
    assert found[-1].after == PRUNED8.id


def test_the_same_rounds_count_more_than_the_trials() -> None:
    exact = Interval(value=0.6, low=0.59, high=0.61, n=31)
    pair = (SMALL8.id, PRUNED8.id)
    found = told(*ALL, timed=lambda before, after: exact if (before, after) == pair else None)
    assert [gain.latency for gain in found.waterfall][-1] == exact
    assert found.waterfall[0].latency.value == pytest.approx(0.8)
    assert next(gain for gain in found.levers if (gain.before, gain.after) == pair).latency == exact


# ---- what levers do


def test_levers_are_compared_in_pairs_that_differ_in_nothing_else() -> None:
    found = {(gain.before, gain.after): gain for gain in told(*ALL).levers}
    assert set(found) == {("large.float", "large.int8_static"), ("large.int8_static", "small.int8_static"), (SMALL8.id, PRUNED8.id)}


def test_a_lever_is_faster_only_beyond_the_noise() -> None:
    def gain(latency: float, spread: float) -> Gain:
        after = file("large", INT8, measured=measurement(latency, 1100, 0.0, spread))
        return told(WHOLE, after, chosen=after).levers[0]

    assert gain(7, 0.02).faster
    assert not gain(7.9, 0.02).faster
    assert not gain(9, 0.02).faster
    assert gain(9, 0.02).latency.value == pytest.approx(9 / 8)
    half = math.sqrt(2 * (math.log(1.01) ** 2 + math.log(1.02) ** 2))  # both files, and the reference beside each
    assert gain(7, 0.02).latency.high == pytest.approx(7 / 8 * math.exp(half))


def test_a_smaller_scale_may_be_the_lever_that_does_not_pay() -> None:
    slow = file("small", INT8, latency=5)
    gain = told(WHOLE8, slow, chosen=slow).levers[0]
    assert gain.levers == ("scale small",)
    assert not gain.faster


# ---- what is timed again


def test_what_explains_the_finalists_is_timed_beside_them_those_on_their_way_first() -> None:
    unsure = file("small", RANK, INT8, latency=2.01, size=450)
    far = file("large", prune(0.5), INT8, latency=2, size=600)
    wanted = [c.id for c in companions([*ALL, unsure, far], [PRUNED8], REFERENCE)]
    assert set(wanted[:3]) == {"large.float", "large.int8_static", "small.int8_static"}
    assert wanted[3:] == [unsure.id], "whether low rank is faster is open; whether pruning is, is not"


# ---- why not the others


def test_every_neighbour_has_the_reason_that_kept_it_from_being_chosen() -> None:
    others = (
        file("small", prune(0.3), INT8, latency=1.5, size=400, drop=0.008),
        file("small", prune(0.7), INT8, latency=0.8, size=200, drop=0.03),
        file("large", prune(0.5), INT8, latency=1.02, size=290),
        unmeasured("small", prune(0.5), INT4, status="stopped"),
        unmeasured("small", prune(0.5), RANK, INT8, status="failed"),
        unmeasured("small@24", prune(0.5), INT8, status="untried"),
    )
    found = by_change(told(*ALL, *others))
    assert {change: neighbour.why for change, neighbour in found.items()} == {
        "without channel_pruning(rate=0.5)": "dearer",
        "channel_pruning(rate=0.3) instead of (rate=0.5)": "dearer",
        "channel_pruning(rate=0.7) instead of (rate=0.5)": "breaks",
        "scale large instead of small": "close",
        "int8_static(weight_bits=4) instead of int8_static": "stopped",
        "with low_rank(rate=0.4)": "failed",
        "with resolution 24": "untried",
    }
    rate = found["channel_pruning(rate=0.3) instead of (rate=0.5)"]
    assert rate.latency is not None
    assert (rate.latency.value, rate.size_ratio) == pytest.approx((1.5, 4 / 3))
    assert found["with low_rank(rate=0.4)"].latency is None


def test_a_proof_that_is_unlikely_is_a_reason() -> None:
    sure = replace(PRUNED8, proof_chance=0.9, later_chance=0.6)
    cheap = file("small", prune(0.7), INT8, latency=0.5, size=200, drop=0.019, proof_chance=0.05)
    found = told(*ALL[:3], sure, cheap, replace(cheap, id="close", proof_chance=0.6), chosen=sure).neighbours
    assert {n.candidate: n.why for n in found if n.lever == "channel_pruning"} == {
        SMALL8.id: "dearer",
        cheap.id: "unsure",
        "close": "close",
    }


def test_what_the_test_split_did_not_prove_is_a_reason() -> None:
    sure = replace(PRUNED8, proof_chance=0.9)
    cheap = file("small", prune(0.7), INT8, latency=0.5, size=200, drop=0.019, proof_chance=0.0)
    found = told(*ALL[:3], sure, cheap, chosen=sure, unproved=[cheap.id]).neighbours
    assert {n.candidate: n.why for n in found if n.lever == "channel_pruning"} == {SMALL8.id: "dearer", cheap.id: "unproved"}


def test_without_a_quality_limit_quality_is_the_reason() -> None:
    found = by_change(told(*ALL, chosen=WHOLE8, budget=Budget(latency=5.0)))
    assert found["scale small instead of large"].why == "worse"
    assert found["without int8_static"].why == "breaks"


def test_where_nothing_fits_the_others_are_further() -> None:
    found = by_change(told(*ALL, budget=Budget(latency=0.5)))
    assert found["without channel_pruning(rate=0.5)"].why == "further"


def test_no_lever_takes_all_the_room() -> None:
    rates = [file("small", prune(rate / 100), INT8, latency=1 + rate / 100, size=400) for rate in range(10, 30)]
    found = told(*ALL, *rates, file("large", prune(0.5), INT8, latency=3), chosen=PRUNED8).neighbours
    assert len(found) == 8
    assert {neighbour.lever for neighbour in found} == {"scale", "channel_pruning"}
    first = next(n for n in found if n.lever == "channel_pruning")
    assert first.change.startswith("channel_pruning(rate=0.1)"), "the nearest in costs comes first"
