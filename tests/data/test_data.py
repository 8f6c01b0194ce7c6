"""Batches in every accepted form, samples, moments, normalization."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sizewise.data.batches import CalibrationSample, as_inputs, batches, check_loader, digest, examples_in, split_batch
from sizewise.data.capture import input_moments
from sizewise.data.statistics import reestimate_normalization
from sizewise.errors import PreconditionError, UsageError
from sizewise.protocols import Inputs

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


def test_every_form_of_batch() -> None:
    assert split_batch(X) == (Inputs((X,)), None)
    for batch in ((X, Y), [X, Y]):
        inputs, target = split_batch(batch)
        assert inputs.args[0] is X
        assert target is Y
    inputs, target = split_batch(((X, X), Y))
    assert len(inputs.args) == 2
    inputs, target = split_batch({"input_ids": X, "labels": Y})
    assert (list(inputs.kwargs or {}), target is Y) == (["input_ids"], True)
    assert split_batch((X,))[1] is None
    assert examples_in(inputs) == 4


@pytest.mark.parametrize("batch", ["text", (X, Y, Y), None, ("text", Y)])
def test_what_is_no_batch(batch: Any) -> None:
    with pytest.raises(UsageError, match="batch"):
        list(batches([batch], "validation"))


def test_inputs_without_an_example() -> None:
    with pytest.raises(UsageError, match="no example"):
        as_inputs(torch.zeros(0, 3))
    with pytest.raises(UsageError, match="no example"):
        list(batches([(torch.zeros(0, 3), Y[:0])], "validation"))


@pytest.mark.parametrize(
    ("loader", "says"), [(iter([X]), "only once"), (X, "not a loader"), (3, "not a loader"), ({"a": X}, "not a loader")]
)
def test_what_is_no_loader(loader: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_loader(loader, "train")


def test_a_loader_that_fails_is_blamed() -> None:
    class Failing(list[Any]):
        def __iter__(self) -> Any:
            yield X, Y
            raise OSError("no such picture")

    with pytest.raises(PreconditionError, match="reading the loader failed") as caught:
        list(batches(Failing(), "validation"))
    assert "no such picture" in str(caught.value)


def test_a_sample_ends_with_the_batch_that_fills_it_and_can_be_read_again() -> None:
    sample = CalibrationSample([(X, Y)] * 5, limit=6)
    assert [examples_in(i) for i in sample] == [4, 4]
    assert [examples_in(i) for i in sample] == [4, 4]


def test_the_digest_tells_values_shapes_and_order_apart() -> None:
    def of(*parts: Any) -> str:
        hashed = hashlib.sha256()
        for inputs, target in parts:
            digest(Inputs((inputs,)), target, hashed)
        return hashed.hexdigest()

    a, b = torch.zeros(2, 3), torch.zeros(3, 2)
    assert of((a, None)) == of((a.clone(), None))
    assert len({of((a, None)), of((b, None)), of((a, 1)), of((a + 1, None)), of((a, None), (b, None)), of((b, None), (a, None))}) == 6


def test_moments_agree_with_numpy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 25, 2))
    data = [Inputs((torch.randn(6, 3, 5, 5) * 2 + 1,)) for _ in range(3)]
    found = input_moments(model, ["0", "2"], data)
    rows = torch.cat([i.args[0] for i in data]).movedim(1, -1).reshape(-1, 3).double().numpy()
    assert np.allclose(found["0"].mean, rows.mean(0))
    assert np.allclose(found["0"].covariance, np.cov(rows.T, bias=True))
    assert found["2"].covariance.shape == (100, 100)
    assert not model[0]._forward_pre_hooks, "hooks are removed"


def test_normalization_takes_the_datas_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    data = [Inputs((torch.randn(50, 3) * 4 + 7,)) for _ in range(4)]
    assert reestimate_normalization(model, data) == 1
    whole = torch.stack([i.args[0] for i in data])
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, whole.mean((0, 1)), atol=1e-5)
    assert torch.allclose(norm.running_var, whole.var(1).mean(0), rtol=1e-4)
    assert not any(m.training for m in model.modules())
    assert norm.momentum == 0.1
