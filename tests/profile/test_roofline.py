"""Predicted latency against hand computations; what it must never do whatever the rates."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sizewise.graph.trace import export_static
from sizewise.profile.attribution import with_predicted
from sizewise.profile.graph_cost import FAMILIES, Operator, operators_of
from sizewise.profile.roofline import operator_seconds, predict
from sizewise.profile.static import analyse
from sizewise.protocols import Inputs
from sizewise.types import Rates

RATES = Rates(
    peak_macs_per_s={"float32": 1e9, "float16": 2e9, "int8": 4e9},
    efficiency={"conv": 0.8, "conv1d": 0.8, "pointwise": 0.5, "depthwise": 0.1, "matmul": 0.4, "recurrent": 0.2},
    bandwidth_bytes_per_s=1e8,
    cache_bytes=1e6,
    cache_bandwidth_bytes_per_s=1e9,
    operator_overhead_s=1e-3,
    step_overhead_s=1e-4,
    error_factor=2.0,
)


def operator(path: str = "layer", **fields: object) -> Operator:
    """An operator that does nothing but what is said."""
    plain = Operator(
        name="node",
        kind="linear",
        path=path,
        module="Linear",
        family="matmul",
        macs=0,
        elementwise=0,
        uncounted={},
        read_bytes=0,
        weight_bytes=0,
        write_bytes=0,
        live_bytes=0,
        steps=1,
        host=None,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


class Net(nn.Module):
    """Every family, folded operators, a view and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.depthwise, self.pointwise = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.gru, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = x + self.pointwise(self.depthwise(x))
        sequence = x.flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.gru(sequence)[0].mean(1))
        return logits


OPERATORS = operators_of(export_static(Net().eval(), Inputs((torch.zeros(1, 3, 6, 6),))))


# ---- by hand


def test_two_layers_by_hand() -> None:
    """Linear 100 -> 200 and 200 -> 10 on one row; the relu between them is folded into the first."""
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
    operators = operators_of(export_static(model.eval(), Inputs((torch.zeros(1, 100),))))
    found = predict(operators, RATES)
    first = max(20_000 / (1e9 * 0.4), (400 + 800) / 1e9 + 4 * 20_200 / 1e9) + 1e-3
    second = max(2_000 / (1e9 * 0.4), (800 + 40) / 1e9 + 4 * 2_010 / 1e9) + 1e-3
    assert found.layers["0"].value == pytest.approx(first)
    assert found.layers["1"].value == 0
    assert found.layers["2"].value == pytest.approx(second)
    assert found.total.value == pytest.approx(first + second)


def test_an_operator_takes_the_longer_of_computing_and_moving() -> None:
    busy = operator(macs=4_000_000, read_bytes=1000)
    moving = operator(macs=4, read_bytes=1_000_000)
    assert operator_seconds(busy, RATES) == pytest.approx(4e6 / 4e8 + 1e-3)
    assert operator_seconds(moving, RATES) == pytest.approx(1e-3 + 1e-3)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "memory"])
def test_every_family_has_its_own_roof(family: str) -> None:
    assert operator_seconds(operator(macs=10**6, family=family), RATES) == pytest.approx(1e-3 / RATES.efficiency[family] + 1e-3)


def test_what_does_not_fit_the_cache_comes_from_memory() -> None:
    near, far = operator(read_bytes=400_000, write_bytes=600_000), operator(read_bytes=400_000, write_bytes=600_001)
    assert operator_seconds(near, RATES) == pytest.approx(1e6 / 1e9 + 1e-3)
    assert operator_seconds(far, RATES) == pytest.approx(1_000_001 / 1e8 + 1e-3)


def test_weights_come_from_memory_when_those_of_the_whole_model_do_not_fit_the_cache() -> None:
    small = [operator(f"{i}", macs=1, weight_bytes=100_000) for i in range(10)]
    large = [*small, operator("last", macs=1, weight_bytes=1)]
    assert predict(small, RATES).total.value == pytest.approx(10 * (1e-4 + 1e-3))
    assert predict(large, RATES).layers["0"].value == pytest.approx(1e-3 + 1e-3)


