"""Layers as stacks: shapes, what may be replaced, and that full ranks change nothing."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import full_ranks
from sizewise.errors import UnsupportedModel
from sizewise.graph.factorize import Factoring, factor_shapes, factorizable, factorize, fill, forms, out_sides
from sizewise.graph.hooks import hooked
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.protocols import Inputs

LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Linear(6, 5), (3, 6)),
    (nn.Linear(6, 5, bias=False), (2, 7, 6)),
    (nn.Conv1d(4, 6, 3, padding=2, dilation=2), (2, 4, 11)),
    (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2, padding_mode="reflect"), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 1, stride=2), (2, 4, 9, 8)),
    (nn.Conv3d(2, 3, 3, padding=1), (2, 2, 4, 5, 6)),
    (nn.Conv2d(4, 6, 3).half(), (2, 4, 9, 8)),
]
CASES = [
    pytest.param(layer, shape, form, id=f"{type(layer).__name__}-{number}-{form}")
    for number, (layer, shape) in enumerate(LAYERS)
    for form in forms(() if isinstance(layer, nn.Linear) else layer.kernel_size)
]


@pytest.mark.parametrize(("layer", "shape", "form"), CASES)
def test_a_stack_of_full_rank_is_the_layer(layer: Any, shape: tuple[int, ...], form: Any) -> None:
    x = torch.randn(shape).to(layer.weight)
    model, twin = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
    factoring = Factoring(form, full_ranks(layer.weight.shape, form))
    factorize(twin, "0", factoring)
    fill(twin, "0", factoring.solved(layer.weight.detach(), None), layer.bias)
    want, got = model(x), twin(x)
    assert want.dtype == got.dtype
    tolerance = 1e-2 if got.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    stack: Any = twin[0]
    assert all(type(part) is type(layer) for part in stack)
    assert [part.bias is not None for part in stack] == [False] * (len(stack) - 1) + [layer.bias is not None]


@pytest.mark.parametrize(("layer", "shape", "form"), CASES)
def test_foretold_shapes_are_those_that_run(layer: Any, shape: tuple[int, ...], form: Any) -> None:
    example = Inputs((torch.randn(shape).to(layer.weight),))
    model = nn.Sequential(copy.deepcopy(layer))
    whole = layer_shapes(model, example)["0"][0]
    factoring = Factoring(form, tuple(max(1, full // 2) for full in full_ranks(layer.weight.shape, form)))
    factorize(model, "0", factoring)
    parts = factor_shapes(whole, factoring)
    outputs: list[Tensor] = []
    stack: Any = model[0]
    with hooked([part.register_forward_hook(lambda module, args, out: outputs.append(out)) for part in stack]):
        found = layer_shapes(model, example)
    assert [outputs[place].shape[2:] for place in range(len(parts))] == [out_sides(part) if part.sides else () for part in parts] or (
        whole.kind == "linear"
    )
    if layer.weight.ndim == 2 or layer.padding_mode == "zeros":
        assert tuple(found[f"0.{place}"][0] for place in range(len(parts))) == parts


class Zoo(nn.Module):
    """One of every kind that stays, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.fine = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.tied, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.tied.weight
        self.read = nn.Linear(8, 8)
        self.sized = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.grouped = nn.Conv1d(8, 8, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(8, 8, 1)
        self.memory = nn.GRU(8, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.fine(self.table(tokens))
        x = self.twice(torch.relu(self.twice(x)))
        x = self.other(torch.relu(self.tied(x)))
        x = nn.functional.linear(x, self.read.weight) + self.read(x)
        x = self.normed(self.sized(x) / self.sized.out_features)
        x = self.attention(x, x, x)[0]
        x = self.up(self.grouped(x.transpose(1, 2))).transpose(1, 2)
        out: Tensor = self.memory(x)[0].mean(1)
        return out


def test_what_stays_whole_is_named_with_its_reason() -> None:
    model = Zoo().eval()
    before = copy.deepcopy(model.state_dict())
    paths, skips = factorizable(model, Inputs((torch.arange(8).reshape(2, 4),)))
    assert paths == ("fine",)
    reasons = {skip.what: skip.reason for skip in skips}
    for path, words in {
        "table": "Embedding",
        "twice": "runs 2 times",
        "tied": "shares its weights with other",
        "other": "shares its weights with tied",
        "read": "does more with it than call it",
        "sized": "does more with it than call it",
        "never": "never called",
        "attention": "MultiheadAttention",
        "attention.out_proj": "attention, which reads its weight itself",
        "grouped": "grouped",
        "up": "transposed",
        "memory": "GRU multiplies whole matrices",
    }.items():
        assert words in reasons[path], path
    assert any(path.startswith("normed") for path in reasons)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert isinstance(model.fine, nn.Linear)


def test_torchs_own_transformer_runs_with_stacks_in_it() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    paths, _ = factorizable(model, Inputs((x,)))
    assert paths == ("linear1", "linear2")
    twin = copy.deepcopy(model)
    weight, bias = model.linear1.weight.detach(), model.linear1.bias
    factorize(twin, "linear1", Factoring("svd", (8,)))
    fill(twin, "linear1", Factoring("svd", (8,)).solved(weight, None), bias)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "factoring"),
    [
        ("0", Factoring("svd", (0,))),
        ("0", Factoring("svd", (9,))),
        ("0", Factoring("svd", (2, 2))),
        ("0", Factoring("spatial", (2,))),
        ("0", Factoring("no such form", (2,))),  # type: ignore[arg-type]
        ("1", Factoring("svd", (2,))),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(path: str, factoring: Factoring) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    with pytest.raises(UnsupportedModel):
        factorize(model, path, factoring)
    assert isinstance(model[0], nn.Linear)


def test_new_layers_draw_no_random_numbers_and_keep_what_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(6, 5)).requires_grad_(False)
    state = torch.get_rng_state()
    factorize(model, "0", Factoring("svd", (2,)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad for p in model.parameters())
