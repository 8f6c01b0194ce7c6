"""Options of layers: costs against real layers, losses against real changes."""

import copy

import pytest
import torch
from torch import nn

from sizewise.data import rank_losses as module
from sizewise.data.gram import input_grams
from sizewise.data.outputs import OutputChange
from sizewise.data.rank_losses import factor_options, layer_moments, rank_losses
from sizewise.errors import PreconditionError
from sizewise.graph.factorize import factorize, fill
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.types import LayerShape


class Net(nn.Module):
    """A convolution and two linear layers, of which the last hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fine, self.faint = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.relu(self.conv(x)).mean((2, 3))
        out: torch.Tensor = self.fine(pooled) + 0.01 * self.faint(pooled)
        return out


def shapes(model: nn.Module, example: Inputs) -> dict[str, LayerShape]:
    return {path: found[0] for path, found in layer_shapes(model, example).items()}


def data(count: int = 4, size: int = 24) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    return [Inputs((torch.randn(size, 4, 6, 6, generator=generator) + 0.5,)) for _ in range(count)]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def test_every_option_costs_what_the_real_layers_cost(net: nn.Module) -> None:
    example = data()[0]
    for path, shape in shapes(net, example).items():
        options = factor_options(net.get_submodule(path), shape, None)
        assert {option.factoring.form for option in options} == ({"svd", "spatial", "tucker"} if path == "conv" else {"svd"})
        for option in options[:: max(1, len(options) // 6)]:
            twin = copy.deepcopy(net)
            factorize(twin, path, option.factoring)
            parts = [layer for layer in static_cost(twin, example).layers if layer.path.startswith(f"{path}.")]
            assert option.params == sum(layer.params for layer in parts)
            assert option.macs == sum(layer.macs for layer in parts)


def test_a_loss_is_what_the_outputs_really_lose(net: nn.Module) -> None:
    batches = data()
    found, skips = rank_losses(net, shapes(net, batches[0]), batches, {"conv", "fine", "faint"})
    assert not skips
    change = OutputChange(net, batches[-1:])
    for path, options in found.items():
        weight = net.get_submodule(path).get_parameter("weight").numel()
        for option in [option for option in options if 0.2 < option.params / weight < 0.8 and option.loss > 0][::5]:
            twin = copy.deepcopy(net)
            layer = net.get_submodule(path)
            factorize(twin, path, option.factoring)
            _, moments = next(iter(layer_moments(net, {path: shapes(net, batches[0])[path]}, batches[:-1], {path})))
            factors = option.factoring.solved(layer.get_parameter("weight").detach(), moments[path].matrix, sweeps=0)
            gone = (layer.get_parameter("weight").detach().double() - option.factoring.composed(factors)).flatten(1)
            fill(twin, path, factors, layer.get_parameter("bias") + gone.float() @ moments[path].mean.float())  # type: ignore[union-attr]
            assert option.loss == pytest.approx(change(twin), rel=0.6), (path, option)
    least = {path: min(o.loss for o in options if o.factoring.ranks == (4,)) for path, options in found.items() if path != "conv"}
    assert least["faint"] < 1e-2 * least["fine"], "losses can be compared between layers"


def test_the_model_is_left_as_it_was(net: nn.Module) -> None:
    before, batches = copy.deepcopy(net.state_dict()), data()
    rank_losses(net, shapes(net, batches[0]), batches, ())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_without_data_losses_are_those_of_weights(net: nn.Module) -> None:
    found, _ = rank_losses(net, shapes(net, data()[0]), [], ())
    values = torch.linalg.svdvals(net.get_parameter("fine.weight").detach().double()).square()
    by_rank = {option.factoring.ranks[0]: option.loss for option in found["fine"]}
    for rank, loss in by_rank.items():
        assert loss == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-6)


def test_moments_are_those_of_all_inputs_where_these_are_few(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = data()
    whole = input_grams(net, ["conv"], batches)["conv"]
    (_, moments), *_ = layer_moments(net, {"conv": shapes(net, batches[0])["conv"]}, batches, {"conv"})
    assert moments["conv"].matrix is not None
    torch.testing.assert_close(moments["conv"].matrix, whole.covariance[0], rtol=0.1, atol=0.1)
    monkeypatch.setattr(module, "WIDEST", 8)
    (part, wide), (_, narrow) = layer_moments(net, shapes(net, batches[0]), batches, ())
    assert part == ["conv"]
    assert wide["conv"].matrix is None
    assert set(narrow) == {"fine", "faint"}


@pytest.mark.parametrize(
    ("most", "multiple", "wanted"),
    [(64, 8, range(8, 65, 8)), (16, 8, range(2, 17, 2)), (5, 8, range(1, 6)), (20, 3, [3, 6, 9, 12, 15, 18, 20])],
)
def test_ranks_are_multiples_where_there_is_room(most: int, multiple: int, wanted: list[int]) -> None:
    assert module.rank_steps(most, multiple, 48) == list(wanted)


def test_ranks_are_few_in_wide_layers() -> None:
    found = module.rank_steps(4096, 8, 16)
    assert found[0] == 8
    assert found[-1] == 4096
    assert len(found) <= 17
    assert all(rank % 8 == 0 for rank in found)


def test_what_is_not_finite_is_said(net: nn.Module) -> None:
    batches = data()
    bad = [*batches[:-1], Inputs((torch.full((4, 4, 6, 6), float("nan")),))]
    with pytest.raises(PreconditionError, match="not finite"):
        rank_losses(net, shapes(net, batches[0]), bad, ())


class Guarded(nn.Module):
    """Infinite inputs of a layer do not reach the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.odd, self.fine = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.nan_to_num(self.odd(x / 0), 0, 0, 0) + self.fine(x)
        return out


def test_a_layer_with_inputs_that_are_not_finite_is_left_out_and_named() -> None:
    model, batches = Guarded().eval(), [Inputs((torch.randn(16, 8),)) for _ in range(3)]
    found, skips = rank_losses(model, shapes(model, batches[0]), batches, ())
    assert set(found) == {"fine"}
    assert [(skip.what, skip.reason) for skip in skips] == [("odd", "its inputs on the calibration data are not finite")]
