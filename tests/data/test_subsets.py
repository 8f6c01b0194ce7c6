"""Nested subsets: what the order of examples promises, and every kind of loader it is applied to."""

from collections import Counter, OrderedDict, UserDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sizewise.data.batches import batches, split_batch
from sizewise.data.subsets import Divisible, Subsets, count_examples, nested_subsets, stratified_order
from sizewise.errors import PreconditionError, UsageError


def _examples(count: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs whose first number tells which example it is, and class numbers."""
    ids = torch.arange(count)
    return torch.stack([ids.float(), -ids.float()], 1), ids % classes


def _ids(loader: Iterable[Any]) -> list[int]:
    """Which examples one reading gives, in order."""
    found: list[int] = []
    for inputs, _ in batches(loader, "subset"):
        first = [*inputs.args, *(inputs.kwargs or {}).values()][0]
        found += [int(v) for v in first[:, 0].tolist()]
    return found


def _list(count: int, batch: int, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    x, y = _examples(count, classes)
    return list(zip(torch.split(x, batch), torch.split(y, batch), strict=True))


def _sized(loader: Iterable[Any]) -> list[int]:
    return [len(split_batch(batch)[0].args[0]) for batch in loader]


class Augmented(Dataset[tuple[Tensor, int]]):
    """A map-style dataset that adds noise to the second number of an example whenever it is asked for it."""

    def __init__(self, count: int) -> None:
        self.x, self.y = _examples(count)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index] + torch.tensor([0.0, 1.0]) * torch.rand(2), int(self.y[index])


class Noisy:
    """A re-iterable without a dataset, with noise drawn anew at every reading."""

    def __init__(self, loader: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loader:
            yield x + torch.tensor([0.0, 1.0]) * torch.rand(2), y


class Shuffling(Noisy):
    """The same examples in another order and in other batches at every reading."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = (torch.cat(parts) for parts in zip(*self.loader, strict=True))
        for rows in torch.split(torch.randperm(len(y)), 4):
            yield x[rows], y[rows]


class Own:
    """A loader of our own protocol."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.tensor([[float(label)] for label in self.labels])

    def subset(self, indices: Sequence[int]) -> Any:
        return [torch.tensor([[float(i)] for i in indices])]


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80)


@given(LABELS, st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_every_beginning_of_the_order_is_stratified(labels: list[int], seed: int) -> None:
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    totals, n_all = Counter(labels), len(labels)
    settled = max(-(-n_all // total) for total in totals.values())
    for n in range(1, n_all + 1):
        have = Counter(labels[i] for i in order[:n])
        for label, total in totals.items():
            assert have[label] <= -(-n * total // n_all)
            if n >= len(totals):
                assert have[label] >= 1
            if n >= settled:
                assert have[label] >= n * total // n_all


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_balanced_classes_take_turns(classes: int, each: int, seed: int) -> None:
    labels = [label for label in range(classes) for _ in range(each)]
    order = stratified_order(labels, seed)
    for start in range(0, len(order), classes):
        assert {labels[i] for i in order[start : start + classes]} == set(range(classes))


def test_the_order_repeats_under_its_seed_and_changes_with_it_within_classes() -> None:
    labels = [0, 1] * 20
    assert stratified_order(labels, 1) == stratified_order(labels, 1)
    first, second = stratified_order(labels, 1), stratified_order(labels, 2)
    assert first != second
    assert {i for i in first[:10] if labels[i] == 0} != {i for i in second[:10] if labels[i] == 0}
    before = torch.random.get_rng_state()
    stratified_order(labels, 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_rare_class_is_there_from_the_start() -> None:
    labels = [0] * 97 + [1] * 2 + [2]
    assert {labels[i] for i in stratified_order(labels, 0)[:3]} == {0, 1, 2}


def _loaders(count: int, batch: int) -> dict[str, Iterable[Any]]:
    x, y = _examples(count)
    return {
        "list": _list(count, batch),
        "shuffling DataLoader": DataLoader(TensorDataset(x, y), batch, shuffle=True),
        "re-iterable": Noisy(_list(count, batch)),
    }


@given(st.integers(3, 40), st.integers(1, 9), st.data())
@settings(deadline=None, max_examples=40)
def test_smaller_subsets_lie_in_larger_ones_and_are_stratified(count: int, batch: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(3, count), min_size=1, max_size=4))
    for loader in _loaders(count, batch).values():
        subsets = nested_subsets(loader, sizes, seed=5)
        assert list(subsets) == sorted(set(sizes))
        inner: set[int] = set()
        for size, subset in subsets.items():
            found = {i for _ in range(6) for i in _ids(subset)}  # a reading may leave one example out
            assert len(found) <= size
            assert inner - found == set() or size % batch == 1
            if size % batch != 1 or batch == 1:
                assert len(found) == size
                assert max(Counter(i % 3 for i in found).values()) - min(Counter(i % 3 for i in found).values()) <= 2
                inner = found


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader", "re-iterable"])
def test_a_subset_is_shuffled_anew_at_every_reading_and_repeats_under_a_seed(kind: str) -> None:
    subset = nested_subsets(_loaders(60, 8)[kind], [30])[30]
    torch.manual_seed(1)
    first, second = _ids(subset), _ids(subset)
    torch.manual_seed(1)
    again = _ids(subset)
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 30


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader", "re-iterable"])
def test_the_choice_depends_on_the_seed_alone(kind: str) -> None:
    def chosen(seed: int) -> set[int]:
        torch.manual_seed(torch.seed())
        return set(_ids(nested_subsets(_loaders(60, 8)[kind], [30], seed)[30]))

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader", "re-iterable"])
def test_choosing_leaves_the_global_generator_alone(kind: str) -> None:
    loader = _loaders(20, 4)[kind]
    before = torch.random.get_rng_state()
    nested_subsets(loader, [10])
    count_examples(loader)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader", "re-iterable"])
def test_the_full_size_is_the_loader_itself(kind: str) -> None:
    loader = _loaders(20, 4)[kind]
    subsets = nested_subsets(loader, [10, 20, 10])
    assert subsets[20] is loader
    assert len(subsets) == 2
    assert count_examples(loader) == 20


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader", "re-iterable"])
@pytest.mark.parametrize(("size", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (3, [3]), (5, [4])])
def test_batches_are_as_large_as_the_loaders_and_a_single_example_is_dropped(kind: str, size: int, sizes: list[int]) -> None:
    subset = nested_subsets(_loaders(20, 4)[kind], [size])[size]
    assert _sized(subset) == sizes
    assert len(subset) == len(sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader"])
def test_a_single_example_stays_where_there_is_nothing_else(kind: str) -> None:
    x = torch.randn(6, 2)
    loader: Iterable[Any] = torch.split(x, 3) if kind == "list" else DataLoader(TensorDataset(x), 3)
    assert [len(split_batch(batch)[0].args[0]) for batch in nested_subsets(loader, [1])[1]] == [1]
    one_by_one = torch.split(x, 1) if kind == "list" else DataLoader(TensorDataset(x), 1)
    assert len(list(nested_subsets(one_by_one, [5])[5])) == 5


def test_augmentation_of_a_dataset_stays_alive() -> None:
    subsets = nested_subsets(DataLoader(Augmented(30), 5, shuffle=True), [15])
    assert subsets.notes == ()
    torch.manual_seed(0)
    first = {float(v) for x, _ in subsets[15] for v in x[:, 1]}
    second = {float(v) for x, _ in subsets[15] for v in x[:, 1]}
    assert len(first & second) == 0
    torch.manual_seed(0)
    assert first == {float(v) for x, _ in subsets[15] for v in x[:, 1]}


def test_a_dataloader_keeps_its_collation_and_drops_what_it_dropped() -> None:
    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}

    loader = DataLoader(TensorDataset(*_examples(20)), 4, collate_fn=collate, drop_last=True, shuffle=True)
    subsets = nested_subsets(loader, [3, 11])
    assert [len(batch["labels"]) for batch in subsets[11]] == [4, 4]
    assert [len(batch["labels"]) for batch in subsets[3]] == [3]
    assert Counter(batch["labels"].tolist()[0] for _ in range(30) for batch in subsets[3]).keys() == {0, 1, 2}
    assert count_examples(loader) == 20


def test_a_dataloader_over_chosen_examples_is_divided_among_those() -> None:
    chosen = list(range(10, 30))
    loader = DataLoader(TensorDataset(*_examples(50)), 4, sampler=SubsetRandomSampler(chosen))
    assert count_examples(loader) == 20
    assert set(_ids(nested_subsets(loader, [10])[10])) < set(chosen)


def _other_dataloaders() -> dict[str, "DataLoader[Any]"]:
    data = TensorDataset(*_examples(20))

    class Doubling(DataLoader[Any]):
        def __iter__(self) -> Any:
            return iter([(x, y + 10) for x, y in super().__iter__()])

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return (data[i] for i in range(len(data)))

    return {
        "batch sampler": DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, False)),
        "stream": DataLoader(Stream(), 4),
        "subclass": Doubling(data, 4),
        "few": DataLoader(data, 4, sampler=RandomSampler(data, num_samples=12, generator=torch.Generator().manual_seed(0))),
        "weighted": DataLoader(data, 4, sampler=WeightedRandomSampler([1.0] * 20, 20, replacement=True)),
        "no batching": DataLoader(_list(20, 4), batch_size=None),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize(
    ("kind", "count"), [("batch sampler", 20), ("stream", 20), ("subclass", 20), ("few", 12), ("weighted", 20), ("no batching", 20)]
)
def test_a_dataloader_that_is_more_than_its_dataset_is_read(kind: str, count: int) -> None:
    loader = _other_dataloaders()[kind]
    assert count_examples(loader) == count
    subsets = nested_subsets(loader, [10])
    assert not isinstance(subsets[10], DataLoader)
    assert bool(subsets.notes) is (kind in ("few", "weighted"))
    if kind == "subclass":
        assert {int(v) for _, target in batches(subsets[10], "subset") for v in target} == {10, 11, 12}


def test_an_object_that_divides_itself_is_asked_to() -> None:
    own = Own(torch.tensor([0, 0, 0, 1, 1, 1]))
    assert isinstance(own, Divisible)
    assert count_examples(own) == 6
    subsets = nested_subsets(own, [2, 4, 6])
    assert subsets[6] is own
    assert subsets.notes == ()
    inner, outer = (set(subsets[size][0][:, 0].tolist()) for size in (2, 4))  # type: ignore[index]
    assert inner < outer
    assert sum(v < 3 for v in outer) == 2


@pytest.mark.parametrize(
    "labels", [np.array([0, 1, 1, 0]), [0, 1, 1, 0], [torch.tensor(v) for v in (0, 1, 1, 0)], torch.tensor([0, 1, 1, 0]) > 0]
)
def test_labels_may_be_any_sequence_of_whole_numbers(labels: Any) -> None:
    subsets = nested_subsets(Own(labels), [2])
    assert subsets.notes == ()
    assert {i in (1, 2) for i in subsets[2][0][:, 0].tolist()} == {True, False}  # type: ignore[index]


@pytest.mark.parametrize(
    "labels", [["a", "b", "a"], torch.tensor([0.5, 1.5, 2.5]), torch.zeros(3, 2, dtype=torch.long), [[1], [1, 2], [3]]]
)
def test_other_labels_are_divided_at_random_and_that_is_noted(labels: Any) -> None:
    subsets = nested_subsets(Own(labels), [1, 2])
    assert len(subsets.notes) == 1
    assert "without regard to classes" in subsets.notes[0]


def test_what_is_no_loader_of_an_object_that_divides_itself_is_refused() -> None:
    class Once(Own):
        def subset(self, indices: Sequence[int]) -> Any:
            return iter([])

    class Raising(Own):
        def subset(self, indices: Sequence[int]) -> Any:
            raise KeyError("nothing")

    with pytest.raises(UsageError, match=r"train.subset\(...\): the loader can be read only once"):
        nested_subsets(Once([0, 0, 0]), [2])
    with pytest.raises(PreconditionError, match=r"train.subset: making a subset failed"):
        nested_subsets(Raising([0, 0, 0]), [2])


def test_augmentation_of_one_reading_is_frozen_and_that_is_noted() -> None:
    subsets = nested_subsets(Noisy(_list(20, 4)), [10])
    assert any("frozen" in note for note in subsets.notes)
    first, second = ({float(v) for inputs, _ in batches(subsets[10], "s") for v in inputs.args[0][:, 1]} for _ in range(2))
    assert first == second


def test_a_loader_that_only_shuffles_is_not_taken_for_augmented() -> None:
    assert nested_subsets(Shuffling(_list(20, 4)), [10]).notes == ()
    assert nested_subsets(_list(20, 4), [10]).notes == ()


def test_memory_that_a_loader_fills_again_is_copied() -> None:
    class Reusing:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            x, y = torch.empty(4, 2), torch.empty(4, dtype=torch.long)
            for new_x, new_y in _list(20, 4):
                yield x.copy_(new_x), y.copy_(new_y)

    assert len(set(_ids(nested_subsets(Reusing(), [18])[18]))) == 18


def test_nested_inputs_dicts_arrays_and_constants_keep_together() -> None:
    x, y = _examples(12)
    forms: list[list[Any]] = [
        [((x[i : i + 4], (x[i : i + 4] * 2, x[i : i + 4] * 3)), y[i : i + 4]) for i in (0, 4, 8)],
        [OrderedDict(a=x[i : i + 4], b=(x[i : i + 4] * 2, x[i : i + 4] * 3), cache=False, labels=y[i : i + 4]) for i in (0, 4, 8)],
        [UserDict(targets=y[i : i + 4], a=x[i : i + 4], b=(x[i : i + 4] * 2, x[i : i + 4] * 3)) for i in (0, 4, 8)],
        [[{"a": x[i : i + 4], "b": [x[i : i + 4] * 2, x[i : i + 4] * 3]}, y[i : i + 4].numpy()] for i in (0, 4, 8)],
    ]
    for loader in forms:
        subsets = nested_subsets(loader, [6])
        assert subsets.notes == ()
        seen = 0
        for inputs, target in batches(subsets[6], "subset"):
            named = inputs.kwargs or dict(zip("ab", inputs.args, strict=True))
            ids = named["a"][:, 0]
            assert torch.equal(named["b"][0], 2 * named["a"])
            assert torch.equal(named["b"][1][:, 0], 3 * ids)
            assert torch.as_tensor(target).tolist() == [int(i) % 3 for i in ids]
            assert named.get("cache") is (False if isinstance(loader[0], OrderedDict) else None)
            assert type(target) is type(split_batch(loader[0])[1])
            seen += len(ids)
        assert seen == 6


def test_batches_without_targets_are_divided_at_random() -> None:
    x, _ = _examples(12)
    subsets = nested_subsets(torch.split(x, 5), [4])
    assert "without regard" in subsets.notes[0]
    (batch,) = subsets[4]
    assert split_batch(batch)[1] is None
    assert len(nested_subsets(DataLoader(TensorDataset(x), 5), [4]).notes) == 1


def test_targets_for_every_position_are_no_classes() -> None:
    tokens = torch.arange(24).reshape(6, 4)
    assert len(nested_subsets([(tokens[:3], tokens[:3]), (tokens[3:], tokens[3:])], [2]).notes) == 1

    def flat(rows: Any) -> tuple[Tensor, Tensor]:
        together = torch.stack([row[0] for row in rows])
        return together, together.flatten()

    subsets = nested_subsets(DataLoader(TensorDataset(tokens), 3, collate_fn=flat), [2])
    assert len(subsets.notes) == 1
    assert [(tuple(x.shape), tuple(y.shape)) for x, y in subsets[2]] == [((2, 4), (8,))]


def test_subsets_are_a_mapping_that_cannot_be_changed() -> None:
    subsets = nested_subsets(_list(12, 4), [6, 3])
    assert list(subsets) == [3, 6]
    assert len(subsets) == 2
    assert dict(subsets).keys() == {3, 6}
    with pytest.raises(AttributeError):
        subsets.notes = ()  # type: ignore[misc]
    with pytest.raises(KeyError):
        subsets[4]
    assert Subsets({}).notes == ()


@pytest.mark.parametrize("kind", ["list", "shuffling DataLoader", "re-iterable", "own"])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "sizes: no size is asked for"),
        ([5, 21], r"more examples than there are\n  got: 21\n  wanted: at most 20 from here"),
        ([2, 10], r"fewer examples than classes\n  got: 2\n  wanted: at least 3\n  hint: integer targets"),
        ([0, 10], "fewer examples than classes"),
        ([2.5], "whole numbers of examples"),
        (["a"], "whole numbers of examples"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(kind: str, sizes: list[Any], message: str) -> None:
    loader = {**_loaders(20, 4), "own": Own(torch.arange(20) % 3)}[kind]
    with pytest.raises(UsageError, match=message):
        nested_subsets(loader, sizes, where="here")


def test_a_subset_without_classes_holds_at_least_one_example() -> None:
    with pytest.raises(UsageError, match=r"a subset holds at least one example\n  got: 0"):
        nested_subsets([torch.zeros(4, 2)], [0])


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.zeros(0, 2)), 4), Own([])], ids=["list", "dataset", "own"])
def test_loaders_without_examples_are_refused(loader: Iterable[Any]) -> None:
    for read in (count_examples, lambda empty: nested_subsets(empty, [1])):
        with pytest.raises(UsageError, match=r"holds no example|yields no batch"):
            read(loader)


def test_loaders_that_can_be_read_only_once_are_refused() -> None:
    for read in (count_examples, lambda once: nested_subsets(once, [1])):
        with pytest.raises(UsageError, match="train: the loader can be read only once"):
            read(iter(_list(8, 4)))


@pytest.mark.parametrize(
    ("loader", "got"),
    [
        ([(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 4), torch.zeros(2))], "different shapes or types"),
        ([(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))], "different shapes or types"),
        ([(torch.zeros(2, 3), torch.zeros(2)), torch.zeros(2, 3)], "a Tensor that changes|different shapes or types"),
        ([torch.zeros(2, 3), (torch.zeros(2, 3), torch.zeros(2))], "a NoneType that changes"),
        ([((torch.zeros(2, 3), torch.zeros(5, 5)), torch.zeros(2))], r"shape \(5, 5\) in a batch of 2"),
        ([((torch.zeros(2, 3), torch.tensor(1.0)), torch.zeros(2))], r"shape \(\) in a batch of 2"),
        ([{"x": torch.zeros(2, 3)}, {"y": torch.zeros(2, 3)}], "different structures"),
        ([(torch.zeros(2, 3), ["a", "b"]), (torch.zeros(2, 3), ["c", "d"])], "a str that changes from batch to batch"),
    ],
)
def test_batches_that_cannot_be_cut_into_examples_are_refused(loader: list[Any], got: str) -> None:
    with pytest.raises(UsageError, match=rf"train: the batches cannot be cut into examples\n  got: .*({got})") as caught:
        nested_subsets(loader, [2])
    assert "map-style dataset" in (caught.value.hint or "")


def test_a_dataset_that_fails_is_blamed_by_name() -> None:
    class Failing(Augmented):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise KeyError("row")

    with pytest.raises(PreconditionError, match="train: reading the loader failed"):
        nested_subsets(DataLoader(Failing(6), 2), [3])


def test_workers_read_the_same_subsets() -> None:
    loader = DataLoader(TensorDataset(*_examples(12)), 4, shuffle=True, num_workers=1)
    subset = nested_subsets(loader, [6])[6]
    torch.manual_seed(0)
    first = _ids(subset)
    torch.manual_seed(0)
    assert first == _ids(subset)
    assert len(set(first)) == 6
