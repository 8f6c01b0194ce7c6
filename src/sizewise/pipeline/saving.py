"""Shrunk modules to a folder and back: weights as safetensors, and the plan that rebuilds their structure. Nothing is pickled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sizewise.data.batches import as_inputs
from sizewise.errors import UsageError
from sizewise.files import write_bytes
from sizewise.pipeline.apply import rebuild_plan
from sizewise.pipeline.bundle import SavedPlan
from sizewise.pipeline.weights import load_weights, save_weights
from sizewise.protocols import Context
from sizewise.types import Plan, Step, from_json, to_json

__all__ = ["HELD", "load_model", "remember", "save_model"]

HELD = "shrunk_by"  # the attribute of a module that holds its plan
_PLAN = "plan.json"


def remember(shrunk: nn.Module, source: nn.Module, step: Step, context: Context, runtime: str) -> None:
    """Let a module know what made it out of a float one, with what made its source."""
    before: SavedPlan | None = getattr(source, HELD, None)
    plan = before.plan if before is not None else Plan(scale="model", seed=context.seed)
    saved = SavedPlan(plan=replace(plan, steps=(*plan.steps, step)), runtime=runtime, scheme=context.scheme)
    setattr(shrunk, HELD, saved)


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Save what `prune_model`, `quantize_model` or `recover` gave: its weights and `plan.json`.

    Args:
        model: the module itself; copies of quantized ones do not know any more what made them.
        folder: to write to; it is made where it is missing, and files of these names are replaced.

    Raises:
        UsageError: the module does not know what made it, or its state holds something that is not a tensor.
    """
    saved: SavedPlan | None = getattr(model, HELD, None)
    if saved is None:
        raise UsageError(
            "the module does not know how it was shrunk",
            where="save_model",
            wanted="what prune_model, quantize_model or recover returned",
            hint="save the state dict of any other module with safetensors.torch.save_model",
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder)
    write_bytes(folder / _PLAN, to_json(saved))


def load_model(folder: str | Path, model: nn.Module, example_inputs: Any) -> nn.Module:
    """The module that `save_model` saved.

    Args:
        folder: that it was saved to.
        model: the float model that it was made from, or one of the same structure; its weights do not matter, and it stays as it is.
        example_inputs: as those that the module was made with.

    Returns:
        the module, in inference mode.

    Raises:
        UsageError: files are missing or damaged, or belong to another structure.
        PreconditionError: the plan does not fit the model.
    """
    folder = Path(folder)
    path = folder / _PLAN
    if not path.is_file():
        raise UsageError("no saved model: there is no plan.json", where=str(folder), hint="save_model writes one")
    saved = from_json(SavedPlan, path.read_bytes(), where=str(path))
    context = Context(as_inputs(example_inputs), scheme=saved.scheme, seed=saved.plan.seed)
    module = rebuild_plan(model, saved.plan, context)
    load_weights(module, folder)
    setattr(module, HELD, saved)
    return module
