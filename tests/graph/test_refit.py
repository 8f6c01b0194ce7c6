"""Two models in lockstep, and layers fitted to what the whole model computes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.graph.nets import Net
from torch import Tensor, nn

from sizewise.graph.lockstep import Lockstep
from sizewise.graph.refit import Kept, refit
from sizewise.graph.surgery import WHOLE, axis_size, cut, keep_indices, slices
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


def emptied(model: nn.Module, kept: Kept, data: list[Inputs]) -> nn.Module:
    """Zeros where channels go, and nothing fitted."""
    return loaded(model, refit(model, trace(model, data[0]).program, [], kept))


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
    wholes, twins = outputs(Lockstep(trace(model, data[0]).program.module(check_guards=False), data))
    for batch, whole, twin in zip(data, wholes, twins, strict=True):
        assert torch.equal(whole, twin)
        torch.testing.assert_close(whole, model(*batch.args))


def test_a_weight_that_is_replaced_on_the_way_counts_from_there_on_for_the_twin_alone() -> None:
    model, data = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), batches(3)
    lockstep = Lockstep(trace(model, data[0]).program.module(check_guards=False), data)
    wholes, twins = outputs(lockstep, before_linear=lambda: lockstep.weights.update({name: 0 * w for name, w in lockstep.weights.items()}))
    assert not any(value.any() for value in twins)
    torch.testing.assert_close(wholes[0], model(*data[0].args))


def test_nothing_lost_changes_nothing() -> None:
    model, data = resnet_cifar(8).eval(), batches(3, 12, 12)
    weights = refit(model, trace(model, data[0]).program, data, {})
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
    fitted = loaded(model, refit(model, trace(model, data[0]).program, data, kept))
    assert distance(model, fitted, data) < 0.2 * distance(model, emptied(model, kept, data), data)
    small = copy.deepcopy(fitted)
    for path, axes in kept.items():
        for axis, rows in axes.items():
            keep_indices(small.get_submodule(path), axis, list(rows))
    torch.testing.assert_close(small(*data[0].args), fitted(*data[0].args), rtol=1e-4, atol=1e-4)


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
    weights = refit(model, trace(model, data[0]).program, data, kept)
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
    weights = refit(model, trace(model, data[0]).program, data, {"first": {"out": range(3)}, "shared": {"in": range(3)}})
    assert torch.equal(weights["shared.weight"][:, :3], model.shared.weight[:, :3])
    assert not weights["shared.weight"][:, 3:].any()


# --- recurrent layers, and layers whose channels are copies


def copies(layer: nn.Module, axis: str, pairs: dict[int, int]) -> None:
    """Some indices of an axis become copies of others."""
    size = axis_size(layer, axis)
    with torch.no_grad():
        for name, dim, blocks in slices(layer, axis):
            values = getattr(layer, name).movedim(dim, 0)
            for block in range(blocks):
                for index, original in pairs.items():
                    values[block * size + index] = values[block * size + original]


LAYOUTS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "no biases": {"bias": False},
    "time first": {"batch_first": False},
}


def recurrent(kind: Any, options: dict[str, Any]) -> tuple[nn.Module, Kept]:
    """A recurrent layer between two linear ones, and half of its units and of its inputs to keep."""
    torch.manual_seed(0)
    both = options.get("bidirectional", False)
    net = Net(
        lambda m, x: m.o(m.r(m.i(x))[0]),
        i=nn.Linear(4, 6),
        r=kind(6, 8, **{"batch_first": True, **options}),
        o=nn.Linear(16 if both else 8, 3),
    )
    columns = [*range(4), *(range(8, 12) if both else ())]
    return net.eval(), {"i": {"out": range(3)}, "r": {"out": range(4), "in": range(3)}, "o": {"in": columns}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_fitted_recurrent_layer_is_nearer_to_the_whole_one(kind: Any, layout: str) -> None:
    model, kept = recurrent(kind, LAYOUTS[layout])
    data = batches(7, 4)
    fitted = loaded(model, refit(model, trace(model, data[0]).program, data, kept))
    assert distance(model, fitted, data) < 0.7 * distance(model, emptied(model, kept, data), data)
    small = copy.deepcopy(fitted)
    cut(small, kept)
    torch.testing.assert_close(small(*data[0].args), fitted(*data[0].args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_units_that_are_copies_of_others_are_made_up_for_entirely(kind: Any, layout: str) -> None:
    model, kept = recurrent(kind, LAYOUTS[layout])
    copies(model.get_submodule("i"), "out", {3: 0, 4: 1, 5: 2})
    copies(model.get_submodule("r"), "out", {4: 0, 5: 1, 6: 2, 7: 3})
    with torch.no_grad():  # copies are read with other weights than the originals
        for name, parameter in model.named_parameters():
            if name in ("r.weight_hh_l0", "o.weight", "r.weight_ih_l0"):
                parameter.add_(torch.arange(parameter.shape[1]) / 20)
    data = batches(7, 4, count=6)
    fitted = loaded(model, refit(model, trace(model, data[0]).program, data, kept))
    assert distance(model, fitted, data) < 1e-3 * distance(model, emptied(model, kept, data), data)


CONVOLUTIONS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 8), nn.Linear(8, 3), (4,)),
    "convolution": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3, 2, 1), (3, 8, 8)),
    "volume": (nn.Conv3d(2, 8, 1), nn.Conv3d(8, 2, 2), (2, 4, 4, 4)),
    "sequence": (nn.Conv1d(3, 8, 2), nn.Conv1d(8, 2, 2, dilation=2, bias=False), (3, 9)),
    "transposed": (nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 3, 2, 1), (3, 5, 5)),
    "transposed sequence": (nn.Conv1d(3, 8, 1), nn.ConvTranspose1d(8, 4, 4, 2), (3, 7)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_that_are_copies_of_others_are_made_up_for_entirely(name: str) -> None:
    writer, reader, shape = CONVOLUTIONS[name]
    model = copy.deepcopy(nn.Sequential(writer, nn.Tanh(), reader)).eval()
    copies(model[0], "out", {4: 0, 5: 1, 6: 2, 7: 3})
    kept: Kept = {"0": {"out": range(4)}, "2": {"in": range(4)}}
    data = batches(*shape)
    fitted = loaded(model, refit(model, trace(model, data[0]).program, data, kept))
    assert distance(model, fitted, data) < 1e-4 * distance(model, emptied(model, kept, data), data)


def test_outputs_that_go_too_stay_zero() -> None:
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval(),
        batches(3, 5, 5),
    )
    kept: Kept = {"0": {"out": range(3)}, "2": {"in": range(3), "out": range(1, 5)}, "4": {"in": range(1, 5)}}
    weights = refit(model, trace(model, data[0]).program, data, kept)
    fitted = loaded(model, weights)
    assert distance(model, fitted, data) < distance(model, emptied(model, kept, data), data)
    gone = [0, 5, 6, 7]
    assert not weights["2.weight"][:, gone].any()
    assert not weights["2.weight"][3:].any()
    assert not weights["2.bias"][gone].any()
    assert not weights["4.weight"][:, gone].any()


def test_groups_of_a_convolution_are_fitted_each_by_itself() -> None:
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval(),
        batches(3, 6, 6),
    )
    kept: Kept = {"0": {"out": range(4)}, "2": {"out": range(4)}, "4": {"in": range(4)}}
    fitted = loaded(model, refit(model, trace(model, data[0]).program, data, kept))
    assert distance(model, fitted, data) < distance(model, emptied(model, kept, data), data)
    small = copy.deepcopy(fitted)
    cut(small, kept)
    torch.testing.assert_close(small(*data[0].args), fitted(*data[0].args), rtol=1e-4, atol=1e-5)


def test_what_follows_a_block_that_was_left_out_makes_up_for_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            joined: Tensor = x + self.out(torch.relu(self.inner(x)))
            return joined

    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 3)).eval(), batches(4)
    kept: Kept = {"1": {WHOLE: []}}
    fitted = loaded(model, refit(model, trace(model, data[0]).program, data, kept))
    small = copy.deepcopy(fitted)
    cut(small, kept)
    torch.testing.assert_close(small(*data[0].args), fitted(*data[0].args))
    assert distance(model, fitted, data) < 0.5 * distance(model, emptied(model, kept, data), data)


def test_the_same_seed_fits_the_same_and_the_model_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model, data = resnet_cifar(8).eval(), batches(3, 12, 12)
    before = copy.deepcopy(model.state_dict())
    one, two = (refit(model, trace(model, data[0]).program, data, CUTS["two blocks"], seed=3) for _ in range(2))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
