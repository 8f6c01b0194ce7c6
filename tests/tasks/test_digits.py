"""The built-in task."""

import pytest
import torch

from sizewise.data.subsets import Divisible, count_examples, nested_subsets
from sizewise.tasks.digits import ShiftedBatches, make_task


def test_digits_is_split_without_overlap() -> None:
    digits = make_task()
    parts = {"validation": list(digits.validation), "test": list(digits.test or []), "calibration": list(digits.calibration or [])}
    counts = {name: sum(len(y) for _, y in part) for name, part in parts.items()}
    assert counts == {"validation": 400, "test": 500, "calibration": 256}
    train = digits.train.pictures  # type: ignore[union-attr]
    rows = [x.flatten(1) for part in ("validation", "test") for x, _ in parts[part]] + [train.flatten(1)]
    everything = torch.cat(rows)
    assert len(everything) == 1797
    assert len(digits.models) == 6
    assert all(digits.is_untrained(name) for name in digits.models)


def test_training_batches_repeat_under_a_seed() -> None:
    digits = make_task()

    def first() -> torch.Tensor:
        torch.manual_seed(3)
        return next(iter(digits.train))[0]  # type: ignore[arg-type,no-any-return]

    assert torch.equal(first(), first())
    assert first().shape == (64, 1, 8, 8)


def test_training_batches_divide_themselves_and_stay_shifted() -> None:
    train = make_task().train
    assert isinstance(train, ShiftedBatches)
    assert isinstance(train, Divisible)
    assert count_examples(train) == 897
    subsets = nested_subsets(train, (20, 200, 897))
    assert subsets[897] is train
    assert subsets.notes == ()
    small = subsets[20]
    assert isinstance(small, ShiftedBatches)
    assert small.labels.bincount().tolist() == [2] * 10
    first, second = (torch.cat([x for x, _ in small]) for _ in range(2))
    assert first.shape == second.shape == (20, 1, 8, 8)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("count", "batch", "batches"), [(1, 1, 1), (63, 63, 1), (64, 64, 1), (95, 95, 1), (97, 48, 2), (200, 66, 3)])
def test_batches_of_a_subset_are_about_as_large_and_leave_little_out(count: int, batch: int, batches: int) -> None:
    whole = ShiftedBatches(torch.zeros(300, 1, 8, 8), torch.arange(300), 64)
    part = whole.subset(range(100, 100 + count))
    sizes = [len(y) for _, y in part]
    assert sizes == [batch] * batches
    assert len(part) == batches
    assert count - sum(sizes) < batches
    assert sorted(part.labels.tolist()) == list(range(100, 100 + count))
