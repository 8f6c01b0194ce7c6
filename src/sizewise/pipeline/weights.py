"""A module's state to `weights.safetensors` and back; tensors that share memory are stored once and stay shared."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sizewise.errors import UsageError
from sizewise.files import write_bytes

__all__ = ["load_state", "save_state"]

_SHARED = "shared"


def save_state(model: nn.Module, path: Path) -> None:
    """Write every parameter and buffer; names that share one tensor are listed in the header's metadata."""
    first: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UsageError("the model's state holds something that is not a tensor", where=name, got=type(value).__name__)
        key = (value.data_ptr(), value.storage_offset(), tuple(value.shape), tuple(value.stride()))
        if value.numel() and key in first:
            shared[name] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach().cpu().contiguous().clone()
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
