"""A module's state as one small file and back: every tensor in the form that its technique left it in, or in its shortest one."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import nn

from sizewise.data.model_state import distinct_tensors
from sizewise.errors import UsageError
from sizewise.storage.forms import Constant, Form, Raw, attach_forms, attached_forms, held_form
from sizewise.storage.swz import Stored, file_bytes, open_swz, write_swz
from sizewise.types import StoredTensor, StoredWeights

__all__ = ["described", "read_small", "small_bytes", "write_small"]


def write_small(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> int:
    """Write parameters and persistent buffers without loss; gives the size.

    Args:
        model: any module. Where a technique attached a form to a tensor and the tensor still has these values, the form is written;
            every other one is written in the shortest lossless form. Tied tensors are written once.
        path: of the file, which is replaced.
        metadata: written beside them.

    Raises:
        UsageError: the state holds something that is not a tensor, or a tensor of a type that files do not have.
    """
    return write_swz(path, _tensors(model), metadata or {})


def small_bytes(model: nn.Module, metadata: Mapping[str, str] | None = None) -> int:
    """The size of the file that `write_small` would write."""
    return file_bytes(_tensors(model), metadata or {})


def described(path: Path, whole_bytes: int) -> StoredWeights:
    """What a file that `write_small` wrote holds, for the record.

    Args:
        path: of the file.
        whole_bytes: of the model before it was shrunk, as float32.
    """
    stored = open_swz(path)
    tensors = [
        StoredTensor(
            name=names[0],
            size_bytes=stored.size_bytes(names[0]),
            float_bytes=4 * prod(stored.shape(names[0])),
            form=stored.kind(names[0]),
        )
        for names in stored.tied
    ]
    return StoredWeights(path=path.name, size_bytes=path.stat().st_size, whole_bytes=whole_bytes, tensors=tuple(tensors))


def read_small(stored: Stored, module: nn.Module) -> None:
    """Load such a file into a module of the same structure: values, types, ties, and the forms that are not plain.

    Raises:
        UsageError: the file is damaged, or belongs to another structure.
    """
    _check_fit(stored, module)
    forms = dict(stored.forms())
    values = {names: form.decode() for names, form in forms.items()}
    _convert(stored, module, {name: value.dtype for names, value in values.items() for name in names})
    _tie(module, stored.tied)
    state = {name: value for names, value in values.items() for name in names}
    try:
        with torch.no_grad():
            module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise _misfit(stored, str(error).partition("\n")[2].strip()) from error
    coded = {name: form for names, form in forms.items() for name in names if not isinstance(form, Raw | Constant)}
    if coded:
        attach_forms(module, coded)


def _tensors(model: nn.Module) -> list[tuple[tuple[str, ...], Form]]:
    forms = attached_forms(model)
    return [(names, held_form(value, [forms[name] for name in names if name in forms])) for names, value in distinct_tensors(model)]


def _check_fit(stored: Stored, module: nn.Module) -> None:
    """Names and shapes, before anything is decoded."""
    state, known = module.state_dict(), set(stored.names)
    for name in (*stored.names, *state):
        if name not in state or name not in known:
            raise _misfit(stored, f"{name} is only in the {'file' if name not in state else 'model'}")
        if stored.shape(name) != tuple(state[name].shape):
            raise _misfit(stored, f"{name} is {stored.shape(name)} in the file and {tuple(state[name].shape)} in the model")


def _misfit(stored: Stored, got: str) -> UsageError:
    hint = "load it into the model that it was made from, or one of the same structure"
    return UsageError("the weights do not fit this model", where=str(stored.path), got=got[:300], hint=hint)


def _convert(stored: Stored, module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Give parameters and buffers the types of floats that were saved; their strides stay."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        wanted = dtypes.get(name, tensor.dtype)
        if wanted.is_floating_point != tensor.dtype.is_floating_point:
            raise _misfit(stored, f"{name} is {wanted} in the file and {tensor.dtype} in the model")
        if wanted != tensor.dtype:
            tensor.data = tensor.data.to(wanted)


def _tie(module: nn.Module, tied: tuple[tuple[str, ...], ...]) -> None:
    """Let parameters that were one tensor be one again."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for first, *others in tied:
        for name in others:
            if first in parameters and name in parameters and parameters[name] is not parameters[first]:
                parent, _, attribute = name.rpartition(".")
                setattr(module.get_submodule(parent), attribute, parameters[first])
