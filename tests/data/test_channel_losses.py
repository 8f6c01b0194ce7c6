"""Losses of channels against least squares and against the model's outputs."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.arith.surgeon import Reader, absorbed
from sizewise.data import channel_losses
from sizewise.data.channel_losses import group_losses, group_squares
from sizewise.errors import PreconditionError
from sizewise.graph.groups import Group, Member
from sizewise.graph.surgery import WHOLE
from sizewise.protocols import Inputs

EIGHT = tuple(range(8))


def chain(writer: nn.Module, reader: nn.Module) -> Any:
    """Two layers; the reader's outputs are the model's."""
    torch.manual_seed(0)
    model = nn.Sequential(writer, nn.Tanh(), reader).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def group(first: str = "0", last: str = "2") -> Group:
    return Group(8, (Member(first, "out", EIGHT), Member(last, "in", EIGHT)))


def batches(*shape: int, count: int = 200) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    return [Inputs((torch.randn(16 * count, *shape, generator=generator),))]  # with several, some would be held out


def outputs(model: nn.Module, data: list[Inputs]) -> Tensor:
    with torch.no_grad():
        return torch.cat([batch.call(model) for batch in data]).double()


def share(got: Tensor, want: Tensor) -> float:
    """Mean squared change as a share of the variance between examples."""
    return float((got - want).square().mean() / want.var(0, correction=0).mean())


def best_share(features: Tensor, want: Tensor, kept: list[int]) -> float:
    """What least squares with a constant reaches from some features."""
    design = torch.cat([features[:, kept], torch.ones(len(features), 1)], 1).double()
    return share(design @ torch.linalg.lstsq(design, want).solution, want)


@pytest.mark.parametrize("bias", [True, False])
def test_with_half_of_the_channels_gone_the_loss_is_that_of_the_outputs(bias: bool) -> None:
    model, data = chain(nn.Linear(12, 8), nn.Linear(8, 5, bias=bias)), batches(12)
    (found,) = group_losses(model, [group()], data)
    assert sorted(found.order) == list(EIGHT)
    assert len(found.losses) == 8
    assert found.losses[0] == 0
    assert all(a <= b for a, b in itertools.pairwise(found.losses))
    features = torch.cat([model[1](model[0](batch.args[0])) for batch in data]).detach()
    for gone in range(1, 7):  # of the layer that makes the outputs, every loss is theirs
        want = best_share(features, outputs(model, data), sorted(found.order[gone:]))
        assert found.losses[gone] == pytest.approx(want, rel=2e-3, abs=1e-5)


def test_losses_are_those_of_examples_that_the_update_was_not_fitted_to() -> None:
    """Sixteen examples let eight units be rebuilt from four almost without error, but only on themselves."""
    model = chain(nn.Linear(40, 8), nn.Linear(8, 5))
    many = batches(40, count=40)
    few = [Inputs((many[0].args[0][start : start + 6],)) for start in (0, 6)]
    (alone,), (held_out,), (true,) = (group_losses(model, [group()], data) for data in (few[:1], few, many))
    assert alone.losses[4] < 0.5 * true.losses[4] < held_out.losses[4]


@pytest.mark.parametrize(
    ("writer", "reader", "shape"),
    [
        (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3), (3, 7, 7)),
        (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3, padding=1, bias=False), (3, 7, 7)),
        (nn.Conv1d(3, 8, 3), nn.Conv1d(8, 2, 2, stride=2), (3, 9)),
        (nn.Conv3d(2, 8, 2), nn.Conv3d(8, 2, 2), (2, 3, 3, 3)),
        (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 2, 2, 2), (3, 4, 4)),
    ],
)
def test_channels_that_are_copies_go_first_and_cost_nothing(writer: nn.Module, reader: nn.Module, shape: tuple[int, ...]) -> None:
    model, data = chain(writer, reader), batches(*shape, count=400)
    with torch.no_grad():
        for values in writer.parameters():
            values[4:7] = values[:3]
    (found,) = group_losses(model, [group()], data)
    assert {min(channel, channel - 4) if channel in (4, 5, 6) else channel for channel in found.order[:3]} == {0, 1, 2}
    assert found.losses[3] < 0.01 * found.losses[7]  # what damping leaves


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_constant_is_made_up_for_behind_a_transposed_convolution(stride: int) -> None:
    model, data = chain(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 2, stride, stride)), batches(3, 4, 4, count=2)
    with torch.no_grad():
        model[0].bias.fill_(1.0)  # large means
    (found,) = group_losses(model, [group()], data)
    layer: Any = model[2]
    features = torch.cat([model[1](model[0](batch.args[0])) for batch in data]).detach().movedim(1, -1).reshape(-1, 8).double()
    reader = Reader(layer.weight.movedim(0, -1).reshape(-1, 8), torch.cov(features.T, correction=0), [[c] for c in EIGHT])
    changed = copy.deepcopy(model)
    weight = absorbed(reader, found.order[4:]).reshape(layer.weight.movedim(0, -1).shape).movedim(-1, 0)
    changed[2].weight.data = weight.float()
    got, want = outputs(changed, data), outputs(model, data)
    got += (want - got).mean((0, 2, 3), keepdim=True)
    assert found.losses[4] == pytest.approx(share(got, want), rel=1e-2)


RECURRENT: list[tuple[Any, dict[str, Any]]] = [
    (nn.GRU, {"num_layers": 2}),
    (nn.LSTM, {"bidirectional": True}),
    (nn.RNN, {"bias": False}),
]


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_hidden_units_that_are_copies_cost_nothing(kind: Any, options: dict[str, Any]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(4, 8, batch_first=True, **options)
            self.head = nn.Linear(16 if options.get("bidirectional") else 8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.layer(x)[0].mean(1))

    torch.manual_seed(0)
    model = Last().eval()
    with torch.no_grad():
        for values in model.layer.parameters():
            rows = values.view(-1, 8, *values.shape[1:])
            rows[:, 4:7] = rows[:, :3]
    own = EIGHT * (2 if options.get("bidirectional") else 1)
    units = Group(8, (Member("layer", "out", EIGHT), Member("head", "in", own)))
    (found,) = group_losses(model, [units], batches(6, 4))
    assert {channel % 4 for channel in found.order[:3]} == {0, 1, 2}
    assert found.losses[3] < 0.01 * found.losses[7]  # what damping leaves


class Residual(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.inner, self.out, self.size = nn.Linear(6, 8), nn.Linear(8, 6), size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.size * self.out(torch.relu(self.inner(x)))
        return out


def test_the_loss_of_a_block_is_what_the_outputs_lose_without_it() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(Residual(0.1), Residual(1.0), nn.Linear(6, 3)).eval(), batches(6)
    groups = [Group(1, (Member(path, WHOLE, (0,)),)) for path in ("0", "1")]
    found = group_losses(model, groups, data)
    for path, loss in zip(("0", "1"), found, strict=True):
        silent = copy.deepcopy(model)
        silent.get_submodule(path).size = 0.0  # type: ignore[assignment]
        assert loss.order == (0,)
        assert loss.losses == pytest.approx((0.0, share(outputs(silent, data), outputs(model, data))), rel=1e-5)
    assert found[0].losses[1] < found[1].losses[1]


def two_groups() -> tuple[Any, list[Group], list[Inputs]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return model, [group("0", "2"), group("2", "4")], batches(4)


def test_given_scores_decide_the_order_and_the_outputs_the_scale() -> None:
    model, groups, data = two_groups()
    scores = [torch.arange(8.0) + 1, torch.zeros(8)]
    scored, silent = group_losses(model, groups, data, scores=scores)
    assert scored.order == EIGHT
    assert all(a <= b for a, b in itertools.pairwise(scored.losses))
    assert silent == group_losses(model, groups, data)[1], "scores of zero say nothing"
    wanted, features = outputs(model, data), torch.cat([model[1](model[0](b.args[0])) for b in data]).detach()
    covariance = torch.cov(features.double().T, correction=0)
    weight = absorbed(Reader(model[2].weight, covariance, [[c] for c in EIGHT]), range(4, 8))
    changed = copy.deepcopy(model)
    changed[2].bias.data += ((model[2].weight.double() - weight) @ features.double().mean(0)).float()
    changed[2].weight.data = weight.float()
    assert scored.losses[4] == pytest.approx(share(outputs(changed, data), wanted), rel=1e-3)


def test_without_data_the_smallest_weights_go_first() -> None:
    model, groups, _ = two_groups()
    for own, found in zip(groups, group_losses(model, groups, []), strict=True):
        squares = group_squares(model, own)
        assert list(found.order) == squares.argsort().tolist()
        assert found.losses[-1] == pytest.approx(float(1 - squares.max() / squares.sum()))


def test_channels_that_nothing_readable_reads_go_by_their_weights() -> None:
    model, data = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)).eval(), batches(3, 5, 5)
    alone = Group(8, (Member("0", "out", EIGHT), Member("1", "out", EIGHT)))
    (found,) = group_losses(model, [alone], data)
    assert list(found.order) == group_squares(model, alone).argsort().tolist()


def test_the_model_is_left_as_it_was() -> None:
    model, groups, data = two_groups()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [id(parameter) for parameter in model.parameters()]
    group_losses(model, groups, data)
    group_losses(model, groups, data, scores=[torch.rand(8), torch.rand(8)])
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_groups_judged_a_few_at_a_time_are_judged_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups, data = two_groups()
    together = group_losses(model, groups, data)
    monkeypatch.setattr(channel_losses, "CHUNK_BYTES", 1)
    assert group_losses(model, groups, data) == together


def test_activations_that_are_not_finite_are_named() -> None:
    model, groups, _ = two_groups()
    with pytest.raises(PreconditionError, match="not finite"):
        group_losses(model, groups, [Inputs((torch.full((4, 4), float("nan")),))])


def test_squares_count_every_weight_of_a_channel_once_and_none_of_others() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 4), nn.Linear(6, 3))
    part = Group(2, (Member("0", "out", (0, -1, 1, 1)), Member("1", "in", (-1, 0, 0, 1, -1, -1))))
    first, last = model[0].weight.detach().double().square().sum(1), model[1].weight.detach().double().square().sum(0)
    want = torch.zeros(2, dtype=torch.float64)
    for own, rows in ((first, [(0, 0), (2, 1), (3, 1)]), (last, [(1, 0), (2, 0), (3, 1)])):
        whole = sum(own[row] for row, _ in rows)
        for row, channel in rows:
            want[channel] += own[row] / whole * 2
    assert torch.allclose(group_squares(model, part), want)
