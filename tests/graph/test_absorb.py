"""Normalizations and biases taken into what is before them: the outputs stay, and constants are left."""

import pytest
import torch
from torch import Tensor, nn

from sizewise.graph.absorb import absorb, merge_biases
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs
from sizewise.zoo.resnet import resnet_cifar


def trained_like(model: nn.Module) -> nn.Module:
    """Normalizations with statistics and gains that are not those of a fresh model."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low in ((module.weight, -1.0), (module.bias, -1.0), (module.running_mean, -1.0), (module.running_var, 0.1)):
                if isinstance(tensor, Tensor):
                    tensor.data.uniform_(low, 2.0, generator=generator)
    return model.eval()


def absorbed(model: nn.Module, inputs: Inputs) -> list[str]:
    return absorb(model, trace(model, inputs).program.module(check_guards=False))


def close(model: nn.Module, inputs: Inputs, want: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(inputs.call(model), want, rtol=1e-3, atol=1e-3 * float(want.abs().mean()))


def outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found: Tensor = inputs.call(model)
        return found.clone()


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)], (4, 3, 8, 8)),
        ([nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)], (4, 3, 8, 8)),
        ([nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6)], (4, 4, 5, 5)),
        ([nn.Linear(5, 6), nn.BatchNorm1d(6)], (4, 5)),
        ([nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False)], (4, 5)),
        ([nn.Conv1d(5, 6, 3, padding="same"), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6)], (4, 5, 9)),
    ],
)
def test_the_outputs_stay_and_normalizations_hold_constants(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, inputs = trained_like(nn.Sequential(*layers)), Inputs((torch.randn(*shape),))
    want = outputs(model, inputs)
    norms = [place for place, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert absorbed(model, inputs) == [f"{place - 1}.weight" for place in norms]
    close(model, inputs, want)
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            kept = [layer.running_mean, layer.running_var, *([layer.weight] if layer.affine else [])]
            assert all(isinstance(tensor, Tensor) and len(torch.unique(tensor)) == 1 for tensor in kept)


def test_all_of_a_residual_network() -> None:
    torch.manual_seed(0)
    model, inputs = trained_like(resnet_cifar(8)), Inputs((torch.randn(4, 3, 12, 12),))
    want = outputs(model, inputs)
    assert len(absorbed(model, inputs)) == 7
    close(model, inputs, want)
    assert len(absorbed(model, inputs)) == 7  # again changes nothing
    close(model, inputs, want)


class Kept(nn.Module):
    """A normalization of an output that others read, one that is shared, and one with nowhere to put a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.one, self.shared, self.bare = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y + self.one(y)
        y = self.shared(self.second(y)) + self.shared(y)
        found: Tensor = self.bare(self.third(y))
        return found


def test_what_others_read_or_share_stays() -> None:
    torch.manual_seed(0)
    model, inputs = trained_like(Kept()), Inputs((torch.randn(4, 4),))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert absorbed(model, inputs) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "zeros"),
    [
        (nn.GRU(5, 4, 2, bidirectional=True, batch_first=True), 8),
        (nn.LSTM(5, 4, batch_first=True), 16),
        (nn.RNN(5, 4, batch_first=True), 4),
        (nn.GRU(5, 4, bias=False, batch_first=True), None),
    ],
)
def test_biases_of_gates_are_merged_where_only_their_sum_counts(layer: nn.RNNBase, zeros: int | None) -> None:
    x = torch.randn(3, 7, 5)
    want = layer(x)[0].detach()
    merged = merge_biases(nn.Sequential(layer))
    torch.testing.assert_close(layer(x)[0].detach(), want, rtol=1e-4, atol=1e-5)
    assert len(merged) == (0 if zeros is None else layer.num_layers * (1 + layer.bidirectional))
    for name in merged:
        assert int((layer.get_parameter(name.partition(".")[2]) == 0).sum()) == zeros


def test_biases_that_two_layers_share_stay() -> None:
    first, second = nn.GRU(4, 4), nn.GRU(4, 4)
    second.bias_hh_l0 = first.bias_hh_l0
    assert merge_biases(nn.ModuleList([first, second])) == []
