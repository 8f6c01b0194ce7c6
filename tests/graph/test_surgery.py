"""Cut layers give exactly what the whole layer gives at the kept indices."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sizewise.errors import UnsupportedModel
from sizewise.graph.surgery import axis_size, is_depthwise, keep_indices, supports

CHANNELS = 6
subsets = st.lists(st.integers(0, CHANNELS - 1), min_size=1, max_size=CHANNELS, unique=True)
DENSE = ["conv1d", "conv2d", "conv3d", "linear"]


def _dense(kind: str, bias: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(CHANNELS, CHANNELS, bias=bias).double(), torch.randn(4, CHANNELS).double()
    dims = int(kind[4])
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return conv(CHANNELS, CHANNELS, 3, 2, 1, bias=bias).double(), torch.randn(2, CHANNELS, *[5] * dims).double()


def _norm(dims: int, affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](CHANNELS, affine=affine).double()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.eval()


@pytest.mark.parametrize("kind", DENSE)
@given(kept=subsets, bias=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_outputs_are_those_outputs_in_that_order(kind: str, kept: list[int], bias: bool) -> None:
    layer, x = _dense(kind, bias)
    cut = copy.deepcopy(layer)
    keep_indices(cut, "out", kept)
    assert torch.allclose(cut(x), layer(x)[:, kept], atol=1e-12)
    assert (axis_size(cut, "out"), axis_size(cut, "in")) == (len(kept), CHANNELS)


@pytest.mark.parametrize("kind", DENSE)
@given(kept=subsets, bias=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_inputs_give_what_zeros_at_the_others_give(kind: str, kept: list[int], bias: bool) -> None:
    layer, x = _dense(kind, bias)
    cut = copy.deepcopy(layer)
    keep_indices(cut, "in", kept)
    blanked = torch.zeros_like(x)
    blanked[:, kept] = x[:, kept]
    assert torch.allclose(cut(x[:, kept]), layer(blanked), atol=1e-12)
    assert (axis_size(cut, "out"), axis_size(cut, "in")) == (CHANNELS, len(kept))


@pytest.mark.parametrize("dims", [1, 2, 3])
@given(kept=subsets, affine=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_features_of_a_normalization_are_normalized_as_before(dims: int, kept: list[int], affine: bool) -> None:
    norm = _norm(dims, affine)
    x = torch.randn(2, CHANNELS, *[3] * dims).double()
    cut = copy.deepcopy(norm)
    keep_indices(cut, "out", kept)
    assert torch.equal(cut(x[:, kept]), norm(x)[:, kept])
    assert axis_size(cut, "out") == axis_size(cut, "in") == len(kept)


@pytest.mark.parametrize("axis", ["out", "in"])
@given(kept=subsets, bias=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_channels_of_a_depthwise_convolution_keep_their_filters(axis: str, kept: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=bias)
    x = torch.randn(2, CHANNELS, 5, 5)
    cut = copy.deepcopy(layer)
    keep_indices(cut, "out" if axis == "out" else "in", kept)
    assert torch.allclose(cut(x[:, kept]), layer(x)[:, kept], atol=1e-6)
    assert (cut.in_channels, cut.out_channels, cut.groups) == (len(kept),) * 3
    assert axis_size(cut, "in") == axis_size(cut, "out") == len(kept)


def test_cut_layers_can_be_cut_again_and_trained() -> None:
    layer, x = _dense("conv2d", True)
    whole = copy.deepcopy(layer)
    keep_indices(layer, "out", [5, 3, 1])
    keep_indices(layer, "out", [2, 0])
    assert torch.allclose(layer(x), whole(x)[:, [1, 5]], atol=1e-12)
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in layer.parameters())


def test_cutting_leaves_the_old_tensors_alone_and_shares_no_memory() -> None:
    layer, _ = _dense("linear", True)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    before = weight.detach().clone()
    keep_indices(layer, "out", [0, 1])
    with torch.no_grad():
        layer.get_parameter("weight").zero_()
    assert torch.equal(weight, before)


def test_frozen_weights_stay_frozen_and_buffers_stay_buffers() -> None:
    layer, _ = _dense("conv2d", True)
    layer.requires_grad_(False)
    keep_indices(layer, "out", [0, 2])
    assert [p.requires_grad for p in layer.parameters()] == [False, False]
    norm = _norm(2)
    keep_indices(norm, "out", [0, 2])
    assert {name for name, _ in norm.named_buffers()} == {"running_mean", "running_var", "num_batches_tracked"}
    assert {name for name, _ in norm.named_parameters()} == {"weight", "bias"}
    assert all(len(v) == 2 for name, v in norm.state_dict().items() if name != "num_batches_tracked")


def test_the_dtype_is_kept() -> None:
    layer = nn.Linear(3, 3).bfloat16()
    keep_indices(layer, "in", [1])
    assert layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layer", "known", "depthwise"),
    [
        (nn.Conv1d(4, 6, 1), True, False),
        (nn.Conv2d(4, 4, 3, groups=4), True, True),
        (nn.Conv3d(2, 2, 1, groups=2), True, True),
        (nn.Conv2d(4, 8, 3, groups=4), False, False),
        (nn.Conv2d(4, 4, 3, groups=2), False, False),
        (nn.Conv2d(1, 1, 3), True, False),
        (nn.Linear(2, 3), True, False),
        (nn.BatchNorm3d(2), True, False),
        (nn.LayerNorm(2), False, False),
        (nn.GroupNorm(2, 4), False, False),
        (nn.ConvTranspose2d(4, 6, 3), False, False),
        (nn.Embedding(3, 4), False, False),
        (nn.PReLU(4), False, False),
        (nn.ReLU(), False, False),
    ],
)
def test_what_is_supported_can_be_cut_and_the_rest_is_refused_by_type(layer: nn.Module, known: bool, depthwise: bool) -> None:
    assert supports(layer) == known
    assert is_depthwise(layer) == depthwise
    if known:
        keep_indices(layer, "out", [0])
        assert axis_size(layer, "out") == 1
    else:
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with pytest.raises(UnsupportedModel, match="surgery does not know this layer") as caught:
            keep_indices(layer, "out", [0])
        assert caught.value.got == type(layer).__name__
        assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_the_sizes_of_an_unknown_layer_are_refused_by_type() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        axis_size(nn.LSTM(3, 4), "out")
    assert caught.value.got == "LSTM"


def test_an_index_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(IndexError):
        keep_indices(nn.Linear(3, 3), "out", [0, 3])
