"""Finenesses that fit a size, and the forms that weights and vectors are stored in."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from sizewise.arith.shared_codes import Shared
from sizewise.data.shared_forms import model_bytes, plain_form, shared_form, vector_form
from sizewise.data.shared_size import Budget, Fineness, Judge, finenesses, fixed_bits, share
from sizewise.graph.coded import Weight, find_weights
from sizewise.graph.share_layers import SharedWalk
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs, Silent
from sizewise.storage.forms import Codebook, Constant, Integers, stored_bytes


def model() -> tuple[nn.Module, GraphModule, list[Weight], list[Inputs]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    data = [Inputs((torch.randn(100, 24),)) for _ in range(3)]
    graph: GraphModule = trace(net, data[0]).program.module(check_guards=False)
    return net, graph, find_weights(graph)[0], data


@pytest.mark.parametrize("kind", ["grid", "codebook"])
@pytest.mark.parametrize("with_data", [True, False])
def test_bytes_fall_and_losses_rise_with_coarseness(kind: str, with_data: bool) -> None:
    net, graph, weights, data = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    judge = Judge(net, data[2:] if with_data else [])
    for aim in SharedWalk(graph, weights, data[:2] if with_data else [], 0, Silent()).aims(fit=False):
        found = finenesses(aim, kind, 3.0, judge, 0)  # type: ignore[arg-type]
        assert list(found.bytes) == sorted(found.bytes, reverse=True)
        assert list(found.losses) == sorted(found.losses)
        assert found.bytes[0] > 3 * found.bytes[-1]
        place = len(found.sizes) // 2
        stored = stored_bytes(shared_form(share(aim, kind, found.sizes[place]), aim.slot.weight))  # type: ignore[arg-type]
        assert stored == pytest.approx(found.bytes[place], rel=0.15)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_losses_are_those_of_the_models_outputs() -> None:
    net, graph, weights, data = model()
    judge = Judge(net, data[2:])
    for aim in SharedWalk(graph, weights, data[:2], 0, Silent()).aims(fit=False):
        found = finenesses(aim, "grid", 3.0, judge, 0)
        place = min(range(len(found.sizes)), key=lambda i: abs(8 * found.bytes[i] / found.count - 3.0))
        assert found.losses[place] == pytest.approx(judge.loss(aim, share(aim, "grid", found.sizes[place]).values), rel=0.3)


def options() -> list[Fineness]:
    sizes = tuple(float(2**i) for i in range(6))
    return [
        Fineness("cheap", sizes, tuple(1000 - 125.0 * i for i in range(6)), tuple(1e-3 * (4**i - 1) for i in range(6)), 1000),
        Fineness("dear", sizes, tuple(1000 - 125.0 * i for i in range(6)), tuple(1e-1 * (4**i - 1) for i in range(6)), 1000),
    ]


def test_weights_that_lose_little_get_coarser_steps_and_all_fits() -> None:
    budget = Budget(options(), 1500)
    assert budget.planned <= 1500
    assert budget.size("cheap", "grid") > 4 * budget.size("dear", "grid")


def test_what_one_weight_takes_too_much_the_others_make_up_for() -> None:
    frugal, greedy = Budget(options(), 1500), Budget(options(), 1500)
    frugal.settled("cheap", 300.0)
    greedy.settled("cheap", 900.0)
    assert frugal.size("dear", "grid") < greedy.size("dear", "grid")
    assert frugal.bits() > greedy.bits()


@pytest.mark.parametrize(("bits", "values"), [(2, "uniform"), (3, "codebook"), (4, "auto"), (8, "uniform")])
def test_fixed_bits_are_kept(bits: int, values: str) -> None:
    _, graph, weights, data = model()
    for aim in SharedWalk(graph, weights, data, 0, Silent()).aims(fit=True):
        found = fixed_bits(aim, bits, values, 0)
        assert len(torch.unique(found.values)) <= 2**bits


def test_forms_decode_to_what_codes_are_worth() -> None:
    weight = Weight("w", ("w",), torch.zeros(3, 4, 2), 1, ())
    codes = torch.randint(-3, 4, (1, 4, 6))
    grid = Shared(codes, torch.arange(-3, 4).float() * 0.3, -3, 0.3, 0.0)
    listed = Shared(codes + 3, torch.tensor([-0.9, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), 0, None, 0.0)
    for shared, kind in ((grid, Integers), (listed, Codebook)):
        form = shared_form(shared, weight)
        assert isinstance(form, kind)
        want = shared.values.reshape(4, 3, 2).movedim(0, 1)
        torch.testing.assert_close(form.decode(), want, rtol=2e-3, atol=0)


def test_vectors_are_short_where_that_is_harmless() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(256, generator=generator)
    exact, half, coarse = value * 1e-20, plain_form(value), vector_form(value, 0.05)
    assert torch.equal(plain_form(exact).decode(), exact)
    assert torch.equal(half.decode(), value.half().float())
    assert stored_bytes(coarse) < 0.7 * stored_bytes(half)
    assert float((coarse.decode() - value).abs().max()) <= 0.0251
    assert torch.equal(vector_form(value, 1e-6).decode(), half.decode())  # a byte cannot count so many steps
    assert isinstance(vector_form(torch.zeros(9), 0.1), Constant)
    assert vector_form(torch.tensor(3), None).decode() == 3


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def test_tied_tensors_are_counted_once() -> None:
    torch.manual_seed(0)
    tied, single = Tied(), nn.Linear(30, 30, bias=False)
    sizes = [model_bytes(net, {name: plain_form(value) for name, value in net.state_dict().items()}) for net in (tied, single)]
    assert sizes[0] == pytest.approx(sizes[1], abs=30)
