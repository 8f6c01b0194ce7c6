"""A split read in random order, in pieces, again and again: from memory where it fits, else from its loader."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor
from torch.utils import _pytree as pytree

from sizewise.data.batches import examples_in
from sizewise.evaluate.metrics import Metric
from sizewise.evaluate.racing import Order, shuffled
from sizewise.evaluate.scoring import Call, Split, score_batch
from sizewise.protocols import Inputs

__all__ = ["Sample"]

Scores = Float[ndarray, " n"]
Batch = tuple[Inputs, Any]
HOLD_BYTES = 500_000_000  # of inputs and targets; while they are put together, twice as much
PLAIN = (int, float, str, bytes, bool, type(None))
FAR = 4.0  # growth of laps where each one reads the loader again


@dataclass
class Sample:
    """A split in a random order, the same for everything that is scored on it.

    Examples are shuffled one by one where the split fits into memory and its batches can be taken apart: every tensor has the batch
    as its first dimension, with the same shape behind it throughout, or is the same in all batches. Else whole batches are shuffled:
    as they are in memory, or read from the loader in its own order, only those of a lap used. The pieces are as large as the loader's
    batches, since some models take no others.

    Args:
        split: what to read.
        seed: of the order.
        hold_bytes: most that may be kept in memory.
        changeable: tells of every example how easily its score changes; those where it does come first, if single ones are shuffled.
    """

    split: Split
    seed: int
    hold_bytes: int = HOLD_BYTES
    changeable: Callable[[], Scores] | None = None
    _part: Callable[[int], Batch] | None = field(default=None, init=False, repr=False)

    @cached_property
    def order(self) -> Order:
        """The order of reading; the first use reads the split."""
        if self.split.sizes and self._too_large():
            return shuffled(self.split.sizes, self.seed, "batches", FAR)
        held = self._read()
        if held is None:
            return shuffled(self.split.sizes, self.seed, "batches", FAR)
        taken = _taken_apart(held)
        if taken is not None:
            changeable = self.changeable() if self.changeable else None
            by_example = shuffled(self.split.sizes, self.seed, "examples", changeable=changeable)
            self._part = lambda index: taken(by_example.parts[index])
            return by_example
        order, starts = shuffled(self.split.sizes, self.seed, "batches"), np.cumsum([0, *self.split.sizes])
        self._part = [held[int(np.searchsorted(starts, part[0]))] for part in order.parts].__getitem__
        return order

    @property
    def how(self) -> str | None:
        """How the split was shuffled, in words; None where nobody read it yet."""
        if "order" not in self.__dict__:
            return None
        where = "from memory" if self._part is not None else "from the loader"
        first = ", the most changeable first" if self.order.first else ""
        return f"{'single examples' if self.order.by == 'examples' else 'whole batches'} shuffled{first}, {where}"

    def _too_large(self) -> bool:
        """Whether the first batch already says so."""
        for inputs, target in self.split.read(most=1):
            return _bytes((inputs, target)) / self.split.sizes[0] * self.split.count > self.hold_bytes
        return False

    def _read(self) -> list[Batch] | None:
        held: list[Batch] = []
        size = 0
        for batch in self.split.read():
            size += _bytes(batch)
            if size <= self.hold_bytes:
                held.append(batch)
            else:
                held.clear()
        return held or None

    def scores(self, call: Call, metric: Metric, reference: Call | None, start: int, stop: int) -> Scores:
        """Scores of the examples in `order.parts[start:stop]`, in that order; errors are those of `scoring.score`."""
        order = self.order
        if self._part is not None:
            batches: Iterable[tuple[int, Batch]] = ((index, self._part(index)) for index in range(start, stop))
        else:
            batches = self._from_loader(order.parts[start:stop], start)
        before, found = sum(map(len, order.parts[:start])), dict[int, Scores]()
        for index, (inputs, target) in batches:
            found[index] = score_batch(call, inputs, target, metric, reference, where=self.split.name, before=before)
            before += len(found[index])
        return np.concatenate([found[index] for index in range(start, stop)])

    def _from_loader(self, parts: Sequence[ndarray], start: int) -> Iterator[tuple[int, Batch]]:
        """The batches of these parts, in the loader's order, each with its place in the random one."""
        places = {int(part[0]): index for index, part in enumerate(parts, start)}
        first = 0
        last = int(np.searchsorted(np.cumsum(self.split.sizes), max(places), side="right")) + 1
        for inputs, target in self.split.read(most=last):
            if first in places:
                yield places[first], (inputs, target)
            first += examples_in(inputs)


def _bytes(batch: Any) -> int:
    leaves = pytree.tree_leaves((batch[0].args, dict(batch[0].kwargs or {}), batch[1]))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor | ndarray))


def _taken_apart(batches: Sequence[Batch]) -> Callable[[ndarray], Batch] | None:
    """The same examples in other batches, by their places; None where batches cannot be taken apart."""
    flat = [pytree.tree_flatten((inputs.args, dict(inputs.kwargs or {}), target)) for inputs, target in batches]
    if any(spec != flat[0][1] for _, spec in flat):
        return None
    sizes = [examples_in(inputs) for inputs, _ in batches]
    found = [_column([leaves[i] for leaves, _ in flat], sizes) for i in range(len(flat[0][0]))]
    columns = [column for column in found if column is not None]
    if len(columns) < len(found):
        return None

    def part(places: ndarray) -> Batch:
        args, kwargs, target = pytree.tree_unflatten([column.take(places) for column in columns], flat[0][1])
        return Inputs(args, kwargs or None), target

    return part


@dataclass(frozen=True)
class _Column:
    """One leaf of all batches: rows to pick from, or what all batches share."""

    rows: Tensor | ndarray | None
    shared: Any = None

    def take(self, part: ndarray) -> Any:
        if self.rows is None:
            return self.shared
        return self.rows[torch.from_numpy(part)] if isinstance(self.rows, Tensor) else self.rows[part]


def _column(leaves: Sequence[Any], sizes: Sequence[int]) -> _Column | None:
    first = leaves[0]
    same = all(_equal(leaf, first) for leaf in leaves[1:])
    if not _has_rows(leaves, sizes):
        return _Column(None, first) if same else None
    if same and len(leaves) > 1 and not all(_equal(row, first[0]) for row in first):
        return None  # a table that all batches share, or the same examples in each: nothing tells
    if isinstance(first, Tensor):
        return _Column(torch.cat([leaf.detach() for leaf in leaves]))
    return _Column(np.concatenate(leaves))


def _has_rows(leaves: Sequence[Any], sizes: Sequence[int]) -> bool:
    kind = type(leaves[0])
    if not isinstance(leaves[0], Tensor | ndarray):
        return False
    return all(
        type(leaf) is kind
        and leaf.ndim
        and leaf.shape[0] == size
        and leaf.shape[1:] == leaves[0].shape[1:]
        and leaf.dtype == leaves[0].dtype
        for leaf, size in zip(leaves, sizes, strict=True)
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, ndarray) and isinstance(other, ndarray):
        return bool(np.array_equal(one, other))
    return isinstance(one, PLAIN) and type(one) is type(other) and one == other
