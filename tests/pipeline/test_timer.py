"""What techniques may ask about speed, and pruning by it."""

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

import sizewise
from sizewise.devices.loader import load_device
from sizewise.errors import UsageError
from sizewise.pipeline import timer as module
from sizewise.pipeline.apply import make_technique, run_technique
from sizewise.pipeline.timer import RuntimeTimer, timer_for
from sizewise.protocols import Context, Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.testing import NullRuntime, TinyConv
from sizewise.types import Artefact, Device, LayerShape

X = Inputs((torch.randn(1, 1, 6, 6),))


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "BLOCK_S", 0.0)
    monkeypatch.setenv("SIZEWISE_CACHE", str(tmp_path))


def test_a_model_is_timed_and_split_over_its_layers(tmp_path: Path) -> None:
    cost = RuntimeTimer(OnnxRuntime(), load_device("local")).profile(TinyConv().eval(), X)
    assert cost.latency_s is not None
    assert cost.latency_s.value > 0
    timed = {layer.path for layer in cost.layers if layer.latency_s is not None and layer.latency_s.value > 0}
    assert {"stem.0", "inner.0", "depthwise", "head"} <= timed


@pytest.mark.parametrize("runtime", [OnnxRuntime(), NullRuntime()])
def test_another_model_is_timed_beside(runtime: OnnxRuntime | NullRuntime) -> None:
    share = RuntimeTimer(runtime, load_device("local")).beside(TinyConv(width=8).eval(), X)
    assert 0 < share(TinyConv(width=16).eval()) < float("inf")
    assert 0 < share(TinyConv(width=4).eval()) < float("inf")


def test_what_a_model_costs_is_measured_once_until_its_weights_its_code_or_its_inputs_are_others() -> None:
    lowered: list[nn.Module] = []

    class Counted(NullRuntime):
        def lower(self, model: nn.Module, example: Inputs, path: Path, *, named: bool = False) -> Artefact:
            lowered.append(model)
            return super().lower(model, example, path, named=named)

    def timed(model: nn.Module, inputs: Inputs = X) -> int:
        before = len(lowered)
        timer.profile(model, inputs)
        timer.beside(model, inputs)
        return len(lowered) - before

    timer, model = RuntimeTimer(Counted(), load_device("local")), TinyConv(width=8).eval()
    assert timed(model) == 2
    assert timed(copy.deepcopy(model)) == 0
    share = timer.beside(model, X)
    share(model)
    share(model)
    assert len(lowered) == 4, "what is timed beside it is made anew"
    assert timed(model, Inputs((torch.randn(2, 1, 6, 6),))) == 2
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert timed(model) == 2
    assert timed(nn.Sequential(model, nn.ReLU()).eval()) == 2


def test_figures_hold_for_a_runtime_its_versions_and_the_machine(tmp_path: Path) -> None:
    here = load_device("local")
    timer = RuntimeTimer(OnnxRuntime(), here)
    assert timer.folder == tmp_path
    assert timer.facts == RuntimeTimer(OnnxRuntime(), here).facts
    others = [
        RuntimeTimer(NullRuntime(), here),
        RuntimeTimer(OnnxRuntime(), Device(name="local", title="", how="measured", threads=here.threads + 1, machine=here.machine)),
        RuntimeTimer(OnnxRuntime(), Device(name="local", title="", how="measured", threads=here.threads, machine={"cpu": "other"})),
    ]
    assert len({timer.facts, *(other.facts for other in others)}) == 4


def test_nothing_is_timed_for_a_device_elsewhere() -> None:
    assert timer_for(OnnxRuntime(), load_device("raspberry_pi_4")) is None
    technique = make_technique("channel_pruning", {"target": "latency"})
    with pytest.raises(UsageError, match="cannot be measured"):
        run_technique(technique, TinyConv(), Context(X))


@pytest.mark.parametrize(
    ("target", "said"), [("latency", "of the latency removed"), ("int8_latency", "of the latency in integers removed")]
)
def test_pruning_by_latency(target: Literal["latency", "int8_latency"], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that takes its time per product, so that the figures do not depend on what else runs."""

    class Steady(RuntimeTimer):
        def kernel_seconds(self, shapes):  # type: ignore[no-untyped-def]
            return NullRuntime().kernel_seconds(shapes, threads=1)

        def beside(self, model, example):  # type: ignore[no-untyped-def]
            return lambda other: _products(other) / _products(model)

    monkeypatch.setattr("sizewise.pipeline.front.timer_for", lambda runtime, device: Steady(runtime, device))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, 64), (64, 64), (64, 64), (64, 4))))
    x = torch.randn(16, 3, 4, 4)
    pruned = sizewise.prune_model(model, 0.4, example_inputs=x[:1], calibration=[x], target=target, runtime=NullRuntime())
    assert _products(pruned) / _products(model) == pytest.approx(0.6, abs=0.02)
    notes: str = " ".join(pruned.pruning.notes)  # type: ignore[union-attr, arg-type]
    assert said in notes


def test_a_runtime_without_integers_has_no_latency_in_integers() -> None:
    timer = RuntimeTimer(NullRuntime(), load_device("local"))
    technique = make_technique("channel_pruning", {"target": "int8_latency"})
    with pytest.raises(UsageError, match="nothing runs in integers"):
        run_technique(technique, TinyConv(), Context(X, scheme=None, timer=timer))


def _products(model: nn.Module) -> int:
    """Of convolutions, quantized or not, of one output position."""
    return sum(tensor.numel() for tensor in model.state_dict().values() if tensor.ndim == 4)


def test_kernels_are_the_runtimes() -> None:
    shape = LayerShape(kind="linear", out_channels=8, in_channels=4, batch=2)
    assert RuntimeTimer(NullRuntime(), load_device("local")).kernel_seconds([shape]) == [pytest.approx(6.4e-8)]
