"""Losses of products in recurrent layers against real changes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import truncated
from sizewise.data.outputs import OutputChange
from sizewise.data.recurrent_ranks import matrix_losses, matrix_moments
from sizewise.graph.recurrent_matrices import Matrix, recurrent_matrices
from sizewise.protocols import Inputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory, self.last = nn.GRU(6, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.memory(x)[0][:, -1])
        return out


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def data(count: int = 4) -> list[Inputs]:
    generator = torch.Generator().manual_seed(1)
    return [Inputs((torch.randn(32, 7, 6, generator=generator) + 0.5,)) for _ in range(count)]


def matrices(net: nn.Module) -> tuple[Matrix, ...]:
    return recurrent_matrices(net, data(1)[0])[0]


def test_moments_are_those_of_all_rows(net: nn.Module) -> None:
    batches = data()
    found = matrix_moments(net, matrices(net), batches)["memory.weight_ih_l0"]
    rows = torch.cat([batch.args[0].flatten(0, 1) for batch in batches]).double()
    assert found.matrix is not None
    assert found.mean is not None
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(found.matrix, rows.T.cov(correction=0), rtol=1e-2, atol=1e-2)


def test_a_loss_is_what_the_outputs_really_lose(net: nn.Module) -> None:
    batches = data()
    before = copy.deepcopy(net.state_dict())
    found, skips = matrix_losses(net, matrices(net), batches)
    assert not skips
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    change, moments = OutputChange(net, batches[-1:]), matrix_moments(net, matrices(net), batches[:-1])
    for matrix in matrices(net):
        weight, known, losses = net.get_parameter(matrix.name).detach().double(), moments[matrix.name], []
        for option in found[matrix.name]:
            (rank,) = option.factoring.ranks
            assert option.params == rank * sum(weight.shape)
            losses.append(option.loss)
            if matrix.name.endswith("hh_l0") and rank not in (3, 7):  # those at which outputs are compared
                continue
            if matrix.name.endswith("ih_l0") and rank not in (1, 3):
                continue
            left, right = truncated(weight, known.matrix, rank)
            twin, new = copy.deepcopy(net), left @ right
            with torch.no_grad():
                twin.get_parameter(matrix.name).copy_(new)
                twin.get_parameter(matrix.bias or "").add_(((weight - new) @ known.mean).float())  # type: ignore[operator]
            assert option.loss == pytest.approx(change(twin), rel=0.05), (matrix, rank)
        assert losses == sorted(losses, reverse=True)


def test_without_data_losses_are_those_of_weights(net: nn.Module) -> None:
    found, _ = matrix_losses(net, matrices(net), [])
    values = torch.linalg.svdvals(net.get_parameter("memory.weight_hh_l0").detach().double()).square()
    for option in found["memory.weight_hh_l0"]:
        assert option.loss == pytest.approx(float(values[option.factoring.ranks[0] :].sum() / values.sum()), abs=1e-6)
