"""Coded weights: operators against obvious references, which parameters are weights, and graphs that compute the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from sizewise.arith.grids import Grid, Steps, find_steps, quantize
from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.graph.coded import Coding, Weight, check_model, choose, encode_weights, find_weights, sizes
from sizewise.graph.coded_ops import coded_embedding, decode, dynamic_linear, grouped_linear
from sizewise.graph.trace import trace
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs

CODINGS = {
    "int8": Coding("int8"),
    "int8 with zero points": Coding("int8", symmetric=False),
    "dynamic": Coding("int8", dynamic=True),
    "int4": Coding("int4", group=16),
    "int4 with zero points": Coding("int4", group=32, symmetric=False),
    "float16": Coding("float16"),
    "bfloat16": Coding("bfloat16"),
}
SHARE = {"int8": 0.02, "int8 with zero points": 0.02, "dynamic": 0.03, "float16": 1e-3, "bfloat16": 1e-2}  # of outputs that may change


class Everything(nn.Module):
    """A weight of every role: a shared one, grouped, transposed and recurrent ones, and parameters that are none."""

    def __init__(self, tokens: int = 40, width: int = 24) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.gru = nn.GRU(width, 12, 2, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.narrow = nn.Linear(2 * width, width)
        self.conv = nn.Conv1d(width, width, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(width, width, 3, groups=2, padding=1)
        self.plain = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.places = nn.Parameter(torch.randn(5, width))
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.gru(self.table(ids) + self.places)[0]
        x = self.narrow(self.lstm(x)[0])
        x = self.up(self.conv(x.transpose(1, 2))).transpose(1, 2)
        logits: Tensor = self.head(torch.tanh(x @ self.plain))
        return logits


def nearest(_: Weight, matrix: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    steps = find_steps(matrix, grid)
    return quantize(matrix, steps, grid), steps


def graph_of(model: nn.Module, *args: Tensor) -> GraphModule:
    graph: GraphModule = trace(model.eval(), Inputs(args)).program.module(check_guards=False)
    return graph


def coded(graph: GraphModule, coding: Coding) -> GraphModule:
    encode_weights(graph, {weight.name: coding for weight in find_weights(graph)[0]}, nearest)
    return graph


@pytest.fixture(scope="module")
def everything() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, ids = Everything().eval(), torch.randint(0, 40, (3, 5))
    with torch.no_grad():
        return model, ids, model(ids)


# ---- operators


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 70), st.sampled_from([16, 32]), st.booleans(), st.integers(0, 2**31))
def test_four_bits_decode_to_what_a_loop_over_codes_gives(rows: int, columns: int, size: int, zeros: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator)
    groups = -(-columns // size)
    scales = torch.rand(rows, groups, generator=generator)
    shifts = torch.randint(-8, 8, (rows, groups), generator=generator).to(torch.int8) if zeros else None
    stored = np.zeros((rows, groups * size // 2), np.uint8)
    want = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            code, group = int(codes[row, column]), column // size
            stored[row, column // 2] |= (code + 8) << (4 * (column % 2))
            want[row, column] = (code - (0 if shifts is None else int(shifts[row, group]))) * scales[row, group]
    packed = torch.from_numpy(stored)
    assert torch.equal(decode(packed, scales, shifts, [rows, columns], 0), want)
    assert torch.equal(coded_embedding(packed, scales, shifts, torch.tensor([[rows - 1, 0]]), columns), want[[rows - 1, 0]][None])
    x, bias = torch.randn(2, columns, generator=generator), torch.randn(rows, generator=generator)
    assert torch.equal(grouped_linear(x, packed, scales, shifts, bias, columns), F.linear(x, want, bias))


def test_rows_become_the_axis_that_is_asked_for() -> None:
    codes, scales = torch.randint(-127, 128, (6, 20)).to(torch.int8), torch.rand(6)
    got = decode(codes, scales, None, [4, 6, 5], 1)
    assert torch.equal(got, (codes.float() * scales[:, None]).reshape(6, 4, 5).transpose(0, 1))


def reference(x: np.ndarray[Any, Any], codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """DynamicQuantizeLinear and MatMulInteger as ONNX describes them."""
    high, low = np.maximum(x.max(), 0), np.minimum(x.min(), 0)
    step = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero = np.clip(np.rint(-low / step), 0, 255).astype(np.int64)
    values = np.clip(np.rint(x / step).astype(np.int64) + zero, 0, 255)
    sums = (values - zero) @ codes.astype(np.int64).T
    out: np.ndarray[Any, Any] = sums.astype(np.float32) * (step * scales)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 900), st.sampled_from([0.0, 1e-3, 1.0, 1e4]), st.sampled_from([-3, 0, 3]), st.integers(0, 2**31))
def test_dynamic_layers_compute_what_onnx_says(rows: int, columns: int, size: float, shift: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = size * (torch.randn(2, 3, columns, generator=generator) + shift)
    codes = torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)
    scales = torch.rand(rows, generator=generator)
    got = dynamic_linear(x, codes, scales, None)
    assert np.array_equal(got.numpy(), reference(x.numpy(), codes.numpy(), scales.numpy()))
    assert torch.equal(dynamic_linear(x, codes, scales, torch.ones(rows)), got + 1)


def test_sums_of_long_rows_are_exact() -> None:
    x, codes = torch.ones(1, 4096), torch.full((1, 4096), 127, dtype=torch.int8)
    codes[0, 0] = 126  # in float32, sums of this size come in steps of 8
    x[0, 1:] = 255 / 256
    got = dynamic_linear(x, codes, torch.ones(1), None)
    assert np.array_equal(got.numpy(), reference(x.numpy(), codes.numpy(), np.ones(1, np.float32)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.library.opcheck(decode, (torch.zeros(4, 6, dtype=torch.int8), torch.rand(4), None, [4, 2, 3], 0)),
        lambda: torch.library.opcheck(decode, (torch.zeros(4, 6, dtype=torch.float16), None, None, [6, 4], 1)),
        lambda: torch.library.opcheck(grouped_linear, (torch.rand(3, 9), torch.zeros(4, 8).byte(), torch.rand(4, 1), None, None, 9)),
        lambda: torch.library.opcheck(
            coded_embedding, (torch.zeros(4, 6, dtype=torch.int8), torch.rand(4), None, torch.zeros(2, 3, dtype=torch.int64), 6)
        ),
        lambda: torch.library.opcheck(
            dynamic_linear, (torch.rand(3, 6), torch.zeros(4, 6, dtype=torch.int8), torch.rand(4), torch.rand(4))
        ),
    ],
)
def test_torch_takes_the_operators_for_good_ones(call: Callable[[], object]) -> None:
    call()


# ---- which parameters are weights


def test_weights_of_all_layers_are_found_once(everything: tuple[nn.Module, Tensor, Tensor]) -> None:
    weights, left = find_weights(graph_of(everything[0], everything[1]))
    by_name = {weight.name: weight for weight in weights}
    assert by_name["table.weight"].names == ("table.weight", "head.weight")
    assert by_name["table.weight"].roles == {"embedding", "linear"}
    assert by_name["plain"].roles == {"product"}
    assert by_name["plain"].label == "plain"
    assert by_name["up.weight"].shape == (12, 24 * 3)
    assert sum("gru" in name for name in by_name) == 8
    assert [(skip.what, skip.reason) for skip in left] == [("places", "used by aten.add.Tensor, which is no layer")]
    assert not any("bias" in name for name in by_name)


def test_products_in_which_the_weight_comes_first_are_none() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(self.mix, x)

    weights, left = find_weights(graph_of(Left(), torch.randn(2, 5, 3)))
    assert not weights
    assert "aten.matmul" in left[0].reason


def test_a_weight_with_two_orientations_is_left() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x @ self.square, self.square)

    weights, left = find_weights(graph_of(Both(), torch.randn(2, 6)))
    assert not weights
    assert "different axes" in left[0].reason


def test_other_precisions_are_left() -> None:
    weights, left = find_weights(graph_of(nn.Linear(4, 5).double(), torch.randn(3, 4, dtype=torch.float64)))
    assert not weights
    assert "float64" in left[0].reason


def test_what_is_chosen(everything: tuple[nn.Module, Tensor, Tensor]) -> None:
    weights, _ = find_weights(graph_of(everything[0], everything[1]))
    chosen, left = choose(weights, lambda _: Coding("int8"), ("head", "gru"))
    assert {weight.name for weight in weights} - set(chosen) == {skip.what for skip in left}
    assert "table.weight" not in chosen, "whoever holds a shared weight can skip it"
    assert not any(name.startswith("gru") for name in chosen)
    assert (
        choose(find_weights(graph_of(nn.Linear(4, 4), torch.randn(2, 4)))[0], lambda _: Coding("int8"))[1][0].reason == "too small to gain"
    )


def test_values_that_float16_cannot_hold_are_left() -> None:
    layer = nn.Linear(32, 32)
    with torch.no_grad():
        layer.weight[0, 0] = 1e5
    weights, _ = find_weights(graph_of(layer, torch.randn(2, 32)))
    assert "too large" in choose(weights, lambda _: Coding("float16"))[1][0].reason
    assert choose(weights, lambda _: Coding("bfloat16"))[0]


# ---- graphs


@pytest.mark.parametrize("kind", CODINGS)
def test_the_graph_computes_nearly_the_same_from_far_fewer_bytes(kind: str, everything: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, ids, want = everything
    graph = graph_of(model, ids)
    before = sum(t.numel() * t.element_size() for t in {id(t): t for t in graph.state_dict().values()}.values())
    expected = sizes(find_weights(graph)[0], dict.fromkeys((weight.name for weight in find_weights(graph)[0]), CODINGS[kind]))
    graph = coded(graph, CODINGS[kind])
    after = sum(t.numel() * t.element_size() for t in graph.state_dict().values())
    tied = 4 * model.get_parameter("table.weight").numel()
    assert before - after == expected[0] - expected[1] + (tied if before > 4 * sum(p.numel() for p in model.parameters()) else 0)
    with torch.no_grad():
        got = graph(ids)
        assert got.shape == want.shape
        assert float((got - want).abs().mean() / want.abs().mean()) < SHARE.get(kind, 0.35)
        assert torch.equal(graph(ids[:1]), graph(ids[:1])), "deterministic"
        assert graph(torch.cat([ids, ids])).shape[0] == 6, "any batch"


@pytest.mark.parametrize("kind", CODINGS)
def test_codes_are_weights_to_the_nearest_code(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 8, 3, groups=2), torch.randn(2, 6, 5, 5)
    graph = coded(graph_of(layer, x), CODINGS[kind])
    node = next(node for node in graph.graph.nodes if "decode" in str(node.target))
    held = [arg if not isinstance(arg, torch.fx.Node) else graph.state_dict()[str(arg.target)] for arg in node.args]
    error = (decode(*held) - layer.weight.detach()).abs()
    step = (
        graph.state_dict()["weight_scales"].max() if "weight_scales" in graph.state_dict() else layer.weight.detach().abs().max() * 2.0**-7
    )
    assert float(error.max()) <= 0.5001 * float(step)


def test_names_can_be_told(everything: tuple[nn.Module, Tensor, Tensor]) -> None:
    graph = coded(graph_of(everything[0], everything[1]), Coding("int4", group=32, symmetric=False))
    names = set(graph.state_dict())
    assert {"table.weight_codes", "table.weight_scales", "table.weight_zeros", "gru.weight_hh_l0_codes", "plain_codes"} <= names
    assert not any(name in names for name in ("table.weight", "head.weight", "gru.weight_hh_l0", "head.weight_codes"))


def test_the_table_is_not_decoded_as_a_whole_to_look_tokens_up() -> None:
    graph = coded(graph_of(nn.Embedding(50, 24), torch.zeros(2, 3, dtype=torch.int64)), Coding("int8"))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert any("coded_embedding" in target for target in targets)
    assert not any("decode" in target for target in targets)


def test_values_load_into_a_graph_that_was_coded_without_data(everything: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, ids, _ = everything
    for kind in ("dynamic", "int4 with zero points"):
        coding = CODINGS[kind]
        filled, blank = coded(graph_of(model, ids), coding), graph_of(model, ids)
        encode_weights(blank, {weight.name: coding for weight in find_weights(blank)[0]})
        blank.load_state_dict(filled.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(blank(ids), filled(ids))


def test_a_graph_can_be_coded_in_steps_and_beside_integers(everything: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, ids, _ = everything
    graph = graph_of(model, ids)
    names = [weight.name for weight in find_weights(graph)[0]]
    encode_weights(graph, {name: Coding("int8") for name in names[:4]}, nearest)
    assert [weight.name for weight in find_weights(graph)[0]] == names[4:]
    encode_weights(graph, {name: Coding("float16") for name in names[4:]})
    assert not find_weights(graph)[0]
    with torch.no_grad():
        assert bool(graph(ids).isfinite().all())


@pytest.mark.parametrize("kind", ["int8", "dynamic", "int4"])
def test_macs_are_those_of_the_float_model(kind: str) -> None:
    model, x = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8)), torch.randn(3, 12)
    cost = static_cost(coded(graph_of(model, x), CODINGS[kind]), Inputs((x,)))
    assert cost.macs == static_cost(model, Inputs((x,))).macs
    assert not cost.uncounted


# ---- bad input


def test_weights_that_are_not_there() -> None:
    with pytest.raises(PreconditionError, match="do not fit") as caught:
        encode_weights(graph_of(nn.Linear(8, 8), torch.randn(2, 8)), {"other.weight": Coding("int8")})
    assert "other.weight" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "int4"},
        {"form": "int4", "group": 24},
        {"form": "int4", "group": 8},
        {"form": "int8", "group": 32},
        {"form": "int4", "group": 32, "dynamic": True},
        {"form": "int8", "symmetric": False, "dynamic": True},
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Coding(**options)


def test_models_that_cannot_be_coded() -> None:
    layer = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(UnknownName, match="layer to skip"):
        check_model(layer, ["1"], "here")
    with pytest.raises(PreconditionError, match="graph already"):
        check_model(graph_of(layer, torch.randn(2, 3)), [], "here")
    with torch.no_grad():
        layer[0].weight[0, 0] = torch.nan  # type: ignore[operator]
    with pytest.raises(PreconditionError, match="not finite") as caught:
        check_model(layer, [], "here")
    assert "0.weight" in str(caught.value)
