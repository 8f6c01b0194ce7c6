"""The vocabulary: JSON without loss, budgets, plans, records."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.errors import UsageError
from sizewise.evaluate.paired import mean_interval
from sizewise.types import (
    Artefact,
    Budget,
    Candidate,
    Change,
    Cost,
    Device,
    Interval,
    Limit,
    Measurement,
    Parity,
    Plan,
    Quality,
    RunRecord,
    Skip,
    Step,
    Verdict,
    Violation,
    from_json,
    to_json,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
hows: st.SearchStrategy[Literal["measured", "predicted", "declared"]] = st.sampled_from(["measured", "predicted", "declared"])
intervals = st.builds(Interval, value=finite, low=finite, high=finite, n=st.integers(0, 2**53), how=hows, confidence=st.floats(0, 1))
limits = st.none() | st.floats(1e-9, 1e9)
sizes = st.none() | st.integers(1, 10**15)
budgets = st.builds(Budget, latency=limits, size=sizes, memory=sizes, max_drop=limits, min_quality=limits)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text()
settings_ = st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3), max_size=3)
steps = st.builds(Step, technique=st.text(), settings=settings_, record=st.none() | settings_)
plans = st.builds(Plan, scale=st.text(), steps=st.lists(steps, max_size=3).map(tuple), seed=st.integers(0, 2**31))


def _measured(**other: Any) -> Measurement:
    figures: dict[str, Any] = {
        "latency": Interval(value=4e-3, low=3.9e-3, high=4.1e-3, n=15),
        "latency_ratio": 0.5,
        "size_bytes": 2_000_000,
        "memory": Interval.exact(30e6),
        "quality": Quality(
            metric="accuracy",
            higher_is_better=True,
            score=Interval(value=0.95, low=0.93, high=0.96, n=400),
            drop=Interval(value=0.01, low=0.0, high=0.02, n=400),
        ),
        "parity": Parity(max_abs=1e-4, mean_abs=1e-5, output_scale=1.0, top1_agreement=1.0, n=256),
        "threads": 1,
        "batch": 1,
    }
    return Measurement(**{**figures, **other})


@given(st.one_of(intervals, budgets, plans))
@settings(max_examples=50, deadline=None)
def test_values_come_back_from_json_as_they_were(value: Interval | Budget | Plan) -> None:
    again = from_json(type(value), to_json(value))
    assert again == value
    assert from_json(type(value), to_json(value).decode()) == value


def test_a_whole_candidate_comes_back_from_json_as_it_was() -> None:
    candidate = Candidate(
        id="s.float",
        plan=Plan(scale="s", steps=(Step(technique="t", settings={"ratio": 0.5}, record={"kept": {"conv": {"out": [0, 2]}}}),), seed=3),
        status="measured",
        changes=(Change(touched=("conv",), skipped=(Skip(what="fc", reason="makes the output"),), notes=("a",), record={"a": 1}),),
        artefact=Artefact(runtime="r", path="m.onnx", sha256="0", size_bytes=1, inputs=("x",), outputs=("y",), batch="dynamic"),
        measured=_measured(),
    )
    assert from_json(Candidate, to_json(candidate)) == candidate
    assert candidate.artefact is not None
    fixed = replace(candidate, artefact=replace(candidate.artefact, batch=8))
    assert from_json(Candidate, to_json(fixed)) == fixed


def test_an_interval_without_bounds_comes_back_from_json() -> None:
    unknown = mean_interval(np.array([0.5]), binary=False)
    assert unknown.high > 1e299
    assert from_json(Interval, to_json(unknown)) == unknown


def test_numpy_figures_can_be_written() -> None:
    assert from_json(Cost, to_json(Cost(params=np.int64(1), macs=1, weight_bytes=1, batch=1))).params == 1  # type: ignore[arg-type]


def test_json_is_indented_ordered_and_ends_with_a_newline() -> None:
    text = to_json(Cost(params=1, macs=2, weight_bytes=3, batch=4, uncounted={"relu": 5})).decode()
    assert text.endswith("}\n")
    assert text.count("\n") > 5
    assert list(json.loads(text)) == [f.name for f in fields(Cost)]
    assert list(json.loads(text))[:5] == ["params", "macs", "weight_bytes", "batch", "uncounted"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "truncated"),
        (b"{}", "value"),
        (b'{"value": "a", "low": 0, "high": 1, "n": 1}', "$.value"),
        (b"\xff", ""),
        (b'{"value": 1, "low": 0, "high": 1, "n": 1, "how": "guessed"}', "guessed"),
    ],
)
def test_damaged_json_names_the_file_the_type_and_the_place(data: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=r"run.json: not a valid Interval") as caught:
        from_json(Interval, data, where="run.json")
    assert says in str(caught.value)
    assert caught.value.hint == "the file is damaged or from another version"


def test_an_exact_figure_has_no_width() -> None:
    exact = Interval.exact(7.0, "declared")
    assert (exact.value, exact.low, exact.high, exact.n, exact.how, exact.confidence) == (7.0, 7.0, 7.0, 1, "declared", 1.0)


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Interval.exact(1.0).value = 2.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Budget().latency_s = 1.0  # type: ignore[misc]


def test_a_budget_reads_texts_into_base_units() -> None:
    budget = Budget("5 ms", size="2 MB", memory="64 MiB", max_drop="1 %", min_quality=0.9)
    assert budget.latency_s == pytest.approx(5e-3)
    assert (budget.size_bytes, budget.memory_bytes) == (2_000_000, 64 * 2**20)
    assert budget.max_drop == pytest.approx(0.01)
    assert budget.min_quality == 0.9
    assert Budget() == Budget(None, None, None, None, None)


@pytest.mark.parametrize("field", ["latency", "size", "memory"])
@pytest.mark.parametrize("nothing", [0, "0", "0.0"])
def test_a_limit_that_nothing_can_keep_is_refused_by_name(field: str, nothing: str | int) -> None:
    with pytest.raises(UsageError, match=f"{field} must be more than zero") as caught:
        Budget(**{field: nothing})
    assert caught.value.got == repr(nothing)


def test_a_drop_of_zero_is_a_limit() -> None:
    assert Budget(max_drop=0).max_drop == 0.0
    assert Budget(max_drop=0).violations(_measured())[0].limit == "max_drop"


@pytest.mark.parametrize("field", ["latency", "size", "memory", "max_drop", "min_quality"])
def test_a_limit_that_cannot_be_read_is_named(field: str) -> None:
    with pytest.raises(UsageError, match=f"^{field}: unknown unit 'furlong'") as caught:
        Budget(**{field: "5 furlong"})
    assert caught.value.got == "'5 furlong'"


def test_a_negative_limit_in_a_file_is_refused() -> None:
    text = to_json(Budget(latency=1.0)).replace(b"1.0", b"-1.0")
    with pytest.raises(UsageError):
        from_json(Budget, text)


def test_a_measurement_within_every_limit_breaks_none() -> None:
    budget = Budget(latency=4e-3, size=2_000_000, memory=30_000_000, max_drop=0.01, min_quality=0.95)
    assert budget.violations(_measured()) == ()
    assert Budget().violations(_measured()) == ()


def test_broken_limits_come_in_the_order_of_the_fields_with_what_was_got() -> None:
    budget = Budget(latency="1 ms", size="1 MB", memory="10 MB", max_drop=0.005, min_quality=0.99)
    broken = budget.violations(_measured())
    assert [v.limit for v in broken] == ["latency", "size", "memory", "max_drop", "min_quality"]
    assert [v.got for v in broken] == [4e-3, 2_000_000, 30e6, 0.01, 0.95]
    assert [v.allowed for v in broken] == pytest.approx([1e-3, 1_000_000, 10_000_000, 0.005, 0.99])


def test_without_a_reference_no_drop_is_broken() -> None:
    quality = replace(_measured().quality, drop=None)
    assert Budget(max_drop=0).violations(_measured(quality=quality)) == ()


def test_for_losses_the_least_quality_is_the_most_that_is_accepted() -> None:
    quality = Quality(metric="loss", higher_is_better=False, score=Interval(value=0.5, low=0.4, high=0.6, n=9))
    assert Budget(min_quality=0.6).violations(_measured(quality=quality)) == ()
    assert [v.limit for v in Budget(min_quality=0.4).violations(_measured(quality=quality))] == ["min_quality"]


def test_a_quality_on_the_limit_keeps_it() -> None:
    assert Budget(min_quality="95 %").violations(_measured()) == ()


@pytest.mark.parametrize(
    ("limit", "got", "allowed", "excess"),
    [
        ("latency", 6e-3, 2e-3, 3.0),
        ("size", 300.0, 200.0, 1.5),
        ("memory", 8.0, 2.0, 4.0),
        ("min_quality", 0.5, 0.75, 1.5),
        ("max_drop", 0.04, 0.02, 2.0),
        ("max_drop", 0.01, 0.0, 2.0),
    ],
)
def test_the_excess_is_how_many_times_over_the_limit_a_figure_is(limit: Limit, got: float, allowed: float, excess: float) -> None:
    assert Violation(limit=limit, got=got, allowed=allowed).excess == pytest.approx(excess)


@given(limit=st.sampled_from(["latency", "size", "memory", "max_drop"]), allowed=st.floats(1e-6, 1e6), factor=st.floats(1.001, 1e3))
@settings(max_examples=50, deadline=None)
def test_a_broken_limit_is_exceeded_by_more_than_one(limit: Limit, allowed: float, factor: float) -> None:
    worse = Violation(limit=limit, got=allowed * factor, allowed=allowed).excess
    assert worse > 1
    assert Violation(limit=limit, got=2 * allowed * factor, allowed=allowed).excess > worse


def test_a_loss_over_its_limit_is_exceeded_by_more_than_one() -> None:
    quality = Quality(metric="loss", higher_is_better=False, score=Interval(value=0.8, low=0.4, high=0.9, n=9))
    (broken,) = Budget(min_quality=0.4).violations(_measured(quality=quality))
    assert broken.excess >= 1


def test_a_plan_without_steps_is_the_float_model() -> None:
    assert Plan(scale="s").label == "float"
    assert Plan(scale="s").id == "s.float"


def test_labels_and_ids_name_techniques_and_settings_in_order() -> None:
    plan = Plan(scale="resnet-s", steps=(Step(technique="channel_pruning", settings={"rate": 0.5}), Step(technique="int8_static")))
    assert plan.label == "channel_pruning(rate=0.5) + int8_static"
    assert plan.id == "resnet-s.channel_pruning-rate-0.5.int8_static"
    two = Plan(scale="s", steps=(Step(technique="t", settings={"a": 1, "b": "x"}),))
    assert (two.label, two.id) == ("t(a=1, b=x)", "s.t-a-1-b-x")


def test_different_plans_have_different_ids() -> None:
    one = Plan(scale="s", steps=(Step(technique="t", settings={"first": 0.5}),))
    other = Plan(scale="s", steps=(Step(technique="t", settings={"second": 0.5}),))
    assert one.id != other.id


def _record(candidates: tuple[Candidate, ...], chosen: str) -> RunRecord:
    quality = _measured().quality
    return RunRecord(
        version="0",
        created="2026-01-01T00:00:00Z",
        seconds=1.0,
        task="t",
        metric="accuracy",
        fingerprint="f",
        data={},
        budget=Budget(latency="5 ms"),
        runtime="r",
        device=Device(name="local", title="this machine", how="measured", threads=1),
        seed=0,
        versions={},
        reference="s",
        reference_quality=quality,
        reference_torch_latency=Interval.exact(1.0),
        reference_weight_bytes=1,
        scales=(),
        candidates=candidates,
        chosen=chosen,
        feasible=True,
        speedup=Interval.exact(2.0),
        verdict=Verdict(judgement="proved", limits=()),
    )


def test_a_run_record_finds_its_candidates_and_comes_back_from_json() -> None:
    first, second = (Candidate(id=name, plan=Plan(scale="s"), status="untried", reason="time ran out") for name in ("a", "b"))
    record = _record((first, second), "b")
    assert record.winner is second
    assert record.candidate("a") is first
    with pytest.raises(KeyError, match="c"):
        record.candidate("c")
    assert from_json(RunRecord, to_json(record)) == record


def test_the_vocabulary_and_the_package_import_no_torch() -> None:
    modules = "sizewise, sizewise.types, sizewise.units, sizewise.errors, sizewise.protocols, sizewise.files"
    program = f"import sys, {modules}; sizewise.Budget('1 ms'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
