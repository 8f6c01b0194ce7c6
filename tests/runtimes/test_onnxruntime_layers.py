"""Kernels of ONNX Runtime traced back to the modules that they came from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.profile.attribution import with_measured
from sizewise.profile.static import analyse
from sizewise.protocols import Inputs
from sizewise.runtimes import _onnxruntime_layers as layers
from sizewise.runtimes import onnxruntime as runtime
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.testing import TinyConv
from sizewise.types import Interval

SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PROFILE_S", 0.0)


# ---- models


class Residual(nn.Module):
    """Convolutions with everything that is folded into them, and a shortcut that is a convolution too."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(width, 50)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        y += self.down(x)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(self.act(y), 1).flatten(1))
        return logits


class Gated(nn.Module):
    """Squeeze and excitation: an activation that the runtime folds under its own name; dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 512, 1), nn.Conv2d(512, 32, 1)
        self.relu, self.gate, self.last = nn.ReLU(), nn.Hardsigmoid(), nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.dropout(x, 0.1, self.training)))
        scale = self.gate(self.excite(self.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return torch.sigmoid(self.last(x * scale))


class Sequence(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.before, self.gru = nn.Linear(40, 48), nn.GRU(48, 64, batch_first=True, **settings)
        self.head = nn.Linear(64 * (2 if settings.get("bidirectional") else 1), 200)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.gru(self.before(x))[0][:, -1])
        return logits


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.Sigmoid(), nn.Linear(256, 256))


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "tiny convolutions": (TinyConv(width=32), (8, 1, 12, 12)),
    "residual": (Residual(), (1, 3, 24, 24)),
    "gated": (Gated(), (1, 16, 20, 20)),
    "perceptron": (_mlp(), (16, 256)),
    "perceptron on sequences": (_mlp(), (2, 16, 256)),
    "gru": (Sequence(), (2, 20, 40)),
    "deep gru in both directions": (Sequence(num_layers=2, bidirectional=True), (2, 20, 40)),
    "transformer": (nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (4, 32, 64)),
    "ends with a folded activation": (nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU()), (1, 16, 20, 20)),
}


Profiled = tuple[nn.Module, Inputs, dict[tuple[str, int], float]]


@pytest.fixture(scope="module", params=list(MODELS))
def profiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    model, shape = MODELS[request.param]
    inputs = Inputs((torch.randn(shape),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "PROFILE_S", 0.0)
        path = tmp_path_factory.mktemp("layers") / "model.onnx"
        OnnxRuntime().lower(model.eval(), inputs, path, named=True)
        return model.eval(), inputs, OnnxRuntime().layer_seconds(path, inputs, threads=1)


def test_keys_are_paths_of_the_model_or_the_runtime(profiled: Profiled) -> None:
    model, _, seconds = profiled
    paths = {name for name, _ in model.named_modules()}
    assert {path for path, _ in seconds} <= paths | {layers.ELSEWHERE}
    assert all(turn >= 0 and value >= 0 for (_, turn), value in seconds.items())
    assert sum(seconds.values()) > 0


def test_every_layer_with_macs_gets_time(profiled: Profiled) -> None:
    model, inputs, seconds = profiled
    analysis = analyse(model, inputs)
    whole = Interval(value=1.0, low=0.9, high=1.1, n=5)
    found = with_measured(analysis.cost, analysis.operators, whole, seconds)
    shares = {layer.path: layer.latency_s.value for layer in found.layers if layer.latency_s is not None}
    starved = [layer.path for layer in found.layers if layer.macs and not shares[layer.path]]
    assert starved == []
    assert 0 < sum(shares.values()) <= 1 + 1e-9


def test_folded_activations_and_normalizations_get_none(profiled: Profiled) -> None:
    model, inputs, seconds = profiled
    analysis = analyse(model, inputs)
    folded = {op.path for op in analysis.operators if op.folded} - {op.path for op in analysis.operators if not op.folded}
    found = with_measured(analysis.cost, analysis.operators, Interval(value=1.0, low=0.9, high=1.1, n=5), seconds)
    assert all(layer.latency_s is not None and layer.latency_s.value == 0 for layer in found.layers if layer.path in folded)


# ---- naming


def node(kind: str, inputs: list[str], outputs: list[str], scopes: str | None, **attributes: Any) -> Any:
    made = helper.make_node(kind, inputs, outputs, name=f"old {outputs[0]}", **attributes)
    if scopes is not None:
        entry = made.metadata_props.add()
        entry.key, entry.value = SCOPES, scopes
    return made


def graph(nodes: list[Any], outputs: list[str]) -> Any:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in outputs]
    return helper.make_graph(nodes, "g", [x], made)


def names(given: Any) -> list[str]:
    return [n.name for n in given.node]


def test_nodes_carry_their_module_and_turn() -> None:
    g = graph(
        [
            node("Relu", ["x"], ["a"], "['', 'body', 'body.0', 'relu']"),
            node("Relu", ["a"], ["b"], "['', 'body', 'body.0', 'relu_1']"),
            node("Neg", ["b"], ["c"], "['', 'neg']"),
            node("Abs", ["c"], ["d"], "['', 'body', 'body.0@1', 'relu_1']"),
        ],
        ["d"],
    )
    layers.name_by_module(g)
    assert names(g) == ["<body.0#0>::0", "<body.0#1>::1", "<#0>::2", "<body.0#1>::3"]


def test_values_are_renamed_alike_on_both_sides_and_inputs_keep_their_names() -> None:
    g = graph([node("Relu", ["x"], ["a"], "['', 'p', 'relu']"), node("Add", ["a", "x"], ["out"], "['', 'add']")], ["out", "a"])
    layers.name_by_module(g)
    assert [list(n.input) for n in g.node] == [["x"], ["<p#0>::0.0", "x"]]
    assert [o.name for o in g.output] == ["<#0>::1.0", "<p#0>::0.0"]
    assert [i.name for i in g.input] == ["x"]


@pytest.mark.parametrize("scopes", [None, "", "not a list", "['alone']", "['_hook', 'sym_size_int_1']", "[", "{}"])
def test_nodes_of_unknown_origin_belong_to_the_runtime(scopes: str | None) -> None:
    g = graph([node("Relu", ["x"], ["y"], scopes)], ["y"])
    layers.name_by_module(g)
    assert names(g) == ["<(runtime)#0>::0"]


def test_names_are_found_again_in_those_of_fused_kernels() -> None:
    for name, place in (
        ("<body.0#12>::3_kernel_time", ("body.0", 12)),
        ("fused <body.0#1>::3_kernel_time", ("body.0", 1)),
        ("<#0>::3.0_nchwc_kernel_time", ("", 0)),
        ("<a.b_c#0>::35/MatMulScaleFusion/_kernel_time", ("a.b_c", 0)),
        ("ReorderInput_kernel_time", (layers.ELSEWHERE, 0)),
    ):
        assert list(layers._by_module([event(name, 0, 5)], 1, 0, 0.5)) == [place]


def _branches() -> Any:
    def branch(kind: str, name: str) -> Any:
        inner = helper.make_node(kind, ["a"], [name])
        return helper.make_graph([inner], kind, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])])

    condition = helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0)
    positive = helper.make_node("Greater", ["s", "zero"], ["yes"])
    choice = node("If", ["yes"], ["y"], "['', 'cond']", then_branch=branch("Neg", "t"), else_branch=branch("Abs", "e"))
    g = graph([node("Relu", ["x"], ["a"], "['', 'act', 'relu']"), condition, positive, choice], ["y"])
    g.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    return g


def _run(g: Any, tmp_path: Path, x: Any) -> Any:
    model = helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_naming_changes_nothing_of_what_a_graph_computes_even_in_its_branches(tmp_path: Path) -> None:
    plain, named = _branches(), _branches()
    layers.name_by_module(named)
    for x in (np.ones((2, 2), "float32"), -np.ones((2, 2), "float32")):
        assert np.array_equal(_run(plain, tmp_path, x), _run(named, tmp_path, x))


# ---- adding up


def event(name: str, start: int, micros: int, **more: Any) -> dict[str, Any]:
    return {"cat": "Node", "name": name, "ts": start, "dur": micros, "tid": 1, **more}


def test_the_median_of_the_calls_after_the_warm_up_counts() -> None:
    durations = [900, 800, 7, 5, 100]
    events = [event("<a#0>::0_kernel_time", 1000 * i, d) for i, d in enumerate(durations)]
    assert layers._by_module(events, 5, 2, 0.5) == {("a", 0): pytest.approx(7e-6)}


def test_kernels_of_one_operator_add_up() -> None:
    events = [event("<a#0>::0_kernel_time", 0, 3), event("<a#0>::1_kernel_time", 10, 4), event("<a#1>::2_kernel_time", 20, 5)]
    assert layers._by_module(events, 1, 0, 0.5) == {("a", 0): pytest.approx(7e-6), ("a", 1): pytest.approx(5e-6)}


def test_a_kernel_that_runs_several_times_per_call_counts_as_often() -> None:
    events = [event("<a#0>::0_kernel_time", 10 * i, 2) for i in range(4 * 5)]
    assert layers._by_module(events, 4, 1, 0.5) == {("a", 0): pytest.approx(5 * 2e-6)}


def test_kernels_inside_a_branch_or_loop_are_in_the_time_around_them() -> None:
    events = [
        event("inner_kernel_time", 12, 3),
        event("inner_kernel_time", 16, 3),
        event("<loop#0>::0_kernel_time", 10, 20),
        event("<next#0>::1_kernel_time", 30, 4),
        event("<other#0>::2_kernel_time", 12, 1, tid=2),
    ]
    assert layers._by_module(events, 1, 0, 0.5) == {
        ("loop", 0): pytest.approx(20e-6),
        ("next", 0): pytest.approx(4e-6),
        ("other", 0): pytest.approx(1e-6),
    }


def test_kernels_too_short_for_the_clock_hide_nobody() -> None:
    events = [event("<a#0>::0_kernel_time", 5, 0), event("<b#0>::1_kernel_time", 5, 3), event("<c#0>::2_kernel_time", 8, 2)]
    got = layers._by_module(events, 1, 0, 0.5)
    assert {place: value for place, value in got.items() if value} == {("b", 0): pytest.approx(3e-6), ("c", 0): pytest.approx(2e-6)}


def test_what_is_not_a_kernel_is_left_out() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 50},
        event("<a#0>::0_fence_before", 0, 50),
        event("<a#0>::0_kernel_time", 0, 2),
    ]
    assert layers._by_module(events, 1, 0, 0.5) == {("a", 0): pytest.approx(2e-6)}


class Session:
    """Gives back a file of events; counts how often it runs."""

    def __init__(self, path: Path, before: int) -> None:
        self.path, self.runs = path, before

    def run(self, outputs: None, feed: Mapping[str, Any]) -> None:
        self.runs += 1

    def end_profiling(self) -> str:
        events: list[dict[str, Any]] = []
        for i in range(self.runs):
            events += [{"cat": "Session", "name": "model_run", "ts": 100 * i, "dur": 90}]
            events += [event("<a#0>::0_kernel_time", 100 * i + 10 * k, 9 - i if i < 4 else 2) for k in range(5)]
        self.path.write_text(json.dumps(events), encoding="utf-8")
        return str(self.path)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_calls_made_before_are_warm_up_too(tmp_path: Path, before: int) -> None:
    session = Session(tmp_path / "events.json", before)
    got = layers.layer_seconds(session, {}, runs=8, warmup=4)
    assert session.runs == before + 12
    assert got == {("a", 0): pytest.approx(5 * 2e-6)}
    assert not session.path.exists()
