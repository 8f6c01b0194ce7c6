"""Operators of exported graphs: what is folded into what, families, module paths, bytes read and written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.errors import UnsupportedModel
from sizewise.graph.trace import export_static
from sizewise.profile.graph_cost import FAMILIES, Operator, operators_of, total_uncounted
from sizewise.protocols import Inputs


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def operators(model: nn.Module | Callable[..., Any], *args: Tensor) -> list[Operator]:
    module = model if isinstance(model, nn.Module) else Call(model)
    return list(operators_of(export_static(module.eval(), Inputs(args))))


def hosts(model: nn.Module | Callable[..., Any], *args: Tensor) -> dict[str, str | None]:
    """The host of every operator, by its kind (without the underscore of in-place ones), for kinds that occur once."""
    return {op.kind.rstrip("_"): op.host for op in operators(model, *args)}


PICTURE = torch.zeros(1, 4, 6, 6)
MAP = 4 * 4 * 36  # bytes of one


class Block(nn.Module):
    """A residual block as networks write it; the shortcut may be a convolution too."""

    def __init__(self, *, inplace: bool = False, shortcut: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=inplace)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if shortcut else nn.Identity()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            y += self.shortcut(x)
        else:
            y = y + self.shortcut(x)
        z: Tensor = self.relu(y)
        return z


# ---- folding


@pytest.mark.parametrize("inplace", [True, False])
def test_normalization_activation_and_residual_sum_are_folded_into_the_convolution_before(inplace: bool) -> None:
    found = operators(Block(inplace=inplace), PICTURE)
    assert [(op.path, op.host) for op in found] == [
        ("conv1", None),
        ("bn1", "conv1"),
        ("relu", "conv1"),
        ("conv2", None),
        ("bn2", "conv2"),
        ("", "conv2"),
        ("relu", "conv2"),
    ]


@pytest.mark.parametrize("inplace", [True, False])
def test_a_folded_operator_writes_nothing_and_reads_only_what_is_not_in_registers(inplace: bool) -> None:
    found = operators(Block(inplace=inplace), PICTURE)
    assert [(op.read_bytes, op.write_bytes) for op in found] == [(MAP, MAP), (0, 0), (0, 0), (MAP, MAP), (0, 0), (MAP, 0), (0, 0)]


def test_a_folded_operator_still_counts_its_scalar_operations_and_weights() -> None:
    _, norm, relu = operators(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()), PICTURE)
    assert (norm.elementwise, norm.weight_bytes) == (2 * 144, 4 * 16)
    assert (relu.elementwise, relu.weight_bytes) == (144, 0)


@pytest.mark.parametrize("inplace", [True, False])
def test_the_sum_of_two_convolutions_is_folded_into_one_of_them(inplace: bool) -> None:
    found = operators(Block(inplace=inplace, shortcut=True), PICTURE)
    (total,) = (op for op in found if op.kind.rstrip("_") == "add")
    assert total.host in ("conv2", "shortcut.0")
    assert total.read_bytes == MAP
    last = found[-1]
    assert (last.path, last.host) == ("relu", total.host)


def test_a_shared_activation_is_folded_where_it_is_called() -> None:
    found = [op for op in operators(Block(), PICTURE) if op.path == "relu"]
    assert [op.host for op in found] == ["conv1", "conv2"]


def test_a_convolution_with_two_readers_is_not_folded() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)

    def function(x: Tensor) -> Tensor:
        y: Tensor = conv(x)
        return torch.relu(y) * y

    assert hosts(function, PICTURE) == {"conv2d": None, "relu": None, "mul": None}


def test_a_convolution_that_is_an_output_is_not_folded() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = conv(x)
        return y, torch.relu(y)

    found = operators(function, PICTURE)
    assert [(op.kind, op.host, op.write_bytes) for op in found] == [("conv2d", None, MAP), ("relu", None, MAP)]


def test_an_activation_behind_a_normalization_that_runs_by_itself_belongs_to_that() -> None:
    found = operators(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)), PICTURE)
    assert [(op.path, op.host) for op in found] == [("0", None), ("1", "0"), ("2", None)]
    assert (found[0].read_bytes, found[0].write_bytes, found[1].read_bytes, found[1].write_bytes) == (MAP, MAP, 0, 0)


def test_an_activation_behind_nothing_runs_by_itself() -> None:
    assert hosts(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)), PICTURE) == {"relu": None, "conv2d": None}


def test_an_activation_behind_a_pool_runs_by_itself() -> None:
    assert hosts(nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.ReLU()), PICTURE)["relu"] is None


def test_a_normalization_over_the_batch_is_not_folded() -> None:
    found = hosts(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), PICTURE)
    assert found == {"conv2d": None, "batch_norm": None}


def test_normalization_and_relu_are_folded_into_a_linear_layer() -> None:
    found = operators(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()), torch.zeros(2, 6))
    assert [op.host for op in found] == [None, "0", "0"]


def test_the_sum_behind_a_linear_layer_runs_by_itself() -> None:
    layer = nn.Linear(6, 6)
    assert hosts(lambda x: layer(x) + x, torch.zeros(2, 6)) == {"linear": None, "add": None}


@pytest.mark.parametrize(
    ("activation", "behind_convolution", "behind_linear"),
    [
        (nn.ReLU(), True, True),
        (nn.ReLU6(), True, True),
        (nn.Hardtanh(), True, True),
        (nn.Sigmoid(), True, False),
        (nn.Tanh(), True, False),
        (nn.Hardsigmoid(), True, False),
        (nn.LeakyReLU(), True, False),
        (nn.GELU(), False, False),
        (nn.ELU(), False, False),
        (nn.Softmax(1), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_which_activations_are_folded(activation: nn.Module, behind_convolution: bool, behind_linear: bool) -> None:
    convolution = operators(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), activation), PICTURE)
    linear = operators(nn.Sequential(nn.Linear(6, 5), activation), torch.zeros(2, 6))
    assert (convolution[-1].folded, linear[-1].folded) == (behind_convolution, behind_linear)


def test_a_sum_that_grows_is_not_folded() -> None:
    """A convolution of a pooled picture, added to every position, writes more than the convolution did."""
    conv = nn.Conv2d(4, 4, 1)
    found = operators(lambda x: conv(F.adaptive_avg_pool2d(x, 1)) + x, PICTURE)
    (total,) = (op for op in found if op.kind == "add")
    assert (total.host, total.read_bytes, total.write_bytes) == (None, MAP + 16, MAP)


def test_twice_a_convolution_is_not_a_residual_sum() -> None:
    conv = nn.Conv2d(4, 4, 1)

    def function(x: Tensor) -> Tensor:
        y: Tensor = conv(x)
        return y + y

    assert hosts(function, PICTURE)["add"] is None


# ---- families


@pytest.mark.parametrize(
    ("layer", "shape", "family"),
    [
        (nn.Conv2d(4, 8, 3), (1, 4, 6, 6), "conv"),
        (nn.Conv1d(4, 8, 3), (1, 4, 6), "conv1d"),
        (nn.Conv3d(4, 8, 2), (1, 4, 3, 3, 3), "conv"),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 6, 6), "conv"),
        (nn.Conv2d(1, 8, 3), (1, 1, 6, 6), "conv"),
        (nn.Conv2d(1, 8, 3), (1, 6, 6), "conv"),
        (nn.Conv2d(4, 8, 1), (1, 4, 6, 6), "pointwise"),
        (nn.Conv1d(4, 8, 1), (1, 4, 6), "conv1d"),
        (nn.ConvTranspose1d(4, 8, 3), (1, 4, 6), "conv1d"),
        (nn.Conv2d(1, 8, 1), (1, 1, 6, 6), "pointwise"),
        (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 6, 6), "depthwise"),
        (nn.Conv2d(4, 8, 3, groups=4), (1, 4, 6, 6), "depthwise"),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6), "depthwise"),
        (nn.Conv1d(4, 4, 3, groups=4), (1, 4, 6), "depthwise"),
        (nn.ConvTranspose2d(4, 4, 3), (1, 4, 6, 6), "conv"),
        (nn.ConvTranspose2d(4, 1, 3), (1, 4, 6, 6), "conv"),
        (nn.ConvTranspose2d(4, 8, 3, groups=2), (1, 4, 6, 6), "conv"),
        (nn.ConvTranspose2d(4, 8, 1), (1, 4, 6, 6), "pointwise"),
        (nn.ConvTranspose2d(4, 4, 3, groups=4), (1, 4, 6, 6), "depthwise"),
        (nn.ConvTranspose1d(4, 8, 3, groups=4), (1, 4, 6), "depthwise"),
        (nn.Linear(4, 8), (1, 4), "matmul"),
        (nn.GRU(4, 8), (3, 1, 4), "recurrent"),
        (nn.LSTM(4, 8), (3, 1, 4), "recurrent"),
        (nn.RNN(4, 8, nonlinearity="relu"), (3, 1, 4), "recurrent"),
        (nn.GRUCell(4, 8), (1, 4), "recurrent"),
        (nn.ReLU(), (1, 4), "memory"),
        (nn.MaxPool1d(2), (1, 4, 6), "memory"),
    ],
)
def test_the_family_of_an_operator(layer: nn.Module, shape: tuple[int, ...], family: str) -> None:
    found = operators(layer, torch.zeros(shape))
    assert {op.family for op in found if op.macs} == {family} - {"memory"}
    assert {op.family for op in found if not op.macs} <= {"memory"}
    assert family in FAMILIES


def test_products_and_attention_are_matrix_products() -> None:
    found = operators(lambda q: F.scaled_dot_product_attention(q @ q, q, q), torch.zeros(1, 2, 4, 4))
    assert [op.family for op in found if op.macs] == ["matmul", "matmul"]


# ---- paths


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
        self.named = nn.ModuleDict({"last": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = self.body[0](x)
        total: Tensor = self.named["last"](sum(head(x) for head in self.heads))
        return torch.sigmoid(total)


def test_operators_carry_the_path_of_the_innermost_module() -> None:
    found = operators(Nested(), torch.zeros(1, 4))
    assert [(op.path, op.module, op.kind) for op in found] == [
        ("body.0", "Linear", "linear"),
        ("body.1.0", "Linear", "linear"),
        ("body.0", "Linear", "linear"),
        ("heads.0", "Linear", "linear"),
        ("", "Nested", "add"),
        ("heads.1", "Linear", "linear"),
        ("", "Nested", "add"),
        ("named.last", "Linear", "linear"),
        ("", "Nested", "sigmoid"),
    ]


def test_every_path_is_a_module_of_the_model() -> None:
    for model, x in ((Nested(), torch.zeros(1, 4)), (Block(shortcut=True), PICTURE)):
        paths = {name for name, _ in model.named_modules()}
        assert {op.path for op in operators(model, x)} <= paths
        assert {op.host for op in operators(model, x)} - {None} <= paths


def test_a_module_called_twice_keeps_its_path() -> None:
    layer = nn.Conv2d(4, 4, 1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = layer, nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(self.layer(self.act(self.layer(x))))
            return y

    found = operators(Twice(), PICTURE)
    assert [(op.path, op.host) for op in found] == [("layer", None), ("act", "layer")] * 2
    assert len({op.name for op in found}) == 4


def test_operators_inside_a_mode_keep_their_path() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.b(torch.relu(self.a(x)))
            z: Tensor = self.a(y.float())
            return z

    found = operators(Cast(), torch.zeros(2, 4))
    assert [(op.path, op.kind, op.host) for op in found] == [
        ("a", "linear", None),
        ("", "relu", "a"),
        ("b", "linear", None),
        ("", "to", None),
        ("a", "linear", None),
    ]
    assert [op.write_bytes for op in found] == [16, 0, 16, 32, 32]


# ---- bytes


def test_bytes_of_a_linear_layer() -> None:
    (op,) = operators(nn.Linear(4, 5), torch.zeros(3, 4))
    assert (op.read_bytes, op.weight_bytes, op.write_bytes, op.live_bytes) == (4 * 12, 4 * 25, 4 * 15, 4 * (12 + 15))


def test_a_tensor_that_is_read_twice_by_one_operator_is_read_once() -> None:
    (op,) = operators(lambda x: x * x, torch.zeros(4))
    assert (op.read_bytes, op.write_bytes) == (16, 16)


def test_several_inputs_are_read_each() -> None:
    (op,) = operators(lambda x, y: torch.cat([x, y]), torch.zeros(4), torch.zeros(2))
    assert (op.read_bytes, op.write_bytes) == (24, 24)


def test_views_cost_nothing() -> None:
    view, product = operators(lambda x: x.t() @ x, torch.zeros(3, 4))
    assert (view.macs, view.elementwise, view.read_bytes, view.weight_bytes, view.write_bytes) == (0, 0, 0, 0, 0)
    assert product.read_bytes == 4 * 12 * 2


def test_views_of_weights_are_weights_and_no_operators() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(12, 4))

        def forward(self, x: Tensor) -> Tensor:
            query, key, _ = self.weight.chunk(3)
            return x @ query.t() + F.linear(x, key)

    found = operators(Sliced(), torch.zeros(2, 4))
    assert [(op.kind, op.read_bytes, op.weight_bytes) for op in found] == [("matmul", 32, 64), ("linear", 32, 64), ("add", 64, 0)]


def test_rearranging_constants_is_no_operator() -> None:
    class Positions(nn.Module):
        ids: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.register_buffer("ids", torch.arange(10))

        def forward(self, x: Tensor) -> Tensor:
            places = self.table(self.ids[:3])
            return x + torch.cat([places, places]).reshape(2, 3, 4) + torch.tensor(2.0)

    found = operators(Positions(), torch.zeros(2, 3, 4))
    assert [(op.kind, op.read_bytes, op.weight_bytes) for op in found] == [("add", 96, 96), ("add", 96, 4)]


def test_computing_on_constants_is_an_operator() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight * 2)

    found = operators(Scaled(), torch.zeros(2, 4))
    assert [(op.kind, op.read_bytes, op.weight_bytes) for op in found] == [("mul", 0, 64), ("matmul", 32 + 64, 0)]


def test_an_operator_in_place_moves_the_bytes_of_one_that_is_not() -> None:
    def one(function: Callable[[Tensor], Tensor]) -> tuple[int, int, int, int]:
        op = operators(lambda x: function(x @ x), torch.zeros(4, 4))[-1]
        return op.read_bytes, op.write_bytes, op.elementwise, op.live_bytes

    assert one(lambda x: x.mul_(2)) == one(lambda x: x * 2) == (64, 64, 16, 64)


def test_checks_that_exporting_adds_are_no_operators() -> None:
    found = operators(lambda x: x.double() + 1, torch.zeros(4))
    assert [op.kind for op in found] == ["to", "add"]
    assert (found[0].read_bytes, found[0].write_bytes) == (16, 32)


def test_counting_twice_gives_the_same() -> None:
    program = export_static(Block(shortcut=True).eval(), Inputs((PICTURE,)))
    assert operators_of(program) == operators_of(program)


def test_a_program_stays_as_it_was() -> None:
    program = export_static(Nested().eval(), Inputs((torch.zeros(1, 4),)))
    before = str(program.graph)
    operators_of(program)
    assert str(program.graph) == before


def test_names_that_python_knows_are_no_matter() -> None:
    class Named(nn.Module):
        def forward(self, input: Tensor, type: Tensor) -> Tensor:
            return input @ type

    (op,) = operators(Named(), torch.zeros(2, 3), torch.zeros(3, 4))
    assert (op.read_bytes, op.weight_bytes, op.live_bytes) == (4 * 18, 0, 4 * 26)


def test_a_size_that_depends_on_data_is_refused_by_name() -> None:
    program = export_static(Call(lambda x: x[x > 0] * 2), Inputs((torch.ones(3),)))
    with pytest.raises(UnsupportedModel) as caught:
        operators_of(program)
    assert "depends on the data" in str(caught.value.got)


def test_unknown_operators_of_all_are_added_up_by_name() -> None:
    found = operators(lambda x: (torch.fft.rfft(x), torch.fft.rfft(x), torch.linalg.qr(x)), torch.zeros(3, 3))
    assert total_uncounted(found) == {"_fft_r2c": 2, "linalg_qr": 1}
    assert list(total_uncounted(found)) == sorted(total_uncounted(found))
