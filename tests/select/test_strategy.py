"""Advice: each rule speaks where its figures call for it, and says them."""

from dataclasses import replace
from typing import Any, Literal

import pytest

from sizewise.advice import AdviceRecord, ScaleAdvice, Scenario, Shrunk, Strategy
from sizewise.select.strategy import strategy
from sizewise.types import Budget, Interval, Violation

from .conftest import Build


def find(record: AdviceRecord, words: str) -> Strategy | None:
    found = [piece for piece in strategy(record) if words in piece.advice]
    assert len(found) <= 1
    return found[0] if found else None


def scenario(**changes: Any) -> Scenario:
    return replace(Scenario(name="s", title="S", domain="text", device="local"), **changes)


def after_shrinking(**changes: Any) -> Shrunk:
    latency = Interval(value=3e-3, low=2e-3, high=4e-3, n=0, how="predicted")
    made = Shrunk(latency_s=latency, size_bytes=1_040_000, latency_factor=0.31, size_factor=0.26, sources=("conv: there",))
    return replace(made, **changes)


TOO_LARGE = Violation(limit="size", got=4_000_000, allowed=2_000_000)
TOO_SLOW = Violation(limit="latency", got=30e-3, allowed=5e-3)


def test_an_empty_situation_has_no_advice(build: type[Build]) -> None:
    assert strategy(build.record()) == ()


def test_a_plain_scale_without_limits_or_situation_has_no_advice(build: type[Build]) -> None:
    assert strategy(build.record(ScaleAdvice(name="m", profile=build.profile(seconds=None)))) == ()


def test_what_cannot_run_there_is_left_out_with_its_reason(build: type[Build]) -> None:
    never = ScaleAdvice(name="big", profile=build.profile("big", misfits=("weights of 4 MB, flash of 2 MB",)))
    piece = find(build.record(never), "Leave big out on Example board")
    assert piece is not None
    assert piece.because == "weights of 4 MB, flash of 2 MB"


def test_what_runs_only_as_int8_is_not_left_out(build: type[Build]) -> None:
    profile = build.profile("big", misfits=("weights of 4 MB, flash of 2 MB",))
    record = build.record(ScaleAdvice(name="big", profile=profile, shrunk=after_shrinking()))
    assert find(record, "Leave big out") is None
    piece = find(record, "big needs int8")
    assert piece is not None
    assert "flash of 2 MB" in piece.because


def test_scales_are_sorted_into_what_fits_what_shrinks_and_what_never_does(build: type[Build]) -> None:
    layers = (build.layer("conv", weights=1_500_000),)
    fits = ScaleAdvice(name="s", profile=build.profile("s", layers, 2e-3), shrunk=after_shrinking())
    shrinks = ScaleAdvice(name="m", profile=build.profile("m"), breaks=(TOO_LARGE,), shrunk=after_shrinking())
    still = replace(TOO_SLOW, got=9e-3)
    never = ScaleAdvice(name="l", profile=build.profile("l"), breaks=(TOO_SLOW,), shrunk=after_shrinking(breaks=(still,)))
    record = build.record(fits, shrinks, never, budget=Budget(latency="5 ms", size="2 MB"))
    as_is, plan, too_large = (find(record, words) for words in ("Within the limits as they are", "Plan to shrink", "Too large even after"))
    assert as_is is not None
    assert plan is not None
    assert too_large is not None
    assert as_is.advice.endswith(": s.")
    assert "2.00 ms" in as_is.because
    assert "1.50 MB" in as_is.because
    assert plan.advice.endswith(": m.")
    assert all(figure in plan.because for figure in ("4.00 MB of 2.00 MB", "0.31 of the time", "0.26 of the bytes")), plan.because
    assert too_large.advice.endswith(": l.")
    assert "9.00 ms of 5.00 ms" in too_large.because


def test_without_limits_nobody_is_sorted(build: type[Build]) -> None:
    record = build.record(ScaleAdvice(name="s", profile=build.profile("s")), budget=Budget(max_drop="1 %"))
    assert find(record, "Within the limits") is None


def test_waiting_for_memory_asks_for_fewer_bytes(build: type[Build]) -> None:
    # 0.5 GMAC/s at 0.1 GB/s: below 5 MACs per byte a layer waits for memory
    layers = (build.layer("conv", 3e-3, intensity=1.0), build.layer("conv", 1e-3, intensity=50.0))
    record = build.record(ScaleAdvice(name="m", profile=build.profile("m", layers)))
    piece = find(record, "Save bytes first")
    assert piece is not None
    assert "75 % of m's time" in piece.because
    assert find(record, "Save arithmetic first") is None


