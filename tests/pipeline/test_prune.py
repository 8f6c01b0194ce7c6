"""`prune_model`, as a user calls it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sizewise
from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.prune import pruning_step
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs, Silent
from sizewise.types import Step, from_json, to_json
from sizewise.zoo.resnet import resnet_cifar

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
BATCHES = [(X[:8], torch.zeros(8)), (X[8:], torch.zeros(8))]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return resnet_cifar(8).eval()


def unchanged(model: nn.Module, before: dict[str, Any]) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_with_example_inputs_channels_go_and_the_model_is_left_alone(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    pruned = sizewise.prune_model(model, 0.5, example_inputs=X[:1], calibration=BATCHES)
    macs = [static_cost(m, Inputs((X[:1],))).macs for m in (model, pruned)]
    assert 0.4 < macs[1] / macs[0] <= 0.52
    assert unchanged(model, before)
    assert pruned(X).shape == (16, 10)
    assert "of the MACs removed" in pruned.pruning.notes[0]  # type: ignore[union-attr, index]


def test_blocks_alone_go_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(4, 3, 16, 16), resnet_cifar(20).eval()
    pruned = sizewise.prune_model(model, 0.4, granularity="block", example_inputs=x[:1], calibration=[x])
    kept = {name: weight.shape for name, weight in pruned.named_parameters()}
    assert kept.items() <= {name: weight.shape for name, weight in model.named_parameters()}.items(), "what stays is as wide as it was"
    assert {name.split(".")[0] for name in kept} == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}
    assert 0.5 < static_cost(pruned, Inputs((x[:1],))).macs / static_cost(model, Inputs((x[:1],))).macs <= 0.62
    with pytest.raises(UnsupportedModel, match="no residual block"):
        sizewise.prune_model(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), 0.4, granularity="block", example_inputs=x[:1])


def test_without_example_inputs_weights_become_zero(model: nn.Module) -> None:
    pruned = sizewise.prune_model(model, 0.5)
    layers = [m for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zeros = sum(int((m.weight == 0).sum()) for m in layers)
    assert zeros / sum(m.weight.numel() for m in layers) == pytest.approx(0.5, abs=0.02)
    notes: str = " ".join(pruned.pruning.notes)  # type: ignore[union-attr, arg-type]
    assert "do not run it faster" in notes
    assert "stored where zeros are coded" in notes
    assert [m.weight.shape for m in layers] == [m.weight.shape for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_calibration_alone_is_enough_for_weights(model: nn.Module) -> None:
    found = sizewise.prune_model(model, 0.5, calibration=BATCHES)
    want = sizewise.prune_model(model, 0.5, calibration=BATCHES, granularity="weight", example_inputs=X[:1])
    assert "chosen by surgeon" in found.pruning.notes  # type: ignore[union-attr, operator]
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), want.state_dict().values(), strict=True))


def test_two_of_four(model: nn.Module) -> None:
    pruned = sizewise.prune_model(model, granularity="2:4", example_inputs=X[:1], calibration=BATCHES)
    weight: torch.Tensor = pruned.layer1[0].conv1.weight  # type: ignore[union-attr, index]
    fours = weight.permute(0, 2, 3, 1).reshape(-1, 4)
    assert bool(((fours != 0).sum(1) <= 2).all())


def test_parameters_may_be_what_counts(model: nn.Module) -> None:
    pruned = sizewise.prune_model(model, 0.6, example_inputs=X[:1], calibration=BATCHES, target="params")
    left = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    assert 0.3 < left <= 0.42


def test_channel_counts_are_multiples_of_what_is_asked_for(model: nn.Module) -> None:
    pruned = sizewise.prune_model(model, 0.5, example_inputs=X[:1], calibration=BATCHES, multiple=4)
    inner = [block.conv1.out_channels for stage in (pruned.layer1, pruned.layer2, pruned.layer3) for block in stage]  # type: ignore[union-attr]
    assert all(count % 4 == 0 for count in inner)
    assert inner != [16, 32, 64]


def test_in_place_changes_the_very_module(model: nn.Module) -> None:
    want = sizewise.prune_model(model, 0.4, example_inputs=X[:1], calibration=BATCHES)(X)
    found = sizewise.prune_model(model, 0.4, example_inputs=X[:1], calibration=BATCHES, in_place=True)
    assert found is model
    torch.testing.assert_close(model(X), want)
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_failure_in_place_leaves_the_model_as_it_was(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PreconditionError, match="cannot be removed"):
        sizewise.prune_model(model, 0.999, example_inputs=X[:1], calibration=BATCHES, in_place=True)
    assert unchanged(model, before)


def test_frozen_parameters_stay_frozen_and_the_seed_decides(model: nn.Module) -> None:
    for parameter in model.conv1.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    first, second = (sizewise.prune_model(model, 0.5, example_inputs=X[:1], calibration=BATCHES, seed=3) for _ in range(2))
    assert not first.conv1.weight.requires_grad  # type: ignore[union-attr]
    assert first.linear.weight.requires_grad  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_what_is_skipped_keeps_its_channels(model: nn.Module) -> None:
    pruned = sizewise.prune_model(model, 0.3, example_inputs=X[:1], calibration=BATCHES, skip=["layer1.0.conv1"])
    assert pruned.layer1[0].conv1.out_channels == 16  # type: ignore[union-attr, index]
    assert [s.reason for s in pruned.pruning.skipped if s.what == "layer1.0.conv1"] == ["skipped on request"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"pruning_rate": 1.0, "example_inputs": X}, "rate must be more than 0 and less than 1"),
        ({"granularity": "channel"}, "without example inputs"),
        ({"example_inputs": X, "method": "wanda"}, "unknown method"),
        ({"example_inputs": X, "target": "bytes"}, "unknown target"),
        ({"granularity": "3:2"}, "3:2"),
        ({"example_inputs": X, "multiple": -1}, "multiples of at least 1"),
        ({"granularity": "2:4", "pruning_rate": 0.7}, "removes 50% of the weights and no other share"),
        ({"granularity": "weight", "target": "params"}, "only where channels go"),
        ({"granularity": "4x1", "multiple": 4}, "only where channels go"),
    ],
)
def test_what_cannot_be_meant(model: nn.Module, options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        sizewise.prune_model(model, **options)


def test_activations_that_are_not_finite_are_named(model: nn.Module) -> None:
    with pytest.raises(PreconditionError, match="not finite"):
        sizewise.prune_model(model, 0.5, example_inputs=X[:1], calibration=[torch.full_like(X, float("nan"))])


def test_an_unknown_granularity_names_what_there_is(model: nn.Module) -> None:
    with pytest.raises(UnknownName, match="unknown granularity") as caught:
        sizewise.prune_model(model, granularity="chanel", example_inputs=X)
    assert "did you mean 'channel'" in str(caught.value)


class Heard(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.doing: list[str] = []
        self.done: list[str] = []

    def working(self, what: str) -> None:
        self.doing.append(what)

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        self.done.append(line)


def test_progress_goes_where_it_is_asked_to(model: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    heard = Heard()
    sizewise.prune_model(model, 0.5, example_inputs=X[:1], calibration=BATCHES, progress=heard)
    assert heard.doing
    assert all(what.startswith("pruning: ") for what in heard.doing)
    assert len(heard.done) == 1
    assert "of the MACs removed" in heard.done[0]
    assert capfd.readouterr().err == ""


def test_progress_is_shown_on_stderr_only_when_asked_for(model: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    sizewise.prune_model(model, 0.5)
    assert capfd.readouterr() == ("", "")
    sizewise.prune_model(model, 0.5, progress=True)
    assert "[1/1] pruning done: " in capfd.readouterr().err


def test_a_step_holds_what_was_asked_for_and_nothing_else() -> None:
    assert pruning_step(0.3) == Step(technique="channel_pruning", settings={"rate": 0.3})
    assert pruning_step(0.3, granularity="block").settings == {"rate": 0.3, "parts": "blocks"}
    assert pruning_step(granularity="2:4", method="wanda").settings == {"pattern": "2:4", "method": "wanda"}
    asked = pruning_step(0.3, target="params", multiple=1, skip=("head",))
    assert from_json(Step, to_json(asked)) == asked
    assert asked.settings == {"rate": 0.3, "target": "params", "multiple": 1, "skip": ["head"]}
