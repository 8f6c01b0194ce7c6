"""Counts against closed forms; timing with a clock that the test moves."""

import pytest
import torch
from torch import nn

from sizewise.errors import PreconditionError, UsageError
from sizewise.profile.static import profile_model
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Inputs
from sizewise.testing import FakeClock


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 10), 2 * 8 * 100 * 3 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 10), 8 * 100 * 9),
        (nn.Conv2d(8, 16, 1, stride=2, groups=4), (1, 8, 10, 10), 16 * 25 * 2),
        (nn.Linear(7, 5), (4, 7), 4 * 7 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 4),
        (nn.Conv1d(4, 6, 5, dilation=2), (1, 4, 20), 6 * 12 * 4 * 5),
    ],
)
def test_macs(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    cost = profile_model(layer, Inputs((torch.randn(shape),)))
    assert cost.macs == macs
    assert cost.batch == shape[0]
    assert cost.params == sum(p.numel() for p in layer.parameters())
    assert cost.weight_bytes == 4 * cost.params


def test_what_has_no_formula_is_named_not_zero() -> None:
    cost = profile_model(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4), nn.GELU()), Inputs((torch.randn(2, 4),)))
    assert cost.uncounted["gelu"] == 2
    assert "native_layer_norm" in cost.uncounted
    assert "addmm" not in cost.uncounted


def test_shared_weights_count_once_but_their_work_counts_twice() -> None:
    layer = nn.Linear(4, 4, bias=False)
    cost = profile_model(nn.Sequential(layer, layer), Inputs((torch.randn(1, 4),)))
    assert (cost.params, cost.weight_bytes, cost.macs) == (16, 64, 32)


def test_the_mode_is_kept_and_a_failing_model_is_blamed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    profile_model(model, Inputs((torch.randn(1, 4),)))
    assert model.training
    with pytest.raises(PreconditionError, match="the model failed on the example inputs"):
        profile_model(model, Inputs((torch.randn(1, 5),)))
    assert model.training


def test_medians_and_ratios_of_what_the_clock_says() -> None:
    clock = FakeClock()
    timed = time_interleaved(
        {"slow": lambda: clock.advance(3e-3), "fast": lambda: clock.advance(1e-3)}, rounds=15, block_s=0.02, warmup_s=0.05, clock=clock
    )
    assert timed.latency("slow").value == pytest.approx(3e-3)
    assert timed.ratio("slow", "fast").value == pytest.approx(3)
    assert timed.latency("fast").n == 15


def test_a_slow_spell_of_the_machine_cancels_in_the_ratio() -> None:
    clock = FakeClock()

    def work(seconds: float) -> None:
        clock.advance(seconds * (5 if clock.now > 1.0 else 1))

    timed = time_interleaved({"a": lambda: work(2e-3), "b": lambda: work(1e-3)}, rounds=31, block_s=0.02, warmup_s=0.05, clock=clock)
    assert timed.samples["a"].max() / timed.samples["a"].min() == pytest.approx(5, rel=0.1)
    assert timed.ratio("a", "b").value == pytest.approx(2)


def test_a_first_slow_call_does_not_count() -> None:
    clock, calls = FakeClock(), [0]

    def first_is_slow() -> None:
        calls[0] += 1
        clock.advance(1.0 if calls[0] == 1 else 1e-3)

    timed = time_interleaved({"x": first_is_slow}, rounds=5, block_s=0.01, warmup_s=0.05, clock=clock)
    assert timed.samples["x"].max() == pytest.approx(1e-3)


def test_nothing_to_time() -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        time_interleaved({})
