"""Coded weights in files: small, without float copies, and in the operators that ONNX Runtime runs fast."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from sizewise.arith.grids import Grid, Steps, find_steps, quantize
from sizewise.arith.pairs import least_scale
from sizewise.errors import InternalError
from sizewise.graph.coded import Coding, Weight, encode_weights, find_weights
from sizewise.graph.trace import quiet, trace
from sizewise.pipeline.apply import apply_plan
from sizewise.protocols import Context, Inputs
from sizewise.runtimes._onnx_coded import expand
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.types import Plan, Step
from sizewise.zoo.bert import BertEncoder

CODINGS = {
    "int8": Coding("int8"),
    "int8 with zero points": Coding("int8", symmetric=False),
    "int4": Coding("int4", group=32),
    "int4 with zero points": Coding("int4", group=16, symmetric=False),
    "float16": Coding("float16"),
    "bfloat16": Coding("bfloat16"),
    "dynamic": Coding("int8", dynamic=True),
}
SHARE = {  # of the float file's bytes
    "int8": 0.32,
    "int8 with zero points": 0.33,
    "int4": 0.3,
    "int4 with zero points": 0.4,
    "float16": 0.55,
    "bfloat16": 0.55,
    "dynamic": 0.32,
}


class Sequences(nn.Module):
    """An embedding that the output layer shares, recurrent layers, and convolutions, one of them transposed."""

    def __init__(self, tokens: int = 96, width: int = 72) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.gru = nn.GRU(width, 36, batch_first=True)
        self.lstm = nn.LSTM(36, 36, batch_first=True, bidirectional=True)
        self.conv = nn.Conv1d(width, width, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(width, width, 3, padding=1)
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.lstm(self.gru(self.table(ids))[0])[0]
        logits: Tensor = self.head(self.up(self.conv(x.transpose(1, 2))).transpose(1, 2))
        return logits


class Pictures(nn.Module):
    """Convolutions with batch normalization, grouped and not, and a linear layer."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, 40)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return logits


MODELS: dict[str, tuple[type[nn.Module], Tensor, Tensor]] = {
    "sequences": (Sequences, torch.arange(14).reshape(2, 7), torch.arange(35).reshape(5, 7)),
    "pictures": (
        Pictures,
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
    ),
}


