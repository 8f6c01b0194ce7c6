"""Layers that stay float under a limit of the latency, on machines as fast as a table says."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnsupportedModel
from sizewise.pipeline.apply import apply_plan, rebuild_plan
from sizewise.profile.precision_cost import LEAST, LatencyLimit, float_prices
from sizewise.protocols import Context, Inputs
from sizewise.testing import NullRuntime
from sizewise.types import Change, Cost, Interval, LayerCost, LayerShape, Plan, Step

FLOAT = {"a": 1e-3, "b": 2e-3, "c": 3e-3, "d": 4e-3}
INTEGER = {"a": 5e-4, "b": 5e-4, "c": 5e-4, "d": 5e-4}  # a fifth of the float model's 10 ms


class Uneven(nn.Module):
    """Four layers; "b", and less so "d", have for an input that always is 0 weights that make their steps coarse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        with torch.no_grad():
            for before, after, large in ((self.a, self.b, 60.0), (self.c, self.d, 10.0)):
                before.weight[0], before.bias[0] = 0, -1  # type: ignore[index]
                after.weight[:, 0] = large

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        found: Tensor = self.d(x).mean((2, 3))
        return found


class TableTimer:
    """A model takes what its layers take, and `border` seconds more for every float layer where others are integers.

    Args:
        floats, integers: seconds by layer.
        border: that no profile tells.
        split: whether profiles tell layers apart.
        drift: what profiles of integers are wrong by, as those of another moment.
    """

    name, facts, folder = "table", "table 1.0", Path()

    def __init__(
        self,
        floats: Mapping[str, float] = FLOAT,
        integers: Mapping[str, float] = INTEGER,
        *,
        border: float = 0.0,
        split: bool = True,
        drift: float = 1.0,
    ) -> None:
        self.floats, self.integers, self.border, self.split, self.drift = floats, integers, border, split, drift
        self.timed: list[set[str]] = []

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        raise AssertionError("nothing asks for lone layers")

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        wide = self.wide(model)
        scale = 1.0 if len(wide) == len(self.floats) else self.drift
        seconds = {path: scale * (self.floats if path in wide else self.integers)[path] for path in self.floats}
        layers = tuple(self._row(path, time if self.split else None) for path, time in seconds.items())
        return Cost(
            params=0, macs=100 * len(layers), weight_bytes=0, batch=1, latency_s=Interval.exact(sum(seconds.values())), layers=layers
        )

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        def share(other: nn.Module) -> float:
            self.timed.append(self.wide(other))
            return self.seconds(other) / self.seconds(model)

        return share

    def wide(self, model: nn.Module) -> set[str]:
        held = model.state_dict()
        return {path for path in self.floats if f"{path}.weight" in held and held[f"{path}.weight"].is_floating_point()}

    def seconds(self, model: nn.Module) -> float:
        wide = self.wide(model)
        borders = self.border * len(wide) if len(wide) < len(self.floats) else 0.0
        return borders + sum((self.floats if path in wide else self.integers)[path] for path in self.floats)

    @staticmethod
    def _row(path: str, seconds: float | None) -> LayerCost:
        return LayerCost(
            path=path,
            kind="Conv2d",
            family="conv",
            calls=1,
            params=0,
            macs=100,
            weight_bytes=0,
            activation_bytes=0,
            peak_bytes=0,
            elementwise=0,
            intensity=0.0,
            latency_s=None if seconds is None else Interval.exact(seconds),
        )


def data() -> list[Inputs]:
    generator = torch.Generator().manual_seed(1)
    return [Inputs((torch.randn(16, 3, 6, 6, generator=generator),)) for _ in range(4)]


def quantize(timer: TableTimer, model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, Change, Plan]:
    plan = Plan(scale="x", steps=(Step(technique="int8_static", settings={"ranges": "minmax", **settings}),))
    batches = data()
    found = Uneven().eval() if model is None else model
    module, done, changes = apply_plan(found, plan, Context(batches[0], batches, NullRuntime.scheme, timer=timer))
    return module, changes[0], done


def off(module: nn.Module) -> float:
    x = data()[0].args[0]
    with torch.no_grad():
        want = Uneven().eval()(x)
        return float((module(x) - want).square().mean() / want.var())


def spared(change: Change) -> list[str]:
    return [skip.what for skip in change.skipped if skip.reason == "spared: its integers change the outputs most, and the limit allows it"]


# ---- choosing


def test_the_layer_whose_integers_harm_most_stays_float_and_the_limit_is_kept() -> None:
    timer = TableTimer()
    whole, before, _ = quantize(TableTimer(), max_latency=0.21)
    mixed, change, _ = quantize(timer, max_latency=0.38)
    assert spared(before) == []
    assert spared(change) == ["b"]
    assert timer.wide(mixed) == {"b"}
    assert timer.seconds(mixed) <= 0.38 * timer.seconds(Uneven())
    assert off(mixed) < off(whole)
    (note,) = (note for note in change.notes if "stay float" in note)
    assert note.startswith("1 of 4 layers stay float, so that the outputs change by ")
    assert note.endswith(": b; 35.0 % of the float latency measured on table, at most 38.0 % allowed, 20.0 % with all layers in integers")


def test_what_is_bought_is_harm_per_second() -> None:
    """The worst layer is too dear: the next one, and a cheap one, are what the limit allows."""
    _, change, _ = quantize(TableTimer({**FLOAT, "b": 8e-3, "d": 2e-3}), max_latency=0.35)
    assert "b" not in spared(change)
    assert "d" in spared(change)


