"""Rates of this machine: solved from timings, kept, and measured again when what is kept cannot be used."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sizewise.errors import UsageError
from sizewise.files import cache_folder
from sizewise.pipeline import calibrate as module
from sizewise.pipeline.calibrate import calibrate, calibrated
from sizewise.profile.graph_cost import FAMILIES
from sizewise.profile.static import analyse
from sizewise.protocols import Inputs, Runtime, Silent
from sizewise.testing import NullRuntime
from sizewise.types import Device, Rates, from_json, to_json

RATES = Rates(
    peak_macs_per_s={"float32": 5e9},
    efficiency={"conv": 1.0, "conv1d": 1.0, "pointwise": 0.5, "depthwise": 0.1, "matmul": 0.8, "recurrent": 0.2},
    bandwidth_bytes_per_s=1e10,
    cache_bytes=1e6,
    cache_bandwidth_bytes_per_s=4e10,
    operator_overhead_s=1e-6,
    step_overhead_s=2e-6,
    error_factor=1.6,
)
HERE = Device(name="local", title="This machine", how="measured", threads=2, machine={"processor": "p", "memory": "8 GB"})


class Stub:
    """Stands for the micro-benchmark; every call gives other figures."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, runtime: Runtime, threads: int) -> Rates:
        self.calls.append((runtime.name, threads))
        return replace(RATES, cache_bytes=float(len(self.calls)))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = Stub()
    monkeypatch.setattr(module, "calibrate", found)
    return found


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


# ---- kept figures


def test_a_declared_device_keeps_its_rates_and_nothing_is_measured_or_kept(stub: Stub, tmp_path: Path) -> None:
    declared = replace(HERE, how="predicted", rates=RATES)
    assert calibrated(declared, NullRuntime(), folder=tmp_path) is declared
    assert stub.calls == []
    assert list(tmp_path.iterdir()) == []


def test_the_first_time_is_measured_with_the_devices_threads(stub: Stub, tmp_path: Path) -> None:
    found = calibrated(HERE, NullRuntime(), folder=tmp_path / "new" / "folder")
    assert found == replace(HERE, rates=replace(RATES, cache_bytes=1.0))
    assert stub.calls == [("null", 2)]
    assert HERE.rates is None


def test_kept_figures_are_used_again(stub: Stub, tmp_path: Path) -> None:
    first, second = (calibrated(HERE, NullRuntime(), folder=tmp_path) for _ in range(2))
    assert first == second
    assert len(stub.calls) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_kept_is_what_was_measured(stub: Stub, tmp_path: Path) -> None:
    found = calibrated(HERE, NullRuntime(), folder=tmp_path)
    (file,) = tmp_path.iterdir()
    assert from_json(Rates, file.read_bytes()) == found.rates


class Other(NullRuntime):
    name = "other"


class Newer(NullRuntime):
    def versions(self) -> dict[str, str]:
        return {"null": "2"}


@pytest.mark.parametrize(
    ("device", "runtime"),
    [
        (replace(HERE, threads=1), NullRuntime()),
        (replace(HERE, machine={**HERE.machine, "processor": "q"}), NullRuntime()),
        (HERE, Other()),
        (HERE, Newer()),
    ],
    ids=["threads", "machine", "runtime", "version"],
)
def test_figures_of_something_else_are_not_used(stub: Stub, tmp_path: Path, device: Device, runtime: Runtime) -> None:
    calibrated(HERE, NullRuntime(), folder=tmp_path)
    assert calibrated(device, runtime, folder=tmp_path).rates == replace(RATES, cache_bytes=2.0)
    assert len(stub.calls) == 2
    assert calibrated(HERE, NullRuntime(), folder=tmp_path).rates == replace(RATES, cache_bytes=1.0)


