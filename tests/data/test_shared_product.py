"""Products with codes in both factors: what they cost and what they are worth."""

import pytest
import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import truncated, weighted_error
from sizewise.data.shared_forms import shared_form
from sizewise.data.shared_product import plain_factor, product_finenesses, share_product, shared_product
from sizewise.data.shared_size import Judge, Kind, fixed_bits, share
from sizewise.graph.coded import find_weights
from sizewise.graph.share_layers import Aim, SharedWalk
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs, Silent
from sizewise.storage.forms import stored_bytes

RANK = 5


class Net(nn.Module):
    """A recurrent layer whose state matrix is of rank 5."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(6, 40, batch_first=True)
        with torch.no_grad():
            self.memory.get_parameter("weight_hh_l0").copy_(0.06 * torch.randn(120, RANK) @ torch.randn(RANK, 40))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.memory(x)[0][:, -1]
        return out


def aim_of(*, data: bool) -> tuple[nn.Module, Aim, list[Inputs]]:
    torch.manual_seed(0)
    net, batches = Net().eval(), [Inputs((torch.randn(100, 8, 6),)) for _ in range(3)]
    graph = trace(net, batches[0]).program.module(check_guards=False)
    walk = SharedWalk(graph, find_weights(graph)[0], batches[:2] if data else [], 0, Silent())
    return net, next(aim for aim in walk.aims(fit=False) if aim.slot.weight.name.endswith("weight_hh_l0")), batches


def error(aim: Aim, values: Tensor) -> float:
    return weighted_error(aim.weight[0], values.double(), aim.moments[0])


@pytest.mark.parametrize("kind", ["grid", "codebook"])
@pytest.mark.parametrize("with_data", [True, False])
def test_bytes_fall_and_losses_rise_with_coarseness(kind: Kind, with_data: bool) -> None:
    net, aim, batches = aim_of(data=with_data)
    found = product_finenesses(aim, RANK, kind, 4.0, Judge(net, batches[2:] if with_data else []), 0)
    assert list(found.bytes) == sorted(found.bytes, reverse=True)
    assert list(found.losses) == sorted(found.losses)
    assert found.count == RANK * 160
    place = len(found.sizes) // 2
    form, _ = share_product(aim, RANK, kind, found.sizes[place])
    assert stored_bytes(form) == pytest.approx(found.bytes[place], rel=0.25, abs=60)
    assert form.left.shape == (120, RANK)


def test_finer_codes_are_nearer_and_factors_are_better_than_the_whole_in_as_many_bytes() -> None:
    _, aim, _ = aim_of(data=True)
    scale = float(truncated(aim.weight[0], aim.moments[0], RANK)[1].square().mean().sqrt())
    forms = [share_product(aim, RANK, "grid", scale * step)[0] for step in (0.2, 0.8)]
    errors = [error(aim, form.decode()) for form in forms]
    assert errors[0] < 0.3 * errors[1]
    rms = float(aim.weight.square().mean().sqrt())
    whole = [share(aim, "grid", rms * step) for step in (0.8, 1.2, 1.8, 2.5)]
    near = [one for one in whole if stored_bytes(shared_form(one, aim.slot.weight)) >= stored_bytes(forms[1])]
    assert near
    assert errors[1] < min(error(aim, one.values[0]) for one in near[-1:])


def test_the_left_factor_makes_up_for_the_right_ones_codes() -> None:
    _, aim, _ = aim_of(data=True)
    step = 0.5 * float(truncated(aim.weight[0], aim.moments[0], RANK)[1].square().mean().sqrt())
    form, _ = shared_product(aim, RANK, lambda own: share(own, "grid", step), lambda own, _: plain_factor(share(own, "grid", 1e-9), own))
    left, _ = truncated(aim.weight[0], aim.moments[0], RANK)
    plain = left @ form.right.decode().double()
    assert error(aim, form.decode()) < 0.95 * error(aim, plain)


def test_as_many_bits_in_both_factors() -> None:
    _, aim, _ = aim_of(data=True)
    form, density = shared_product(
        aim, RANK, lambda own: fixed_bits(own, 3, "auto", 0), lambda own, _: plain_factor(fixed_bits(own, 3, "auto", 0), own)
    )
    assert len(torch.unique(form.left.decode())) <= 8
    assert len(torch.unique(form.right.decode())) <= 8
    assert density > 0
