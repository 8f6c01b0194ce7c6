"""What ONNX Runtime really executes as integers, on files made by our own technique and by onnxruntime's tools."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from tests.graph.nets import Loud
from torch import Tensor, nn

import sizewise
from sizewise.errors import UnsupportedModel
from sizewise.pipeline.apply import apply_plan
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs
from sizewise.runtimes import _onnxruntime_integers as integers
from sizewise.runtimes._onnxruntime_macs import UNKNOWN, Call, macs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.testing import NullRuntime
from sizewise.types import Executed, Plan, Step, from_json, to_json


class Gated(nn.Module):
    """A depthwise convolution, activations that have no integer kernel, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last, self.head, self.act = nn.Conv2d(16, 20, 1), nn.Linear(20, 10), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = nn.functional.silu(self.last(x + self.act(self.depthwise(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 20, 3, stride=2), nn.Conv2d(20, 12, 3, groups=4), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.gru = nn.Linear(20, 32), nn.GRU(32, 24, batch_first=True)
        self.lstm, self.head = nn.LSTM(24, 16, batch_first=True, bidirectional=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.gru(self.before(x))[0])[0][:, -1])
        return out


PICTURE, SEQUENCE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 7, 20)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, name: str) -> None:
        self.left = [{name: PICTURE.numpy()[:1]}]

    def get_next(self) -> Mapping[str, Any] | None:
        return self.left.pop() if self.left else None


def executed(path: Path, *arrays: np.ndarray[Any, Any]) -> Executed:
    found = integers.executed(onnxruntime, path, lambda names: dict(zip(names, arrays, strict=True)), threads=1)
    assert found is not None
    return found


def exported(model: nn.Module, example: Tensor, path: Path) -> Path:
    sizewise.export_model(model, example[:1], path)
    return path


def quantized_statically(path: Path, target: Path, activation: QuantType, form: QuantFormat = QuantFormat.QDQ) -> Path:
    name = onnx.load(path).graph.input[0].name
    quantize_static(path, target, Reader(name), quant_format=form, activation_type=activation, weight_type=QuantType.QInt8)
    return target


def operators_of_the_default_session(path: Path, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(folder / "default.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "default.onnx").graph.node)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers, "PROFILE_S", 0.0)


EXAMPLES = {Gated: PICTURE, Plain: PICTURE, Steps: SEQUENCE}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[nn.Module]], Path]:
    """The float file of each class of models above, made once."""
    folder = tmp_path_factory.mktemp("files")

    def file(kind: type[nn.Module]) -> Path:
        path = folder / f"{kind.__name__}.onnx"
        return path if path.exists() else exported(kind(), EXAMPLES[kind], path)

    return file


@pytest.fixture(scope="module")
def gated(files: Callable[[type[nn.Module]], Path]) -> Path:
    return files(Gated)


# ---- MACs


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("rows", [1, 2])
def test_float_macs_are_those_of_the_static_count(kind: type[nn.Module], rows: int, files: Callable[[type[nn.Module]], Path]) -> None:
    example = EXAMPLES[kind][:rows]
    found = executed(files(kind), example.numpy())
    assert found.integer_macs == 0
    assert found.share == 0
    assert found.float_macs == static_cost(kind(), Inputs((example,))).macs
    assert not found.integer_ops
    assert not found.conversions
    assert not found.between
    assert not found.uncounted


@pytest.mark.slow  # the technique takes most of it
def test_our_int8_runs_every_convolution_as_integers(tmp_path: Path) -> None:
    model, inputs = Plain().eval(), Inputs((PICTURE,))
    plan = Plan(scale="x", steps=(Step(technique="int8_static"),))
    module, _, _ = apply_plan(model, plan, Context(inputs, [inputs], OnnxRuntime.scheme))
    found = executed(exported(module, PICTURE, tmp_path / "model.onnx"), PICTURE.numpy())
    assert found.integer_macs + found.float_macs == static_cost(model, inputs).macs
    assert found.integer_ops["QLinearConv"] == 2
    assert found.share > 0.99
    assert found.signed == found.signed_activations == 0
    assert not found.between
    assert found.depthwise == 0, "a convolution in groups of several channels is not depthwise"


def test_integers_and_floats_together_are_the_whole_model(gated: Path, tmp_path: Path) -> None:
    path = quantized_statically(gated, tmp_path / "int8.onnx", QuantType.QUInt8)
    found = executed(path, PICTURE.numpy())
    assert found.integer_macs + found.float_macs == executed(gated, PICTURE.numpy()).float_macs
    assert found.share == 1
    assert found.depthwise == 1
    assert found.between["HardSigmoid"] == 2
    assert sum(found.conversions.values()) > 2
    assert found.weight_conversions == 0


