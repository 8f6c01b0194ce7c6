"""Cut layers give exactly what the whole layer gives at the kept indices."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.errors import UnsupportedModel
from sizewise.graph.surgery import WHOLE, PassOn, axis_size, cut, is_depthwise, keep_indices, supports, zero_indices

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
    small = copy.deepcopy(layer)
    keep_indices(small, "out", kept)
    assert torch.allclose(small(x), layer(x)[:, kept], atol=1e-12)
    assert (axis_size(small, "out"), axis_size(small, "in")) == (len(kept), CHANNELS)


@pytest.mark.parametrize("kind", DENSE)
@given(kept=subsets, bias=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_inputs_give_what_zeros_at_the_others_give(kind: str, kept: list[int], bias: bool) -> None:
    layer, x = _dense(kind, bias)
    small = copy.deepcopy(layer)
    keep_indices(small, "in", kept)
    blanked = torch.zeros_like(x)
    blanked[:, kept] = x[:, kept]
    assert torch.allclose(small(x[:, kept]), layer(blanked), atol=1e-12)
    assert (axis_size(small, "out"), axis_size(small, "in")) == (CHANNELS, len(kept))


@pytest.mark.parametrize("dims", [1, 2, 3])
@given(kept=subsets, affine=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_features_of_a_normalization_are_normalized_as_before(dims: int, kept: list[int], affine: bool) -> None:
    norm = _norm(dims, affine)
    x = torch.randn(2, CHANNELS, *[3] * dims).double()
    small = copy.deepcopy(norm)
    keep_indices(small, "out", kept)
    assert torch.equal(small(x[:, kept]), norm(x)[:, kept])
    assert axis_size(small, "out") == len(kept)


@given(kept=subsets, bias=st.booleans())
@settings(max_examples=50, deadline=None)
def test_kept_channels_of_a_depthwise_convolution_keep_their_filters(kept: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=bias)
    x = torch.randn(2, CHANNELS, 5, 5)
    small = copy.deepcopy(layer)
    keep_indices(small, "out", kept)
    assert torch.allclose(small(x[:, kept]), layer(x)[:, kept], atol=1e-6)
    assert (small.in_channels, small.out_channels, small.groups) == (len(kept),) * 3


@pytest.mark.parametrize("gone", [[0], [1], [0, 2]])
def test_groups_of_a_convolution_go_with_their_inputs(gone: list[int]) -> None:
    layer, x = nn.Conv2d(6, 12, 3, groups=3).double(), torch.randn(2, 6, 5, 5).double()
    stays = [group for group in range(3) if group not in gone]
    outs, ins = ([group * per + i for group in stays for i in range(per)] for per in (4, 2))
    small = copy.deepcopy(layer)
    keep_indices(small, "out", outs)
    assert torch.allclose(small(x[:, ins]), layer(x)[:, outs], atol=1e-12)
    assert (small.groups, small.in_channels, small.out_channels) == (len(stays), 2 * len(stays), 4 * len(stays))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions_have_their_inputs_first(dims: int, bias: bool) -> None:
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    layer = make(CHANNELS, 4, 2, 2, bias=bias).double()
    x, outs, ins = torch.randn(2, CHANNELS, *[3] * dims).double(), [3, 0], [1, 4, 5]
    small = copy.deepcopy(layer)
    keep_indices(small, "out", outs)
    keep_indices(small, "in", ins)
    blanked = torch.zeros_like(x)
    blanked[:, ins] = x[:, ins]
    assert torch.allclose(small(x[:, ins]), layer(blanked)[:, outs], atol=1e-12)
    assert (axis_size(small, "out"), axis_size(small, "in")) == (2, 3)


def test_kept_features_of_embeddings_slopes_and_groups_of_a_normalization() -> None:
    words, x = torch.randint(0, 7, (2, 5)), torch.randn(2, CHANNELS, 4)
    embedding, slopes, norm = nn.Embedding(7, CHANNELS), nn.PReLU(CHANNELS), nn.GroupNorm(3, CHANNELS)
    for parameter in (*slopes.parameters(), *norm.parameters()):
        nn.init.normal_(parameter)
    small = [copy.deepcopy(layer) for layer in (embedding, slopes, norm)]
    kept = [0, 1, 4, 5]
    for layer in small:
        keep_indices(layer, "out", kept)
        assert axis_size(layer, "out") == 4
    assert torch.equal(small[0](words), embedding(words)[..., kept])
    assert torch.equal(small[1](x[:, kept]), slopes(x)[:, kept])
    assert torch.allclose(small[2](x[:, kept]), norm(x)[:, kept], atol=1e-6)
    assert small[2].num_groups == 2


RECURRENT: list[tuple[Any, dict[str, Any]]] = [
    (kind, options)
    for kind in (nn.GRU, nn.LSTM, nn.RNN)
    for options in ({}, {"num_layers": 3}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}, {"bias": False})
]


def _by_hand(name: str, value: Tensor, kept: Sequence[int], reads: Sequence[int]) -> Tensor:
    """One tensor of a recurrent layer of six hidden units, with some units and some inputs of the first layer kept."""
    gates = [part[list(kept)] for part in torch.split(value, CHANNELS)]
    small = torch.cat(gates)
    if name.startswith("weight_hh"):
        return small[:, list(kept)]
    if name.startswith("weight_ih_l0"):
        return small[:, list(reads)]
    if name.startswith("weight_ih"):
        return torch.cat([part[:, list(kept)] for part in torch.split(small, CHANNELS, 1)], 1)
    return small


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_hidden_units_of_recurrent_layers_go_from_every_gate_layer_and_direction(kind: Any, options: dict[str, Any]) -> None:
    layer, kept, reads = kind(4, CHANNELS, batch_first=True, **options), [4, 0, 1], [3, 1]
    small = copy.deepcopy(layer)
    keep_indices(small, "out", kept)
    keep_indices(small, "in", reads)
    fresh = kind(2, 3, batch_first=True, **options)
    fresh.load_state_dict({name: _by_hand(name, value, kept, reads) for name, value in layer.state_dict().items()})
    x = torch.randn(2, 5, 2)
    for got, want in zip(pytree.tree_leaves(small(x)), pytree.tree_leaves(fresh(x)), strict=True):
        assert torch.allclose(got, want, atol=1e-6)
    assert (small.hidden_size, small.input_size) == (3, 2)
    small(x)[0].sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_hidden_units_of_cells_go_from_every_gate(kind: Any) -> None:
    layer, kept, reads = kind(4, CHANNELS), [5, 2], [0, 3]
    small, fresh = copy.deepcopy(layer), kind(2, 2)
    keep_indices(small, "out", kept)
    keep_indices(small, "in", reads)
    names = {name: name.replace("_ih", "_ih_l0") for name in layer.state_dict()}
    fresh.load_state_dict({name: _by_hand(names[name], value, kept, reads) for name, value in layer.state_dict().items()})
    x = torch.randn(3, 2)
    for got, want in zip(pytree.tree_leaves(small(x)), pytree.tree_leaves(fresh(x)), strict=True):
        assert torch.allclose(got, want, atol=1e-6)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 6), lambda y: y, (3, 4)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), lambda y: y, (3, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), lambda y: y, (3, 4, 5, 5)),
    "gru": (lambda: nn.GRU(4, 6, 2, bidirectional=True), lambda y: y[0].reshape(3, 2, 6).transpose(1, 2), (3, 4)),
    "lstm": (lambda: nn.LSTM(4, 6), lambda y: y[0], (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_zeros_silence_what_is_written_and_what_is_read(name: str) -> None:
    make, only, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    silent, deaf = copy.deepcopy(layer), copy.deepcopy(layer)
    zero_indices(silent, "out", [1, 4])
    assert not only(silent(x))[:, [1, 4]].any()
    assert only(silent(x))[:, 0].any()
    zero_indices(deaf, "in", [0, 2])
    changed = x.clone()
    changed[:, [0, 2]] += 10
    assert torch.equal(only(deaf(x)), only(deaf(changed)))
    assert not torch.equal(only(layer(x)), only(layer(changed)))
    assert [p.shape for p in silent.parameters()] == [p.shape for p in layer.parameters()]


def test_statistics_of_a_silenced_normalization_stay() -> None:
    norm = _norm(2)
    silent = copy.deepcopy(norm)
    zero_indices(silent, "out", [0])
    assert not silent(torch.randn(2, CHANNELS, 3, 3).double())[:, 0].any()
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), silent.buffers(), strict=True))


def test_a_number_in_the_code_shrinks_to_what_is_kept_and_knows_no_zeros() -> None:
    module = nn.Module()
    module.num_heads = 6  # type: ignore[assignment]
    zero_indices(module, ".num_heads", [0])
    assert axis_size(module, ".num_heads") == 6
    keep_indices(module, ".num_heads", [1, 2, 5])
    assert module.num_heads == 3


# --- whole models


class Tied(nn.Module):
    """An embedding whose weights are the last layer's, and two layers that share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.again, self.scores = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.scores.weight = self.words.weight
        self.again.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scores(self.again(torch.relu(self.inner(self.words(x)))))
        return out