def nearest(_: Weight, matrix: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    # with larger sums some machines' kernels compute something else
    steps = find_steps(matrix, grid, least=least_scale(matrix, 128) if grid.symmetric and grid.block is None else None)
    return quantize(matrix, steps, grid), steps


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def coded(model: nn.Module, example: Tensor, coding: Coding) -> nn.Module:
    graph = trace(model, Inputs((example,))).program.module(check_guards=False)
    encode_weights(graph, {weight.name: coding for weight in find_weights(graph)[0]}, nearest)
    return graph


def kinds(path: Path) -> Counter[str]:
    """Operators that the runtime has when it has optimized the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path.with_suffix(".optimized")).graph.node)


def gap(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().mean() / want.abs().mean())


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    found = {name: tmp_path_factory.mktemp("float") / f"{name}.onnx" for name in MODELS}
    for name, path in found.items():
        OnnxRuntime().lower(built(name), Inputs((MODELS[name][1],)), path)
    return found


@dataclass(frozen=True)
class File:
    """A coded graph and its file."""

    name: str
    kind: str
    graph: nn.Module
    path: Path


@pytest.fixture(scope="module", params=[(name, kind) for name in MODELS for kind in CODINGS], ids="-".join)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    name, kind = request.param
    graph, path = coded(built(name), MODELS[name][1], CODINGS[kind]), tmp_path_factory.mktemp("coded") / "model.onnx"
    artefact = OnnxRuntime().lower(graph, Inputs((MODELS[name][1],)), path)
    assert artefact.batch == "dynamic"
    return File(name, kind, graph, path)


def test_files_compute_what_the_graph_computes_in_any_batch(file: File) -> None:
    runner = OnnxRuntime().load(file.path, threads=1)
    allowed = 0.02 if "int4" in file.kind else 1e-5  # layers of 4 bits quantize their inputs in the file
    for x in MODELS[file.name][1:]:
        with torch.no_grad():
            assert gap(runner(Inputs((x,)))[0], file.graph(x)) < allowed


def test_nothing_is_decoded_at_every_call_but_rows_of_embeddings(file: File, floats: Mapping[str, Path]) -> None:
    got, want = kinds(file.path), kinds(floats[file.name])
    rows = {"Gather", "GatherBlockQuantized", "Cast", "Mul", "Sub", "Slice"} if file.name == "sequences" else set()
    products = {"Gemm", "MatMul", "FusedMatMul", "Transpose", "Reshape"}
    linear = products | {"Add", "MatMulNBits", "DynamicQuantizeMatMul"}
    assert {k: got[k] for k in got if k not in rows | linear} == {k: want[k] for k in want if k not in rows | linear}
    assert got["Cast"] <= (2 if file.name == "sequences" else 0)
    if "int4" in file.kind:
        assert got["MatMulNBits"] == 1
    elif file.kind == "dynamic":
        assert got["DynamicQuantizeMatMul"] == 1
    else:
        assert {k: got[k] for k in products} == {k: want[k] for k in products}


def test_the_file_holds_every_weight_once_and_in_few_bits(file: File, floats: Mapping[str, Path]) -> None:
    proto = onnx.load(file.path)
    stored = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    held = sum(t.numel() * t.element_size() for t in file.graph.state_dict().values())
    assert stored < held + 1000, "shapes and other constants are small"
    assert not [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims[:2]) > 2000]
    assert not any(node.domain == "sizewise" for node in proto.graph.node)
    assert {item.domain for item in proto.opset_import} <= {"", "com.microsoft"}
    assert b"sizewise" not in file.path.read_bytes()
    if file.name == "sequences":
        assert file.path.stat().st_size < SHARE[file.kind] * floats[file.name].stat().st_size


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    example = Inputs((MODELS["sequences"][1],))
    graph = coded(built("sequences"), MODELS["sequences"][1], CODINGS["int4"])
    for name in ("a", "b"):
        OnnxRuntime().lower(graph, example, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_layers_can_still_be_told_apart(tmp_path: Path) -> None:
    example = Inputs((MODELS["sequences"][1],))
    graph = coded(built("sequences"), MODELS["sequences"][1], CODINGS["dynamic"])
    path = tmp_path / "model.onnx"
    OnnxRuntime().lower(graph, example, path, named=True)
    paths = {place for place, _ in OnnxRuntime().layer_seconds(path, example, threads=1)}
    assert {"table", "gru", "lstm", "conv", "up", "head"} <= paths


# ---- dynamic linear layers beside the runtime's own tool


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(0)
    model = BertEncoder(60, 48, 2, 4, 96, positions=16).eval()
    ids = torch.randint(1, 60, (2, 9))
    inputs = Inputs((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    plan = Plan(scale="x", steps=(Step(technique="int8_dynamic"),))
    graph, _, _ = apply_plan(model, plan, Context(inputs, None, OnnxRuntime.scheme))
    folder = tmp_path_factory.mktemp("encoder")
    for name, module in (("float", model), ("ours", graph)):
        OnnxRuntime().lower(module, inputs, folder / f"{name}.onnx")
    with quiet():
        quantize_dynamic(str(folder / "float.onnx"), str(folder / "theirs.onnx"), weight_type=QuantType.QInt8, per_channel=True)
    return {"model": model, "graph": graph, "inputs": inputs, "folder": folder}


def test_linear_layers_run_in_the_kernels_of_onnxruntimes_own_dynamic_quantization(encoder: dict[str, Any]) -> None:
    ours, theirs = (kinds(encoder["folder"] / f"{name}.onnx") for name in ("ours", "theirs"))
    names = ("DynamicQuantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "MatMul", "Gemm")
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    assert ours["DynamicQuantizeLinear"] == 2, "query, key and value share their quantized input"
    assert ours["MatMulIntegerToFloat"] == 6


def test_the_file_is_as_near_to_the_float_model_as_theirs(encoder: dict[str, Any]) -> None:
    with torch.no_grad():
        want, simulated = encoder["inputs"].call(encoder["model"])[0], encoder["inputs"].call(encoder["graph"])[0]
    outputs = {}
    for name in ("ours", "theirs"):
        outputs[name] = OnnxRuntime().load(encoder["folder"] / f"{name}.onnx", threads=1)(encoder["inputs"])[0]
    assert gap(outputs["ours"], want) < 1.2 * gap(outputs["theirs"], want)
    assert gap(outputs["ours"], simulated) < 1e-2


def test_codes_that_are_no_constants_are_an_internal_error() -> None:
    node = onnx.helper.make_node("dynamic_linear", ["x", "computed", "scales"], ["y"], domain="sizewise")
    graph = onnx.helper.make_graph([node], "g", [], [])
    with pytest.raises(InternalError, match="not constants"):
        expand(onnx.helper.make_model(graph))
