"""A training's whole state in one file, so that an interrupted one goes on as if nothing had happened.

Tensors as safetensors, everything else as JSON in that file's header; nothing is ever unpickled. The file is written to a
temporary name and renamed, so that it is whole or the one before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn, optim

from sizewise.errors import UsageError
from sizewise.files import write_bytes

__all__ = ["model_copy", "model_tensors", "optimizer_tensors", "read", "restore_model", "restore_optimizer", "write"]

FORMAT = "sizewise training 2"


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a whole file or nothing.

    Raises:
        UsageError: the file cannot be written.
    """
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        write_bytes(path, save(held, {"format": FORMAT, "facts": json.dumps(facts)}))
    except OSError as error:
        raise UsageError("the checkpoint cannot be written", where=str(path), got=error.strerror or str(error)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote.

    Raises:
        UsageError: not such a file, or a damaged one.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        facts = json.loads(header.get("facts", "null"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UsageError("the checkpoint is damaged", where=str(path), got=str(error), hint="delete it to begin anew") from error
    if header.get("format") != FORMAT or not isinstance(facts, dict):
        raise UsageError("is no checkpoint of a training", where=str(path), hint="name another file")
    return tensors, facts


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; one that several modules share is there once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def model_copy(model: nn.Module) -> dict[str, Tensor]:
    """The same as they are now, whatever becomes of the model."""
    return {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into a module's own parameters and buffers, so that what is shared stays shared."""
    for name, value in model_tensors(model).items():
        value.data.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of every parameter, as "name/what"."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(model: nn.Module, optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took out."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        path, _, key = name.rpartition("/")
        parameter = parameters[path]
        # in the parameter's layout, as the optimizer makes them; counts of steps are scalars on the CPU
        optimizer.state[parameter][key] = (
            torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.to(parameter.device)
        )