def test_steps_wait_for_one_another() -> None:
    one, many = (operator(macs=2000, family="recurrent", steps=steps) for steps in (1, 200))
    assert operator_seconds(many, RATES) - operator_seconds(one, RATES) == pytest.approx(199 * 1e-4)


def test_a_folded_operator_costs_its_reading_alone() -> None:
    total = operator("sum", kind="add", family="memory", elementwise=1000, read_bytes=40_000, weight_bytes=5_000, host="conv")
    assert operator_seconds(total, RATES) == pytest.approx(45_000 / 1e9)
    found = predict([operator("conv", macs=1000), total], RATES)
    assert found.layers["sum"].value == 0
    assert found.layers["conv"].value == pytest.approx(1e-3 + 1000 / 4e8 + 45_000 / 1e9)


def test_views_cost_nothing() -> None:
    assert operator_seconds(operator(kind="view", family="memory"), RATES) == 0
    views = operators_of(
        export_static(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 8)), nn.Dropout()).eval(), Inputs((torch.zeros(1, 16),)))
    )
    assert views
    assert predict(views, RATES).total.value == 0


def test_a_copy_costs_what_it_moves() -> None:
    (view, copy) = operators_of(export_static(_Turned(), Inputs((torch.zeros(50, 20),))))
    assert operator_seconds(view, RATES) == 0
    assert operator_seconds(copy, RATES) == pytest.approx(8000 / 1e9 + 1e-3)


class _Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.t().contiguous()


def test_an_activation_in_place_costs_what_it_costs_elsewhere() -> None:
    def seconds(inplace: bool) -> float:
        model = nn.Sequential(nn.MaxPool1d(2), nn.SiLU(inplace))
        return predict(operators_of(export_static(model.eval(), Inputs((torch.zeros(1, 3, 8),)))), RATES).total.value

    assert seconds(True) == seconds(False) > 1e-3


def test_the_dtype_chooses_the_peak_and_an_unknown_one_means_float32() -> None:
    heavy = operator(macs=10**9)
    seconds = {dtype: operator_seconds(heavy, RATES, dtype) - 1e-3 for dtype in ("float32", "float16", "int8", "bfloat16")}
    assert seconds["float32"] == pytest.approx(2 * seconds["float16"]) == pytest.approx(4 * seconds["int8"])
    assert seconds["bfloat16"] == seconds["float32"]
    assert predict([heavy], RATES, "int8").total.value == pytest.approx(0.625 + 1e-3)


# ---- whatever the numbers


def test_the_total_is_the_sum_of_the_layers() -> None:
    found = predict(OPERATORS, RATES)
    for end in ("low", "value", "high"):
        assert getattr(found.total, end) == pytest.approx(sum(getattr(layer, end) for layer in found.layers.values()))


def test_every_layer_that_runs_something_has_a_prediction() -> None:
    model, inputs = Net().eval(), Inputs((torch.zeros(1, 3, 6, 6),))
    analysis = analyse(model, inputs)
    found = predict(analysis.operators, RATES)
    assert set(found.layers) == {layer.path for layer in analysis.cost.layers}
    filled = with_predicted(analysis.cost, found)
    assert filled.latency_s == found.total
    assert {layer.path: layer.latency_s for layer in filled.layers} == found.layers
    assert replace(filled, latency_s=None, layers=()) == replace(analysis.cost, layers=())
    assert all(found.layers[layer.path].value > 0 for layer in filled.layers if layer.macs)


def test_a_layer_that_runs_nothing_has_no_prediction() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    analysis = analyse(Unused(), Inputs((torch.zeros(1, 4),)))
    filled = with_predicted(analysis.cost, predict(analysis.operators, RATES))
    assert {layer.path: layer.latency_s is None for layer in filled.layers} == {"used": False, "unused": True}


