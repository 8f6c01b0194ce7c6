"""Re-estimated normalization statistics against means computed by hand."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from sizewise.data.statistics import reestimate_normalization
from sizewise.protocols import Inputs


def _data(n: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 + 3 * torch.randn(16, 4, 5, 5, generator=generator) for _ in range(n)]


def test_statistics_are_plain_averages_over_batches_whatever_they_were_before() -> None:
    data = _data()
    norm = nn.BatchNorm2d(4, momentum=0.3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(100)
    norm.running_var.fill_(100)
    assert reestimate_normalization(norm, [Inputs((x,)) for x in data]) == 1
    rows = [x.movedim(1, -1).reshape(-1, 4) for x in data]
    assert torch.allclose(norm.running_mean, torch.stack([r.mean(0) for r in rows]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([r.var(0) for r in rows]).mean(0), atol=1e-4)
    assert norm.momentum == 0.3
    assert not norm.training


def test_every_normalization_sees_what_the_changed_layers_before_it_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2))
    data = _data(2)
    reestimate_normalization(model, [Inputs((x,)) for x in data])
    with torch.no_grad():
        model[0].get_parameter("weight").mul_(5)
    assert reestimate_normalization(model, [Inputs((x,)) for x in data]) == 2
    out = torch.cat([model(x) for x in data])
    assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-2)
    assert torch.allclose(out.var((0, 2, 3)), torch.ones(2), atol=2e-2)


def test_nothing_else_is_put_in_training_mode_and_no_weight_changes() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).train()
    before = [p.detach().clone() for p in model.parameters()]
    (x,) = _data(1)
    reestimate_normalization(model, [Inputs((x,))])
    conv, norm = model[1], model[2]
    want = conv(x).mean((0, 2, 3))  # without dropout
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, want, atol=1e-4)
    assert not any(m.training for m in model.modules())
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_without_running_statistics_nothing_is_read() -> None:
    class Unread:
        def __iter__(self) -> None:
            raise AssertionError("read")

    for model in (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), nn.BatchNorm1d(2, track_running_stats=False)):
        assert reestimate_normalization(model.train(), Unread()) == 0  # type: ignore[arg-type]
        assert not model.training


def test_momentum_and_mode_come_back_when_the_model_fails() -> None:
    norm = nn.BatchNorm2d(4, momentum=0.3)
    with pytest.raises(ValueError):
        reestimate_normalization(norm, [Inputs((torch.zeros(2, 4),))])
    assert norm.momentum == 0.3
    assert not norm.training


def test_inputs_by_keyword_are_passed_on() -> None:
    norm = nn.BatchNorm1d(2)
    assert reestimate_normalization(norm, [Inputs((), {"input": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})]) == 1
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("inputs", [[], [Inputs((torch.zeros(1, 4),))]], ids=["none", "failing"])
def test_without_usable_data_the_old_statistics_stay(inputs: list[Inputs]) -> None:
    norm = nn.BatchNorm1d(4)
    assert norm.running_mean is not None
    norm.running_mean.fill_(5)
    with contextlib.suppress(ValueError):
        reestimate_normalization(norm, inputs)
    assert norm.running_mean.tolist() == [5.0] * 4