def test_operators_are_those_that_the_default_session_runs(gated: Path, tmp_path: Path) -> None:
    path = quantized_statically(gated, tmp_path / "int8.onnx", QuantType.QInt8)
    found, kinds = executed(path, PICTURE.numpy()), operators_of_the_default_session(path, tmp_path)
    for name, count in (*found.integer_ops.items(), *found.conversions.items()):
        assert kinds[name] == count, name
    assert kinds["Conv"] + kinds["FusedConv"] == found.float_ops.get("Conv", 0)
    assert found.kernels == kinds.total()
    assert set(found.seconds) == {name.removeprefix("Fused") for name in kinds}


def test_signed_activations_are_seen_in_the_file_and_in_the_kernels(gated: Path, tmp_path: Path) -> None:
    pairs = executed(quantized_statically(gated, tmp_path / "pairs.onnx", QuantType.QInt8), PICTURE.numpy())
    assert pairs.signed_activations > 4
    operators = quantized_statically(gated, tmp_path / "operators.onnx", QuantType.QInt8, QuantFormat.QOperator)
    found = executed(operators, PICTURE.numpy())
    assert found.signed == sum(found.integer_ops.values()) == 4
    unsigned = executed(quantized_statically(gated, tmp_path / "unsigned.onnx", QuantType.QUInt8), PICTURE.numpy())
    assert unsigned.signed == unsigned.signed_activations == 0


def test_dynamic_quantization_leaves_the_gru_in_float(files: Callable[[type[nn.Module]], Path], tmp_path: Path) -> None:
    quantize_dynamic(files(Steps), tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    found = executed(tmp_path / "int8.onnx", SEQUENCE.numpy())
    gru = 2 * 7 * 3 * 24 * (32 + 24)
    assert found.float_ops == {"GRU": 1}
    assert found.float_macs == gru
    assert found.integer_macs == static_cost(Steps(), Inputs((SEQUENCE,))).macs - gru
    assert found.integer_ops["DynamicQuantizeLSTM"] == 1


def one_node(folder: Path, node: Any, inputs: Sequence[tuple[str, Sequence[int | str]]], *stored: Any) -> Path:
    """A file around a node (or several) that makes "y" from float inputs and stored tensors."""
    nodes = node if isinstance(node, list) else [node]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "one.onnx")
    return folder / "one.onnx"


def tensor(name: str, *shape: int, kind: str = "float32") -> Any:
    return numpy_helper.from_array(np.ones(shape, kind), name)


def test_convolutions_with_weights_stored_as_integers_run_in_float(tmp_path: Path) -> None:
    stored = (tensor("w", 8, 3, 3, 3, kind="int8"), tensor("s"), tensor("z", kind="int8"))
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]), helper.make_node("Conv", ["x", "v"], ["y"])]
    found = executed(one_node(tmp_path, nodes, [("x", ["batch", 3, 6, 6])], *stored), np.ones((2, 3, 6, 6), np.float32))
    assert found.float_macs == 2 * 8 * 3 * 9 * 16
    assert found.float_ops == {"Conv": 1}
    assert found.weight_conversions == 1
    assert found.signed_activations == 0, "signed weights are as they shall be"


def test_half_precision_is_float_also_where_the_runtime_casts_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    path = one_node(tmp_path, nodes, [("x", ["batch", 3, 6, 6])], tensor("w", 8, 3, 3, 3, kind="float16"))
    found = executed(path, np.ones((2, 3, 6, 6), np.float32))
    assert (found.integer_macs, found.float_macs) == (0, 2 * 8 * 3 * 9 * 16)
    assert found.float_ops == {"Conv": 1}


@pytest.mark.parametrize(("level", "integer"), [(0, False), (4, True)])
def test_few_bits_are_integers_where_activations_are_quantized_too(level: int, integer: bool, tmp_path: Path) -> None:
    sizes = {"K": 64, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **sizes)
    path = one_node(tmp_path, node, [("x", ["batch", 64])], tensor("w", 32, 2, 16, kind="uint8"), tensor("s", 32, 2))
    found = executed(path, np.ones((3, 64), np.float32))
    assert (found.integer_macs, found.float_macs) == ((6144, 0) if integer else (0, 6144))


