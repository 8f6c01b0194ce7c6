"""MACs, parameters and bytes against closed forms; what is not counted is named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.errors import PreconditionError
from sizewise.profile.static import profile_model
from sizewise.protocols import Inputs


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
@settings(max_examples=50, deadline=None)
def test_a_convolution_costs_its_kernel_at_every_output(
    batch: int, groups: int, per_group_in: int, per_group_out: int, kernel: int, stride: int, dims: int, bias: bool
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(groups * per_group_in, groups * per_group_out, kernel, stride, groups=groups, bias=bias)
    x = torch.zeros(batch, groups * per_group_in, *[5] * dims)
    cost = profile_model(layer, Inputs((x,)))
    positions = ((5 - kernel) // stride + 1) ** dims
    assert cost.macs == batch * positions * groups * per_group_out * per_group_in * kernel**dims
    weights = groups * per_group_out * per_group_in * kernel**dims + bias * groups * per_group_out
    assert (cost.params, cost.weight_bytes, cost.batch) == (weights, 4 * weights, batch)
    assert cost.uncounted == {}


def test_a_depthwise_convolution_costs_one_filter_per_channel() -> None:
    cost = profile_model(nn.Conv2d(8, 8, 3, padding=1, groups=8), Inputs((torch.zeros(1, 8, 6, 6),)))
    assert cost.macs == 8 * 9 * 36


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_linear_layer_costs_a_product_per_weight_and_position(batch: int, positions: int, inputs: int, outputs: int, bias: bool) -> None:
    cost = profile_model(nn.Linear(inputs, outputs, bias=bias), Inputs((torch.zeros(batch, positions, inputs),)))
    assert cost.macs == batch * positions * inputs * outputs
    assert cost.uncounted == {}


class _Products(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bij,bjk->bik", a, b) + a @ b


def test_matrix_products_without_weights_count() -> None:
    cost = profile_model(_Products(), Inputs((torch.zeros(2, 3, 4), torch.zeros(2, 4, 5))))
    assert cost.macs == 2 * (2 * 3 * 4 * 5)
    assert cost.uncounted == {"add": 1}
    assert cost.params == 0


def test_operators_without_a_formula_are_named_and_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Sigmoid(), nn.Flatten(), nn.Dropout())
    assert profile_model(model, Inputs((torch.zeros(2, 4),))).uncounted == {"relu": 2, "sigmoid": 1}


def test_shared_weights_count_once_in_size_and_every_time_in_macs() -> None:
    layer = nn.Linear(4, 4, bias=False)
    tied = nn.Linear(4, 4, bias=False)
    tied.weight = layer.weight
    cost = profile_model(nn.Sequential(layer, layer, tied), Inputs((torch.zeros(1, 4),)))
    assert (cost.params, cost.weight_bytes, cost.macs) == (16, 64, 48)


def test_bytes_are_those_of_the_stored_dtype_and_include_buffers() -> None:
    norm = nn.BatchNorm1d(4).half()
    cost = profile_model(norm, Inputs((torch.zeros(2, 4).half(),)))
    assert cost.params == 8
    assert cost.weight_bytes == 4 * 4 * 2 + 8  # four half vectors and one int64 counter


def test_macs_grow_with_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2))
    one, five = (profile_model(model, Inputs((torch.zeros(n, 3, 5, 5),))) for n in (1, 5))
    assert one.macs == 4 * 9 * 27 + 72
    assert five.macs == 5 * one.macs
    assert five.batch == 5


def test_profiling_changes_neither_the_mode_nor_the_statistics_nor_the_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile_model(model, Inputs((torch.ones(2, 3, 5, 5),)))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert profile_model.__globals__["_Counter"] is not None
    assert not torch.is_inference_mode_enabled()


def test_the_mode_comes_back_when_the_model_fails() -> None:
    model = nn.Linear(3, 3).train()
    with pytest.raises(PreconditionError):
        profile_model(model, Inputs((torch.zeros(2, 4),)))
    assert model.training


def test_the_modes_of_submodules_are_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    profile_model(model, Inputs((torch.zeros(2, 2),)))
    assert not model[1].training


class _Attention(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)


def test_fused_attention_counts_its_two_products() -> None:
    assert profile_model(_Attention(), Inputs((torch.zeros(1, 2, 3, 8),))).macs == 2 * (2 * 3 * 3 * 8)


def test_a_transformer_layer_counts_its_projections() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert profile_model(layer, Inputs((torch.zeros(1, 3, 8),))).macs >= 3 * (4 * 64 + 2 * 128)


def test_an_lstm_counts_its_gates() -> None:
    assert profile_model(nn.LSTM(4, 5, batch_first=True), Inputs((torch.zeros(1, 3, 4),))).macs == 3 * 4 * (5 * 4 + 5 * 5)


def test_a_gru_counts_its_gates() -> None:
    assert profile_model(nn.GRU(4, 5, batch_first=True), Inputs((torch.zeros(1, 3, 4),))).macs == 3 * 3 * (5 * 4 + 5 * 5)


def test_a_matrix_times_a_vector_counts() -> None:
    class Model(nn.Module):
        def forward(self, matrix: Tensor, vector: Tensor) -> Tensor:
            return matrix @ vector

    assert profile_model(Model(), Inputs((torch.zeros(3, 4), torch.zeros(4)))).macs == 12
