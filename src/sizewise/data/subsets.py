"""Nested subsets of a train loader, for learning curves: how much does more data of the same kind buy?

Where the examples come from, in this order: an object with `labels` and `subset(indices)` divides itself; a DataLoader over
a map-style dataset keeps its dataset and its collation, so augmentation stays alive; anything else is read once and kept.
"""

import hashlib
import heapq
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler

from sizewise.data.batches import batches, check_loader, digest, examples_in
from sizewise.errors import UsageError, blaming
from sizewise.protocols import Inputs

__all__ = ["Divisible", "Subsets", "count_examples", "nested_subsets", "stratified_order"]

_FROZEN = (
    "two readings of the loader gave different examples (random augmentation, or a random choice of examples): "
    "the subsets hold what one reading gave, so its augmentation is frozen"
)
_UNSTRATIFIED = "the targets are no class numbers of shape [n]: the subsets are drawn without regard to classes"


@runtime_checkable
class Divisible(Protocol):
    """A train loader that makes loaders of some of its examples itself.

    Attributes:
        labels: target of every example, in an order of its own; subsets are stratified where these are integers.
    """

    labels: Any

    def subset(self, indices: Sequence[int]) -> Iterable[Any]:
        """A re-iterable of batches of these examples (positions in `labels`), augmented and reshuffled as the whole is."""
        ...


@dataclass(frozen=True, eq=False)
class Subsets(Mapping[int, Iterable[Any]]):
    """Loaders by number of examples, smallest first; each holds all examples of the smaller ones.

    Attributes:
        loaders: number of examples to a re-iterable of batches.
        notes: what a reader of results made with these loaders has to know.
    """

    loaders: Mapping[int, Iterable[Any]]
    notes: tuple[str, ...] = ()

    def __getitem__(self, size: int) -> Iterable[Any]:
        return self.loaders[size]

    def __iter__(self) -> Iterator[int]:
        return iter(self.loaders)

    def __len__(self) -> int:
        return len(self.loaders)


def count_examples(loader: Iterable[Any], where: str = "train") -> int:
    """How many examples a loader draws from; those that it drops at the end of a shuffled reading count where it says so.

    Reads the loader only where neither `labels` nor a dataset tells; torch's global generator is left as it was.

    Raises:
        UsageError: not a loader, or one without examples.
    """
    check_loader(loader, where)
    indices = _dataset_indices(loader)
    if isinstance(loader, Divisible):
        count = len(loader.labels)
    elif indices is not None:
        count = len(indices)
    else:
        with torch.random.fork_rng(devices=[]):
            count = sum(examples_in(inputs) for inputs, _ in batches(loader, where))
    if not count:
        raise UsageError("the loader holds no example", where=where)
    return count


