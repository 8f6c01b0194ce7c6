"""A module's state to a folder and back: `weights.swz` where a technique made it small, `weights.safetensors` otherwise."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from sizewise.data.model_state import distinct_tensors
from sizewise.errors import UsageError
from sizewise.files import write_bytes
from sizewise.pipeline.small_weights import read_small, write_small
from sizewise.storage.forms import attached_forms
from sizewise.storage.swz import open_swz

__all__ = ["WEIGHT_FILES", "load_state", "load_weights", "save_state", "save_weights"]

PLAIN, SMALL = WEIGHT_FILES = ("weights.safetensors", "weights.swz")

_SHARED = "shared"


def save_weights(model: nn.Module, folder: Path) -> Path:
    """Write a module's state into a folder; gives the file. Forms that a technique attached make it the small one."""
    small = bool(attached_forms(model))
    path, other = (folder / name for name in ((SMALL, PLAIN) if small else (PLAIN, SMALL)))
    if small:
        write_small(model, path)
    else:
        save_state(model, path)
    other.unlink(missing_ok=True)
    return path


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what `save_weights` wrote into a module of the same structure.

    Raises:
        UsageError: no such file, a damaged file, or weights of another structure.
    """
    if (folder / SMALL).is_file():
        read_small(open_swz(folder / SMALL), model)
    else:
        load_state(model, folder / PLAIN)


def save_state(model: nn.Module, path: Path) -> None:
    """Write every parameter and buffer as safetensors; tensors that share memory are stored once and stay shared.

    Names that share one tensor are listed in the header's metadata.
    """
    distinct = distinct_tensors(model)
    tensors = {names[0]: value.detach().cpu().contiguous().clone() for names, value in distinct}
    shared = {name: names[0] for names, _ in distinct for name in names[1:]}
    write_bytes(path, save(tensors, {"format": "pt", _SHARED: json.dumps(shared)}))


def load_state(model: nn.Module, path: Path) -> None:
    """Load what `save_state` wrote into a module of the same structure.

    Raises:
        UsageError: no such file, a damaged file, or weights of another structure.
    """
    if not path.is_file():
        raise UsageError("no such weights file", where=str(path))
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            shared = json.loads((file.metadata() or {}).get(_SHARED, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UsageError("the weights file is damaged", where=str(path), got=str(error)) from error
    state = {**tensors, **{name: tensors[source] for name, source in shared.items() if source in tensors}}
    try:
        with torch.no_grad():
            model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise UsageError(
            "the weights do not fit this model", where=str(path), got=" ".join(lines)[:300], hint="is it the task the bundle was made from?"
        ) from error
