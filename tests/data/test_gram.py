"""Second moments of unfolded inputs, against the layer's own arithmetic and a loop over positions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.data import gram
from sizewise.data.gram import input_grams
from sizewise.protocols import Inputs


def by_loop(layer: Any, x: Tensor) -> list[Tensor]:
    """Rows of every group of a 2-d convolution with zeros around, position by position."""
    x = nn.functional.pad(x, [p for size in reversed(layer.padding) for p in (size, size)])
    width = layer.in_channels // layer.groups
    rows: list[list[Tensor]] = [[] for _ in range(layer.groups)]
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    for example in x:
        for top in range(0, x.shape[2] - reach[0], layer.stride[0]):
            for left in range(0, x.shape[3] - reach[1], layer.stride[1]):
                patch = example[:, top : top + reach[0] + 1 : layer.dilation[0], left : left + reach[1] + 1 : layer.dilation[1]]
                for group in range(layer.groups):
                    rows[group].append(patch[group * width : (group + 1) * width].flatten())
    return [torch.stack(group).double() for group in rows]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.Conv2d(3, 3, 3, groups=3, padding=1),
        nn.Conv2d(5, 2, 1),
    ],
)
def test_moments_agree_with_a_loop(layer: nn.Conv2d) -> None:
    data = [Inputs((torch.randn(n, layer.in_channels, 7, 6) + 1,)) for n in (3, 2)]
    found = input_grams(nn.Sequential(layer), ["0"], data)["0"]
    rows = [torch.cat(parts) for parts in zip(*(by_loop(layer, batch.args[0]) for batch in data), strict=True)]
    assert found.n == len(rows[0])
    for group, x in enumerate(rows):
        assert torch.allclose(found.mean[group], x.mean(0))
        assert torch.allclose(found.products[group], x.T @ x / len(x))
        assert torch.allclose(found.covariance[group], torch.cov(x.T, correction=0))


LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Linear(5, 4), (2, 3, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (2, 4, 9)),
    (nn.Conv1d(3, 4, 4, padding="same"), (2, 3, 8)),
    (nn.Conv1d(3, 4, 3), (3, 8)),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 6)),
    (nn.Conv2d(3, 4, (3, 1), padding=(2, 0), padding_mode="circular"), (2, 3, 5, 6)),
    (nn.Conv2d(3, 4, 3, padding="valid", padding_mode="replicate"), (2, 3, 5, 6)),
    (nn.Conv3d(4, 4, (2, 3, 1), stride=(1, 2, 1), padding=1, groups=4), (2, 4, 4, 5, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_the_mean_square_of_the_outputs_follows_from_the_moments(layer: Any, shape: tuple[int, ...]) -> None:
    """For weights w, the mean of (w x)^2 is w E[x x'] w': true only when columns are in the order of the weight's."""
    layer, x = layer.double(), torch.randn(*shape, dtype=torch.float64) + 0.5
    found = input_grams(nn.Sequential(layer), ["0"], [Inputs((x,))])["0"]
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().flatten(1).reshape(groups, -1, found.mean.shape[1])
    with torch.no_grad():
        outputs = layer(x).movedim(-1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1, 0).flatten(1)
    outputs = outputs - layer.bias.detach()[:, None]
    assert found.n == outputs.shape[1]
    assert torch.allclose(torch.einsum("goi,gi->go", weight, found.mean).flatten(), outputs.mean(1))
    assert torch.allclose(torch.einsum("goi,gij,goj->go", weight, found.products, weight).flatten(), outputs.square().mean(1))


def test_parts_of_a_batch_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2))
    data = [Inputs((torch.randn(7, 2, 6, 6),))]
    whole = input_grams(model, ["0", "2"], data)
    monkeypatch.setattr(gram, "CHUNK", 100)
    parts = input_grams(model, ["0", "2"], data)
    for path, found in whole.items():
        assert parts[path].n == found.n
        assert torch.allclose(parts[path].squares, found.squares)
        assert torch.allclose(parts[path].total, found.total)


class Odd(nn.Module):
    """Runs one layer twice, passes an input by name, and leaves one layer out."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.named, self.unused = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.named(input=self.twice(self.twice(x)))
        return out


def test_repeated_calls_are_counted_and_layers_that_never_run_left_out() -> None:
    model = Odd()
    found = input_grams(model, ["twice", "named", "unused"], [Inputs((torch.randn(5, 4),))])
    assert {path: one.n for path, one in found.items()} == {"twice": 10, "named": 5}
    assert not any(module._forward_pre_hooks for module in model.modules()), "hooks are removed"


def test_one_pass_serves_all_layers_and_sums_of_half_precision_are_double() -> None:
    calls = []
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    data = [Inputs((torch.full((300, 4), 250.0).half(),)), Inputs((torch.full((300, 4), 250.0).half(),))]
    found = input_grams(model, ["0", "1"], data)
    assert len(calls) == 2
    assert found["0"].squares.dtype == torch.float64
    assert float(found["0"].squares[0, 0, 0]) == 600 * 250.0**2, "more than half precision can hold"
