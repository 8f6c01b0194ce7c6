"""MACs, parameters, bytes and scalar operations of layers and functions against closed forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.profile.static import analyse, static_cost
from sizewise.protocols import Inputs
from sizewise.types import Cost, LayerCost

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