def test_computing_asks_for_less_arithmetic(build: type[Build]) -> None:
    layers = (build.layer("conv", 9e-3, intensity=50.0), build.layer("memory", 1e-3, macs=0, intensity=0.0))
    record = build.record(ScaleAdvice(name="m", profile=build.profile("m", layers)))
    piece = find(record, "Save arithmetic first")
    assert piece is not None
    assert "90 % of m's time" in piece.because
    assert find(record, "Save bytes first") is None


def test_without_rates_nothing_is_said_of_what_takes_the_time(build: type[Build]) -> None:
    scale = ScaleAdvice(name="m", profile=build.profile("m", (build.layer("conv"),)))
    assert find(build.record(scale, device=build.device(rates=None)), "first:") is None


@pytest.mark.parametrize(("family", "says"), [("recurrent", "g carry a state"), ("conv", "no candidate carries a state")])
def test_a_stream_is_fed_new_frames_only(family: str, says: str, build: type[Build]) -> None:
    scale = ScaleAdvice(name="g", profile=build.profile("g", (build.layer(family),)))
    piece = find(build.record(scale, scenario=scenario(mode="stream")), "Feed new frames only")
    assert piece is not None
    assert says in piece.because
    for mode in ("single", "batch"):
        assert find(build.record(scale, scenario=scenario(mode=mode)), "Feed new frames") is None


def test_batches_are_chosen_by_examples_per_second(build: type[Build]) -> None:
    good = ScaleAdvice(name="s", profile=build.profile("s", seconds=0.02, batch=32))
    bad = ScaleAdvice(name="l", profile=build.profile("l", seconds=0.02, batch=32, misfits=("too large",)))
    piece = find(build.record(good, bad, scenario=scenario(mode="batch", batch=32)), "Choose by examples per second")
    assert piece is not None
    assert piece.because == "s 1,600 examples per second"


@pytest.mark.parametrize(
    ("examples", "params", "says"),
    [
        (5000, 4_000_000, "Start from published weights"),
        (5000, 50_000, "Training from nothing"),
        (200_000, 4_000_000, "Training from nothing"),
    ],
)
def test_the_data_decide_whether_to_start_from_published_weights(examples: int, params: int, says: str, build: type[Build]) -> None:
    scale = ScaleAdvice(name="m", profile=build.profile("m", params=params))
    record = build.record(scale, scenario=scenario(examples=examples))
    piece = find(record, says)
    assert piece is not None
    assert f"{examples:,} labelled examples" in piece.because
    assert f"{params // examples:,} each" in piece.because
    assert find(build.record(scale, scenario=scenario()), says) is None, "unknown data"


@pytest.mark.parametrize("domain", ["vision", "speech", "text"])
def test_pictures_may_be_made_smaller(domain: Literal["vision", "speech", "text"], build: type[Build]) -> None:
    scale = ScaleAdvice(name="m", profile=build.profile("m"))
    piece = find(build.record(scale, scenario=scenario(domain=domain)), "smaller input before a smaller network")
    assert (piece is not None) == (domain == "vision")
    assert piece is None or ("56 %" in piece.because and "50" in piece.because)


@pytest.mark.parametrize(
    ("facts", "because"),
    [
        ({"private": True}, "data must not leave the device"),
        ({"offline": True}, "there is no network"),
        ({"private": True, "offline": True}, "data must not leave the device and there is no network"),
        ({}, None),
    ],
)
def test_privacy_and_no_network_keep_everything_on_the_device(facts: dict[str, bool], because: str | None, build: type[Build]) -> None:
    piece = find(build.record(scenario=scenario(**facts)), "Everything runs on the device")
    assert (piece.because if piece else None) == because


def test_advice_is_about_the_recommended_scale_else_the_largest_that_can_keep_the_limits(build: type[Build]) -> None:
    small = ScaleAdvice(name="small", profile=build.profile("small", macs=1_000_000))
    middle = ScaleAdvice(name="middle", profile=build.profile("middle", macs=10_000_000))
    large = ScaleAdvice(name="large", profile=build.profile("large", macs=99_000_000), shrunk=after_shrinking(breaks=(TOO_LARGE,)))

    def about(**changes: Any) -> str:
        piece = find(build.record(small, middle, large, scenario=scenario(examples=100), **changes), "Start from published weights")
        assert piece is not None
        return piece.because

    assert "middle" in about()
    assert "small" in about(recommended="small")
    assert "large" in about(safe="large")
