"""Batches in the forms people write, and loaders that cannot be trusted."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sizewise.data.batches import CalibrationSample, as_inputs, batches, check_loader, digest, examples_in, split_batch
from sizewise.errors import UsageError
from sizewise.protocols import Inputs

X, Y = torch.arange(6.0).reshape(2, 3), torch.tensor([0, 1])


def test_inputs_are_read_from_a_tensor_a_tuple_a_list_and_a_dict() -> None:
    assert as_inputs(X).args == (X,)
    assert as_inputs((X, Y)).args == (X, Y)
    assert as_inputs([X, Y]).args == (X, Y)
    assert as_inputs(OrderedDict(ids=X, mask=Y)) == Inputs((), {"ids": X, "mask": Y})
    ready = Inputs((X,), {"mask": Y})
    assert as_inputs(ready) is ready


def test_inputs_call_a_function_with_both_kinds_of_arguments() -> None:
    assert Inputs((1, 2), {"c": 3}).call(lambda a, b, c: (a, b, c)) == (1, 2, 3)
    assert Inputs((1,)).call(lambda a: a) == 1


@pytest.mark.parametrize("example", ["text", 3, None, {1, 2}])
def test_what_is_no_input_is_refused_by_name_and_type(example: Any) -> None:
    with pytest.raises(UsageError, match="example_inputs: not model inputs") as caught:
        as_inputs(example)
    assert caught.value.got == type(example).__name__
    assert "a tuple of inputs or a dict" in str(caught.value)


@pytest.mark.parametrize("example", [torch.tensor(1.0), torch.zeros(0, 3), (), {}, {"a": 3}])
def test_inputs_without_an_example_are_refused(example: Any) -> None:
    with pytest.raises(UsageError, match="here: holds no example"):
        as_inputs(example, "here")


def test_a_batch_is_split_into_inputs_and_target_in_every_form() -> None:
    assert split_batch(X) == (Inputs((X,)), None)
    for batch in ((X, Y), [X, Y]):
        inputs, target = split_batch(batch)
        assert inputs.args[0] is X
        assert target is Y
    inputs, target = split_batch([X])
    assert inputs.args[0] is X
    assert target is None
    inputs, target = split_batch(((X, Y), 7))
    assert inputs.args == (X, Y)
    assert target == 7


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target"])
def test_a_dict_batch_gives_its_target_away(key: str) -> None:
    inputs, target = split_batch({"ids": X, key: Y})
    assert target is Y
    assert inputs == Inputs((), {"ids": X})


def test_a_dict_batch_without_a_target_is_inputs_only() -> None:
    assert split_batch({"ids": X}) == (Inputs((), {"ids": X}), None)


@pytest.mark.parametrize(("batch", "got"), [((X, Y, Y), "tuple of 3"), ([], "list of 0"), ("text", "str"), (None, "NoneType")])
def test_what_is_no_batch_is_refused_saying_what_came(batch: Any, got: str) -> None:
    with pytest.raises(UsageError, match="train, batch 1: not a batch") as caught:
        list(batches([batch], "train"))
    assert caught.value.got == got
    assert "((first, second), target)" in str(caught.value)


def test_batches_of_a_dataloader_come_in_order() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0).reshape(10, 1), torch.arange(10)), batch_size=4)
    read = list(batches(loader, "train"))
    assert [examples_in(inputs) for inputs, _ in read] == [4, 4, 2]
    assert torch.cat([target for _, target in read]).tolist() == list(range(10))


@pytest.mark.parametrize("empty", [torch.zeros(0, 3), {"ids": torch.zeros(0, 3)}, torch.tensor(1.0)])
def test_an_empty_batch_is_refused_by_number(empty: Any) -> None:
    with pytest.raises(UsageError, match=r"train, batch 2: the batch holds no example"):
        list(batches([X, empty], "train"))


def test_a_loader_that_yields_nothing_is_refused_with_the_likely_reason() -> None:
    with pytest.raises(UsageError, match="train: the loader yields no batch") as caught:
        list(batches(iter([]), "train"))
    assert "read only once" in str(caught.value)


@pytest.mark.parametrize("loader", [3, X, {"a": X}, "text", None, print])
def test_what_is_no_loader_is_refused(loader: Any) -> None:
    with pytest.raises(UsageError, match="validation: not a loader") as caught:
        check_loader(loader, "validation")
    assert caught.value.got == type(loader).__name__


def test_an_iterator_is_refused_with_a_way_out() -> None:
    def generate() -> Iterator[Tensor]:
        yield X

    for once in (generate(), iter([X])):
        with pytest.raises(UsageError, match="validation: the loader can be read only once") as caught:
            check_loader(once, "validation")
        assert "list(...)" in str(caught.value)
    with pytest.raises(UsageError, match="generator"):
        check_loader(generate(), "validation")


def test_what_can_be_read_again_passes() -> None:
    for loader in ([X], (X,), DataLoader(TensorDataset(X)), CalibrationSample([X], 1)):
        check_loader(loader, "validation")
        assert len(list(loader)) == len(list(loader)) > 0


@pytest.mark.parametrize(
    ("inputs", "n"),
    [
        (Inputs((X,)), 2),
        (Inputs((torch.tensor(1.0), torch.zeros(5, 1))), 5),
        (Inputs((), {"a": 3, "b": torch.zeros(4)}), 4),
        (Inputs(((torch.zeros(7), X),)), 7),
        (Inputs(()), 0),
        (Inputs((3,), {"a": "b"}), 0),
    ],
)
def test_examples_are_the_first_dimension_of_the_first_tensor_that_has_one(inputs: Inputs, n: int) -> None:
    assert examples_in(inputs) == n


def _digest(*values: Any) -> str:
    hashed = hashlib.sha256()
    for value in values:
        digest(Inputs((X,)), value, hashed)
    return hashed.hexdigest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Y, Y.int()),
        (Y, Y.flip(0)),
        (Y, Y.reshape(1, 2)),
        (torch.tensor(1), torch.tensor(2)),
        (torch.tensor([1.0]).bfloat16(), torch.tensor([2.0]).bfloat16()),
        (torch.tensor([True]), torch.tensor([False])),
        ([1, 2], [2, 1]),
        (None, 0),
        (torch.zeros(0, 2), torch.zeros(0, 3)),
    ],
)
def test_the_digest_tells_values_order_shape_and_dtype_apart(one: Any, other: Any) -> None:
    assert _digest(one) != _digest(other)
    assert _digest(one) == _digest(one)
    assert _digest(one, other) != _digest(other, one)


def test_the_digest_does_not_depend_on_memory_layout() -> None:
    picture = torch.randn(2, 3, 4, 4)
    assert _digest(picture) == _digest(picture.contiguous(memory_format=torch.channels_last))


def test_the_digest_sees_the_whole_of_long_numpy_labels() -> None:
    labels = np.arange(5000)
    changed = labels.copy()
    changed[2500] = 0
    assert _digest(labels) != _digest(changed)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), limit=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_a_calibration_sample_reads_just_the_batches_it_needs(sizes: list[int], limit: int) -> None:
    loader = [(torch.full((n, 1), float(i)), torch.zeros(n)) for i, n in enumerate(sizes)]
    sample = CalibrationSample(loader, limit)
    got = list(sample)
    counts = [examples_in(inputs) for inputs in got]
    assert counts == sizes[: len(counts)]
    assert sum(counts) >= min(limit, sum(sizes))
    assert sum(counts[:-1]) < limit
    assert all(len(inputs.args) == 1 for inputs in got)  # targets are dropped
    assert [float(inputs.args[0][0]) for inputs in sample] == [float(inputs.args[0][0]) for inputs in got]


def test_a_calibration_sample_stops_reading_in_time() -> None:
    read: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            for i in range(100):
                read.append(i)
                yield torch.zeros(4, 1)

    assert len(list(CalibrationSample(Loader(), 8))) == 2
    assert read == [0, 1]


def test_a_calibration_sample_ends_with_the_batch_that_fills_it() -> None:
    assert [examples_in(i) for i in CalibrationSample([torch.zeros(8, 1)] * 5, 10)] == [8, 8]


def test_an_empty_calibration_loader_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="calibration: the loader yields no batch"):
        list(CalibrationSample([], 10))
