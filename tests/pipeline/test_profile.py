"""Profiles end to end: counted, predicted for a declared device, measured here; times are not judged."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.devices.loader import load_device
from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline import profile as module
from sizewise.pipeline.profile import profile_model, profile_models
from sizewise.profile.roofline import predict
from sizewise.profile.static import analyse, static_cost
from sizewise.profile.timing import Timings, threads, time_interleaved
from sizewise.protocols import Inputs
from sizewise.runtimes import onnxruntime
from sizewise.testing import DictInput, NullRuntime, TinyConv, TwoInputs
from sizewise.types import Cost, Device, ModelProfile, Rates, from_json, to_json

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
BOARD = Device(name="board", title="A board", how="predicted", threads=1, ram_bytes=10**6, rates=RATES)
X = torch.zeros(2, 1, 6, 6)


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Times little, on a machine whose rates are given; what was timed together."""
    seen: list[list[str]] = []

    def brief(calls: Mapping[str, Callable[[], object]], **_: object) -> Timings:
        seen.append(list(calls))
        return time_interleaved(calls, rounds=3, block_s=0.0, warmup_s=0.0, settle_s=0.0)

    monkeypatch.setattr(module, "time_interleaved", brief)
    monkeypatch.setattr(module, "calibrated", lambda device, *_: device if device.rates is not None else replace(device, rates=RATES))
    monkeypatch.setattr(onnxruntime, "PROFILE_S", 0.0)
    return seen