def test_what_was_tied_is_tied_again() -> None:
    model, kept = Tied(), [0, 2, 3]
    whole, x = copy.deepcopy(model), torch.randint(0, 9, (2, 5))
    both = {"out": kept, "in": kept}
    cut(model, {"words": {"out": kept}, "inner": both, "again": both, "scores": {"in": kept}})
    assert model.words.weight is model.scores.weight
    assert model.inner.weight is model.again.weight
    gone = [1, 4, 5]
    for path, axis in (("words", "out"), ("inner", "out"), ("inner", "in"), ("again", "out")):
        zero_indices(whole.get_submodule(path), axis, gone)
    assert torch.allclose(model(x), whole(x), atol=1e-6)
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_tie_that_only_one_side_loses_is_undone() -> None:
    model = Tied()
    cut(model, {"inner": {"out": [0, 1]}})
    assert model.inner.weight.shape == (2, 6)
    assert model.again.weight.shape == (6, 6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def test_a_block_of_which_nothing_is_kept_hands_its_input_on() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), Residual(), nn.Linear(4, 2)), torch.randn(3, 4)
    want = model[2](model[0](x))
    cut(model, {"1": {WHOLE: []}})
    assert torch.equal(model(x), want)
    assert isinstance(model[1], PassOn)
    assert torch.equal(model[1](x, mask=torch.ones(1)), x)


