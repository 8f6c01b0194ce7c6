"""Bytes after lossless coding."""

import pytest
import torch
from torch import nn

from sizewise.evaluate.stored import coded_bytes


def pruned(rate: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(200, 200, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight[torch.rand(200, 200) < rate] = 0
    return model


def test_the_size_falls_with_the_share_of_zeros() -> None:
    dense, half, sparse = (coded_bytes(pruned(rate)) for rate in (0.0, 0.5, 0.9))
    assert dense == pytest.approx(40_000 * 4, rel=0.1)
    assert half == pytest.approx(dense / 2 + 40_000 / 8, rel=0.02), "half of the values and a bitmap that does not compress"
    assert sparse < 0.15 * dense


def test_every_dtype_and_empty_tensors_are_counted() -> None:
    assert coded_bytes(pruned(0.5, torch.bfloat16)) < 0.6 * coded_bytes(pruned(0.5))
    model = nn.BatchNorm1d(3)
    model.register_buffer("nothing", torch.zeros(0))
    assert 0 < coded_bytes(model) < 200, "a batch count is an integer without dimensions"


def test_tied_weights_are_stored_once() -> None:
    model = nn.Sequential(pruned(0.0), pruned(0.0))
    twice = coded_bytes(model)
    model[1].weight = model[0].weight
    assert coded_bytes(model) == pytest.approx(twice / 2, rel=1e-3)
