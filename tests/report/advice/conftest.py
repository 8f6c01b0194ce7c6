"""Devices, profiles and advice as `devices`, `profile` and `select` would make them, without running any. No torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from sizewise.advice import AdviceRecord, BandPoint, Curve, Point, ScaleAdvice, Scenario, Shrunk, Strategy
from sizewise.types import Budget, Cost, Device, How, Interval, LayerCost, ModelProfile, ProfileRecord, Rates, Violation

FAMILIES = (("conv", "Conv2d"), ("depthwise", "Conv2d"), ("pointwise", "Conv2d"), ("memory", "ReLU"), ("matmul", "Linear"))
SIZES = (375, 750, 1500, 3000)


def around(value: float, spread: float, how: How = "measured", confidence: float = 0.9) -> Interval:
    return Interval(value=value, low=value - spread, high=value + spread, n=400, how=how, confidence=confidence)


def within(value: float, factor: float) -> Interval:
    return Interval(value=value, low=value / factor, high=value * factor, n=0, how="predicted", confidence=0.9)


def rates() -> Rates:
    return Rates(
        peak_macs_per_s={"float32": 76.8e9, "int8": 307.2e9},
        efficiency={"conv": 0.55, "conv1d": 0.55, "pointwise": 0.45, "depthwise": 0.2, "matmul": 0.5, "recurrent": 0.2},
        bandwidth_bytes_per_s=11e9,
        cache_bytes=2_097_152,
        cache_bandwidth_bytes_per_s=60e9,
        operator_overhead_s=8e-6,
        step_overhead_s=3e-6,
        error_factor=2.2,
    )


def build_device(**changes: Any) -> Device:
    board = Device(
        name="board",
        title="Example board, 8 GB",
        how="predicted",
        threads=4,
        sources=("brief: of the board",),
        ram_bytes=8_000_000_000,
        rates=rates(),
    )
    return replace(board, **changes)


def local() -> Device:
    machine = {"processor": "Example CPU", "memory": "25.3 GB"}
    return Device(name="local", title="this machine", how="measured", threads=2, machine=machine, ram_bytes=25_300_000_000)


def build_layers(count: int, macs: float, seconds: float | None, spread: float = 2.2) -> tuple[LayerCost, ...]:
    """Layers whose parts of the whole fall like 1, 1/2, 1/3; every fourth has no MACs, and the second one without has no time either."""
    parts = [1 / (index + 1) for index in range(count)]
    rows = []
    for index, part in enumerate(parts):
        family, kind = FAMILIES[index % len(FAMILIES)]
        share = part / sum(parts)
        idle = family == "memory"
        latency = None if seconds is None else within(0.0 if index == 8 else seconds * share, spread)
        rows.append(
            LayerCost(
                path=f"blocks.{index}.{family}" if index else "",
                kind=kind,
                family=family,
                calls=1,
                params=0 if idle else round(1000 * share * count),
                macs=0 if idle else round(macs * share),
                weight_bytes=0 if idle else round(4000 * share * count),
                activation_bytes=4096,
                peak_bytes=16_384,
                elementwise=1024,
                intensity=0.0 if idle else 0.5 + 3 * (index % 7),
                latency_s=latency,
            )
        )
    return tuple(rows)


def build_profile(
    name: str = "resnet-s", macs: float = 4e6, seconds: float | None = 2e-3, count: int = 20, how: How = "predicted", **changes: Any
) -> ModelProfile:
    latency = None if seconds is None else within(seconds, 2.2) if how == "predicted" else around(seconds, seconds / 20, confidence=0.95)
    profile = ModelProfile(
        name=name,
        inputs=("1x1x8x8 float32",),
        params=round(macs / 10),
        macs=round(macs),
        weight_bytes=round(macs / 2.5),
        batch=1,
        uncounted={"grid_sampler": 3},
        activation_bytes=210_000,
        peak_bytes=65_536,
        elementwise=21_000,
        intensity=4.2,
        latency_s=latency,
        layers=build_layers(count, macs, seconds),
        notes=("2 % of the time belongs to no layer",),
        predicted_s=within(seconds, 2.2) if seconds is not None else None,
    )
    return replace(profile, **changes)


def build_points(ceiling: float, amplitude: float, seeds: int, sizes: Sequence[int], sign: int) -> tuple[Point, ...]:
    rows = []
    for size in sizes:
        for seed in range(seeds):
            wobble = 0.004 * math.sin(5 * seed + size)
            validation, train = ceiling - sign * (amplitude * size**-0.6 + wobble), ceiling + sign * 0.01
            rows.append(Point(examples=size, seed=seed, train=train, validation=validation, epochs=20, seconds=1.5))
    return tuple(rows)


def build_curve(ceiling: float, amplitude: float, last: int, sign: int) -> Curve:
    def at(examples: int) -> Interval:
        how: How = "measured" if examples <= last else "predicted"
        return around(ceiling - sign * amplitude * examples**-0.6, 0.006 if how == "measured" else 0.012, how)

    grid = [round(SIZES[0] * 2 ** (step / 2)) for step in range(11)]
    return Curve(
        amplitude=amplitude,
        exponent=0.6,
        floor=abs(1 - ceiling),
        ceiling=around(ceiling, 0.015, "predicted"),
        at_full=at(SIZES[-1]),
        at_double=at(2 * SIZES[-1]),
        band=tuple(BandPoint(examples=n, quality=at(n)) for n in grid),
        sizes=len([size for size in SIZES if size <= last]),
    )


def build_scale(
    name: str, macs: float, seconds: float, ceiling: float, behind: float, metric: str = "accuracy", last: int = SIZES[-1], **changes: Any
) -> ScaleAdvice:
    """A scale with three seeds; with `last` below all examples, one that was stopped."""
    sign, amplitude = (-1 if metric == "loss" else 1), 6.0
    complete = last == SIZES[-1]
    curve = build_curve(ceiling, amplitude, last, sign)
    size = round(macs / 10)
    scale = ScaleAdvice(
        name=name,
        profile=build_profile(name, macs, seconds),
        shrunk=Shrunk(
            latency_s=within(0.4 * seconds, 2.2),
            size_bytes=size,
            latency_factor=0.4,
            size_factor=0.25,
            sources=("conv: ResNet-50 in static int8, a server",),
        ),
        status="complete" if complete else "stopped",
        reason=None if complete else "cannot catch up by all 3,000 examples",
        points=build_points(ceiling, amplitude, 3, [s for s in SIZES if s <= last], sign),
        train=around(ceiling + sign * 0.01, 0.002),
        validation=curve.at_full,
        gap=around(0.03, 0.006) if complete else None,
        behind=around(behind, 0.006) if complete else None,
        curve=curve,
        diagnosis="data-limited" if complete else None,
        certainty=0.91 if complete else None,
        evidence=f"the curve of {name} still rises by 1 pt: more data would help (in 91 % of bootstrap draws)" if complete else None,
    )
    return replace(scale, **changes)


def build_advice(*, metric: str = "accuracy", task: str = "digits", names: Sequence[str] = ("tiny", "small", "large")) -> AdviceRecord:
    """A decided case: the cheapest scale was stopped, the middle one is recommended, the largest is best and breaks a limit."""
    sign, base = (-1, 0.35) if metric == "loss" else (1, 0.98)
    tiny, small, large = names
    breaks = (Violation(limit="latency", got=9e-3, allowed=5e-3),)
    scales = (
        build_scale(tiny, 4e5, 0.4e-3, base - sign * 0.06, 0.06, metric, last=1500),
        build_scale(small, 4e6, 2e-3, base, 0.004, metric),
        build_scale(large, 4e7, 9e-3, base + sign * 0.004, 0.0, metric, breaks=breaks, diagnosis="saturated", certainty=0.6),
    )
    return AdviceRecord(
        version="0.1.0",
        created="2026-11-24T00:19:03+00:00",
        seconds=248.0,
        task=task,
        metric=metric,
        higher_is_better=metric != "loss",
        fingerprint="812d" * 16,
        budget=Budget(latency="5 ms", size="4 MB"),
        device=build_device(),
        runtime="onnxruntime",
        seeds=3,
        sizes=SIZES,
        tolerance=0.01,
        scales=scales,
        best=large,
        recommended=small,
        safe=small,
        undecided=(),
        decision=f"{small}: +0.40 pt behind {large}, within 1.00 pt, and 4.5 times faster, 10 times smaller",
        data={"validation": {"examples": 400, "sha256": "7754" * 16}},
        strategy=(Strategy(advice="Save bytes first.", because="61 % of the time is in layers that move more than they compute"),),
        warnings=("the time limit was reached",),
    )


def undecide(record: AdviceRecord) -> AdviceRecord:
    small, large = (scale.name for scale in record.scales[1:])
    text = f"undecided whether {small} would do. What would decide {small}: 7 seeds per scale or about 2,100 validation examples"
    return replace(record, recommended=None, safe=large, undecided=(small,), decision=text, more_seeds=7, more_examples=2100)


def without_data(record: AdviceRecord) -> AdviceRecord:
    """What a scenario alone gives: costs."""
    scales = tuple(ScaleAdvice(name=s.name, profile=s.profile, breaks=s.breaks, shrunk=s.shrunk) for s in record.scales)
    scenario = Scenario(
        name="door",
        title="Faces at a door",
        domain="vision",
        device="board",
        latency="5 ms",
        size="4 MB",
        examples=800,
        private=True,
        candidates=tuple(s.name for s in scales),
        notes="Somebody waits.",
    )
    return replace(
        record,
        scales=scales,
        scenario=scenario,
        best=None,
        recommended=None,
        safe=None,
        seeds=0,
        sizes=(),
        decision="costs alone cannot say which scale is good enough: give a task with data",
        data={},
    )


@pytest.fixture(scope="session")
def make_device() -> Callable[..., Device]:
    return build_device


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., ModelProfile]:
    return build_profile


@pytest.fixture(scope="session")
def make_advice() -> Callable[..., AdviceRecord]:
    return build_advice


@pytest.fixture(scope="session")
def advice() -> AdviceRecord:
    return build_advice()


@pytest.fixture(scope="session")
def undecided() -> AdviceRecord:
    return undecide(build_advice())


@pytest.fixture(scope="session")
def costs_only() -> AdviceRecord:
    return without_data(build_advice())


@pytest.fixture(scope="session")
def this_machine() -> Device:
    return local()


@pytest.fixture(scope="session")
def profiles() -> ProfileRecord:
    """Two models measured here, one of which cannot run."""
    second = build_profile("huge", 4e9, 0.9, count=70, how="measured", misfits=("weights of 1.60 GB do not fit 1.00 GB of RAM",))
    device = replace(local(), rates=rates())
    return ProfileRecord(version="0.1.0", device=device, runtime="onnxruntime", models=(build_profile(how="measured"), second))


@pytest.fixture(scope="session")
def layered_cost() -> Cost:
    profile = build_profile()
    return Cost(**{field.name: getattr(profile, field.name) for field in fields(Cost)})
