"""Conformance kits: what every technique and every runtime promises, as assertions that third parties can run too.

from sizewise.testing import check_runtime, check_technique

def test_mine() -> None:
    check_technique("channel_pruning", {"ratio": 0.5})
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sizewise.evaluate.metrics import primary_output
from sizewise.evaluate.scoring import module_call
from sizewise.graph.trace import batch_size, eval_copy
from sizewise.pipeline.apply import apply_plan, rebuild_plan
from sizewise.protocols import Context, Inputs, Runtime
from sizewise.testing.models import DictInput, FixedBatch, TinyConv, TwoInputs
from sizewise.testing.null_runtime import NullRuntime
from sizewise.types import Change, LayerKind, LayerShape, Plan, Step, from_json, to_json

__all__ = ["check_runtime", "check_technique"]

CELLS: tuple[LayerKind, ...] = ("gru", "lstm", "rnn")


def check_technique(name: str, settings: Mapping[str, Any] | None = None, *, model: nn.Module | None = None, example: Any = None) -> Change:
    """Apply a technique to a tiny model (or to yours) and assert what every technique promises.

    The original is untouched; the outputs keep their shape and are finite; something was touched; the same seed gives the same
    result; the plan survives JSON and rebuilds the same module from the weights alone.

    Returns:
        what the technique said it did.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model or TinyConv()
        inputs = Inputs((torch.randn(8, 1, 6, 6),)) if example is None else example
    before = copy.deepcopy(model.state_dict())
    context = Context(inputs, [inputs], NullRuntime.scheme, channel_multiple=4, train=[inputs])
    plan = Plan(scale="tiny", steps=(Step(technique=name, settings=dict(settings or {})),))
    shrunk, applied, changes = apply_plan(model, plan, context)
    _assert_same_state(before, model.state_dict(), "the original changed")
    want, got = _output(eval_copy(model), inputs), _output(shrunk, inputs)
    assert got.shape == want.shape, f"{name}: outputs changed shape from {tuple(want.shape)} to {tuple(got.shape)}"
    assert bool(torch.isfinite(got).all()), f"{name}: outputs are not finite"
    assert changes[0].touched, f"{name}: touched nothing and raised nothing"
    again, _, _ = apply_plan(model, plan, context)
    assert torch.equal(_output(again, inputs), got), f"{name}: the same seed gave another result"
    saved = from_json(Plan, to_json(applied))
    rebuilt = rebuild_plan(_scrambled(model), saved, Context(inputs, None, NullRuntime.scheme, channel_multiple=4))
    rebuilt.load_state_dict(shrunk.state_dict(), strict=True)
    assert torch.equal(_output(rebuilt, inputs), got), f"{name}: the rebuilt module computes something else"
    return changes[0]


def check_runtime(runtime: Runtime, folder: Path) -> None:
    """Lower, load and run tiny models with every form of input, and assert what every runtime promises."""
    torch.manual_seed(0)
    _check_model(runtime, folder / "conv", TinyConv(), Inputs((torch.randn(1, 1, 6, 6),)), Inputs((torch.randn(5, 1, 6, 6),)))
    two = Inputs((torch.randn(2, 6), torch.randn(2, 3)))
    _check_model(runtime, folder / "two", TwoInputs(), two, Inputs((torch.randn(7, 6), torch.randn(7, 3))))
    _check_model(runtime, folder / "dict", DictInput(), _tokens(2), _tokens(4))
    _check_model(runtime, folder / "fixed", FixedBatch(), Inputs((torch.randn(3, 5),)), Inputs((torch.randn(3, 5),)))
    _check_kernels(runtime)
    if runtime.scheme is not None:
        _check_quantized(runtime, folder / "int8")


def _check_model(runtime: Runtime, folder: Path, model: nn.Module, example: Inputs, other: Inputs, *, quantized: bool = False) -> None:
    model = eval_copy(model)
    path = folder / runtime.file_name
    artefact = runtime.lower(model, example, path)
    assert [p.name for p in folder.iterdir()] == [runtime.file_name], "lowering leaves one file"
    assert artefact.path == runtime.file_name
    runner = runtime.load(path, threads=1)
    for inputs in (example, other):
        want, got = primary_output(module_call(model)(inputs)), primary_output(runner(inputs))
        assert got.shape == want.shape
        scale = float(want.abs().mean())
        gap = float((want - got).abs().mean())
        assert gap <= runtime.tolerance(quantized=quantized) * scale, f"differs by {gap} at scale {scale}, batch {batch_size(inputs)}"
    runner.prepare(example)()
    assert runtime.peak_memory(path, example, threads=1) >= 0
    found = runtime.executed(path, example, threads=1)
    assert found is None or 0 <= found.share <= 1
    assert runtime.snippet(artefact, [((1,), "float32")] * len(artefact.inputs)).strip()


def _check_kernels(runtime: Runtime) -> None:
    conv = LayerShape(
        kind="conv",
        out_channels=8,
        in_channels=8,
        batch=1,
        sides=(6, 6),
        kernel=(3, 3),
        stride=(1, 1),
        dilation=(1, 1),
        padding=(1, 1, 1, 1),
    )
    shapes = [
        conv.resized(8, 3),
        replace(conv, groups=8),
        replace(conv, kind="conv_transpose"),
        LayerShape(kind="linear", out_channels=512, in_channels=512, batch=64),
        *(LayerShape(kind=kind, out_channels=6, in_channels=5, batch=2, sides=(7,), directions=2) for kind in CELLS),
    ]
    seconds = runtime.kernel_seconds(shapes, threads=1)
    assert len(seconds) == len(shapes), "one figure per layer"
    assert all(0 < value < math.inf for value in seconds), f"times are finite and above 0, got {seconds}"
    assert max(seconds) == seconds[3], "the layer with a thousand times the work takes longest: figures are in order"
    assert runtime.kernel_seconds([], threads=1) == []


def _check_quantized(runtime: Runtime, folder: Path) -> None:
    example = Inputs((torch.randn(8, 1, 6, 6),))
    context = Context(example, [example], runtime.scheme)
    quantized, _, _ = apply_plan(TinyConv(), Plan(scale="tiny", steps=(Step(technique="int8_static"),)), context)
    _check_model(runtime, folder, quantized, example, Inputs((torch.randn(3, 1, 6, 6),)), quantized=True)


def _tokens(batch: int) -> Inputs:
    ids = torch.randint(0, 20, (batch, 9))
    return Inputs((), {"input_ids": ids, "attention_mask": (ids > 2).long()})


def _output(model: nn.Module, inputs: Inputs) -> Tensor:
    return primary_output(module_call(model)(inputs)).clone()


def _scrambled(model: nn.Module) -> nn.Module:
    """The same structure with other weights: rebuilding must not lean on them."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.uniform_(-1, 1)
    return twin


def _assert_same_state(before: Mapping[str, Tensor], after: Mapping[str, Tensor], message: str) -> None:
    assert before.keys() == after.keys(), message
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"{message}: {name}"