def test_a_block_that_is_kept_stays() -> None:
    model = nn.Sequential(Residual())
    cut(model, {"0": {WHOLE: [0]}})
    assert isinstance(model[0], Residual)


def test_a_path_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError):
        cut(nn.Sequential(nn.Linear(2, 2)), {"7": {"out": [0]}})


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
        (nn.Conv2d(4, 8, 3, groups=4), True, False),
        (nn.Conv2d(1, 1, 3), True, False),
        (nn.Linear(2, 3), True, False),
        (nn.BatchNorm3d(2), True, False),
        (nn.InstanceNorm1d(2, affine=True), True, False),
        (nn.GroupNorm(4, 4), True, False),
        (nn.ConvTranspose2d(4, 6, 3), True, False),
        (nn.Embedding(3, 4), True, False),
        (nn.PReLU(4), True, False),
        (nn.GRU(3, 4), True, False),
        (nn.LSTMCell(3, 4), True, False),
        (nn.LSTM(3, 4, proj_size=2), False, False),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), False, False),
        (nn.PReLU(), False, False),
        (nn.LayerNorm(2), False, False),
        (nn.MultiheadAttention(4, 2), False, False),
        (nn.MultiheadAttention(4, 2).out_proj, False, False),
        (nn.Bilinear(2, 2, 3), False, False),
        (nn.ReLU(), False, False),
    ],
)
def test_what_is_supported_can_be_cut_and_the_rest_is_refused_by_type(layer: nn.Module, known: bool, depthwise: bool) -> None:
    assert supports(layer) == known
    assert is_depthwise(layer) == depthwise
    if known:
        keep_indices(layer, "out", range(axis_size(layer, "out")))
    else:
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        with pytest.raises(UnsupportedModel, match="surgery does not know this layer") as caught:
            keep_indices(layer, "out", [0])
        assert caught.value.got == type(layer).__name__
        assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


USES: list[Callable[[nn.Module, str], object]] = [
    axis_size,
    lambda layer, axis: keep_indices(layer, axis, [0]),
    lambda layer, axis: zero_indices(layer, axis, [0]),
]


@pytest.mark.parametrize("use", USES)
def test_an_axis_that_a_known_layer_does_not_have_is_named_with_those_it_has(use: Callable[[nn.Module, str], object]) -> None:
    with pytest.raises(UnsupportedModel, match="no such axis") as caught:
        use(nn.BatchNorm2d(3), "in")
    assert (caught.value.got, caught.value.wanted) == ("in of BatchNorm2d", "out")


def test_an_index_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(IndexError):
        keep_indices(nn.Linear(3, 3), "out", [0, 3])
