"""Batches as users write them, read into inputs and targets; loaders checked and sampled.

A batch is a tensor (inputs only), a tuple or list whose first element is the input and second the target, or a dict of
keyword inputs in which "labels", "label", "targets" or "target" is the target. A loader is any re-iterable of batches.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.errors import UsageError, blaming
from sizewise.graph.trace import tensors_in
from sizewise.protocols import Inputs

__all__ = [
    "CalibrationSample",
    "LabelledSample",
    "apart",
    "as_inputs",
    "batches",
    "check_loader",
    "digest",
    "digest_state",
    "examples_in",
    "first_batches",
    "rebatched",
    "split_batch",
    "with_batch",
]

_END = object()
_LOADER = "a re-iterable of batches, such as a DataLoader or a list"
_TARGET_KEYS = ("labels", "label", "targets", "target")


def as_inputs(example: Any, where: str = "example_inputs") -> Inputs:
    """Read `example_inputs`: one tensor, a tuple of positional inputs, or a dict of keyword inputs.

    Raises:
        UsageError: anything else, or nothing with an example in it.
    """
    if isinstance(example, Inputs):
        inputs = example
    elif isinstance(example, Tensor):
        inputs = Inputs((example,))
    elif isinstance(example, Mapping):
        inputs = Inputs((), dict(example))
    elif isinstance(example, tuple | list):
        inputs = Inputs(tuple(example))
    else:
        raise UsageError("not model inputs", where=where, got=type(example).__name__, wanted="a tensor, a tuple of inputs or a dict")
    if examples_in(inputs) < 1:
        raise UsageError("holds no example", where=where, wanted="tensors whose first dimension is the batch")
    return inputs


def split_batch(batch: Any, where: str = "batch") -> tuple[Inputs, Any]:
    """Inputs and target (or None) of one batch, in any of the accepted forms.

    Raises:
        UsageError: a form that is not accepted; says which are.
    """
    if isinstance(batch, Tensor | Inputs):
        return batch if isinstance(batch, Inputs) else Inputs((batch,)), None
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key not in _TARGET_KEYS}
        return Inputs((), inputs), next((batch[key] for key in _TARGET_KEYS if key in batch), None)
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 2:
        return as_inputs(batch[0], where), batch[1] if len(batch) == 2 else None
    raise UsageError(
        "not a batch",
        where=where,
        got=f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__,
        wanted="a tensor, (input, target), or a dict of keyword inputs",
        hint="several inputs go into a tuple: ((first, second), target)",
    )


def batches(loader: Iterable[Any], where: str) -> Iterator[tuple[Inputs, Any]]:
    """Every batch of a loader, read; empty batches are refused.

    Raises:
        UsageError: a form that is not accepted, a batch without examples, or a loader that yields nothing.
    """
    count = 0
    for count, batch in enumerate(_guarded(loader, where), start=1):
        inputs, target = split_batch(batch, f"{where}, batch {count}")
        if examples_in(inputs) < 1:
            raise UsageError("the batch holds no example", where=f"{where}, batch {count}")
        yield inputs, target
    if not count:
        raise UsageError("the loader yields no batch", where=where, hint="an iterator can be read only once; give a list or a DataLoader")


def _guarded(loader: Iterable[Any], where: str) -> Iterator[Any]:
    with blaming("reading the loader failed", where):
        source = iter(loader)
    while True:
        with blaming("reading the loader failed", where):
            batch = next(source, _END)
        if batch is _END:
            return
        yield batch


def check_loader(loader: Any, where: str) -> None:
    """Refuse what cannot be read again and again.

    Raises:
        UsageError: not iterable, or an iterator that is used up by reading it.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | Mapping | str):
        raise UsageError("not a loader", where=where, got=type(loader).__name__, wanted=_LOADER)
    if isinstance(loader, Iterator):
        raise UsageError(
            "the loader can be read only once",
            where=where,
            got=type(loader).__name__,
            wanted=_LOADER,
            hint="list(...) makes a list of it",
        )


def examples_in(inputs: Inputs) -> int:
    """Examples in one call: the first dimension of the first tensor; 0 without tensors."""
    return next((int(tensor.shape[0]) for tensor in tensors_in(inputs) if tensor.ndim), 0)


