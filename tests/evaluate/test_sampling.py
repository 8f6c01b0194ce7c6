"""A split in random order: every example once, its own score, whatever the loader and the batches are like."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sizewise.errors import UsageError
from sizewise.evaluate.metrics import METRICS, Metric
from sizewise.evaluate.sampling import Sample
from sizewise.evaluate.scoring import Split, score
from sizewise.protocols import Inputs


def _first(inputs: Inputs) -> Tensor:
    found = inputs.args[0] if inputs.args else (inputs.kwargs or {})["x"]
    assert isinstance(found, Tensor)
    return found


OWN = Metric("own", lambda outputs, targets: outputs[:, 0].double() + 1000 * torch.as_tensor(targets).double())


def _batches(sizes: tuple[int, ...] = (4, 4, 4, 3)) -> list[Any]:
    numbers = torch.arange(float(sum(sizes))).reshape(-1, 1)
    return [(part, part[:, 0].long() % 3) for part in torch.split(numbers, list(sizes))]


class Counted:
    """A loader that counts the batches that are read from it."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.read = batches, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.read += 1
            yield batch


def _all(sample: Sample, cuts: tuple[int, ...]) -> np.ndarray:
    """Every score at its place in the split, read in several pieces."""
    order, found = sample.order, np.full(sample.order.count, np.nan)
    ends = [0, *cuts, len(order.parts)]
    for start, stop in itertools.pairwise(ends):
        places = np.concatenate(order.parts[start:stop])
        found[places] = sample.scores(_first, OWN, None, start, stop)
    return found


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3)])
@pytest.mark.parametrize("hold", [10**9, 0])
@pytest.mark.parametrize("read_before", [True, False])
def test_every_example_gets_its_own_score(cuts: tuple[int, ...], hold: int, read_before: bool) -> None:
    split = Split("validation", _batches())
    if read_before:
        list(split.read())
    sample = Sample(split, 3, hold)
    assert np.array_equal(_all(sample, cuts), score(_first, Split("validation", _batches()), OWN))
    assert sample.order.by == ("examples" if hold else "batches")


def test_held_examples_are_read_from_the_loader_once_and_mixed() -> None:
    loader = Counted(_batches())
    sample = Sample(Split("validation", loader), 0)
    _all(sample, (1, 2))
    _all(sample, ())
    assert loader.read == 4
    parts = sample.order.parts
    assert any(len({place // 4 for place in part.tolist()}) > 1 for part in parts), "batches are taken apart"
    assert [len(part) for part in parts] == [4, 4, 4, 3]


def test_what_does_not_fit_into_memory_is_read_as_far_as_a_lap_needs() -> None:
    split = Split("validation", Counted(_batches((2,) * 40)))
    list(split.read())
    loader = Counted(_batches((2,) * 40))
    split.loader = loader
    sample = Sample(split, 0, hold_bytes=100)
    assert sample.order.by == "batches"
    assert loader.read == 1, "the first batch says how large the others are"
    last = max(int(part[0]) for part in sample.order.parts[:3]) // 2
    sample.scores(_first, OWN, None, 0, 3)
    assert loader.read <= 1 + last + 1


def test_a_loader_that_changes_is_noticed_even_when_read_in_part() -> None:
    split = Split("validation", _batches((2,) * 40))
    list(split.read())
    sample = Sample(split, 0, hold_bytes=100)
    assert sample.order.by == "batches"
    split.loader = _batches((2,) * 40)[::-1]
    with pytest.raises(UsageError, match="no shuffling"):
        sample.scores(_first, OWN, None, 0, 3)


def _texts() -> list[Any]:
    """Batches that are padded to lengths of their own."""
    rng = np.random.default_rng(0)
    return [{"x": torch.from_numpy(rng.random((3, length))), "labels": torch.arange(3)} for length in (2, 5, 4)]


def _table() -> list[Any]:
    table = torch.rand(4, 4)
    return [((part, table), target) for part, target in _batches((4, 4, 4))]


def _lists() -> list[Any]:
    return [(part, target.tolist()) for part, target in _batches()]


@pytest.mark.parametrize("batches", [_texts(), _table(), _lists()])
def test_batches_that_cannot_be_taken_apart_are_shuffled_whole(batches: list[Any]) -> None:
    sample = Sample(Split("validation", batches), 1)
    assert sample.order.by == "batches"
    assert np.array_equal(_all(sample, (2,)), score(_first, Split("validation", batches), OWN))


def test_what_all_examples_share_stays_with_every_batch() -> None:
    batches = [((part, torch.ones(4, 7), torch.rand(2, generator=torch.Generator().manual_seed(0))), t) for part, t in _batches((4, 4, 4))]
    sample = Sample(Split("validation", batches), 1)
    assert sample.order.by == "examples"
    seen: list[tuple[int, ...]] = []

    def call(inputs: Inputs) -> Tensor:
        seen.append(tuple(inputs.args[1].shape))
        assert torch.equal(inputs.args[2], batches[0][0][2])
        return _first(inputs)

    sample.scores(call, OWN, None, 0, 3)
    assert seen == [(4, 7)] * 3


def test_a_metric_that_compares_gets_the_references_outputs_for_the_same_examples() -> None:
    batches = [part + torch.rand(1) for part, _ in _batches()]
    sample = Sample(Split("validation", [torch.cat([b, b**2], 1) for b in batches]), 2)
    found = sample.scores(_first, METRICS["cosine"], _first, 0, len(sample.order.parts))
    assert found.tolist() == pytest.approx([1.0] * 15)
