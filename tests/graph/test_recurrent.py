"""Recurrent layers traced by their shapes: the same shapes, strides and numbers as without, and nothing left behind."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._subclasses import FakeTensorMode

from sizewise.graph.recurrent import recurrent_shapes
from sizewise.graph.trace import export_static, trace
from sizewise.protocols import Inputs
from sizewise.runtimes.onnxruntime import OnnxRuntime

OPERATORS = [torch.ops.aten.gru.input, torch.ops.aten.lstm.input, torch.ops.aten.rnn_tanh.input, torch.ops.aten.rnn_relu.input]
KINDS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
STEPS, BATCH, FEATURES, HIDDEN = 5, 3, 4, 6


def layer(kind: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    if kind == "rnn_relu":
        settings["nonlinearity"] = "relu"
    made: nn.Module = KINDS[kind](FEATURES, HIDDEN, **settings)
    return made.eval()


def sequence(batch_first: bool, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, STEPS, FEATURES) if batch_first else (STEPS, batch, FEATURES), generator=generator)


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def as_patched() -> list[Any]:
    """Everything that tracing by shapes replaces, as it is now."""
    return [dict(decomposition_table).get(op) for op in OPERATORS] + [dict(op.py_kernels) for op in OPERATORS]


class Everything(nn.Module):
    """Gives back the sequence and every final state, whatever the kind."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        given = (x,) if not states else (x, states if len(states) > 1 else states[0])
        return tuple(leaves(self.inner(*given)))


def traced_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    program = export_static(model, inputs)
    output = next(node for node in program.graph.nodes if node.op == "output")
    return [node.meta["val"] for node in output.all_input_nodes]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"bidirectional": True, "num_layers": 2, "bias": False}, {"num_layers": 2}], ids=["plain", "bidirectional", "deep"]
)
def test_traced_outputs_have_the_shapes_and_strides_of_real_ones(kind: str, batch_first: bool, settings: dict[str, Any]) -> None:
    model = Everything(layer(kind, batch_first=batch_first, **settings))
    inputs = Inputs((sequence(batch_first),))
    with torch.no_grad():
        real = inputs.call(model)
    traced = traced_outputs(model, inputs)
    assert [(t.shape, t.stride(), t.dtype) for t in traced] == [(t.shape, t.stride(), t.dtype) for t in real]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("bidirectional", "layers"), [(False, 1), (True, 2)])
def test_the_exported_program_computes_what_the_module_computes(kind: str, batch_first: bool, bidirectional: bool, layers: int) -> None:
    model = Everything(layer(kind, batch_first=batch_first, bidirectional=bidirectional, num_layers=layers))
    inputs = Inputs((sequence(batch_first),))
    program = export_static(model, inputs)
    with torch.no_grad():
        want, got = inputs.call(model), inputs.call(program.module())
    assert all(torch.equal(w, g) for w, g in zip(want, got, strict=True))


def test_an_lstm_with_projection_keeps_both_widths() -> None:
    model = Everything(layer("lstm", proj_size=2, bidirectional=True))
    inputs = Inputs((sequence(False),))
    with torch.no_grad():
        real = inputs.call(model)
    assert [t.shape for t in traced_outputs(model, inputs)] == [t.shape for t in real] == [(5, 3, 4), (2, 3, 2), (2, 3, 6)]


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_given_initial_states_are_used(kind: str) -> None:
    model = Everything(layer(kind))
    states = tuple(torch.randn(1, BATCH, HIDDEN) for _ in range(2 if kind == "lstm" else 1))
    inputs = Inputs((sequence(False), *states))
    with torch.no_grad():
        want, got = inputs.call(model), inputs.call(export_static(model, inputs).module())
    assert all(torch.equal(w, g) for w, g in zip(want, got, strict=True))


def test_a_sequence_without_a_batch() -> None:
    model, inputs = Everything(layer("gru")), Inputs((torch.randn(STEPS, FEATURES),))
    with torch.no_grad():
        want, got = inputs.call(model), inputs.call(export_static(model, inputs).module())
    assert [t.shape for t in got] == [(STEPS, HIDDEN), (1, HIDDEN)]
    assert all(torch.equal(w, g) for w, g in zip(want, got, strict=True))


