"""Averages of weights over the end of a training."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sizewise.training.average import POWER, Average
from sizewise.training.checkpoint import model_copy


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def moved(net: nn.Module, by: float) -> None:
    with torch.no_grad():
        for tensor in (*net.parameters(), *(net.get_buffer(f"1.running_{kind}") for kind in ("mean", "var"))):
            tensor += by


def begun() -> tuple[nn.Module, Average]:
    """A model that has moved since the only step that its average took in."""
    net = model()
    average = Average(net)
    average.follow(1)
    moved(net, 1.0)
    return net, average


def same(net: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model_copy(net).items())


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_weight_of_a_step_is_that_of_its_share_of_all_steps(moves: list[float]) -> None:
    """Weights of the intervals between (t - 1) / T and t / T under the distribution x ** (POWER + 1)."""
    net, states = model(), []
    average = Average(net)
    for step, by in enumerate(moves, start=1):
        moved(net, by)
        average.follow(step)
        states.append(model_copy(net))
    edges = (torch.arange(len(moves) + 1, dtype=torch.float64) / len(moves)) ** (POWER + 1)
    with average.shown():
        shown = model_copy(net)
    for name in ("0.weight", "1.bias", "1.running_mean", "1.running_var"):
        wanted = sum(weight * state[name].double() for weight, state in zip(edges.diff(), states, strict=True))
        torch.testing.assert_close(shown[name].double(), wanted, rtol=0, atol=1e-5)


def test_the_model_is_shown_as_its_average_and_then_as_it_was() -> None:
    net = model()
    first = model_copy(net)
    average = Average(net)
    average.follow(1)
    moved(net, 1.0)
    now = model_copy(net)

    def interrupted() -> None:
        with average.shown():
            assert same(net, first)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(net, now)


def test_the_first_step_begins_anew() -> None:
    net, average = begun()
    average.follow(1)
    with average.shown():
        shown = model_copy(net)
    assert same(net, shown)


def test_it_goes_on_from_a_checkpoint() -> None:
    net, average = begun()
    other = deepcopy(net)
    resumed = Average(other)
    resumed.resume(average.tensors)
    for each in (average, resumed):
        each.follow(2)
    with average.shown(), resumed.shown():
        assert same(net, model_copy(other))
