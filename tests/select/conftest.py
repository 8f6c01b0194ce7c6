"""Profiles and records as `select` makes them, from a few figures."""

from dataclasses import replace
from typing import Any

import pytest

from sizewise.advice import AdviceRecord, ScaleAdvice
from sizewise.types import Budget, Device, Interval, LayerCost, ModelProfile, Rates


class Build:
    """Makes layers, profiles, scales and records."""

    @staticmethod
    def layer(family: str, seconds: float | None = 1e-3, weights: int = 1000, macs: int = 1_000_000, intensity: float = 10.0) -> LayerCost:
        latency = Interval(value=seconds, low=seconds / 2, high=seconds * 2, n=0, how="predicted") if seconds is not None else None
        return LayerCost(
            path=family,
            kind=family,
            family=family,
            calls=1,
            params=weights // 4,
            macs=macs,
            weight_bytes=weights,
            activation_bytes=1000,
            peak_bytes=1000,
            elementwise=0,
            intensity=intensity,
            latency_s=latency,
        )

    @staticmethod
    def profile(name: str = "m", layers: tuple[LayerCost, ...] = (), seconds: float | None = 10e-3, **changes: Any) -> ModelProfile:
        latency = Interval(value=seconds, low=seconds / 2, high=seconds * 2, n=0, how="predicted") if seconds is not None else None
        weights = sum(layer.weight_bytes for layer in layers) or 4_000_000
        made = ModelProfile(
            params=weights // 4,
            macs=50_000_000,
            weight_bytes=weights,
            batch=1,
            peak_bytes=100_000,
            latency_s=latency,
            layers=layers,
            name=name,
            inputs=("1x3x32x32 float32",),
        )
        return replace(made, **changes)

    @staticmethod
    def device(**changes: Any) -> Device:
        rates = Rates(
            peak_macs_per_s={"float32": 1e9},
            efficiency={"conv": 0.5, "conv1d": 0.5, "pointwise": 0.5, "depthwise": 0.5, "matmul": 0.5, "recurrent": 0.5},
            bandwidth_bytes_per_s=1e8,
            cache_bytes=1e6,
            cache_bandwidth_bytes_per_s=1e9,
            operator_overhead_s=1e-6,
            step_overhead_s=1e-6,
            error_factor=2.0,
        )
        return replace(Device(name="board", title="Example board", how="predicted", threads=1, rates=rates), **changes)

    @classmethod
    def record(cls, *scales: ScaleAdvice, **changes: Any) -> AdviceRecord:
        made = AdviceRecord(
            version="0",
            created="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            task="t",
            metric="accuracy",
            higher_is_better=True,
            fingerprint="",
            budget=Budget(),
            device=cls.device(),
            runtime="r",
            seeds=3,
            sizes=(),
            tolerance=0.01,
            scales=scales,
            best=None,
            recommended=None,
            safe=None,
            undecided=(),
            decision="",
        )
        return replace(made, **changes)


@pytest.fixture
def build() -> type[Build]:
    return Build