class Classifier(nn.Module):
    """A recurrent layer between others, whose views need the right strides."""

    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__()
        self.inner = layer(kind, batch_first=True, **settings)
        self.head = nn.Linear(HIDDEN * (2 if settings.get("bidirectional") else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(torch.tanh(x))[0]
        logits: Tensor = self.head(hidden[:, -1] + hidden.transpose(1, 2).contiguous().mean(-1))
        return logits


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "num_layers": 2}])
def test_the_batch_is_free_in_a_traced_program(kind: str, settings: dict[str, Any]) -> None:
    model = Classifier(kind, **settings).eval()
    traced = trace(model, Inputs((sequence(True, batch=1),)))
    assert traced.batch == "dynamic"
    graph = traced.program.module(check_guards=False)
    for batch in (1, 4):
        x = sequence(True, batch)
        with torch.no_grad():
            assert torch.equal(model(x), graph(x))


def test_a_recurrent_layer_is_one_operator_of_the_program() -> None:
    program = export_static(Classifier("gru", num_layers=2).eval(), Inputs((sequence(True),)))
    kinds = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert kinds.count("aten.gru.input") == 1
    assert not any("mm" in kind or "sigmoid" in kind for kind in kinds)


def test_tensors_without_data_get_shapes_and_real_ones_numbers() -> None:
    model = layer("gru")
    x = sequence(False)
    with torch.no_grad():
        want = model(x)
        with recurrent_shapes():
            got = model(x)
        assert all(torch.equal(w, g) for w, g in zip(want, got, strict=True))
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        with recurrent_shapes(), fakes:
            out, state = model(fakes.from_tensor(x))
    assert (out.shape, state.shape) == ((STEPS, BATCH, HIDDEN), (1, BATCH, HIDDEN))


def test_real_gradients_are_the_same_inside() -> None:
    model = layer("lstm", bidirectional=True)

    def gradient() -> Tensor:
        model.zero_grad()
        model(sequence(False))[0].sum().backward()
        found = next(model.parameters()).grad
        assert found is not None
        return found.clone()

    want = gradient()
    with recurrent_shapes():
        got = gradient()
    assert torch.equal(want, got)


def test_everything_is_put_back() -> None:
    before = as_patched()
    with recurrent_shapes():
        assert as_patched() != before
    assert as_patched() == before


def test_everything_is_put_back_when_tracing_fails() -> None:
    before = as_patched()
    with pytest.raises(ZeroDivisionError), recurrent_shapes():
        _ = 1 / 0
    assert as_patched() == before


def test_one_inside_another_is_put_back() -> None:
    before = as_patched()
    with recurrent_shapes():
        outer = as_patched()
        with recurrent_shapes():
            pass
        assert as_patched() == outer
        assert traced_outputs(Everything(layer("gru")), Inputs((sequence(False),)))[0].shape == (STEPS, BATCH, HIDDEN)
    assert as_patched() == before


def test_what_an_export_leaves_behind_does_not_change_later_exports_without() -> None:
    """Operators remember the kernel they took; a remembered one must not outlive its patch."""
    model, x = layer("gru"), sequence(False)
    export_static(model, Inputs((x,)))
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    seen: list[str] = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), fakes, Names():  # type: ignore[no-untyped-call]
        model(fakes.from_tensor(x))
    assert sum(name.startswith(("mm", "addmm", "matmul")) for name in seen) >= STEPS


@pytest.mark.parametrize("steps", [200])
def test_a_long_recurrent_layer_becomes_one_onnx_operator_and_agrees(steps: int, tmp_path: Path) -> None:
    model = Classifier("gru").eval()
    x = torch.randn(1, steps, FEATURES)
    path = tmp_path / "model.onnx"
    OnnxRuntime().lower(model, Inputs((x,)), path)
    kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert kinds.count("GRU") == 1
    assert len(kinds) < 40
    with torch.no_grad():
        want = model(x)
    (got,) = OnnxRuntime().load(path, threads=1)(Inputs((x,)))
    assert torch.allclose(want, got, atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "rnn_tanh"])
def test_other_recurrent_files_agree_for_any_batch(kind: str, tmp_path: Path) -> None:
    model = Classifier(kind, bidirectional=True).eval()
    path = tmp_path / "model.onnx"
    OnnxRuntime().lower(model, Inputs((sequence(True, 1),)), path)
    runner = OnnxRuntime().load(path, threads=1)
    for batch in (1, 3):
        x = sequence(True, batch)
        with torch.no_grad():
            want = model(x)
        assert torch.allclose(want, runner(Inputs((x,)))[0], atol=1e-5)
