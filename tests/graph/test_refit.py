"""Two models in lockstep, and layers fitted to what the whole model computes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sizewise.graph.lockstep import Lockstep
from sizewise.graph.refit import Kept, refit
from sizewise.graph.surgery import keep_indices
from sizewise.graph.trace import trace
from sizewise.protocols import Inputs
from sizewise.zoo.resnet import resnet_cifar


def batches(*shape: int, count: int = 3) -> list[Inputs]:
    generator = torch.Generator().manual_seed(1)
    return [Inputs((torch.randn(8, *shape, generator=generator),)) for _ in range(count)]


def loaded(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights, strict=False)
    return twin


def distance(model: nn.Module, other: nn.Module, data: list[Inputs]) -> float:
    """Squared difference of the outputs as a share of their variance."""
    with torch.no_grad():
        pairs = [(batch.call(model), batch.call(other)) for batch in data]
    mine, theirs = (torch.cat(list(side)) for side in zip(*pairs, strict=True))
    return float((mine - theirs).square().mean() / mine.var())


def emptied(model: nn.Module, kept: Kept) -> nn.Module:
    """Zeros where channels go, and nothing fitted."""
    return loaded(model, refit(trace(model, batches(3, 12, 12)[0]).program, [], kept))


def outputs(lockstep: Lockstep, before_linear: Callable[[], None] = lambda: None) -> tuple[list[Tensor], list[Tensor]]:
    """Both models' outputs per batch, at the end of a walk."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for node in lockstep.walk():
        if node.op == "call_function" and "linear" in str(node.target):
            before_linear()
        if node.op == "output":
            found = lockstep.whole(node.all_input_nodes[0]), lockstep.twin(node.all_input_nodes[0])
    return found


def test_in_lockstep_the_whole_and_an_unchanged_twin_are_the_model() -> None:
    model, data = resnet_cifar(8).eval(), batches(3, 12, 12)
    wholes, twins = outputs(Lockstep(trace(model, data[0]).program, data))
    for batch, whole, twin in zip(data, wholes, twins, strict=True):
        assert torch.equal(whole, twin)
        torch.testing.assert_close(whole, model(*batch.args))


def test_a_weight_that_is_replaced_on_the_way_counts_from_there_on_for_the_twin_alone() -> None:
    model, data = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), batches(3)
    lockstep = Lockstep(trace(model, data[0]).program, data)
    wholes, twins = outputs(lockstep, before_linear=lambda: lockstep.weights.update({name: 0 * w for name, w in lockstep.weights.items()}))
    assert not any(value.any() for value in twins)
    torch.testing.assert_close(wholes[0], model(*data[0].args))


def test_nothing_lost_changes_nothing() -> None:
    model, data = resnet_cifar(8).eval(), batches(3, 12, 12)
    weights = refit(trace(model, data[0]).program, data, {})
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items() if name in weights)


CUTS: dict[str, Kept] = {
    "a block's inside": {"layer1.0.conv1": {"out": range(8)}, "layer1.0.bn1": {"out": range(8)}, "layer1.0.conv2": {"in": range(8)}},
    "two blocks": {
        "layer1.0.conv1": {"out": range(4, 12)},
        "layer1.0.bn1": {"out": range(4, 12)},
        "layer1.0.conv2": {"in": range(4, 12)},
        "layer2.0.conv1": {"out": range(16)},
        "layer2.0.bn1": {"out": range(16)},
        "layer2.0.conv2": {"in": range(16)},
    },
}


@pytest.mark.parametrize("kept", CUTS.values(), ids=CUTS)
def test_a_fitted_model_is_nearer_to_the_whole_and_cutting_the_zeros_changes_nothing(kept: Kept) -> None:
    torch.manual_seed(0)
    model, data = resnet_cifar(8), batches(3, 12, 12, count=8)
    for batch in data:
        model.train()(*batch.args)
    model.eval()
    fitted = loaded(model, refit(trace(model, data[0]).program, data, kept))
    assert distance(model, fitted, data) < 0.2 * distance(model, emptied(model, kept), data)
    cut = copy.deepcopy(fitted)
    for path, axes in kept.items():
        for axis, rows in axes.items():
            keep_indices(cut.get_submodule(path), "out" if axis == "out" else "in", list(rows))
    torch.testing.assert_close(cut(*data[0].args), fitted(*data[0].args), rtol=1e-4, atol=1e-4)


class Stream(nn.Module):
    """A stream that loses half of what the first branch adds, and a second branch that could add it too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.second, self.back = nn.Linear(6, 32), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(torch.relu(self.first(x)))
        joined: Tensor = x + self.back(torch.relu(self.second(x)))
        return joined


def test_what_a_residual_stream_has_lost_is_made_up_for_by_later_branches() -> None:
    torch.manual_seed(0)
    model, data = Stream().eval(), batches(6, count=20)
    kept: Kept = {"first": {"out": range(3)}, "out": {"in": range(3)}}
    weights = refit(trace(model, data[0]).program, data, kept)
    fitted = loaded(model, weights)
    without = loaded(model, {name: value for name, value in weights.items() if not name.startswith(("second", "back"))})
    assert distance(model, fitted, data) < 0.5 * distance(model, without, data)


def test_a_weight_that_is_used_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.shared(torch.relu(self.shared(self.first(x))))
            return out

    torch.manual_seed(0)
    model, data = Twice().eval(), batches(4)
    weights = refit(trace(model, data[0]).program, data, {"first": {"out": range(6)}, "shared": {}})
    assert torch.equal(weights["shared.weight"], model.shared.weight)