def test_figures_of_another_benchmark_are_not_used(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated(HERE, NullRuntime(), folder=tmp_path)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    calibrated(HERE, NullRuntime(), folder=tmp_path)
    assert len(stub.calls) == 2


def test_the_order_in_which_facts_are_told_is_no_matter(stub: Stub, tmp_path: Path) -> None:
    calibrated(HERE, NullRuntime(), folder=tmp_path)
    calibrated(replace(HERE, machine=dict(reversed(HERE.machine.items()))), NullRuntime(), folder=tmp_path)
    assert len(stub.calls) == 1


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe\x00", b"{", to_json(RATES)[:40], b"[]", b"null", b'{"peak_macs_per_s": {}}', to_json(HERE)]
)
def test_a_damaged_file_is_measured_again_and_replaced(stub: Stub, tmp_path: Path, data: bytes) -> None:
    calibrated(HERE, NullRuntime(), folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(data)
    assert calibrated(HERE, NullRuntime(), folder=tmp_path).rates == replace(RATES, cache_bytes=2.0)
    assert calibrated(HERE, NullRuntime(), folder=tmp_path).rates == replace(RATES, cache_bytes=2.0)
    assert len(stub.calls) == 2


def test_progress_is_told_only_when_something_is_measured(stub: Stub, tmp_path: Path) -> None:
    notes = Notes()
    for _ in range(2):
        calibrated(HERE, NullRuntime(), notes, tmp_path)
    assert len(notes.lines) == 1
    assert "measuring how fast this machine is" in notes.lines[0]


def test_the_folder_of_kept_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stub: Stub) -> None:
    monkeypatch.delenv("SIZEWISE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sizewise"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sizewise"
    monkeypatch.setenv("SIZEWISE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    calibrated(HERE, NullRuntime())
    assert len(list((tmp_path / "own").iterdir())) == 1


@pytest.mark.parametrize("spoilt", [{"efficiency": {}}, {"peak_macs_per_s": {}}, {"bandwidth_bytes_per_s": 0.0}])
def test_kept_figures_that_predict_nothing_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "calibrate", lambda *_: RATES)
    calibrated(HERE, NullRuntime(), folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(to_json(replace(RATES, **spoilt)))
    assert calibrated(HERE, NullRuntime(), folder=tmp_path).rates == RATES


def test_a_device_elsewhere_without_rates_does_not_get_this_machines() -> None:
    with pytest.raises(UsageError, match="nothing to predict from"):
        calibrated(Device(name="far", title="far away", how="predicted", threads=1), NullRuntime())


# ---- solving for the rates


def _machine(monkeypatch: pytest.MonkeyPatch, *, overhead: float, step: float, rates: dict[str, float], near: float, far: float) -> None:
    """A machine that takes exactly what a roofline says."""

    def seconds(name: str, chain: module._Chain) -> float:
        family = name.partition(" ")[0]
        waiting = chain.shape[1] * step if family in ("recurrent", "long", "short") else 0.0
        length = {"many": 33}.get(name, chain.length)
        work = chain.macs / rates[family] if family in rates else 0.0
        moving = {"near": chain.moved / near, "far": chain.moved / far}.get(name, 0.0)
        return length * (overhead + waiting + work + moving)

    def timed(chains: dict[str, module._Chain], *_: object) -> dict[str, float]:
        return {name: seconds(name, chain) for name, chain in chains.items()}

    monkeypatch.setattr(module, "_time", timed)


def test_the_rates_of_a_machine_that_obeys_the_roofline_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"conv": 4e10, "conv1d": 2.5e10, "pointwise": 3e10, "depthwise": 5e9, "matmul": 2e10, "recurrent": 1e10}
    _machine(monkeypatch, overhead=1e-6, step=2e-6, rates=rates, near=3e10, far=1e10)
    found = calibrate(NullRuntime(), 2)
    assert found.operator_overhead_s == pytest.approx(1e-6)
    assert found.step_overhead_s == pytest.approx(2e-6)
    assert found.bandwidth_bytes_per_s == pytest.approx(1e10)
    assert found.cache_bandwidth_bytes_per_s == pytest.approx(3e10)
    assert found.peak_macs_per_s == {"float32": pytest.approx(4e10)}
    assert found.efficiency == pytest.approx({name: rate / 4e10 for name, rate in rates.items()})
    assert found.cache_bytes > 0
    assert found.error_factor == module.ERROR_FACTOR


@pytest.mark.parametrize("overhead", [0.0, 1.0])
def test_timings_that_contradict_one_another_give_usable_rates(monkeypatch: pytest.MonkeyPatch, overhead: float) -> None:
    """Everything takes the same time, as on a machine that is busy elsewhere."""
    monkeypatch.setattr(module, "_time", lambda chains, *_: {name: 1e-3 + overhead * (name == "many") for name in chains})
    found = calibrate(NullRuntime(), 1)
    assert found.operator_overhead_s >= 0
    assert found.step_overhead_s == 0
    assert all(0 < share <= 1 for share in found.efficiency.values())
    assert min(found.bandwidth_bytes_per_s, found.cache_bandwidth_bytes_per_s, found.peak_macs_per_s["float32"]) > 0


def test_every_family_that_computes_is_measured() -> None:
    assert set(module._FAMILIES) == set(FAMILIES) - {"memory"}


@pytest.mark.parametrize("family", list(module._FAMILIES))
def test_the_chains_cost_what_they_say_and_are_of_their_family(family: str) -> None:
    for chain in module._FAMILIES[family]:
        with torch.device("meta"):
            analysis = analyse(chain.build(), Inputs((torch.zeros(chain.shape),)))
        assert analysis.cost.macs == chain.length * chain.macs
        assert {op.family for op in analysis.operators if op.macs} == {family}
        steps = [op.steps for op in analysis.operators if op.macs]
        assert steps == [chain.shape[1] if family == "recurrent" else 1] * chain.length