def nested_subsets(loader: Iterable[Any], sizes: Iterable[int], seed: int = 0, where: str = "train") -> Subsets:
    """Loaders of some of the examples of `loader`, the smaller ones contained in the larger ones.

    Integer targets of shape [n] are read as class numbers and the subsets are stratified; `stratified_order` says what that
    promises. Otherwise the examples are drawn at random, which `notes` says.

    Each subset is reshuffled at every reading from torch's global generator, as a shuffling DataLoader does, so that whoever
    seeds it repeats the sequence. Batches are as large as the loader's (the largest that was read, where it does not say).
    Where a DataLoader drops its last, incomplete batch, its subsets do so too unless they have no other; and a last batch of
    a single example is dropped unless it is the only one, since batch normalization cannot train on it.

    The full size gives `loader` itself. Subsets of a loader that had to be read give batches as (Inputs, target), whatever
    the form was, and share one copy of its examples in memory.

    Args:
        loader: an object with `labels` and `subset(indices)`, a DataLoader, or any other re-iterable of batches.
        sizes: numbers of examples; repetitions count once.
        seed: of the choice of examples. Reading the loader is seeded by it too; torch's global generator is left as it was.
        where: what messages call the loader.

    Raises:
        UsageError: no size, one below 1, below the number of classes or above the number of examples; a loader without
            examples, or one whose batches cannot be cut into examples.
        PreconditionError: reading the loader or making its subset raised.
    """
    check_loader(loader, where)
    source = _source(loader, seed, where)
    wanted = _checked(sizes, source, where)
    order = stratified_order([0] * source.count if source.labels is None else source.labels, seed)
    loaders = {size: loader if size == source.count else source.subset(order[:size]) for size in wanted}
    notes = source.notes if source.labels is not None else (*source.notes, _UNSTRATIFIED)
    return Subsets(loaders, notes)


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """All positions of `labels`, in an order whose every beginning is a stratified sample.

    Of N examples let class c have N_c, and the first n of the order s_c; k is the number of classes. Then

    - s_c >= 1 from n = k on: every class is there as early as can be;
    - s_c <= ceil(n N_c / N) for every n;
    - s_c >= floor(n N_c / N) from n = max_c ceil(N / N_c) on, so that counts are less than one example off their share.
      (Before that, examples given to rare classes early are missing in the others.)

    The j-th example of a class is let in when the second line allows it, and the one that the third line needs soonest goes
    first; first examples go before all others. Which examples, and which of equal classes, is random under the seed.

    Source: an order within both bounds exists by Balinski and Young, The quota method of apportionment, American
    Mathematical Monthly 82(7), 1975; serving the earliest deadline finds it, as in Steiner and Yeomans, Level schedules for
    mixed-model just-in-time processes, Management Science 39(6), 1993. Deviation: every class's first example goes ahead.
    """
    generator = torch.Generator().manual_seed(seed)
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position in torch.randperm(len(labels), generator=generator).tolist():
        members[labels[position]].append(position)
    ties = torch.randperm(len(members), generator=generator).tolist()
    waiting = []
    for tie, group in zip(ties, members.values(), strict=True):
        for j, position in enumerate(group):
            release = j * len(labels) // len(group) + 1
            deadline = -(-(j + 1) * len(labels) // len(group)) if j else 0
            waiting.append((release, deadline, tie, position))
    waiting.sort(reverse=True)
    ready: list[tuple[int, int, int]] = []
    order = []
    for n in range(1, len(labels) + 1):
        while waiting and waiting[-1][0] <= n:
            heapq.heappush(ready, waiting.pop()[1:])
        order.append(heapq.heappop(ready)[-1])
    return order


@dataclass(frozen=True)
class _Source:
    """Examples of a loader: how many, of which classes (None: unknown), and what makes a loader of some of them."""

    count: int
    labels: list[int] | None
    subset: Callable[[Sequence[int]], Iterable[Any]]
    notes: tuple[str, ...] = ()


def _source(loader: Iterable[Any], seed: int, where: str) -> _Source:
    indices = _dataset_indices(loader)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(loader, Divisible):
            return _Source(len(loader.labels), _class_numbers([loader.labels], len(loader.labels)), partial(_divided, loader, where))
        if indices is not None:
            return _from_dataset(cast("DataLoader[Any]", loader), indices, where)
        return _from_reading(loader, where)


def _checked(sizes: Iterable[int], source: _Source, where: str) -> list[int]:
    try:
        wanted = sorted({operator.index(size) for size in sizes})
    except TypeError as error:
        raise UsageError("sizes are whole numbers of examples", where="sizes", got=str(error)) from error
    classes = 1 if source.labels is None else len(set(source.labels))
    if not source.count:
        raise UsageError("the loader holds no example", where=where)
    if not wanted:
        raise UsageError("no size is asked for", where="sizes", wanted="numbers of examples")
    if wanted[-1] > source.count:
        raise UsageError(
            "more examples than there are", where="sizes", got=str(wanted[-1]), wanted=f"at most {source.count:,} from {where}"
        )
    if wanted[0] < classes:
        raise UsageError(
            "fewer examples than classes" if classes > 1 else "a subset holds at least one example",
            where="sizes",
            got=str(wanted[0]),
            wanted=f"at least {classes}",
            hint="integer targets of shape [n] are read as class numbers" if classes > 1 else None,
        )
    return wanted


def _class_numbers(targets: Sequence[Any], count: int) -> list[int] | None:
    """Targets of all batches as one class number per example, or None where they are something else."""
    found: list[int] = []
    for target in targets:
        try:
            values = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):  # what torch raises for texts, None and ragged lists
            return None
        if values.ndim != 1 or values.is_floating_point() or values.is_complex():
            return None
        found += [int(value) for value in values.tolist()]
    return found if len(found) == count else None


def _divided(loader: Divisible, where: str, indices: Sequence[int]) -> Iterable[Any]:
    with blaming("making a subset failed", f"{where}.subset"):
        made = loader.subset(indices)
    check_loader(made, f"{where}.subset(...)")
    return made


class _Shuffled:
    """Batches of some indices, in a new order from torch's global generator at every reading."""

    def __init__(self, indices: Sequence[int], batch: int, drop_last: bool) -> None:
        self.indices, self.batch = indices, batch
        whole, rest = divmod(len(indices), batch)
        self.count = whole + (rest > 0 and (whole == 0 or (rest > 1 and not drop_last)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.indices)).tolist()
        for start in range(0, self.count * self.batch, self.batch):
            yield [self.indices[i] for i in order[start : start + self.batch]]


