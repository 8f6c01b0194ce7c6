"""What weights should be while a graph is walked, for every kind of layer."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from sizewise.errors import PreconditionError
from sizewise.graph.coded import Weight, find_weights
from sizewise.graph.share_layers import SharedWalk
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs, Silent


class Every(nn.Module):
    """All kinds of weights: embedding, recurrent, convolution in groups, transposed, product, tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.gru = nn.GRU(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.lstm = nn.LSTM(12, 8, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, groups=2, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 8, 2, stride=2)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 20)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.lstm(self.gru(self.table(ids))[0])[0].transpose(1, 2)
        x = x + self.norm(self.conv(x))
        logits: Tensor = self.head(torch.relu(self.up(x).transpose(1, 2)) @ self.matrix)
        return logits


def prepared(model: nn.Module, inputs: Inputs) -> tuple[GraphModule, list[Weight]]:
    graph: GraphModule = trace(model.eval(), inputs).program.module(check_guards=False)
    return graph, find_weights(graph)[0]


def every() -> tuple[nn.Module, GraphModule, list[Weight], list[Inputs]]:
    torch.manual_seed(0)
    model = Every()
    data = [Inputs((torch.randint(0, 20, (16, 6)),)) for _ in range(3)]
    return model, *prepared(model, data[0]), data


def loaded(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.load_state_dict(tensors, strict=False)
    return twin


def distance(model: nn.Module, other: nn.Module, data: list[Inputs]) -> float:
    with torch.no_grad():
        pairs = [(batch.call(model), batch.call(other)) for batch in data]
    mine, theirs = (torch.cat(list(side)) for side in zip(*pairs, strict=True))
    return float((mine - theirs).square().mean() / mine.var())


def test_every_weight_comes_once_and_keeps_its_shape() -> None:
    model, graph, weights, data = every()
    walk = SharedWalk(graph, weights, data, 0, Silent())
    names = []
    for aim in walk.aims(fit=True):
        names.append(aim.slot.weight.name)
        torch.testing.assert_close(aim.slot.shaped(aim.slot.matrix), aim.slot.weight.value.detach())
        aim.settle(aim.weight)
    assert sorted(names) == sorted(weight.name for weight in weights)
    assert distance(model, loaded(model, walk.tensors), data) < 1e-6  # nothing was lost, so that nothing is to be made up for


@pytest.mark.parametrize("with_data", [True, False])
def test_weights_that_are_not_fitted_stay_what_they_are(with_data: bool) -> None:
    _, graph, weights, data = every()
    for aim in SharedWalk(graph, weights, data if with_data else [], 0, Silent()).aims(fit=False):
        assert torch.equal(aim.weight.reshape(aim.slot.matrix.shape), aim.slot.matrix)
        assert aim.moments.shape == (aim.weight.shape[0], aim.weight.shape[2], aim.weight.shape[2])


def test_later_weights_and_biases_make_up_for_noise_in_earlier_ones() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6))
    data = [Inputs((torch.randn(200, 12) @ torch.randn(12, 12),)) for _ in range(4)]
    graph, weights = prepared(model, data[0])
    losses = []
    for fit in (False, True):
        walk, generator = SharedWalk(graph, weights, data[:3], 0, Silent()), torch.Generator().manual_seed(0)
        for aim in walk.aims(fit=fit):
            last = aim.slot.weight.name == "4.weight"
            noise = 0 if last else 0.1 * torch.randn(aim.weight.shape, generator=generator)
            aim.settle(aim.weight + noise)
        losses.append(distance(model, loaded(model, walk.tensors), data[3:]))
    assert losses[1] < 0.7 * losses[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM] | type[nn.RNN]) -> None:
        super().__init__()
        self.layer = kind(6, 12, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layer(x)[0]
        return states


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_make_up_for_what_the_layer_before_has_lost(kind: type[nn.GRU] | type[nn.LSTM] | type[nn.RNN]) -> None:
    torch.manual_seed(2)
    model, data = Recurrent(kind), [Inputs((3 * torch.randn(64, 10, 6),)) for _ in range(3)]
    graph, weights = prepared(model, data[0])
    losses = []
    for fit in (False, True):
        walk, generator = SharedWalk(graph, weights, data[:2], 0, Silent()), torch.Generator().manual_seed(0)
        for aim in walk.aims(fit=fit):
            noise = 0.1 * torch.randn(aim.weight.shape, generator=generator) if "l0" in aim.slot.name else 0
            aim.settle(aim.weight + noise)
        losses.append(distance(model, loaded(model, walk.tensors), data[2:]))
    assert losses[1] < 0.9 * losses[0]


def test_activations_that_are_not_finite_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    graph, weights = prepared(model, Inputs((torch.randn(3, 4),)))
    bad = Inputs((torch.full((3, 4), torch.inf),))
    with pytest.raises(PreconditionError, match="not finite") as error:
        list(SharedWalk(graph, weights, [bad], 0, Silent()).aims(fit=True))
    assert "0" in str(error.value.where)