def with_batch(inputs: Inputs, batch: int) -> Inputs:
    """The inputs with `batch` examples: the given ones over and over. Tensors of another first dimension stay.

    Raises:
        UsageError: fewer than one example asked for.
    """
    if batch < 1:
        raise UsageError("a batch holds at least one example", got=str(batch))
    examples = examples_in(inputs)
    rows = torch.arange(batch) % max(examples, 1)

    def repeat(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == examples else leaf

    args, kwargs = pytree.tree_map(repeat, (inputs.args, dict(inputs.kwargs or {})))
    return Inputs(args, kwargs)


def rebatched(source: Iterable[Inputs], size: int) -> Iterator[Inputs]:
    """The same examples in batches of another size; what is left over at the end is dropped.

    Tensors whose first dimension is not the batch are taken from the first batch.
    """
    held: list[Inputs] = []
    for batch in source:
        for row in range(examples_in(batch)):
            held.append(_row(batch, row))
            if len(held) == size:
                yield _joined(held)
                held = []


def _row(batch: Inputs, row: int) -> Inputs:
    examples = examples_in(batch)

    def pick(leaf: Any) -> Any:
        return leaf[row : row + 1] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == examples else leaf

    args, kwargs = pytree.tree_map(pick, (batch.args, dict(batch.kwargs or {})))
    return Inputs(args, kwargs)


def _joined(rows: list[Inputs]) -> Inputs:
    def join(*leaves: Any) -> Any:
        first = leaves[0]
        return torch.cat(leaves) if isinstance(first, Tensor) and first.ndim and first.shape[0] == 1 else first

    args, kwargs = pytree.tree_map(join, *((row.args, dict(row.kwargs or {})) for row in rows))
    return Inputs(args, kwargs)


def digest(inputs: Inputs, target: Any, into: "hashlib._Hash") -> None:
    """Add one batch's bytes, shapes and dtypes to a running hash."""
    for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs or {}), target)):
        if isinstance(leaf, Tensor):
            into.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            into.update(leaf.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if leaf.ndim else str(leaf.item()).encode())
        elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
            into.update(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
        else:
            into.update(repr(leaf).encode())


def digest_state(model: nn.Module, into: "hashlib._Hash") -> None:
    """Add names and values of all that a model's state holds to a running hash."""
    for name, value in model.state_dict().items():
        into.update(name.encode())
        digest(Inputs((value,)), None, into)


class CalibrationSample:
    """The inputs of the first batches of a loader that hold `limit` examples, re-iterable, targets dropped."""

    def __init__(self, loader: Iterable[Any], limit: int, where: str = "calibration") -> None:
        self.loader, self.limit, self.where = loader, limit, where

    def __iter__(self) -> Iterator[Inputs]:
        yield from (inputs for inputs, _ in LabelledSample(self.loader, self.limit, self.where))


class LabelledSample:
    """The same with targets, None where a batch has none."""

    def __init__(self, loader: Iterable[Any], limit: int, where: str = "calibration") -> None:
        self.loader, self.limit, self.where = loader, limit, where

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        seen = 0
        for inputs, target in batches(self.loader, self.where):
            yield inputs, target
            seen += examples_in(inputs)
            if seen >= self.limit:
                return


def apart(batches: Sequence[Inputs], most: int) -> tuple[Sequence[Inputs], Sequence[Inputs]]:
    """Examples for statistics, and others on which outputs are compared: on the first, late layers seem to lose next to nothing.

    Args:
        batches: a single one is both.
        most: examples to compare on, the last batches whole and at least one; never more than a third of all beyond it.
    """
    if len(batches) < 2:
        return batches, batches
    most = min(most, sum(map(examples_in, batches)) // 3)
    count, held = 1, examples_in(batches[-1])
    while count + 1 < len(batches) and held + examples_in(batches[-count - 1]) <= most:
        count, held = count + 1, held + examples_in(batches[-count - 1])
    return batches[:-count], batches[-count:]


def first_batches(inputs: Iterable[Inputs], examples: int) -> Iterator[Inputs]:
    """Batches from the start until they hold at least so many examples."""
    seen = 0
    for batch in inputs:
        yield batch
        seen += examples_in(batch)
        if seen >= examples:
            return
