"""Run records as a run would write them, without running one. No torch."""

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from sizewise.types import (
    Artefact,
    Budget,
    Candidate,
    Change,
    Cost,
    Device,
    Interval,
    LimitVerdict,
    Measurement,
    Parity,
    Plan,
    Quality,
    Relaxation,
    RunRecord,
    ScaleRecord,
    Skip,
    Step,
    Verdict,
)

PRUNE = Step(technique="channel_pruning", settings={"rate": 0.5})
INT8 = Step(technique="int8_static")


def around(value: float, spread: float, n: int = 31) -> Interval:
    return Interval(value=value, low=value - spread, high=value + spread, n=n)


def found(score: float, drop: float | None, n: int = 400, metric: str = "accuracy") -> Quality:
    paired = None if drop is None else around(drop, 0.012, n)
    return Quality(metric=metric, higher_is_better=metric != "loss", score=around(score, 0.015, n), drop=paired)


def measured(latency_us: float, size: int, score: float, metric: str = "accuracy") -> Measurement:
    lost = (0.985 - score) if metric != "loss" else score - 0.985
    return Measurement(
        latency=around(latency_us * 1e-6, latency_us * 3e-8),
        latency_ratio=latency_us / 901,
        size_bytes=size,
        memory=Interval(value=12.2e6, low=12.2e6, high=12.2e6, n=1, confidence=0.0),
        quality=found(score, lost, metric=metric),
        parity=Parity(max_abs=0.06, mean_abs=0.008, output_scale=1.1, top1_agreement=0.9975, n=300),
        threads=2,
        batch=1,
    )


def candidate(scale: str, steps: tuple[Step, ...] = (), **fields: Any) -> Candidate:
    plan = Plan(scale=scale, steps=steps)
    fields.setdefault("status", "measured" if "measured" in fields else "stopped")
    return Candidate(id=plan.id, plan=plan, seconds=3.2, **fields)


def scale(name: str, params: int, score: float, metric: str = "accuracy") -> ScaleRecord:
    cost = Cost(params=params, macs=10 * params, weight_bytes=4 * params, batch=1, uncounted={"relu": 7, "add": 3})
    return ScaleRecord(name=name, cost=cost, trained="trained here for 20 epochs", quality=found(score, None, metric=metric))


def candidates(large: str, small: str, metric: str) -> tuple[Candidate, ...]:
    changes = (
        Change(touched=("conv2d", "linear"), skipped=(Skip(what="embed & <co>", reason="no integer kernel"),), notes=("folded 9 norms",)),
    )
    artefact = Artefact(
        runtime="onnxruntime", path="model.onnx", sha256="ab" * 32, size_bytes=26_100, inputs=("x",), outputs=("output",), batch="dynamic"
    )
    return (
        candidate(large, measured=measured(90, 1_231_898, 0.985, metric)),
        candidate(large, (INT8,), measured=measured(61, 317_626, 0.9825, metric), on_frontier=True),
        candidate(large, (PRUNE,), reason="not lowered: the drop on validation is at least 0.018"),
        candidate(large, (PRUNE, INT8), status="failed", reason="parity: outputs differ by 3 & more"),
        candidate(small, measured=measured(46, 80_200, 0.98, metric), on_frontier=True),
        candidate(small, (INT8,), measured=measured(41.2, 26_100, 0.975, metric), on_frontier=True, changes=changes, artefact=artefact),
        candidate(small, (PRUNE,), measured=measured(44, 41_000, 0.94, metric)),
        candidate(small, (PRUNE, INT8), status="untried", reason="the time limit was reached"),
    )


def build_record(*, task: str = "digits", large: str = "resnet-l", small: str = "resnet-s", metric: str = "accuracy") -> RunRecord:
    """A feasible run of two scales and eight candidates, with every status."""
    tried = candidates(large, small, metric)
    chosen = tried[5]
    assert chosen.measured is not None
    test = found(0.976, 0.008, n=500, metric=metric)
    assert test.drop is not None
    limits = (
        LimitVerdict(limit="latency", judgement="proved", figure=chosen.measured.latency, allowed=60e-6, reason="median of calls"),
        LimitVerdict(limit="size", judgement="proved", figure=Interval.exact(26_100), allowed=100_000, reason="bytes on disk"),
        LimitVerdict(
            limit="max_drop",
            judgement="undecided",
            figure=test.drop,
            allowed=0.015,
            reason="500 test examples: the interval holds the limit",
            needed=19_180,
        ),
    )
    return RunRecord(
        version="0.1.0",
        created="2026-11-24T00:19:03+00:00",
        seconds=248.0,
        task=task,
        metric=metric,
        fingerprint="812d" * 16,
        data={"validation": {"examples": 400, "sha256": "7754" * 16}, "test": {"examples": 500, "sha256": "563a" * 16}},
        budget=Budget(latency="60 us", size="100 kB", max_drop=0.015),
        runtime="onnxruntime",
        device=Device(
            name="local",
            title="this machine",
            how="measured",
            threads=2,
            machine={"processor": "Example CPU", "memory": "25.3 GB"},
            sources=("measured on the machine itself",),
        ),
        seed=7,
        versions={"sizewise": "0.1.0", "torch": "2.13.0"},
        reference=large,
        reference_quality=found(0.985, None, n=500, metric=metric),
        reference_torch_latency=around(901e-6, 40e-6),
        reference_weight_bytes=1_237_744,
        scales=(scale(large, 308_074, 0.985, metric), scale(small, 19_810, 0.98, metric)),
        candidates=tried,
        chosen=chosen.id,
        feasible=True,
        speedup=Interval(value=21.9, low=20.1, high=23.4, n=31),
        verdict=Verdict(judgement="undecided", limits=limits, test_quality=test),
        warnings=("the time limit was reached: 1 of 8 plans were not tried",),
    )


def outside(record: RunRecord) -> RunRecord:
    """The same run under a latency limit that nothing keeps."""
    latency = record.verdict.limits[0]
    limits = (replace(latency, judgement="refused", allowed=20e-6), *record.verdict.limits[1:])
    return replace(
        record,
        feasible=False,
        budget=Budget(latency="20 us", size="100 kB", max_drop=0.015),
        verdict=replace(record.verdict, judgement="refused", limits=limits),
        relaxations=(
            Relaxation(limit="latency", allowed=20e-6, needed=41.2e-6, candidate=record.chosen),
            Relaxation(limit="size", allowed=100_000, needed=None, candidate=None),
        ),
    )


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    return build_record


@pytest.fixture(scope="session")
def record() -> RunRecord:
    return build_record()


@pytest.fixture(scope="session")
def infeasible() -> RunRecord:
    return outside(build_record())


class Page(HTMLParser):
    """Elements with their attributes, the visible text, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def plots(self) -> list[str]:
        """The scripts that draw; plotly itself is far longer."""
        return [s for s in self.scripts if "Plotly.newPlot" in s and len(s) < 1_000_000]


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    return Page