def _dataset_indices(loader: Any) -> Sequence[int] | None:
    """What of its dataset a DataLoader draws from, each once; None where that cannot be told from the outside."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return None  # a subclass may change batches while it reads
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return None  # batches are made by the dataset or by a sampler of the user's own
    sampler: Any = loader.sampler
    everything = range(len(cast(Sized, loader.dataset)))
    if type(sampler) is SubsetRandomSampler:
        return list(sampler.indices)
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(everything):
        return everything
    return everything if type(sampler) is SequentialSampler else None


def _from_dataset(loader: "DataLoader[Any]", indices: Sequence[int], where: str) -> _Source:
    batch = cast(int, loader.batch_size)
    in_order = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    targets = [target for _, target in batches(_like(loader, in_order), where)] if in_order else []

    def subset(chosen: Sequence[int]) -> Iterable[Any]:
        return _like(loader, _Shuffled([indices[i] for i in chosen], batch, loader.drop_last))

    return _Source(len(indices), _class_numbers(targets, len(indices)), subset)


def _like(loader: "DataLoader[Any]", batch_indices: Iterable[Sequence[int]]) -> "DataLoader[Any]":
    return DataLoader(
        loader.dataset,
        batch_sampler=cast("Iterable[list[int]]", batch_indices),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


@dataclass(frozen=True)
class _Cut:
    """One batch taken apart: leaves of (args, kwargs, target), arrays among them with one row per example."""

    count: int
    leaves: list[Any]
    structure: pytree.TreeSpec

    def fingerprints(self) -> Iterator[bytes]:
        for i in range(self.count):
            into = hashlib.sha256()
            digest(Inputs(tuple(leaf[i] if _is_array(leaf) else leaf for leaf in self.leaves)), None, into)
            yield into.digest()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray)


def _cut(inputs: Inputs, target: Any, where: str) -> _Cut:
    leaves, structure = pytree.tree_flatten((inputs.args, dict(sorted((inputs.kwargs or {}).items())), target))
    count = examples_in(inputs)
    for leaf in leaves:
        if _is_array(leaf) and tuple(leaf.shape[:1]) != (count,):
            raise _not_divisible(where, f"shape {tuple(leaf.shape)} in a batch of {count}", f"{count} as the first dimension")
    return _Cut(count, leaves, structure)


def _not_divisible(where: str, got: str, wanted: str) -> UsageError:
    return UsageError(
        "the batches cannot be cut into examples",
        where=where,
        got=got,
        wanted=wanted,
        hint="give a DataLoader over a map-style dataset, or an object with labels and subset(indices)",
    )


def _from_reading(loader: Iterable[Any], where: str) -> _Source:
    cuts: list[_Cut] = []
    first: Counter[bytes] = Counter()
    for inputs, target in batches(loader, where):
        cut = _cut(inputs, target, where)
        first.update(cut.fingerprints())
        # a copy, since a loader may fill the same memory again
        cuts.append(_Cut(cut.count, [_copied(leaf) for leaf in cut.leaves], cut.structure))
    second = Counter(mark for inputs, target in batches(loader, where) for mark in _cut(inputs, target, where).fingerprints())
    structure, batch, count = cuts[0].structure, max(cut.count for cut in cuts), sum(cut.count for cut in cuts)
    if any(cut.structure != structure for cut in cuts):
        raise _not_divisible(where, "batches of different structures", "the same inputs in every batch")
    kept = [_joined(column, where) for column in zip(*(cut.leaves for cut in cuts), strict=True)]
    labels = _class_numbers([pytree.tree_unflatten(kept, structure)[2]], count)

    def subset(chosen: Sequence[int]) -> Iterable[Any]:
        return _KeptBatches(kept, structure, _Shuffled(chosen, batch, drop_last=False))

    return _Source(count, labels, subset, () if first == second else (_FROZEN,))


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _joined(column: tuple[Any, ...], where: str) -> Any:
    """Rows of all batches as one array; what is no array must be the same in all."""
    head = column[0]
    if _is_array(head):
        kinds = {(type(leaf), leaf.dtype, tuple(leaf.shape[1:])) if _is_array(leaf) else type(leaf) for leaf in column}
        if len(kinds) == 1:
            return torch.cat(column) if isinstance(head, Tensor) else np.concatenate(column)
        raise _not_divisible(where, "arrays of different shapes or types", "examples of one shape")
    if any(_is_array(leaf) or leaf != head for leaf in column):
        raise _not_divisible(where, f"a {type(head).__name__} that changes from batch to batch", "tensors")
    return head


class _KeptBatches:
    """Re-iterable of batches of some of the kept examples."""

    def __init__(self, columns: Sequence[Any], structure: pytree.TreeSpec, chosen: _Shuffled) -> None:
        self.columns, self.structure, self.chosen = columns, structure, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for rows in self.chosen:
            leaves = [column[rows] if _is_array(column) else column for column in self.columns]
            args, kwargs, target = pytree.tree_unflatten(leaves, self.structure)
            yield Inputs(args, kwargs or None), target
