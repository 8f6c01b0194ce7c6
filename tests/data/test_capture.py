"""Moments of what flows into layers."""

import numpy as np
import torch
from torch import nn

from sizewise.data.capture import input_moments
from sizewise.protocols import Inputs


def test_moments_agree_with_numpy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 25, 2))
    data = [Inputs((torch.randn(6, 3, 5, 5) * 2 + 1,)) for _ in range(3)]
    found = input_moments(model, ["0", "2"], data)
    rows = torch.cat([i.args[0] for i in data]).movedim(1, -1).reshape(-1, 3).double().numpy()
    assert np.allclose(found["0"].mean, rows.mean(0))
    assert np.allclose(found["0"].covariance, np.cov(rows.T, bias=True))
    assert found["2"].covariance.shape == (100, 100)
    assert not model[0]._forward_pre_hooks, "hooks are removed"