class Branches(nn.Module):
    """Cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if float(y.detach().sum()) > 1e9 else y + 1


# ---- counts alone


def test_without_a_device_only_counts_are_given(timed: list[list[str]]) -> None:
    found = profile_model(TinyConv(), X, device=None, name="tiny")
    assert found == ModelProfile(**vars(static_cost(TinyConv(), Inputs((X,)))), name="tiny", inputs=("2x1x6x6 float32",))
    assert found.layers
    assert all(layer.latency_s is None for layer in found.layers)
    assert (found.latency_s, found.predicted_s, found.misfits) == (None, None, ())
    assert timed == []


def test_inputs_are_read_in_every_form() -> None:
    tensor, pair = (
        profile_model(TinyConv(), X, device=None),
        profile_model(TwoInputs(), (torch.zeros(1, 6), torch.zeros(1, 3)), device=None),
    )
    words = {"input_ids": torch.zeros(1, 9, dtype=torch.long), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    assert tensor.batch == 2
    assert pair.inputs == ("1x6 float32", "1x3 float32")
    assert profile_model(DictInput(), words, device=None).inputs == ("1x9 int64", "1x9 int64")
    assert profile_model(TinyConv(), Inputs((X,)), device=None) == tensor


def test_what_is_no_input_is_refused() -> None:
    with pytest.raises(UsageError, match="not model inputs"):
        profile_model(TinyConv(), "picture", device=None)


def test_a_model_that_fails_on_its_inputs_is_named() -> None:
    with pytest.raises(PreconditionError) as caught:
        profile_models({"good": (TinyConv(), Inputs((X,))), "bad": (nn.Linear(3, 3), Inputs((X,)))}, None, NullRuntime())
    assert caught.value.where is not None
    assert caught.value.where.startswith("bad")


@pytest.mark.parametrize(("device", "runtime"), [("raspbery_pi_4", "onnxruntime"), ("local", "onxruntime")])
def test_an_unknown_device_or_runtime_is_refused_with_the_nearest(device: str, runtime: str) -> None:
    with pytest.raises(UnknownName):
        profile_model(TinyConv(), X, device=device, runtime=runtime)


# ---- predicted


def test_a_declared_device_gives_predicted_intervals(timed: list[list[str]]) -> None:
    found = profile_model(TinyConv(), X, device=BOARD, runtime=NullRuntime())
    assert found.latency_s is not None
    assert found.latency_s.how == "predicted"
    assert found.latency_s == found.predicted_s == predict(analyse(TinyConv(), Inputs((X,))).operators, RATES).total
    assert found.latency_s.low == pytest.approx(found.latency_s.value / 1.6)
    assert found.latency_s.high == pytest.approx(found.latency_s.value * 1.6)
    shares = [layer.latency_s.value for layer in found.layers if layer.latency_s is not None]
    assert len(shares) == len(found.layers)
    assert sum(shares) == pytest.approx(found.latency_s.value)
    assert timed == []


@pytest.mark.parametrize("name", ["raspberry_pi_4", "cortex_m7", "nvidia_t4"])
def test_shipped_devices_predict(name: str) -> None:
    found = profile_model(TinyConv(), X, device=name, runtime=NullRuntime())
    assert found.latency_s is not None
    assert 0 < found.latency_s.low < found.latency_s.value < found.latency_s.high
    assert found.misfits == ()


def test_what_keeps_a_model_from_a_device_is_said() -> None:
    small = replace(BOARD, ram_bytes=1000, unsupported={"adaptive_avg_pool2d": "no such kernel"})
    found = profile_model(TinyConv(), X, device=small, runtime=NullRuntime())
    assert len(found.misfits) == 2
    assert found.misfits[0].endswith("do not fit 1.00 kB of RAM")
    assert found.misfits[1] == "operator adaptive_avg_pool2d is not there: no such kernel"
    assert found.latency_s is not None


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_a_graph_has_no_prediction() -> None:
    found = profile_model(Branches(), torch.zeros(2, 4), device=BOARD, runtime=NullRuntime())
    assert (found.latency_s, found.predicted_s, found.layers, found.macs) == (None, None, (), 32)
    assert found.notes[-1] == "no prediction without the exported graph"
    assert found.notes[0].startswith("no layers")


# ---- measured


def test_here_the_file_is_measured_and_the_prediction_stands_beside() -> None:
    found = profile_model(TinyConv(), X, device="local", runtime=NullRuntime())
    assert found.latency_s is not None
    assert (found.latency_s.how, found.latency_s.n) == ("measured", 3)
    assert found.predicted_s is not None
    assert found.predicted_s.how == "predicted"
    assert found.predicted_s == predict(analyse(TinyConv(), Inputs((X,))).operators, RATES).total


def test_a_runtime_without_a_profiler_measures_the_whole_alone() -> None:
    found = profile_model(TinyConv(), X, runtime=NullRuntime())
    assert found.layers
    assert all(layer.latency_s is None for layer in found.layers)


def test_a_runtime_with_a_profiler_splits_the_whole_over_layers() -> None:
    found = profile_model(TinyConv(width=32), torch.zeros(4, 1, 12, 12), runtime="onnxruntime")
    assert found.latency_s is not None
    times = {layer.path: layer.latency_s for layer in found.layers}
    assert all(time is not None and time.how == "measured" for time in times.values())
    total = sum(time.value for time in times.values() if time is not None)
    assert 0 < total <= found.latency_s.value * (1 + 1e-9)


def test_several_models_are_timed_together_and_come_back_in_order(timed: list[list[str]]) -> None:
    models: dict[str, tuple[nn.Module, Inputs]] = {
        "wide": (TinyConv(width=32), Inputs((X,))),
        "narrow": (TinyConv(width=8), Inputs((X,))),
        "pair": (TwoInputs(), Inputs((torch.zeros(1, 6), torch.zeros(1, 3)))),
    }
    found = profile_models(models, load_device("local"), NullRuntime())
    assert [profile.name for profile in found] == ["wide", "narrow", "pair"]
    assert timed == [["wide", "narrow", "pair"]]
    assert [profile.macs for profile in found] == [static_cost(*pair).macs for pair in models.values()]
    assert all(profile.latency_s is not None for profile in found)


class Refuses(NullRuntime):
    """A runtime that lowers nothing but linear layers."""

    def lower(self, model: nn.Module, example: Inputs, path: Any, *, named: bool = False) -> Any:
        if not isinstance(model, nn.Linear):
            raise UnsupportedModel("no such kernel")
        return super().lower(model, example, path, named=named)


def test_what_the_runtime_cannot_run_is_timed_in_torch_with_a_note() -> None:
    models: dict[str, tuple[nn.Module, Inputs]] = {
        "conv": (TinyConv(), Inputs((X,))),
        "linear": (nn.Linear(4, 4), Inputs((torch.zeros(2, 4),))),
    }
    conv, linear = profile_models(models, load_device("local"), Refuses())
    assert conv.notes == ("null cannot run it (no such kernel): the latency is the torch module's, not split over layers",)
    assert conv.latency_s is not None
    assert conv.latency_s.how == "measured"
    assert linear.notes == ()


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_a_graph_is_measured_all_the_same() -> None:
    found = profile_model(Branches(), torch.zeros(2, 4), runtime=NullRuntime())
    assert found.latency_s is not None
    assert (found.predicted_s, found.layers, len(found.notes)) == (None, (), 1)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_exported_is_measured_in_torch() -> None:
    found = profile_model(Branches(), torch.zeros(2, 4), runtime="onnxruntime")
    assert found.latency_s is not None
    assert found.latency_s.how == "measured"
    assert "onnxruntime cannot run it (torch cannot export this model)" in found.notes[-1]


# ---- nothing changes


@pytest.mark.parametrize("device", [None, "local", "cortex_m7"])
def test_the_model_and_torch_stay_as_they_were(device: str | None) -> None:
    model = TinyConv().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    with threads(2):
        profile_model(model, X, device=device, runtime=NullRuntime())
        assert torch.get_num_threads() == 2
    assert all(part.training for part in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_profile_survives_json() -> None:
    for device in (None, BOARD, "local"):
        found = profile_model(TinyConv(), X, device=device, runtime=NullRuntime())
        assert from_json(ModelProfile, to_json(found)) == found
        assert isinstance(found, Cost)
