"""The built-in task."""

import torch

from sizewise.tasks.digits import make_task


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