def test_a_loop_counts_its_macs_as_often_as_it_runs_and_its_layer_once(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["state", "w"], ["next"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    path = one_node(tmp_path, loop, [("x", ["batch", 8])], tensor("w", 8, 8), numpy_helper.from_array(np.array(5, np.int64), "n"))
    found = executed(path, np.ones((2, 8), np.float32))
    assert found.float_macs == 5 * 2 * 8 * 8
    assert found.float_ops == {"MatMul": 1}
    assert found.kernels == 10


def test_a_branch_that_is_not_taken_counts_nothing(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    product, copy = helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Identity", ["x"], ["b"])
    branches = {
        "then_branch": helper.make_graph([product], "then", [], [info("a", TensorProto.FLOAT, None)]),
        "else_branch": helper.make_graph([copy], "else", [], [info("b", TensorProto.FLOAT, None)]),
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is"]),
        helper.make_node("If", ["is"], ["y"], **branches),
    ]
    path = one_node(tmp_path, nodes, [("x", ["batch", 8])], tensor("w", 8, 8), numpy_helper.from_array(np.array(0, np.float32), "zero"))
    assert executed(path, np.ones((2, 8), np.float32)).float_macs == 2 * 8 * 8
    assert executed(path, -np.ones((2, 8), np.float32)).float_macs == 0


@pytest.mark.parametrize(("equation", "want"), [("bij, bjk -> bik", 2 * 3 * 4 * 5), ("...ij,...jk->...ik", None)])
def test_an_einsum_is_counted_or_named(equation: str, want: int | None, tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    path = one_node(tmp_path, node, [("a", [2, 3, 4]), ("b", [2, 4, 5])])
    found = executed(path, np.ones((2, 3, 4), np.float32), np.ones((2, 4, 5), np.float32))
    assert found.float_macs == (want or 0)
    assert found.uncounted == ({} if want else {"Einsum": 1})


def call(operator: str, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...], domain: str = "", **attributes: Any) -> Call:
    return Call(operator, domain, attributes, inputs, [output])


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (call("Gemm", [(7, 3), (5, 7)], (3, 5), transA=1), (0, 3 * 5 * 7)),
        (call("ConvTranspose", [(2, 4, 5, 5), (4, 3, 2, 2)], (2, 6, 10, 10), group=2), (0, 2 * 4 * 25 * 3 * 4)),
        (call("MatMulNBits", [(2, 64)], (2, 8), K=64, N=8, accuracy_level=4), (1024, 0)),
        (call("MatMulNBits", [(2, 64)], (2, 8), K=64, N=8), (0, 1024)),
        # 2 examples of 5 steps, 12 wide: the projection is of integers, scores and sums are not
        (call("QAttention", [(2, 5, 12), (12, 36)], (2, 5, 12), "com.microsoft"), (10 * 12 * 36, 10 * 5 * 24)),
        (call("Attention", [(2, 5, 12), (12, 36)], (2, 5, 12), "com.microsoft"), (0, 10 * 12 * 36 + 10 * 5 * 24)),
        (call("Attention", [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)], (2, 3, 5, 6)), (0, 2 * 3 * 5 * 7 * 10)),
        (call("MultiHeadAttention", [(2, 5, 12), (2, 7, 12), (2, 7, 12)], (2, 5, 12), "com.microsoft"), (0, 10 * 7 * 24)),
        (call("MultiHeadAttention", [(2, 5, 3, 3, 4)], (2, 5, 12), "com.microsoft"), (0, 10 * 5 * 24)),
        (call("Relu", [(2, 3)], (2, 3)), None),
    ],
    ids=lambda value: value.operator if isinstance(value, Call) else "",
)
def test_formulas(made: Call, want: tuple[int, int] | None) -> None:
    assert macs(made) == want


def test_a_product_without_a_known_shape_is_refused() -> None:
    with pytest.raises(LookupError):
        macs(call("MatMul", [None, (3, 4)], (2, 4)))
    assert "GroupQueryAttention" in UNKNOWN


# ---- around


def test_the_record_survives_json(gated: Path) -> None:
    found = executed(gated, PICTURE.numpy())
    assert from_json(Executed, to_json(found)) == found
    assert sum(found.seconds.values()) > 0


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModel, match="cannot load"):
        executed(tmp_path / "bad.onnx")


def test_the_null_runtime_cannot_tell(tmp_path: Path) -> None:
    assert NullRuntime().executed(tmp_path / "model.null", Inputs(()), threads=1) is None


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_the_largest_sums_are_what_the_model_computes_on_this_machine(tmp_path: Path, scheme: str) -> None:
    """On processors whose kernels add products in 16 bits, sums would be clipped to half of what they are."""
    torch.manual_seed(0)
    model = Loud().eval() if scheme == "static" else nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    x = 1 - 0.01 * (torch.rand(16, 3, 9, 9) if scheme == "static" else torch.rand(16, 64))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, 0.09, 0.1)
    quantized = sizewise.quantize_model(model, calibration=[x] if scheme == "static" else None, scheme=scheme, example_inputs=x[:1])  # type: ignore[arg-type]
    sizewise.export_model(quantized, x[:1], tmp_path / "m.onnx")
    with torch.no_grad():
        wanted, found = model(x), OnnxRuntime().load(tmp_path / "m.onnx", threads=1)(Inputs((x,)))[0]
    assert float((found - wanted).abs().mean() / wanted.abs().mean()) < 0.02
