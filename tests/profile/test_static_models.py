"""Cost of whole models: layers, shared weights, dtypes, inputs, modes, what cannot be exported, published networks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.errors import PreconditionError
from sizewise.pipeline.apply import apply_plan
from sizewise.profile.static import analyse, static_cost
from sizewise.protocols import Context, Inputs
from sizewise.testing import DictInput, NullRuntime, TinyConv, TwoInputs
from sizewise.types import Cost, LayerCost, Plan, Step
from sizewise.zoo.catalog import CATALOG

SUMMED = ("params", "macs", "weight_bytes", "activation_bytes", "elementwise")


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def cost(model: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Cost:
    """The cost of one call; its layers add up to its totals."""
    module = model if isinstance(model, nn.Module) else Call(model)
    found = static_cost(module, Inputs(args, kwargs or None))
    if found.layers:
        for name in SUMMED:
            assert getattr(found, name) == sum(getattr(layer, name) for layer in found.layers), name
        assert found.peak_bytes == max(layer.peak_bytes for layer in found.layers)
    return found


def layer_of(found: Cost, path: str) -> LayerCost:
    (layer,) = (layer for layer in found.layers if layer.path == path)
    return layer


# ---- models


def test_elementwise_work_is_counted_apart_from_macs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Sigmoid(), nn.Flatten(), nn.Dropout())
    found = cost(model, torch.zeros(2, 4))
    assert (found.macs, found.elementwise, found.uncounted) == (2 * 2 * 16, 5 * 8, {})


def test_shared_weights_count_once_in_size_and_every_time_in_macs() -> None:
    layer = nn.Linear(4, 4, bias=False)
    tied = nn.Linear(4, 4, bias=False)
    tied.weight = layer.weight
    found = cost(nn.Sequential(layer, layer, tied), torch.zeros(1, 4))
    assert (found.params, found.weight_bytes, found.macs) == (16, 64, 48)


def test_an_embedding_tied_to_the_last_layer_belongs_to_the_first() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.out(self.table(x))
            return logits

    found = cost(Tied(), torch.zeros(2, 3, dtype=torch.long))
    assert (found.params, found.weight_bytes, found.macs) == (40, 160, 6 * 40)
    assert (layer_of(found, "table").params, layer_of(found, "out").params) == (40, 0)


def test_a_module_called_twice_is_one_row() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(self.layer(x))
            return y

    found = cost(Twice(), torch.zeros(2, 4))
    assert [(layer.path, layer.calls, layer.params, layer.macs) for layer in found.layers] == [("layer", 2, 20, 64)]


def test_parameters_that_another_module_uses_belong_to_their_user() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first = nn.Embedding(10, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x), self.table.weight)

    found = cost(Reads(), torch.zeros(2, 4))
    assert {layer.path: layer.params for layer in found.layers} == {"first": 20, "": 40}


def test_parameters_that_nobody_uses_are_a_row_that_runs_nothing() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.head = nn.Linear(4, 4), nn.Linear(4, 100)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.used(x))

    found = cost(Unused(), torch.zeros(2, 4))
    row = layer_of(found, "head")
    assert (row.kind, row.params, row.calls, row.macs, row.peak_bytes) == ("Linear", 500, 0, 0, 0)
    assert found.params == 520


def test_layers_come_in_the_order_of_running_under_their_paths() -> None:
    found = cost(TinyConv(), torch.zeros(2, 1, 6, 6))
    assert [layer.path for layer in found.layers] == [
        *("stem.0", "stem.1", "stem.2", "inner.0", "inner.1", "inner.2", "", "depthwise", "pool", "head"),
    ]
    assert [layer.kind for layer in found.layers][:3] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert layer_of(found, "stem.1").weight_bytes == 4 * 4 * 16 + 8
    assert layer_of(found, "inner.0").macs == 2 * 36 * 16 * 16 * 9


def test_the_family_of_a_layer_is_that_of_most_of_its_work() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight).flatten(1)
            return y @ y.t()

    assert [layer.family for layer in cost(Mixed(), torch.zeros(1, 3, 8, 8)).layers] == ["conv"]


def test_intensity_is_macs_per_byte_moved() -> None:
    found = cost(nn.Linear(4, 5, bias=False), torch.zeros(2, 4))
    assert found.intensity == pytest.approx(40 / (4 * (8 + 20 + 10)))
    assert found.layers[0].intensity == found.intensity


def test_bytes_are_those_of_the_stored_dtype_and_include_buffers() -> None:
    found = cost(nn.BatchNorm1d(4).half(), torch.zeros(2, 4).half())
    assert found.params == 8
    assert found.weight_bytes == 4 * 4 * 2 + 8  # four half vectors and one int64 counter
    assert found.activation_bytes == 2 * 8


def test_half_precision_halves_the_bytes_and_keeps_the_macs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    whole = cost(model, torch.zeros(1, 3, 6, 6))
    half = cost(model.half(), torch.zeros(1, 3, 6, 6).half())
    assert (half.macs, half.elementwise, half.params) == (whole.macs, whole.elementwise, whole.params)
    assert whole.peak_bytes is not None
    assert half.peak_bytes is not None
    assert (2 * half.weight_bytes, 2 * half.activation_bytes, 2 * half.peak_bytes) == (
        whole.weight_bytes,
        whole.activation_bytes,
        whole.peak_bytes,
    )


def test_macs_grow_with_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2))
    one, five = (cost(model, torch.zeros(n, 3, 5, 5)) for n in (1, 5))
    assert one.macs == 4 * 9 * 27 + 72
    assert (five.macs, five.elementwise, five.activation_bytes) == (5 * one.macs, 5 * one.elementwise, 5 * one.activation_bytes)
    assert five.batch == 5


def test_several_inputs() -> None:
    found = cost(TwoInputs(), torch.zeros(2, 6), torch.zeros(2, 3))
    assert found.macs == 2 * (6 * 16 + 3 * 16 + 16 * 4)
    assert cost(TwoInputs(), torch.zeros(2, 6), second=torch.zeros(2, 3)).macs == found.macs


def test_keyword_inputs_and_outputs_in_a_dictionary() -> None:
    found = cost(DictInput(), input_ids=torch.zeros(2, 9, dtype=torch.long), attention_mask=torch.ones(2, 9, dtype=torch.long))
    assert (found.macs, found.batch, found.uncounted) == (2 * 8 * 4, 2, {})


def test_nested_inputs_and_outputs() -> None:
    def function(pair: tuple[Tensor, list[Tensor]]) -> dict[str, Any]:
        first, (second,) = pair
        return {"product": first @ second, "rest": [(first + 1,), None]}

    found = cost(function, (torch.zeros(2, 3), [torch.zeros(3, 4)]))
    assert (found.macs, found.elementwise, found.activation_bytes) == (24, 6, 4 * (8 + 6))


class _Regions(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        context: Any = {
            "no_grad": torch.no_grad,
            "enable_grad": torch.enable_grad,
            "inference_mode": torch.inference_mode,
            "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            "no autocast": lambda: torch.autocast("cpu", enabled=False),
        }[self.kind]
        with context():
            y = torch.relu(self.b(self.a(x)))
        logits: Tensor = self.c(y.float()) + x
        return logits


@pytest.mark.parametrize("kind", ["no_grad", "enable_grad", "inference_mode", "autocast", "no autocast"])
def test_what_runs_inside_a_mode_counts_like_the_rest(kind: str) -> None:
    found = cost(_Regions(kind), torch.zeros(2, 4))
    assert (found.macs, found.elementwise, found.uncounted, found.notes) == (3 * 2 * 16, 3 * 8 + 8 + 8, {}, ())
    assert [(layer.path, layer.macs) for layer in found.layers if layer.macs] == [("a", 32), ("b", 32), ("c", 32)]
    if kind == "autocast":
        assert layer_of(found, "a").activation_bytes == 2 * 8  # bfloat16


# ---- what cannot be exported, and what nobody knows


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y if float(y.detach().sum()) > 1e9 else torch.relu(self.a(y))


@pytest.mark.filterwarnings("ignore")
def test_control_flow_that_depends_on_data_is_counted_while_it_runs() -> None:
    model = _Branches().train()
    found = cost(model, torch.zeros(2, 4))
    assert (found.macs, found.params, found.weight_bytes, found.elementwise) == (2 * 32, 20, 80, 2 * 8 + 8 + 8)
    assert (found.layers, found.peak_bytes, found.activation_bytes) == ((), None, 0)
    (note,) = found.notes
    assert note.startswith("no layers, activation bytes or peak memory: torch cannot export this model (")
    assert model.training
    assert analyse(model, Inputs((torch.zeros(2, 4),))).operators == ()


def test_a_size_that_depends_on_data_is_counted_while_it_runs() -> None:
    class Selects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x[x[:, 0] > 0])
            return y.sum(0)

    x = torch.tensor([[1.0] * 4, [-1.0] * 4, [2.0] * 4])
    found = cost(Selects(), x)
    assert (found.macs, found.layers, found.peak_bytes) == (2 * 12, (), None)
    assert "depends on the data" in found.notes[0]


@pytest.mark.filterwarnings("ignore")
def test_running_and_exporting_agree_on_macs() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module, exportable: bool) -> None:
            super().__init__()
            self.inner, self.exportable = inner, exportable

        def forward(self, x: Tensor) -> Any:
            if not self.exportable and float(x.sum()) > 1e9:
                return x
            return self.inner(x)

    for inner, x in (
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), torch.zeros(1, 3, 6, 6)),
        (nn.GRU(4, 5, 2, bidirectional=True), torch.zeros(3, 2, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 3, 8)),
    ):
        exported, running = (cost(Wrapped(inner, exportable), x) for exportable in (True, False))
        assert exported.macs == running.macs > 0
        assert exported.uncounted == running.uncounted == {}
        assert exported.layers
        assert not running.layers


def test_a_model_with_a_condition_inside_the_graph_names_it() -> None:
    class Condition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda y: self.a(y), lambda y: y.sin(), (x,))

    assert cost(Condition(), torch.ones(2, 4)).uncounted == {"cond": 1}


@torch.library.custom_op("sizewise_tests::twice", mutates_args=())
def _twice(x: Tensor) -> Tensor:
    return x * 2


@_twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("sizewise_tests::hidden", mutates_args=())
def _hidden(x: Tensor) -> Tensor:
    return x * 2


def test_an_operator_that_nobody_knows_is_named_with_its_bytes() -> None:
    found = cost(lambda x: torch.ops.sizewise_tests.twice(torch.ops.sizewise_tests.twice(x)) + 1, torch.zeros(2, 4))
    assert found.uncounted == {"sizewise_tests.twice": 2}
    assert found.layers[0].uncounted == {"sizewise_tests.twice": 2}
    assert (found.elementwise, found.activation_bytes) == (8, 3 * 32)


def test_an_operator_that_torch_cannot_export_is_named_too() -> None:
    found = cost(lambda x: torch.ops.sizewise_tests.hidden(x) @ x.t(), torch.zeros(2, 4))
    assert found.uncounted == {"sizewise_tests.hidden": 1}
    assert (found.macs, found.layers) == (16, ())


def test_an_unknown_operator_of_torchs_own_is_named() -> None:
    assert cost(lambda x: torch.fft.rfft(x), torch.zeros(2, 4)).uncounted == {"_fft_r2c": 1}


def test_a_quantized_graph_keeps_the_macs_of_its_float_model() -> None:
    x = torch.randn(2, 1, 6, 6)
    context = Context(Inputs((x,)), [Inputs((x,))], NullRuntime.scheme)
    plan = Plan(scale="x", steps=(Step(technique="int8_static"),))
    quantized, _, _ = apply_plan(TinyConv(), plan, context)
    found, float_one = cost(quantized, x), cost(TinyConv(), x)
    assert found.macs == float_one.macs
    assert found.weight_bytes < 0.6 * float_one.weight_bytes
    assert layer_of(found, "inner.0").macs == layer_of(float_one, "inner.0").macs


# ---- the model is not changed


def test_profiling_changes_neither_the_mode_nor_the_statistics_nor_the_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    static_cost(model, Inputs((torch.ones(2, 3, 5, 5),)))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exportable", [True, False])
@pytest.mark.parametrize("rebinds", [True, False])
def test_buffers_that_a_call_changes_are_put_back(exportable: bool, rebinds: bool) -> None:
    class Counts(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if rebinds:
                self.calls = self.calls + 1
            else:
                self.calls += 1
            return x * 2 if exportable or float(x.sum()) < 1e9 else x

    model = Counts()
    buffer = model.calls
    found = cost(model, torch.zeros(3))
    assert model.calls is buffer
    assert model.calls == 0
    assert bool(found.layers) == exportable


def test_the_mode_comes_back_when_the_model_fails() -> None:
    model = nn.Linear(3, 3).train()
    with pytest.raises(PreconditionError):
        static_cost(model, Inputs((torch.zeros(2, 4),)))
    assert model.training


def test_the_modes_of_submodules_are_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    static_cost(model, Inputs((torch.zeros(2, 2),)))
    assert model[0].training
    assert not model[1].training


def test_dropout_and_statistics_count_as_at_inference() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    found = cost(model, torch.ones(2, 4))
    assert (found.elementwise, found.uncounted) == (2 * 8, {})


def test_weights_without_data_are_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    found = cost(model, torch.zeros(1, 3, 6, 6, device="meta"))
    assert (found.macs, found.params) == (16 * 4 * 27 + 128, 108 + 4 + 8 + 130)


def test_modules_that_learn_their_sizes_from_the_first_call() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    found = cost(lazy, torch.zeros(1, 3, 6, 6))
    assert (found.macs, found.params) == (16 * 4 * 27 + 128, 108 + 4 + 8 + 130)


@pytest.mark.filterwarnings("ignore")
def test_a_script_is_counted_while_it_runs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    found = cost(torch.jit.script(model), torch.zeros(1, 3, 6, 6))
    assert (found.macs, found.params, found.layers) == (16 * 4 * 27, 120, ())


def test_a_graph_that_was_exported_before_keeps_its_layers() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.zeros(1, 3, 6, 6)
    found = cost(torch.export.export(model, (x,)).module(), x)
    assert [(layer.path, layer.params, layer.macs) for layer in found.layers] == [("0", 112, 16 * 4 * 27), ("1", 0, 0)]


def test_inputs_that_are_no_tensors() -> None:
    found = cost(lambda x, mask, factor: x @ x.t() * factor, torch.zeros(2, 4), None, 3)
    assert (found.macs, found.elementwise) == (16, 4)


@pytest.mark.filterwarnings("ignore")
def test_the_older_weight_normalization_works_after_a_call_with_gradients() -> None:
    model, x = nn.utils.weight_norm(nn.Conv1d(3, 4, 3)), torch.ones(2, 3, 9)
    model(x)
    assert (cost(model, x).macs, cost(model, x).uncounted) == (2 * 7 * 36, {})


def test_weight_normalization_keeps_the_macs_of_its_layer() -> None:
    plain, normalized = nn.Conv1d(3, 4, 3), nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3))
    x = torch.zeros(2, 3, 9)
    assert cost(normalized, x).macs == cost(plain, x).macs
    assert cost(normalized, x).params == cost(plain, x).params + 4  # one magnitude per output


# ---- published networks

PUBLISHED = [name for name, entry in CATALOG.items() if entry.macs is not None and entry.domain == "vision"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_cost_what_is_published(name: str) -> None:
    entry = CATALOG[name]
    with torch.device("meta"):  # shapes alone: faster
        found = static_cost(entry.build().eval(), Inputs((torch.zeros(1, 3, entry.size, entry.size),)))
    assert entry.macs is not None
    assert math.isclose(found.macs, entry.macs, rel_tol=0.01)
    assert found.params == entry.params
    assert (found.uncounted, found.notes) == ({}, ())
    for field in SUMMED:
        assert getattr(found, field) == sum(getattr(layer, field) for layer in found.layers)
