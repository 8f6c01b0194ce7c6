"""What operators do to channels: one small network per rule, what can go in it, and why the rest stays."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.graph.nets import Net, found_in, free_outputs, inputs, reasons, settled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

PICTURE, STEPS, ROW = (2, 3, 6, 6), (2, 5, 4), (2, 4)
WORDS = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(0))
OUTPUT = "makes the model's output"


@dataclass(frozen=True)
class Case:
    """A network, shapes of its inputs, how many outputs of every layer can go, and words of why others stay."""

    net: nn.Module
    shapes: tuple[tuple[int, ...] | Tensor, ...]
    free: Mapping[str, int]
    frozen: Mapping[str, str]


def case(
    run: Callable[..., Any], *shapes: tuple[int, ...] | Tensor, free: Mapping[str, int] = {}, frozen: Mapping[str, str] = {}, **parts: Any
) -> Case:
    return Case(Net(run, **parts), shapes, free, frozen)


def picture(between: Callable[[Any, Tensor], Any], reads: int = 8, free: Any = None, frozen: Any = None, **parts: Any) -> Case:
    """Two convolutions with eight channels between them, and something on the way."""
    layers = {"a": nn.Conv2d(3, 8, 3), **parts, "c": nn.Conv2d(reads, 2, 1)}
    free, frozen = free or {}, frozen or {}
    return case(lambda m, x: m.c(between(m, m.a(x))), PICTURE, free=free, frozen={"c": OUTPUT, **frozen}, **layers)


def row(between: Callable[[Any, Tensor], Any], reads: int = 8, free: Any = None, frozen: Any = None, **parts: Any) -> Case:
    """Two linear layers with eight features between them."""
    layers = {"a": nn.Linear(4, 8), **parts, "c": nn.Linear(reads, 2)}
    free, frozen = free or {}, frozen or {}
    return case(lambda m, x: m.c(between(m, m.a(x))), STEPS, free=free, frozen={"c": OUTPUT, **frozen}, **layers)


def _by_hand(m: Any, y: Tensor) -> Tensor:
    batch, channels, height, width = y.shape
    return y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def _batch_and_channels(m: Any, y: Tensor) -> Tensor:
    out: Tensor = m.one(y.reshape(-1, 1, 4, 4)).reshape(2, -1, 4, 4)
    return out


def _excited(m: Any, y: Tensor) -> Tensor:
    out: Tensor = y * torch.sigmoid(m.up(torch.relu(m.down(y.mean((2, 3)))))).view(2, -1, 1, 1)
    return out


def _in_place(m: Any, y: Tensor) -> Tensor:
    y.add_(1)
    y.mul_(2)
    return F.relu_(y).detach()


def _overwritten(m: Any, y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


COMBINED = {
    "halves of a chunk": picture(lambda m, y: torch.mul(*y.chunk(2, 1)), 4, {"a": 8}),
    "a split at fixed places": picture(lambda m, y: torch.mul(*torch.split(y, 4, 1)), 4, frozen={"a": "split at fixed places"}),
    "a gated linear unit": picture(lambda m, y: F.glu(y, 1), 4, {"a": 8}),
    "a concatenation": picture(lambda m, y: torch.cat([y, y.sigmoid()], 1), 16, {"a": 8}),
    "a concatenation with the input": case(
        lambda m, x: m.c(torch.cat([m.a(x), x], 1)), PICTURE, free={"a": 8}, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(11, 2, 1)
    ),
    "two layers concatenated": case(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
        PICTURE,
        free={"a": 4, "b": 6},
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(3, 6, 3),
        c=nn.Conv2d(10, 2, 1),
    ),
    "a stack": picture(lambda m, y: torch.stack([y, y.tanh()], 1).sum(1), free={"a": 8}),
    "channels padded with zeros": case(
        lambda m, x: m.c(F.pad(m.a(x), (0, 0, 0, 0, 2, 2)) + m.b(x)),
        PICTURE,
        free={"a": 4, "b": 4},
        frozen={"b": "4 of its channels: padded with channels of zeros"},
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(3, 8, 3),
        c=nn.Conv2d(8, 2, 1),
    ),
    "positions padded by repeating": picture(lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect"), free={"a": 8}),
    "squeeze and excitation": picture(_excited, free={"a": 8, "down": 4, "up": 8}, down=nn.Linear(8, 4), up=nn.Linear(4, 8)),
    "a map of one channel": picture(
        lambda m, y: y * m.b(y).sigmoid(), free={"a": 8}, frozen={"b": "a single channel"}, b=nn.Conv2d(8, 1, 1)
    ),
    "its own sum over channels": picture(lambda m, y: y * y.mean(1, keepdim=True), frozen={"a": "mean runs over them"}),
    "a buffer per position": picture(lambda m, y: y + m.place, free={"a": 8}, place=nn.Parameter(torch.ones(1, 1, 4, 4))),
    "a parameter per channel": picture(
        lambda m, y: y * m.scale, frozen={"a": "combined with scale, which belongs to no layer"}, scale=nn.Parameter(torch.ones(8, 1, 1))
    ),
    "changes in place": picture(_in_place, free={"a": 8}),
    "one channel overwritten": picture(_overwritten, frozen={"a": "picked by its number"}),
    "a choice with a number": picture(lambda m, y: torch.where(y > 0, y, torch.zeros((), dtype=y.dtype)), free={"a": 8}),
    "the number of channels": picture(lambda m, y: y / y.shape[1], frozen={"a": "the code around it depends on their order or number"}),
}
MOVED = {
    "ShuffleNet's shuffle by hand": picture(_by_hand, free={"a": 8}),
    "a channel shuffle": picture(lambda m, y: F.channel_shuffle(y, 2), free={"a": 8}),
    "a channel shuffle into groups": picture(
        lambda m, y: m.g(F.channel_shuffle(y, 2)), free={"a": 8, "g": 8}, g=nn.Conv2d(8, 8, 1, groups=2)
    ),
    "positions made of channels": picture(lambda m, y: F.pixel_shuffle(y, 2), 2, frozen={"a": "flows into pixel_shuffle"}),
    "positions moved last": row(lambda m, y: y.movedim(1, -1).movedim(-1, 1), free={"a": 8}),
    "a flattened picture": case(
        lambda m, x: m.c(torch.relu(m.a(x)).flatten(1)), PICTURE, free={"a": 8}, a=nn.Conv2d(3, 8, 3), c=nn.Linear(128, 2)
    ),
    "a flattened picture, channels last": case(
        lambda m, x: m.c(m.a(x).permute(0, 2, 3, 1).flatten(1)), PICTURE, free={"a": 8}, a=nn.Conv2d(3, 8, 3), c=nn.Linear(128, 2)
    ),
    "a flattened picture in a batch of one": case(
        lambda m, x: m.c(m.a(x).flatten(1)), (1, 3, 6, 6), free={"a": 8}, a=nn.Conv2d(3, 8, 3), c=nn.Linear(128, 2)
    ),
    "a squeeze of everything": case(
        lambda m, x: m.c(m.a(x).mean((2, 3)).squeeze()), (1, 3, 6, 6), free={"a": 8}, a=nn.Conv2d(3, 8, 3), c=nn.Linear(8, 2)
    ),
    "a view that merges batch and channels": picture(
        _batch_and_channels, frozen={"one": "a single channel"}, one=nn.Conv2d(1, 1, 3, padding=1)
    ),
    "a literal in a view": row(lambda m, y: y.reshape(-1, 8), frozen={"a": "the code around it depends on"}),
    "a flip of positions": picture(lambda m, y: y.flip(2).roll((1, 1), (2, 3)), free={"a": 8}),
    "a flip of channels": picture(lambda m, y: y.flip(1), frozen={"a": "flip runs over them"}),
    "a roll of channels": picture(lambda m, y: y.roll(2, 1), frozen={"a": "roll runs over them"}),
    "a softmax over channels": picture(lambda m, y: y.softmax(1), frozen={"a": "softmax runs over them"}),
    "a softmax over positions": picture(lambda m, y: y.softmax(2), free={"a": 8}),
    "sums of the channels so far": picture(lambda m, y: y.cumsum(1), frozen={"a": "cumsum runs over them"}),
    "the largest channels": picture(lambda m, y: y.topk(4, 1)[0], 4, frozen={"a": "topk runs over them"}),
    "unit length": row(lambda m, y: F.normalize(y, dim=-1), frozen={"a": "linalg_vector_norm runs over them"}),
    "the first channels": picture(lambda m, y: y[:, :4], 4, frozen={"a": "a part of them is picked by numbers"}),
    "some channels": picture(lambda m, y: y[:, [0, 2, 4]], 3, frozen={"a": "picked by tensors of numbers"}),
    "pooled features": row(lambda m, y: F.max_pool1d(y, 2), 4, frozen={"a": "max_pool1d changes their number"}),
    "an operator without a rule": picture(lambda m, y: torch.fft.fft(y).real, frozen={"a": "flows into fft_fft"}),
    "complex numbers": row(lambda m, y: torch.view_as_complex(y.reshape(2, 5, 4, 2)).abs(), 4, frozen={"a": "flows into view_as_complex"}),
}
LAYERS = {
    "batch normalization": picture(lambda m, y: m.n(y).relu(), free={"a": 8, "n": 8}, n=nn.BatchNorm2d(8)),
    "instance normalization": picture(lambda m, y: m.n(y).tanh(), free={"a": 8, "n": 8}, n=nn.InstanceNorm2d(8, affine=True)),
    "instance normalization without weights": picture(lambda m, y: m.n(y).tanh(), free={"a": 8}, n=nn.InstanceNorm2d(8)),
    "normalization in groups": picture(lambda m, y: m.n(y), free={"a": 8, "n": 8}, n=nn.GroupNorm(4, 8)),
    "normalization of all channels": picture(lambda m, y: m.n(y), frozen={"a": "over all channels"}, n=nn.GroupNorm(1, 8)),
    "layer normalization": row(lambda m, y: m.n(y), frozen={"a": "n, a LayerNorm, mixes them"}, n=nn.LayerNorm(8)),
    "root mean square normalization": row(lambda m, y: m.n(y), frozen={"a": "mixes them"}, n=nn.RMSNorm(8)),
    "slopes per channel": picture(lambda m, y: m.n(y), free={"a": 8, "n": 8}, n=nn.PReLU(8)),
    "one slope": picture(lambda m, y: m.n(y), free={"a": 8}, n=nn.PReLU()),
    "a depthwise convolution": picture(lambda m, y: m.g(y), free={"a": 8, "g": 8}, g=nn.Conv2d(8, 8, 3, groups=8)),
    "a depthwise convolution that doubles": picture(lambda m, y: m.g(y), 16, {"a": 8, "g": 16}, g=nn.Conv2d(8, 16, 1, groups=8)),
    "a grouped convolution": picture(lambda m, y: m.g(y), 4, {"a": 8, "g": 4}, g=nn.Conv2d(8, 4, 1, groups=2)),
    "a transposed convolution": picture(lambda m, y: m.t(y).relu(), 6, {"a": 8, "t": 6}, t=nn.ConvTranspose2d(8, 6, 2, 2)),
    "a transposed convolution in groups": picture(
        lambda m, y: m.t(y), frozen={"a": "read by t, a ConvTranspose2d", "t": "ConvTranspose2d"}, t=nn.ConvTranspose2d(8, 8, 2, groups=2)
    ),
    "a picture without a batch": case(
        lambda m, x: m.c(m.a(x).relu()), (3, 6, 6), free={"a": 8}, frozen={"c": OUTPUT}, a=nn.Conv2d(3, 8, 3), c=nn.Conv2d(8, 2, 1)
    ),
    "a volume": case(
        lambda m, x: m.c(m.n(m.a(x))),
        (2, 2, 4, 4, 4),
        free={"a": 6, "n": 6},
        a=nn.Conv3d(2, 6, 3),
        n=nn.BatchNorm3d(6),
        c=nn.Conv3d(6, 2, 1),
    ),
    "a sequence": case(
        lambda m, x: m.c(m.n(m.a(x.mT))), STEPS, free={"a": 6, "n": 6}, a=nn.Conv1d(4, 6, 3), n=nn.BatchNorm1d(6), c=nn.Conv1d(6, 2, 1)
    ),
    "an embedding": case(lambda m, x: m.o(m.e(x).relu()), WORDS, free={"e": 8}, e=nn.Embedding(10, 8), o=nn.Linear(8, 3)),
    "one layer twice": picture(lambda m, y: m.b(m.b(y).relu()), free={"a": 8, "b": 8}, b=nn.Conv2d(8, 8, 1)),
    "a layer that never runs": picture(lambda m, y: y.relu(), free={"a": 8}, unused=nn.Conv2d(4, 4, 1)),
    "a bilinear layer": row(lambda m, y: m.b(y, y), 5, frozen={"a": "flows into bilinear", "b": "Bilinear"}, b=nn.Bilinear(8, 8, 5)),
    "a parameter as weights": picture(
        lambda m, y: F.conv2d(y, m.w),
        4,
        frozen={"a": "read by w", "w": "a parameter outside any layer"},
        w=nn.Parameter(torch.ones(4, 8, 1, 1)),
    ),
    "a layer's weights, the other way round": case(
        lambda m, x: F.linear(m.a(x).relu(), m.a.weight.t()), ROW, frozen={"a": "read by weights outside any layer"}, a=nn.Linear(4, 8)
    ),
}
COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight normalization": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    "spectral normalization": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
    "spectral normalization of old": lambda: spectral_norm(nn.Conv2d(8, 8, 1)),
}
CASES = {**COMBINED, **MOVED, **LAYERS}


def wrong(example: Case) -> list[str]:
    """What is not as the case says."""
    model = settled(copy.deepcopy(example.net))
    groups, skips = found_in(model, inputs(*example.shapes))
    free, why = free_outputs(groups), reasons(skips)
    found = [f"{what}: {why[what]}, not {words}" for what, words in example.frozen.items() if words not in why[what]]
    if free != example.free:
        found.append(f"free: {free}, not {example.free}")
    if len(why) != len(skips):
        found.append(f"more than one reason per layer: {skips}")
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_can_go_and_why_the_rest_stays(name: str) -> None:
    assert not wrong(CASES[name])


@pytest.mark.parametrize("name", COMPUTED)
def test_layers_whose_weights_are_computed_are_named_with_what_they_read(name: str) -> None:
    computed = "its weights are computed from others"
    layer = COMPUTED[name]()
    assert not wrong(picture(lambda m, y: m.b(y), frozen={"a": "read by b, whose weights are computed", "b": computed}, b=layer))


# --- attention


def _split(style: str, m: Any, y: Any) -> Any:
    batch, steps, _ = y.shape
    if style == "unflatten":
        return y.unflatten(-1, (m.num_heads, m.head_dim)).transpose(1, 2)
    sizes = {"count": (m.num_heads, -1), "both": (m.num_heads, m.head_dim), "size": (-1, m.head_dim), "literal": (3, 4)}[style]
    return y.view(batch, steps, *sizes).transpose(1, 2)


def _joined(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def attention(style: str, heads: int = 3, size: int = 4, free: bool = True) -> Case:
    def run(m: Any, x: Tensor) -> Any:
        q, k, v = (_split(style, m, layer(x)) for layer in (m.q, m.k, m.v))
        return m.o(_joined((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v))

    width = heads * size
    layers = {name: nn.Linear(6, width) for name in "qkv"}
    found = dict.fromkeys("qkv", width) if free else {}
    return case(run, (2, 5, 6), free=found, frozen={"o": OUTPUT}, **layers, o=nn.Linear(width, 5), num_heads=heads, head_dim=size)


@pytest.mark.parametrize("style", ["unflatten", "count", "both", "size"])
def test_heads_go_whole_however_the_code_splits_them(style: str) -> None:
    assert not wrong(attention(style))


def test_heads_of_a_number_written_out_are_left_alone() -> None:
    assert not wrong(attention("literal", free=False))


def test_as_many_heads_as_each_is_wide_and_as_there_are_steps_are_told_apart() -> None:
    example = attention("both", heads=5, size=5)
    model = settled(example.net)
    groups, _ = found_in(model, inputs((2, 5, 6)))
    (group,) = groups
    assert group.channels == 5
    assert {(m.path, m.axis) for m in group.members if m.axis.startswith(".")} == {("", ".num_heads")}


def _fused(m: Any, x: Tensor) -> Any:
    batch, steps, _ = x.shape
    q, k, v = m.qkv(x).reshape(batch, steps, 3, m.num_heads, m.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(_joined(F.scaled_dot_product_attention(q, k, v)))


def _chunked(m: Any, x: Tensor) -> Any:
    batch, steps, _ = x.shape
    q, k, v = (part.view(batch, steps, -1, m.head_dim).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
    return m.o(_joined(F.scaled_dot_product_attention(q, k, v)))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_heads_that_are_merged_with_the_batch_go_whole(batch: int) -> None:
    def run(m: Any, x: Tensor) -> Any:
        steps = x.shape[1]
        q, k, v = (_split("both", m, layer(x)).reshape(batch * m.num_heads, steps, m.head_dim) for layer in (m.q, m.k, m.v))
        mixed = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
        return m.o(_joined(mixed.view(batch, m.num_heads, steps, m.head_dim)))

    layers = {name: nn.Linear(6, 12) for name in "qkv"}
    found = dict.fromkeys("qkv", 12)
    assert not wrong(case(run, (batch, 5, 6), free=found, frozen={"o": OUTPUT}, **layers, o=nn.Linear(12, 5), num_heads=3, head_dim=4))


@pytest.mark.parametrize("run", [_fused, _chunked])
def test_queries_keys_and_values_of_one_layer_lose_the_same_heads(run: Callable[..., Any]) -> None:
    parts = {"qkv": nn.Linear(6, 36), "o": nn.Linear(12, 5), "num_heads": 3, "head_dim": 4}
    assert not wrong(case(run, (2, 5, 6), free={"qkv": 36}, frozen={"o": OUTPUT}, **parts))


def test_products_by_einsum_are_followed() -> None:
    def run(m: Any, x: Tensor) -> Any:
        scores = torch.einsum("btd,bsd->bts", m.q(x), m.k(x))
        return m.o(torch.einsum("bts,bsd->btd", scores, m.v(x)))

    layers = {name: nn.Linear(6, 8) for name in "qkv"}
    alone = "read by no layer whose inputs can be cut"
    assert not wrong(case(run, (2, 5, 6), free={"v": 8}, frozen={"q": alone, "k": alone}, **layers, o=nn.Linear(8, 3)))


def test_torchs_attention_layer_is_named_with_what_it_reads() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    words = {"a": "read by t, a MultiheadAttention", "t": "surgery does not know the weights of MultiheadAttention"}
    assert not wrong(row(lambda m, y: m.t(y, y, y, need_weights=False)[0], frozen=words, t=layer))


def test_inside_torchs_transformer_layer_the_hidden_features_can_go() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert not wrong(row(lambda m, y: m.t(y), free={"t.linear1": 16}, frozen={"t.self_attn": "MultiheadAttention"}, t=layer))


# --- recurrent layers

LAYOUTS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "no biases": {"bias": False},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_hidden_units_and_inputs_of_recurrent_layers_go(kind: Any, layout: str) -> None:
    options = LAYOUTS[layout]
    wide = 12 if options.get("bidirectional") else 6
    layers = {"i": nn.Linear(4, 5), "r": kind(5, 6, batch_first=True, **options), "o": nn.Linear(wide, 3)}
    assert not wrong(case(lambda m, x: m.o(m.r(m.i(x))[0][:, -1]), STEPS, free={"i": 5, "r": 6}, frozen={"o": OUTPUT}, **layers))


def _cell(m: Any, x: Tensor) -> Any:
    state = x.new_zeros(x.shape[0], m.r.hidden_size)
    for step in x.unbind(1):
        state = m.r(step, state)
    return m.o(state)


def _lstm_cell(m: Any, x: Tensor) -> Any:
    state = None
    for step in x.unbind(1):
        state = m.r(step, state)
    assert state is not None
    return m.o(state[0])


def _zeros(m: Any, x: Tensor) -> Any:
    return m.o(m.r(x, torch.zeros(1, len(x), m.r.hidden_size, dtype=x.dtype))[0].mean(1))


RECURRENT = {
    "time first": (lambda m, x: m.o(m.r(x)[0].mean(0)), nn.GRU(4, 6), {}),
    "the last state of two layers": (lambda m, x: m.o(m.r(x)[1][-1]), nn.GRU(4, 6, 2, batch_first=True), {}),
    "the last state of a memory": (lambda m, x: m.o(m.r(x)[1][0].squeeze(0)), nn.LSTM(4, 6, batch_first=True), {}),
    "a first state of zeros": (_zeros, nn.GRU(4, 6, batch_first=True), {}),
    "a first state that is computed": (
        lambda m, x: m.o(m.r(x, m.h(x.mean(1)).unsqueeze(0))[0].mean(1)),
        nn.GRU(4, 6, batch_first=True),
        {"h": nn.Linear(4, 6)},
    ),
    "a GRU's cell": (_cell, nn.GRUCell(4, 6), {}),
    "a cell of tanh": (_cell, nn.RNNCell(4, 6), {}),
    "an LSTM's cell": (_lstm_cell, nn.LSTMCell(4, 6), {}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_hidden_units_go_however_the_layer_is_used(name: str) -> None:
    run, layer, others = RECURRENT[name]
    assert not wrong(
        case(run, STEPS, free={"r": 6, **dict.fromkeys(others, 6)}, frozen={"o": OUTPUT}, r=layer, **others, o=nn.Linear(6, 3))
    )


def test_a_sequence_without_a_batch() -> None:
    assert not wrong(case(lambda m, x: m.o(m.r(x)[0]), (5, 4), free={"r": 6}, r=nn.GRU(4, 6), o=nn.Linear(6, 3)))


def test_both_last_states_side_by_side() -> None:
    layer = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
    assert not wrong(case(lambda m, x: m.o(m.r(x)[1][0].transpose(0, 1).reshape(2, -1)), STEPS, free={"r": 6}, r=layer, o=nn.Linear(12, 3)))


@pytest.mark.parametrize(
    ("run", "layer", "reason"),
    [
        (
            lambda m, x: m.o(m.r(x, m.first.expand(1, 2, -1).contiguous())[0]),
            nn.GRU(4, 6, batch_first=True),
            "begins with a state that is given",
        ),
        (lambda m, x: m.r(x)[0] + 0 * m.o(m.first), nn.GRU(4, 6, batch_first=True), OUTPUT),
        (
            lambda m, x: m.o(F.pad(m.r(x)[0], (0, 3))),
            nn.LSTM(4, 6, proj_size=3, batch_first=True),
            "surgery does not know the weights of LSTM",
        ),
    ],
)
def test_why_a_recurrent_layer_stays(run: Callable[..., Any], layer: nn.Module, reason: str) -> None:
    assert not wrong(case(run, STEPS, frozen={"r": reason}, r=layer, o=nn.Linear(6, 6), first=nn.Parameter(torch.ones(1, 1, 6))))


# --- inputs, outputs and tied weights


def test_words_and_what_is_tied_to_their_embedding_lose_the_same_features() -> None:
    example = case(
        lambda m, x: m.o(m.h(m.e(x)).relu()),
        WORDS,
        free={"e": 8, "h": 8},
        frozen={"o": OUTPUT},
        e=nn.Embedding(10, 8),
        h=nn.Linear(8, 8),
        o=nn.Linear(8, 10),
    )
    embedding, last = example.net.get_submodule("e"), example.net.get_submodule("o")
    assert isinstance(embedding, nn.Embedding)
    last.weight = embedding.weight
    assert not wrong(example)


def test_outputs_in_a_dictionary_stay_and_the_rest_goes() -> None:
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(4, 2, 1)}

    def run(m: Any, x: Mapping[str, Tensor]) -> Any:
        features = m.a(x["pixels"]).relu()
        return {"scores": m.c(m.b(features).relu()), "features": features}

    example = inputs(PICTURE)
    given = type(example)(({"pixels": example.args[0]},))
    groups, skips = found_in(settled(Net(run, **layers)), given)
    assert free_outputs(groups) == {"b": 4}
    assert reasons(skips) == {"a": OUTPUT, "c": OUTPUT}
