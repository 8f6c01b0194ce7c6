"""A module and the plan that made it as one small file, and back."""

import zlib
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from sizewise.data.batches import as_inputs
from sizewise.errors import UsageError
from sizewise.graph.trace import eval_copy
from sizewise.pipeline.apply import rebuild_plan
from sizewise.pipeline.bundle import SavedPlan
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.saving import HELD
from sizewise.pipeline.small_weights import read_small, small_bytes, write_small
from sizewise.protocols import Context
from sizewise.storage.swz import Stored, open_swz
from sizewise.types import Plan, from_json, to_json

__all__ = ["compressed_bytes", "load_compressed", "plan_bytes", "save_compressed"]

_PLAN = "plan"


def save_compressed(model: nn.Module, path: str | Path) -> None:
    """Save a module's parameters and persistent buffers, without loss, in as few bytes as their values need.

    Args:
        model: any module. Where a technique attached a form to a tensor and the tensor still has these values, the form is written;
            every other one is written in the shortest lossless form. Tied tensors are written once.
        path: of the file, which is replaced. Its usual ending is `.swz`.

    Raises:
        UsageError: the module's state holds something that is not a tensor, or a tensor of a type that files do not have.
    """
    write_small(model, path, _metadata(getattr(model, HELD, None)))


def compressed_bytes(model: nn.Module, plan: Plan | None = None) -> int:
    """The size of the file that `save_compressed` would write.

    Args:
        model: as there.
        plan: that made the module for ONNX Runtime, where the module does not know it yet.

    Raises:
        UsageError: as there.
    """
    saved: SavedPlan | None = getattr(model, HELD, None)
    return small_bytes(model, _metadata(saved if plan is None or not plan.steps else _for_onnxruntime(plan)))


def plan_bytes(plan: Plan) -> int:
    """What a plan takes in such a file, about."""
    return len(zlib.compress(_metadata(_for_onnxruntime(plan))[_PLAN].encode()))


def _for_onnxruntime(plan: Plan) -> SavedPlan:
    runtime = find_runtime("onnxruntime")
    return SavedPlan(plan=plan, runtime=runtime.name, scheme=runtime.scheme)


def load_compressed(path: str | Path, model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """The module that `save_compressed` saved.

    Args:
        path: of the file.
        model: of the same structure; or, where the saved module knew what made it (as what `prune_model` and its like return does),
            the float model that it was made from. Its weights do not matter, and it stays as it is.
        example_inputs: as those that the module was made with; wanted only where a plan rebuilds the structure.

    Returns:
        the module in inference mode, with the tensors' types and ties as they were saved, and the forms attached.

    Raises:
        UsageError: the file is missing, damaged or belongs to another structure, or example inputs are missing.
        PreconditionError: the plan does not fit the model.
    """
    stored = open_swz(path)
    module, saved = _structure(stored, model, example_inputs)
    read_small(stored, module)
    if saved is not None:
        setattr(module, HELD, saved)
    return module


def _metadata(saved: SavedPlan | None) -> dict[str, str]:
    return {} if saved is None else {_PLAN: msgspec.json.format(to_json(saved), indent=-1).decode()}


def _structure(stored: Stored, model: nn.Module, example_inputs: Any) -> tuple[nn.Module, SavedPlan | None]:
    """A copy of the model, taken through the plan if there is one."""
    if _PLAN not in stored.metadata:
        return eval_copy(model), None
    saved = from_json(SavedPlan, stored.metadata[_PLAN], where=str(stored.path))
    if example_inputs is None:
        raise UsageError(
            "the plan in the file needs example inputs to rebuild the structure",
            where=str(stored.path),
            hint="load_compressed(path, model, example_inputs) with the float model that it was made from",
        )
    context = Context(as_inputs(example_inputs), scheme=saved.scheme, seed=saved.plan.seed)
    return rebuild_plan(model, saved.plan, context), saved
