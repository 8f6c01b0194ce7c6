"""Ladders of options, and what they save."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sizewise.arith.allocation import LocalCost, SeparateCost, allocate
from sizewise.data.rank_losses import FactorOption, factor_options
from sizewise.graph.factorize import Factoring, factor_shapes
from sizewise.profile.factor_cost import STEPS, counted_savings, ladder, latency_savings
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.types import Interval, LayerShape


def option(rank: int, params: int, loss: float) -> FactorOption:
    return FactorOption(factoring=Factoring("svd", (rank,)), params=params, macs=10 * params, loss=loss)


@given(st.lists(st.tuples(st.integers(1, 150), st.floats(0.0, 1.0)), max_size=12))
def test_a_ladder_holds_what_nothing_betters(pairs: list[tuple[int, float]]) -> None:
    options = [option(place, params, loss) for place, (params, loss) in enumerate(pairs)]
    found = ladder(options, lambda o: 100 - o.params, 100)
    assert found.levels[0] == 0
    assert list(found.levels) == sorted(set(found.levels))
    assert len(found.losses) == found.levels[-1] + 1
    assert list(found.losses) == sorted(found.losses)
    for level, own in found.options.items():
        assert found.losses[level] == own.loss
        assert found.saved[level] == 100 - own.params > 0
        assert level == round(STEPS * (100 - own.params) / 100)
    for own in options:
        if own.params < 100:
            assert any(better.params <= own.params and better.loss <= own.loss for better in found.options.values())


def test_what_saves_nothing_leaves_the_layer_whole() -> None:
    assert ladder([option(1, 100, 0.0), option(2, 120, 0.0)], lambda o: 100 - o.params, 100).levels == (0,)
    assert ladder([option(1, 99, 0.0)], lambda o: 100 - o.params, 100, least=2).levels == (0,)
    assert ladder([option(1, 0, 0.0)], lambda o: 0.0, 0).levels == (0,)


def test_layers_save_independently_and_the_cheaper_loss_goes_first() -> None:
    ladders = [
        ladder([option(1, 50, 0.5), option(2, 80, 0.1)], lambda o: 100 - o.params, 100),
        ladder([option(1, 60, 0.01)], lambda o: 100 - o.params, 100),
    ]
    cost = SeparateCost([own.costs for own in ladders], 1000)
    assert isinstance(cost, LocalCost)
    levels = allocate([one.losses for one in ladders], cost, 960, [one.levels for one in ladders])
    assert levels[0] == 0
    assert cost(levels) == 960
    assert cost.saving(levels, 0, ladders[0].levels[1]) == pytest.approx(20)


def test_savings_of_parameters_and_macs_are_those_of_the_whole_models() -> None:
    model, example = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 16)), Inputs((torch.randn(2, 4, 6, 6),))
    shapes = {path: found[0] for path, found in layer_shapes(model, example).items()}
    cost = static_cost(model, example)
    for target in ("params", "macs"):
        amounts, saving = counted_savings(model, shapes, target)
        assert sum(amounts.values()) == getattr(cost, target)
        own = factor_options(model[2], shapes["2"], None)[0]
        assert saving("2", own) == amounts["2"] - getattr(own, target)


class FakeTimer:
    """A nanosecond per product, and a microsecond per layer."""

    name = "fake"
    facts = "fake"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        return [self.seconds(shape) for shape in shapes]

    @staticmethod
    def seconds(shape: LayerShape) -> float:
        return 1e-9 * shape.out_channels * shape.in_channels * torch.Size(shape.kernel).numel() + 1e-6


def test_seconds_are_saved_where_the_new_layers_take_less(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 8, 1)), Inputs((torch.randn(1, 64, 6, 6),))
    shapes = {path: found[0] for path, found in layer_shapes(model, example).items()}
    options = {path: factor_options(model.get_submodule(path), shape, None, 8) for path, shape in shapes.items()}
    timer, profile = FakeTimer(tmp_path), static_cost(model, example)
    lone = {path: timer.seconds(shape) for path, shape in shapes.items()}
    measured = replace(profile, latency_s=Interval.exact(2 * sum(lone.values())))
    amounts, saving = latency_savings(measured, shapes, options, cast(Any, timer), 8)
    for path, own in options.items():
        for one in own:
            seconds = sum(timer.seconds(part) for part in factor_shapes(shapes[path], one.factoring))
            assert saving(path, one) == pytest.approx(amounts[path] * (1 - seconds / lone[path]), rel=0.05, abs=1e-9)
    assert max(saving("0", one) for one in options["0"]) > 0.5 * amounts["0"]
    assert max(saving("1", one) for one in options["1"]) < 0, "two layers take longer than one so small"
