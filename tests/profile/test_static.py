"""MACs, parameters, bytes and scalar operations against closed forms; what nobody knows is named."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


# ---- convolutions and linear layers


@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    per_group_in=st.integers(1, 3),
    per_group_out=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dims=st.integers(1, 3),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_convolution_costs_its_kernel_at_every_output(
    batch: int, groups: int, per_group_in: int, per_group_out: int, kernel: int, stride: int, dims: int, bias: bool
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(groups * per_group_in, groups * per_group_out, kernel, stride, groups=groups, bias=bias)
    x = torch.zeros(batch, groups * per_group_in, *[5] * dims)
    found = cost(layer, x)
    positions = ((5 - kernel) // stride + 1) ** dims
    assert found.macs == batch * positions * groups * per_group_out * per_group_in * kernel**dims
    weights = groups * per_group_out * per_group_in * kernel**dims + bias * groups * per_group_out
    assert (found.params, found.weight_bytes, found.batch) == (weights, 4 * weights, batch)
    outputs = batch * positions * groups * per_group_out
    assert (found.activation_bytes, found.elementwise) == (4 * outputs, bias * outputs)
    assert found.peak_bytes == 4 * (x.numel() + outputs)
    assert found.uncounted == {}


@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    per_group_in=st.integers(1, 3),
    per_group_out=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dims=st.integers(1, 3),
    bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_a_transposed_convolution_costs_its_kernel_at_every_input(
    batch: int, groups: int, per_group_in: int, per_group_out: int, kernel: int, stride: int, dims: int, bias: bool
) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    layer = kind(groups * per_group_in, groups * per_group_out, kernel, stride, groups=groups, bias=bias)
    found = cost(layer, torch.zeros(batch, groups * per_group_in, *[4] * dims))
    assert found.macs == batch * 4**dims * groups * per_group_in * per_group_out * kernel**dims
    outputs = batch * groups * per_group_out * (3 * stride + kernel) ** dims
    assert (found.activation_bytes, found.elementwise) == (4 * outputs, bias * outputs)
    assert found.uncounted == {}


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=12, deadline=None)
def test_dilation_moves_the_kernel_apart_and_keeps_its_cost(dilation: int, kernel: int, groups: int, stride: int) -> None:
    layer = nn.Conv1d(2 * groups, 3 * groups, kernel, stride, dilation=dilation, groups=groups, bias=False)
    found = cost(layer, torch.zeros(2, 2 * groups, 16))
    positions = (16 - dilation * (kernel - 1) - 1) // stride + 1
    assert found.macs == 2 * positions * 3 * groups * 2 * kernel
    assert found.activation_bytes == 4 * 2 * positions * 3 * groups


@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_zero_padding_is_part_of_a_convolution(padding: int | str) -> None:
    found = cost(nn.Conv2d(3, 4, 3, padding=padding, bias=False), torch.zeros(1, 3, 6, 6))
    positions = 16 if padding == 0 else 36
    assert (found.macs, found.activation_bytes) == (positions * 4 * 27, 4 * 4 * positions)


def test_reflected_padding_is_written_before_the_convolution() -> None:
    found = cost(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False), torch.zeros(1, 3, 6, 6))
    assert (found.macs, found.activation_bytes) == (36 * 4 * 27, 4 * (3 * 64 + 4 * 36))


def test_a_depthwise_convolution_costs_one_filter_per_channel() -> None:
    found = cost(nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.zeros(1, 8, 6, 6))
    assert found.macs == 8 * 9 * 36


def test_a_picture_without_a_batch_is_convolved_the_same() -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert cost(layer, torch.zeros(3, 6, 6)).macs == cost(layer, torch.zeros(1, 3, 6, 6)).macs == 16 * 4 * 27


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_linear_layer_costs_a_product_per_weight_and_position(batch: int, positions: int, inputs: int, outputs: int, bias: bool) -> None:
    found = cost(nn.Linear(inputs, outputs, bias=bias), torch.zeros(batch, positions, inputs))
    assert found.macs == batch * positions * inputs * outputs
    assert found.activation_bytes == 4 * batch * positions * outputs
    assert found.elementwise == bias * batch * positions * outputs
    assert found.uncounted == {}


def test_a_bias_counts_the_same_however_the_input_lies_in_memory() -> None:
    layer, x = nn.Linear(4, 5), torch.zeros(3, 2, 4)
    straight, turned = cost(layer, x.transpose(0, 1).contiguous()), cost(lambda x: layer(x.transpose(0, 1)), x)
    assert straight.elementwise == turned.elementwise == 6 * 5
    assert straight.macs == turned.macs


# ---- products without layers

A, B, C = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5), torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("function", "args", "macs", "elementwise"),
    [
        (torch.bmm, (A, B), 120, 0),
        (torch.matmul, (A, B), 120, 0),
        (torch.matmul, (torch.zeros(7, 1, 3, 4), B), 7 * 120, 0),
        (torch.matmul, (A, torch.zeros(4, 6)), 2 * 3 * 4 * 6, 0),
        (torch.matmul, (A[0], torch.zeros(4)), 12, 0),
        (torch.matmul, (torch.zeros(3), A[0]), 12, 0),
        (torch.matmul, (torch.zeros(4), torch.zeros(4)), 4, 0),
        (torch.addmm, (C[0], A[0], B[0]), 60, 15),
        (torch.addmv, (torch.zeros(3), A[0], torch.zeros(4)), 12, 3),
        (torch.baddbmm, (C, A, B), 120, 30),
        (torch.addbmm, (C[0], A, B), 120, 15),
        (torch.vdot, (torch.zeros(4), torch.zeros(4)), 4, 0),
        (torch.inner, (A[0], A[1]), 36, 0),
        (torch.outer, (torch.zeros(3), torch.zeros(4)), 0, 12),
        (lambda a, b: torch.einsum("bij,bjk->bik", a, b), (A, B), 120, 0),
        (lambda a, b: torch.einsum("bij,bjk->ik", a, b), (A, B), 120, 0),
        (lambda a, b: torch.einsum("bij,bij->bij", a, b), (A, A), 0, 24),
        (lambda a: torch.einsum("bij->jib", a), (A,), 0, 0),
        (lambda a, b: torch.tensordot(a, b, 1), (A, B[0]), 2 * 3 * 4 * 5, 0),
    ],
)
def test_matrix_products_without_weights_count(function: Callable[..., Any], args: tuple[Tensor, ...], macs: int, elementwise: int) -> None:
    found = cost(function, *args)
    assert (found.macs, found.elementwise, found.uncounted, found.params) == (macs, elementwise, {}, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bilinear_layer_is_one_matrix_per_output(bias: bool) -> None:
    found = cost(nn.Bilinear(3, 4, 5, bias=bias), torch.zeros(2, 3), torch.zeros(2, 4))
    assert found.macs == 2 * 5 * (3 * 4 + 4)  # a row times the matrix, then times the other row
    assert (found.elementwise, found.uncounted) == (bias * 2 * 5, {})


# ---- attention


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans())
@settings(max_examples=15, deadline=None)
def test_fused_attention_costs_its_scores_and_its_weighted_sum(
    batch: int, heads: int, queries: int, keys: int, width: int, values: int, masked: bool
) -> None:
    q, k, v = (torch.zeros(batch, heads, n, w) for n, w in ((queries, width), (keys, width), (keys, values)))
    mask = {"attn_mask": torch.zeros(queries, keys)} if masked else {}
    found = cost(F.scaled_dot_product_attention, q, k, v, **mask)
    scores = batch * heads * queries * keys
    assert found.macs == scores * (width + values)
    assert found.elementwise == 3 * scores
    assert found.activation_bytes == 4 * batch * heads * queries * values
    assert found.uncounted == {}


def test_causal_attention_counts_whole() -> None:
    q = torch.zeros(1, 2, 3, 8)
    assert cost(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), q).macs == 2 * (2 * 3 * 3 * 8)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_grouped_queries_cost_as_many_scores_as_there_are_query_heads(key_heads: int) -> None:
    q, k = torch.zeros(2, 4, 3, 8), torch.zeros(2, key_heads, 5, 8)
    found = cost(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), q, k)
    assert found.macs == 2 * 4 * 3 * 5 * (8 + 8)


def test_attention_that_repeats_its_queries_counts_every_head() -> None:
    found = cost(F.scaled_dot_product_attention, torch.zeros(2, 1, 3, 8), torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 5, 8))
    assert found.macs == 2 * 4 * 3 * 5 * (8 + 8)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_costs_its_projections_and_products(need_weights: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    q, k = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)
    found = cost(layer, q, k, k, need_weights=need_weights)
    assert found.macs == 2 * (3 * 64 + 5 * 64 + 5 * 64 + 3 * 64) + 2 * (2 * 3 * 5 * 8)
    assert found.params == 4 * 64 + 4 * 8
    assert [(layer.path, layer.params) for layer in found.layers] == [("", found.params)]


def test_the_weights_of_attention_are_read_as_weights() -> None:
    operators = analyse(nn.MultiheadAttention(8, 2), Inputs(tuple(torch.zeros(3, 1, 8) for _ in range(3)))).operators
    assert [op.weight_bytes for op in operators if op.macs and op.kind == "linear"] == [4 * 72] * 4


def test_attention_to_keys_of_another_width() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    found = cost(layer, torch.zeros(2, 3, 8), torch.zeros(2, 5, 6), torch.zeros(2, 5, 4))
    assert found.macs == 2 * (3 * 64 + 5 * 48 + 5 * 32 + 3 * 64) + 2 * (2 * 3 * 5 * 8)


def test_a_transformer_layer_costs_its_projections_and_products() -> None:
    found = cost(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 3, 8))
    assert found.macs == 3 * (4 * 64 + 2 * 128) + 2 * (3 * 3 * 8)
    assert layer_of(found, "self_attn").macs == 3 * 4 * 64 + 2 * (3 * 3 * 8)
    assert layer_of(found, "norm1").elementwise == 4 * 24


# ---- embeddings


def test_an_embedding_looks_up_rows_and_computes_nothing() -> None:
    analysis = analyse(nn.Embedding(1000, 4), Inputs((torch.zeros(2, 3, dtype=torch.long),)))
    found = analysis.cost
    assert (found.macs, found.elementwise, found.uncounted) == (0, 0, {})
    assert (found.params, found.activation_bytes) == (4000, 4 * 2 * 3 * 4)
    assert [op.weight_bytes for op in analysis.operators] == [4 * 2 * 3 * 4]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag_adds_up_the_rows_that_it_looks_up(mode: str) -> None:
    analysis = analyse(nn.EmbeddingBag(1000, 4, mode=mode), Inputs((torch.zeros(2, 3, dtype=torch.long),)))
    found = analysis.cost
    assert (found.macs, found.elementwise, found.uncounted, found.params) == (0, 2 * 3 * 4, {}, 4000)
    assert [op.weight_bytes for op in analysis.operators if op.kind == "embedding_bag"] == [4 * 2 * 3 * 4]


def test_a_looked_up_table_is_never_read_more_than_whole() -> None:
    analysis = analyse(nn.Embedding(3, 4), Inputs((torch.zeros(50, dtype=torch.long),)))
    assert [op.weight_bytes for op in analysis.operators] == [4 * 12]


# ---- recurrent layers

GATES = {"gru": 3, "lstm": 4, "rnn": 1}
LAYERS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
CELLS: dict[str, Any] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}


@given(
    kind=st.sampled_from(sorted(GATES)),
    layers=st.integers(1, 3),
    both=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    batch=st.integers(1, 3),
    time=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_a_recurrent_layer_costs_every_gate_at_every_step(
    kind: str, layers: int, both: bool, bias: bool, batch_first: bool, batch: int, time: int
) -> None:
    layer = LAYERS[kind](4, 5, layers, bidirectional=both, bias=bias, batch_first=batch_first)
    analysis = analyse(layer, Inputs((torch.zeros((batch, time, 4) if batch_first else (time, batch, 4)),)))
    directions, gates = (2 if both else 1), GATES[kind]
    per_step = gates * 5 * directions * ((4 + 5) + (layers - 1) * (directions * 5 + 5))
    assert analysis.cost.macs == batch * time * per_step
    assert analysis.cost.elementwise == 2 * batch * time * gates * 5 * directions * layers
    assert analysis.cost.params == per_step + bias * 2 * gates * 5 * directions * layers
    assert analysis.cost.uncounted == {}
    (operator,) = (op for op in analysis.operators if op.macs)
    assert (operator.family, operator.steps) == ("recurrent", time * layers * directions)


@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_with_projection_costs_the_projection_too(bias: bool) -> None:
    found = cost(nn.LSTM(4, 5, proj_size=2, bias=bias, batch_first=True), torch.zeros(2, 3, 4))
    assert found.macs == 2 * 3 * (4 * 5 * (4 + 2) + 5 * 2)
    assert found.elementwise == 2 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("kind", sorted(CELLS))
@pytest.mark.parametrize("bias", [True, False])
def test_a_recurrent_cell_costs_one_step(kind: str, bias: bool) -> None:
    analysis = analyse(CELLS[kind](4, 5, bias=bias), Inputs((torch.zeros(2, 4),)))
    assert analysis.cost.macs == 2 * GATES[kind] * 5 * (4 + 5)
    assert analysis.cost.elementwise == 2 * 2 * GATES[kind] * 5
    assert [(op.family, op.steps) for op in analysis.operators if op.macs] == [("recurrent", 1)]


def test_a_cell_called_at_every_step_costs_what_the_layer_costs() -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(x.shape[0], 5)
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return state

    x = torch.zeros(2, 6, 4)
    unrolled, layer = cost(Unrolled(), x), cost(nn.GRU(4, 5, batch_first=True), x)
    assert (unrolled.macs, unrolled.elementwise, unrolled.params) == (layer.macs, layer.elementwise, layer.params)
    assert layer_of(unrolled, "cell").calls == 6


def test_packed_sequences_cost_only_the_steps_that_they_have() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 5, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            state: Tensor = self.gru(packed)[1]
            return state

    found = cost(Packed(), torch.zeros(3, 6, 4), torch.tensor([2, 6, 1]))
    assert found.macs == (2 + 6 + 1) * 3 * 5 * (4 + 5)
    assert found.uncounted == {}


# ---- normalization, pooling, activations, interpolation


@pytest.mark.parametrize(
    ("layer", "shape", "per_element"),
    [
        (nn.BatchNorm1d(6), (2, 6), 2),
        (nn.BatchNorm2d(6), (2, 6, 4, 4), 2),
        (nn.BatchNorm3d(6), (2, 6, 2, 4, 4), 2),
        (nn.BatchNorm2d(6, affine=False), (2, 6, 4, 4), 2),
        (nn.BatchNorm2d(6, track_running_stats=False), (2, 6, 4, 4), 4),
        (nn.LayerNorm(6), (2, 3, 6), 4),
        (nn.LayerNorm((3, 6), elementwise_affine=False), (2, 3, 6), 4),
        (nn.GroupNorm(2, 6), (2, 6, 4), 4),
        (nn.InstanceNorm1d(6), (2, 6, 4), 4),
        (nn.InstanceNorm2d(6, affine=True), (2, 6, 4, 4), 4),
        (nn.InstanceNorm2d(6, track_running_stats=True), (2, 6, 4, 4), 2),
        (nn.Softmax(1), (2, 6), 3),
        (nn.LogSoftmax(1), (2, 6), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_normalizations_cost_their_passes_over_the_input(layer: nn.Module, shape: tuple[int, ...], per_element: int) -> None:
    x = torch.zeros(shape)
    found = cost(layer, x)
    assert (found.macs, found.uncounted) == (0, {})
    assert (found.elementwise, found.activation_bytes) == (per_element * x.numel(), 4 * x.numel())


@pytest.mark.parametrize(
    "layer",
    [
        *(
            nn.ReLU(),
            nn.ReLU(inplace=True),
            nn.ReLU6(),
            nn.LeakyReLU(),
            nn.ELU(),
            nn.SELU(),
            nn.CELU(),
            nn.GELU(),
            nn.GELU("tanh"),
            nn.SiLU(),
        ),
        *(nn.Mish(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softplus(), nn.Softshrink(), nn.PReLU()),
        *(nn.LogSigmoid(), nn.Threshold(0.1, 0.0), nn.Hardshrink(), nn.RReLU(), nn.Hardswish(inplace=True), nn.SiLU(inplace=True)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_activation_costs_one_operation_per_element(layer: nn.Module) -> None:
    found = cost(layer, torch.ones(2, 6))
    assert (found.macs, found.elementwise, found.activation_bytes, found.uncounted) == (0, 12, 48, {})


POOLS: dict[str, tuple[nn.Module, tuple[int, ...], int, int]] = {
    "max 1d": (nn.MaxPool1d(2), (2, 3, 8), 24, 2),
    "max 2d": (nn.MaxPool2d(3, stride=2, padding=1), (2, 3, 8, 8), 96, 9),
    "max 2d dilated": (nn.MaxPool2d(2, stride=1, dilation=2), (1, 3, 6, 6), 48, 4),
    "max 3d": (nn.MaxPool3d(2), (1, 3, 4, 4, 4), 24, 8),
    "average 1d": (nn.AvgPool1d(2), (2, 3, 8), 24, 2),
    "average 2d": (nn.AvgPool2d((2, 4)), (2, 3, 8, 8), 48, 8),
    "average 3d": (nn.AvgPool3d(2), (1, 3, 4, 4, 4), 24, 8),
}


@pytest.mark.parametrize("name", list(POOLS))
def test_pooling_costs_its_window_at_every_output(name: str) -> None:
    layer, shape, outputs, window = POOLS[name]
    found = cost(layer, torch.zeros(shape))
    assert (found.macs, found.elementwise, found.activation_bytes, found.uncounted) == (0, outputs * window, 4 * outputs, {})


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_adaptive_pooling_reads_every_input_once(dims: int, size: int) -> None:
    averages = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1](size)
    maxima = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[dims - 1](size)
    x = torch.zeros(2, 3, *[4] * dims)
    for layer in (averages, maxima):
        found = cost(layer, x)
        assert (found.macs, found.elementwise, found.uncounted) == (0, x.numel(), {})
    assert cost(averages, x).activation_bytes == 4 * 2 * 3 * size**dims


@pytest.mark.parametrize(
    ("mode", "dims", "mixed"),
    [("nearest", d, 1) for d in (1, 2, 3)]
    + [("nearest-exact", d, 1) for d in (1, 2, 3)]
    + [("linear", 1, 2), ("bilinear", 2, 4), ("trilinear", 3, 8), ("bicubic", 2, 16)],
)
def test_interpolation_mixes_neighbours_at_every_output(mode: str, dims: int, mixed: int) -> None:
    found = cost(nn.Upsample(scale_factor=2, mode=mode), torch.zeros(2, 3, *[4] * dims))
    outputs = 2 * 3 * 8**dims
    assert (found.macs, found.elementwise, found.activation_bytes, found.uncounted) == (0, mixed * outputs, 4 * outputs, {})


@pytest.mark.parametrize("size", ["(6, 6)", "(2, 2)"])
def test_area_interpolation_is_adaptive_pooling(size: str) -> None:
    x = torch.zeros(1, 2, 4, 4)
    found = cost(lambda x: F.interpolate(x, size=(6, 6) if size == "(6, 6)" else (2, 2), mode="area"), x)
    assert found.uncounted == {}


# ---- moving data computes nothing

X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("function", "written"),
    [
        (lambda x: x.reshape(6, 4), 0),
        (lambda x: x.view(2, 12).unsqueeze(0).squeeze(0).t(), 0),
        (lambda x: x.transpose(1, 2).permute(0, 2, 1).contiguous(), 0),
        (lambda x: x[:, 1:].unbind(1)[0], 0),
        (lambda x: x.chunk(2, 2)[1], 0),
        (lambda x: x.expand(5, 2, 3, 4), 0),
        (lambda x: x.float(), 0),
        (lambda x: F.dropout(x, 0.5, training=False), 0),
        (lambda x: x.transpose(1, 2).reshape(2, 12), 96),
        (lambda x: x.transpose(1, 2).flatten(), 96),
        (lambda x: x.transpose(1, 2).contiguous(), 96),
        (lambda x: x.clone(), 96),
        (lambda x: x.half(), 48),
        (lambda x: x.to(torch.float64), 192),
        (lambda x: torch.cat([x, x], 1), 192),
        (lambda x: torch.stack([x, x, x]), 288),
        (lambda x: F.pad(x, (1, 1)), 4 * 36),
        (lambda x: x.repeat(2, 1, 1), 192),
        (lambda x: x.repeat_interleave(2, 1), 192),
        (lambda x: x.roll(1, 1), 96),
        (lambda x: x.flip(0), 96),
        (lambda x: F.pixel_shuffle(x.reshape(1, 4, 3, 2), 2), 96),
    ],
)
def test_moving_data_computes_nothing_and_views_write_nothing(function: Callable[..., Any], written: int) -> None:
    found = cost(function, X)
    assert (found.macs, found.elementwise, found.uncounted) == (0, 0, {})
    assert found.activation_bytes == written


def test_working_in_place_writes_as_much_and_takes_less_memory() -> None:
    def outside(x: Tensor) -> Tensor:
        y = x @ x
        return (y * 2).sigmoid() + y.t()

    def inside(x: Tensor) -> Tensor:
        y = x @ x
        turned = y.t() * 1
        return y.mul_(2).sigmoid_().add_(turned)

    x = torch.zeros(4, 4)
    assert cost(inside, x).activation_bytes == cost(outside, x).activation_bytes + 64  # the turned copy
    assert cost(lambda x: (x @ x).mul_(2), x).activation_bytes == cost(lambda x: (x @ x).mul(2), x).activation_bytes == 128


def test_writing_into_a_slice_writes_the_slice() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = 1.0
        return y

    assert cost(function, torch.zeros(4, 6)).activation_bytes == 4 * 24 + 4 * 4


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
