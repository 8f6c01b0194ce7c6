"""ONNX Runtime beyond the conformance kit: integers really run, the file stands alone and tells no secrets."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import sizewise
from sizewise.errors import ParityError, UsageError
from sizewise.files import sha256_of
from sizewise.pipeline.apply import apply_plan
from sizewise.protocols import Context, Inputs
from sizewise.runtimes import _onnx_registry
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.testing import TinyConv
from sizewise.types import Plan, Step
from sizewise.zoo.resnet import ResNet


@pytest.fixture(scope="module")
def quantized() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = ResNet((1, 1), (8, 16), 5, 1), torch.randn(8, 1, 8, 8)
    for _ in range(5):
        model.train()(x)
    plan = Plan(scale="x", steps=(Step(technique="int8_static"),))
    module, _, _ = apply_plan(model.eval(), plan, Context(Inputs((x,)), [Inputs((x,))], OnnxRuntime.scheme))
    return module, x


@pytest.fixture(scope="module")
def path(quantized: tuple[torch.nn.Module, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("file") / "model.onnx"
    sizewise.export_model(quantized[0], quantized[1][:1], target)
    return target


def test_every_layer_runs_as_integers(path: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 6
    assert kinds["QLinearAdd"] == 2
    assert kinds["QGemm"] == 1
    assert kinds["QLinearGlobalAveragePool"] == 1
    assert not kinds["Conv"] + kinds["Gemm"] + kinds["MatMul"] + kinds["Add"] + kinds["ReduceMean"] + kinds["Relu"]


def test_the_file_holds_no_paths_and_no_unused_tensors(path: Path) -> None:
    data = path.read_bytes()
    assert b".py" not in data
    assert b"sizewise" not in data
    graph = onnx.load(path).graph
    used = {name for node in graph.node for name in node.input}
    assert all(tensor.name in used for tensor in graph.initializer)
    assert [i.name for i in graph.input] == ["x"]
    assert [o.name for o in graph.output] == ["output"]


def test_the_same_module_gives_the_same_bytes(quantized: tuple[torch.nn.Module, torch.Tensor], path: Path, tmp_path: Path) -> None:
    again = sizewise.export_model(quantized[0], quantized[1][:1], tmp_path / "again.onnx")
    assert again.sha256 == sha256_of(path)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_the_snippet_runs_without_sizewise(path: Path) -> None:
    artefact = sizewise.export_model(TinyConv(), torch.randn(1, 1, 6, 6), path.parent / "tiny.onnx")
    code = OnnxRuntime().snippet(artefact, [((1, 1, 6, 6), "float32")])
    assert len(code.splitlines()) == 5
    blocked = "import sys; sys.modules['torch'] = None; sys.modules['sizewise'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocked + code], cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[[")


def test_memory_is_that_of_a_process_of_its_own(path: Path) -> None:
    peak = OnnxRuntime().peak_memory(path, Inputs((torch.randn(1, 1, 8, 8),)), threads=1)
    assert 100_000 < peak < 500_000_000


def test_a_file_of_another_model_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TinyConv()
    lower = OnnxRuntime.lower
    monkeypatch.setattr(OnnxRuntime, "lower", lambda self, model, example, path: lower(self, other.eval(), example, path))
    with pytest.raises(ParityError, match="does not compute"):
        sizewise.export_model(TinyConv(), torch.randn(4, 1, 6, 6), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_wrong_inputs_are_named(path: Path) -> None:
    runner = OnnxRuntime().load(path, threads=1)
    with pytest.raises(UsageError, match="other inputs") as caught:
        runner(Inputs((torch.zeros(1, 1, 8, 8), torch.zeros(1))))
    assert "1: x" in str(caught.value)


def test_a_damaged_file_is_refused(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(path.read_bytes()[:100])
    with pytest.raises(sizewise.UnsupportedModel, match="cannot load"):
        OnnxRuntime().load(damaged, threads=1)


def test_an_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written"):
        sizewise.export_model(TinyConv(), torch.randn(1, 1, 6, 6), tmp_path / "file" / "model.onnx")


def test_any_batch_gives_what_single_examples_give(path: Path) -> None:
    runner = OnnxRuntime().load(path, threads=1)
    x = torch.randn(7, 1, 8, 8)
    whole = runner(Inputs((x,)))[0].numpy()
    single = np.concatenate([runner(Inputs((x[i : i + 1],)))[0].numpy() for i in range(7)])
    assert np.array_equal(whole, single)


class Either(torch.nn.Module):
    """Branches that read the same weights and a value from outside them, as a gate by the input's content does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        out = torch.cond(x.sum() > 0, lambda h: self.b(h) + hidden, lambda h: torch.sin(h), (hidden,))
        assert isinstance(out, torch.Tensor)
        return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("named", [False, True])
def test_a_model_with_branches_runs_as_it_does_in_torch(tmp_path: Path, named: bool) -> None:
    torch.manual_seed(0)
    model, path = Either().eval(), tmp_path / "model.onnx"
    OnnxRuntime().lower(model, Inputs((torch.ones(2, 4),)), path, named=named)
    runner = OnnxRuntime().load(path, threads=1)
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        torch.testing.assert_close(runner(Inputs((x,)))[0], model(x))


def test_what_is_kept_between_exports_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, example = TinyConv().eval(), Inputs((torch.randn(1, 1, 6, 6),))
    OnnxRuntime().lower(model, example, tmp_path / "first.onnx")
    OnnxRuntime().lower(model, example, tmp_path / "kept.onnx")
    monkeypatch.setattr(_onnx_registry, "_PLACE", "torch.onnx.of_another_version")
    OnnxRuntime().lower(model, example, tmp_path / "anew.onnx")
    assert (tmp_path / "kept.onnx").read_bytes() == (tmp_path / "anew.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()


LATE = """
import sys, torch
from pathlib import Path
from sizewise.protocols import Context, Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.testing import TinyConv
runtime, example = OnnxRuntime(), Inputs((torch.randn(1, 1, 6, 6),))
runtime.lower(TinyConv().eval(), example, Path("float.onnx"))
assert "torchao" not in sys.modules
from sizewise.pipeline.apply import apply_plan
from sizewise.types import Plan, Step
plan = Plan(scale="x", steps=(Step(technique="int8_static"),))
runtime.lower(apply_plan(TinyConv().eval(), plan, Context(example, [example], runtime.scheme))[0], example, Path("int8.onnx"))
"""


@pytest.mark.slow
def test_operators_that_are_loaded_after_an_export_are_known_to_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LATE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "int8.onnx").stat().st_size > 0