def test_a_higher_limit_spares_more_but_never_all() -> None:
    one, _, _ = quantize(TableTimer(), max_latency=0.4)
    most, change, _ = quantize(TableTimer(), max_latency=0.999)
    assert len(spared(change)) == 3
    assert off(most) < off(one)


@pytest.mark.parametrize("border", [2e-4, 1e-3])
def test_time_that_no_profile_tells_of_is_measured_and_the_goal_moved(border: float) -> None:
    timer = TableTimer(border=border)
    mixed, change, _ = quantize(timer, max_latency=0.62)
    assert spared(change)
    assert timer.seconds(mixed) <= 0.62 * timer.seconds(Uneven())
    assert len(timer.timed) <= 5, "all in integers, and four choices"


def test_profiles_of_different_moments_only_tell_how_each_splits() -> None:
    assert spared(quantize(TableTimer(drift=3.0), max_latency=0.4)[1]) == spared(quantize(TableTimer(), max_latency=0.4)[1])


def test_a_time_is_the_share_that_it_is_of_the_float_model() -> None:
    assert spared(quantize(TableTimer(), max_seconds=3.8e-3)[1]) == spared(quantize(TableTimer(), max_latency=0.38)[1]) == ["b"]


def test_where_layers_are_not_told_apart_their_macs_split_the_time() -> None:
    timer = TableTimer(split=False)
    mixed, change, _ = quantize(timer, max_latency=0.45)
    assert "b" in spared(change)
    assert timer.seconds(mixed) <= 0.45 * timer.seconds(Uneven())


def test_a_layer_that_is_faster_in_float_can_make_the_limit_possible() -> None:
    timer = TableTimer(FLOAT, {**INTEGER, "a": 3e-3})
    mixed, change, _ = quantize(timer, max_latency=0.3)
    assert spared(change) == ["a"]
    assert timer.seconds(mixed) <= 0.3 * timer.seconds(Uneven())


def test_where_no_layer_can_be_paid_all_are_integers_and_that_is_said() -> None:
    _, change, _ = quantize(TableTimer(), max_latency=0.21)
    (note,) = (note for note in change.notes if note.startswith("all 4 layers are integers, 20.0 % of"))
    assert note.endswith("no layer that may stay float was found to leave it below the limit")


def test_layers_that_were_asked_to_stay_float_are_no_part_of_the_choice() -> None:
    _, change, _ = quantize(TableTimer(), max_latency=0.5, skip=["b"])
    assert "b" not in spared(change)
    assert [skip.reason for skip in change.skipped if skip.what == "b"] == ["asked to stay float"]


def test_the_record_makes_the_same_graph_again() -> None:
    mixed, _, done = quantize(TableTimer(), max_latency=0.4)
    rebuilt = rebuild_plan(Uneven(), done, Context(data()[0], None, NullRuntime.scheme))
    rebuilt.load_state_dict(mixed.state_dict())
    x = data()[0].args[0]
    with torch.no_grad():
        assert torch.equal(rebuilt(x), mixed(x))


# ---- what cannot be kept


def test_integers_that_are_slower_than_the_limit_are_refused_before_anything_is_fitted() -> None:
    timer = TableTimer()
    with pytest.raises(PreconditionError, match="integers alone are slower than the limit") as caught:
        quantize(timer, max_latency=0.1)
    assert caught.value.got == "20.0 % of the float latency measured on table"
    assert caught.value.wanted == "at most 10.0 %"
    assert len(timer.timed) == 1


def test_a_layer_that_is_faster_in_float_need_not_be_enough() -> None:
    with pytest.raises(PreconditionError, match="slower than the limit") as caught:
        quantize(TableTimer(FLOAT, {**INTEGER, "a": 3e-3}), max_latency=0.1)
    assert "25.0 %" in str(caught.value.got)


def test_a_float_model_that_is_fast_enough_needs_no_integers() -> None:
    with pytest.raises(PreconditionError, match="is as fast as that") as caught:
        quantize(TableTimer(), max_seconds=20e-3)
    assert "10.0 ms" in str(caught.value.got)


def test_a_model_without_layers_is_refused_for_that() -> None:
    with pytest.raises(UnsupportedModel, match="nothing in this model"):
        quantize(TableTimer(), nn.Sequential(nn.Tanh()), max_latency=0.5)


# ---- prices


def test_a_price_is_what_float_takes_more_as_a_share_of_the_float_model() -> None:
    timer = TableTimer()
    floats = timer.profile(Uneven(), data()[0])
    integers = Cost(
        params=0,
        macs=0,
        weight_bytes=0,
        batch=1,
        latency_s=Interval.exact(1.0),
        layers=tuple(TableTimer._row(path, seconds) for path, seconds in (("a", 0.5), ("b", 0.499), ("c", 0.001))),
    )
    found = float_prices(floats, integers, 0.4)
    assert found == pytest.approx({"a": 0.1 - 0.2, "b": LEAST, "c": 0.3 - 0.0004}), "and none is told of what one file does not have"


def test_a_limit_is_a_share_or_a_time() -> None:
    assert LatencyLimit(share=0.3).of(1.0, "x") == 0.3
    assert LatencyLimit(seconds=0.5).of(2.0, "x") == 0.25
    with pytest.raises(PreconditionError, match="as fast"):
        LatencyLimit(seconds=2.0).of(2.0, "x")
