"""What the front doors share: a module, example inputs and calibration data in, the context that techniques work in."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sizewise.data.batches import CalibrationSample, LabelledSample, as_inputs
from sizewise.devices.loader import load_device
from sizewise.errors import PreconditionError, UsageError, blaming
from sizewise.graph.trace import eval_copy, is_graph, part_from
from sizewise.pipeline.apply import run_technique
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.progress import Within, shown
from sizewise.pipeline.setup import CALIBRATION_EXAMPLES
from sizewise.pipeline.timer import timer_for
from sizewise.protocols import Context, Inputs, Progress, Runtime, Technique
from sizewise.types import Change

__all__ = ["make_context", "restore_gradients", "run_shown"]


def make_context(
    model: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any] | None,
    runtime: str | Runtime,
    seed: int,
    *,
    timed: bool = False,
    needs_example: bool = True,
) -> Context:
    """The context of one technique on one module.

    Without example inputs the first calibration batch serves.

    Args:
        model: float; it is run once on the example.
        example_inputs: one tensor, a tuple of positional inputs, a dict of keyword inputs, or None.
        calibration: a loader of inputs, as a task's.
        runtime: where the model will run.
        seed: of everything random.
        timed: whether latency will be measured.
        needs_example: whether nothing can be done without inputs.

    Raises:
        UsageError: inputs or a loader that cannot be meant, or none where they are needed.
        PreconditionError: the model fails on the inputs, or is a graph already.
    """
    if is_graph(model):
        raise PreconditionError(
            "an exported graph cannot be shrunk",
            where="model",
            got="a module that is quantized or exported already",
            hint="give the float module that it was made from",
        )
    found = find_runtime(runtime)
    data = CalibrationSample(calibration, CALIBRATION_EXAMPLES) if calibration is not None else None
    example = as_inputs(example_inputs) if example_inputs is not None else next(iter(data or ()), Inputs(()))
    if example.args or example.kwargs:
        with blaming("the model failed on these inputs", "example_inputs"), torch.no_grad():
            example.call(eval_copy(model, shared=True))
    elif needs_example:
        raise UsageError(
            "the model cannot be followed without inputs", where="example_inputs", wanted="example_inputs=... or calibration=..."
        )
    timer = timer_for(found, load_device("local")) if timed else None
    labelled = LabelledSample(calibration, CALIBRATION_EXAMPLES) if calibration is not None else None
    return Context(example, data, found.scheme, found.channel_multiple, seed, timer=timer, labelled=labelled)


def run_shown(
    technique: Technique, model: nn.Module, context: Context, progress: bool | Progress, doing: str, *, reads: bool = False
) -> tuple[nn.Module, Change]:
    """Run a technique on a copy of the model, with a display if wanted.

    Args:
        technique: to run.
        model: that stays as it is.
        context: of the technique.
        progress: whether to show what is being done, or where to report it.
        doing: what to call it.
        reads: whether the technique makes something new and never writes to the parameters that it is given, which then need no copies.
    """
    with shown(progress) as display:
        display.start(1)
        done, change = run_technique(technique, eval_copy(model, shared=reads), replace(context, progress=Within(display, doing)))
        if reads:
            part_from(done, model)
        display.advance(f"{doing} done: {'; '.join(change.notes)}")
    return done, change


def restore_gradients(model: nn.Module, shrunk: nn.Module) -> None:
    """Parameters that were frozen stay frozen; tracing wanted all of them to require gradients."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in shrunk.named_parameters():
        parameter.requires_grad_(wanted.get(name, True))