@given(st.floats(1, 10))
@settings(deadline=None)
def test_an_interval_reaches_from_the_factor_below_to_the_factor_above(factor: float) -> None:
    found = predict(OPERATORS, replace(RATES, error_factor=factor))
    for figure in (found.total, *found.layers.values()):
        assert figure.low == pytest.approx(figure.value / factor)
        assert figure.high == pytest.approx(figure.value * factor)
        assert (figure.how, figure.n) == ("predicted", 0)


positive = st.floats(1e-3, 1e12, allow_nan=False)
RATES_AT_ALL = st.builds(
    Rates,
    peak_macs_per_s=st.fixed_dictionaries({"float32": positive}),
    efficiency=st.fixed_dictionaries({name: st.floats(1e-3, 1) for name in FAMILIES if name != "memory"}),
    bandwidth_bytes_per_s=positive,
    cache_bytes=st.floats(1, 1e7),
    cache_bandwidth_bytes_per_s=positive,
    operator_overhead_s=st.floats(0, 1),
    step_overhead_s=st.floats(0, 1),
    error_factor=st.floats(1, 10),
)


@given(RATES_AT_ALL, st.floats(1, 1000), st.sampled_from(["float32", *(name for name in FAMILIES if name != "memory")]))
@settings(deadline=None)
def test_a_device_that_computes_more_is_never_slower(rates: Rates, factor: float, what: str) -> None:
    if what == "float32":
        faster = replace(rates, peak_macs_per_s={"float32": rates.peak_macs_per_s["float32"] * factor})
    else:
        faster = replace(rates, efficiency={**rates.efficiency, what: rates.efficiency[what] * factor})
    assert predict(OPERATORS, faster).total.value <= predict(OPERATORS, rates).total.value * (1 + 1e-9)


@given(RATES_AT_ALL, st.floats(1, 1000), st.sampled_from(["bandwidth_bytes_per_s", "cache_bandwidth_bytes_per_s"]))
@settings(deadline=None)
def test_a_device_that_moves_more_is_never_slower(rates: Rates, factor: float, what: str) -> None:
    faster = replace(rates, **{what: getattr(rates, what) * factor})
    assert predict(OPERATORS, faster).total.value <= predict(OPERATORS, rates).total.value * (1 + 1e-9)


@given(RATES_AT_ALL, st.floats(0, 10), st.sampled_from(["operator_overhead_s", "step_overhead_s"]))
@settings(deadline=None)
def test_a_device_that_waits_longer_is_never_faster(rates: Rates, more: float, what: str) -> None:
    slower = replace(rates, **{what: getattr(rates, what) + more})
    assert predict(OPERATORS, slower).total.value >= predict(OPERATORS, rates).total.value * (1 - 1e-9)


@given(RATES_AT_ALL, st.floats(1, 1000), st.floats(1, 1000))
@settings(deadline=None)
def test_a_larger_cache_is_never_slower_where_it_is_faster_than_memory(rates: Rates, larger: float, faster: float) -> None:
    rates = replace(rates, cache_bandwidth_bytes_per_s=rates.bandwidth_bytes_per_s * faster)
    more = replace(rates, cache_bytes=rates.cache_bytes * larger)
    assert predict(OPERATORS, more).total.value <= predict(OPERATORS, rates).total.value * (1 + 1e-9)


@given(st.lists(st.integers(0, 10**9), min_size=4, max_size=4), st.lists(st.integers(0, 10**6), min_size=4, max_size=4))
@settings(deadline=None)
def test_more_work_is_never_faster(work: list[int], more: list[int]) -> None:
    def seconds(macs: int, read: int, weights: int, written: int) -> float:
        return predict([operator(macs=macs, read_bytes=read, weight_bytes=weights, write_bytes=written)], RATES).total.value

    assert seconds(*(a + b for a, b in zip(work, more, strict=True))) >= seconds(*work) * (1 - 1e-9)


def test_nothing_takes_no_time() -> None:
    found = predict((), RATES)
    assert (found.total.value, found.layers) == (0, {})
