"""Pruning of weights beyond the conformance kit: shares, patterns in layers, order, what is left alone, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.data.statistics import reestimate_normalization
from sizewise.errors import PreconditionError, SizewiseError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.apply import apply_plan, make_technique
from sizewise.protocols import Context, Inputs
from sizewise.search.levers import low_rank_lever, pruning_lever
from sizewise.testing.models import TinyConv
from sizewise.types import Change, Plan, Step
from sizewise.zoo.mobilenet import MobileNetV2

DATA_METHODS = ("wanda", "surgeon")


def prune(model: nn.Module, x: Tensor, *, data: bool = True, batches: int = 1, **settings: Any) -> tuple[nn.Module, Change]:
    plan = Plan(scale="x", steps=(Step(technique="weight_pruning", settings=settings),))
    calibration = [Inputs((part,)) for part in x.chunk(batches)] if data else None
    module, _, changes = apply_plan(model, plan, Context(Inputs((x,)), calibration))
    return module, changes[0]


def reasons(change: Change) -> dict[str, str]:
    return {skip.what: skip.reason for skip in change.skipped}


def share(model: nn.Module, change: Change) -> float:
    weights = [model.get_parameter(f"{path}.weight") for path in change.touched]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("method", ["magnitude", "global", "wanda", "surgeon"])
@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_the_share_of_zeros_is_what_was_asked(method: str, rate: float) -> None:
    model, x = MobileNetV2(0.25, classes=7), torch.randn(4, 3, 16, 16)
    pruned, change = prune(model, x, method=method, rate=rate)
    got = share(pruned, change)
    assert got == pytest.approx(rate, abs=0.002)
    zeros = sum(change.record["zeros"].values()) / sum(p.numel() for p in model.parameters())
    note = change.notes[1]
    assert f"{got:.1%} of the weights of {len(change.touched)} treated layers" in note
    assert f"{zeros:.1%} of all parameters" in note
    assert "do not run it faster" in note
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pruned.modules()), "plain zeros, no hooks"
    assert {name: p.shape for name, p in pruned.named_parameters()} == {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["magnitude", *DATA_METHODS])
def test_n_of_m_holds_over_input_channels_at_every_tap(method: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(1), nn.Linear(24, 3))
    pruned, change = prune(model, torch.randn(20, 8, 4, 4), method=method, pattern="2:4")
    assert change.touched == ("0", "2")
    channels = pruned.get_parameter("0.weight").movedim(1, -1).reshape(-1, 4)
    assert ((channels != 0).sum(1) == 2).all()
    assert ((pruned.get_parameter("2.weight").reshape(-1, 4) != 0).sum(1) == 2).all()


@pytest.mark.parametrize("method", ["magnitude", "global", *DATA_METHODS])
def test_blocks_hold_consecutive_outputs_of_one_input(method: str) -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 2), nn.Flatten(1), nn.Linear(16, 4))
    pruned, _ = prune(model, torch.randn(20, 3, 3), method=method, pattern="4x1")
    for path in ("0", "2"):
        blocks = pruned.get_parameter(f"{path}.weight").flatten(1)
        counts = (blocks.reshape(-1, 4, blocks.shape[1]) != 0).sum(1)
        assert set(counts.flatten().tolist()) == {0, 4}


def test_what_a_pattern_does_not_fit_is_named() -> None:
    _, change = prune(TinyConv(), torch.randn(4, 1, 6, 6), pattern="2:4")
    assert reasons(change) == {"stem.0": "its 1 inputs are not a multiple of 4", "depthwise": "its 1 inputs are not a multiple of 4"}
    _, change = prune(TinyConv(), torch.randn(4, 1, 6, 6), pattern="4x1")
    assert reasons(change) == {"depthwise": "its 1 outputs are not a multiple of 4"}


def test_the_surgeon_loses_less_of_the_output_than_magnitude() -> None:
    torch.manual_seed(1)
    mix = torch.randn(6, 24)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))
    x, unseen = (torch.relu(torch.randn(n, 6) @ mix) + 0.1 * torch.randn(n, 24) + 1 for n in (512, 256))
    losses = {}
    for method in ("magnitude", "wanda", "surgeon"):
        pruned, _ = prune(model, x, method=method, rate=0.6)
        with torch.no_grad():
            losses[method] = float((pruned(unseen) - model(unseen)).square().mean())
    assert losses["surgeon"] < 0.3 * losses["wanda"]
    assert losses["surgeon"] < 0.3 * losses["magnitude"]


def test_a_bias_takes_up_what_the_mean_of_the_outputs_loses() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), torch.rand(16, 3, 6, 6) + 2
    pruned, _ = prune(model, x, method="surgeon", rate=0.8)
    with torch.no_grad():
        assert torch.allclose(pruned(x).mean((0, 2, 3)), model(x).mean((0, 2, 3)), atol=1e-4)


def test_auto_is_the_surgeon_with_data_and_magnitude_without() -> None:
    model, x = TinyConv(), torch.randn(8, 1, 6, 6)
    for data, method in ((True, "surgeon"), (False, "magnitude")):
        auto, change = prune(model, x, data=data)
        named, _ = prune(model, x, method=method)
        assert change.notes[0] == f"chosen by {method}"
        assert all(torch.equal(a, b) for a, b in zip(auto.parameters(), named.parameters(), strict=True))


def test_magnitude_keeps_the_largest_of_each_layer_and_global_of_all() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(100)
    for method, kept in (("magnitude", (8, 8)), ("global", (1, 15))):
        pruned, _ = prune(model, torch.randn(2, 4), method=method)
        weights = [
            (before.weight.detach(), pruned.get_parameter(f"{i}.weight").detach())
            for i, before in enumerate(model)
            if isinstance(before, nn.Linear)
        ]
        assert tuple(int((after != 0).sum()) for _, after in weights) == kept
        for before, after in weights:
            assert float(before[after == 0].abs().max()) <= float(after[after != 0].abs().min())
            assert torch.equal(before[after != 0], after[after != 0])


def test_normalization_behind_a_pruned_layer_is_measured_anew_where_that_helps() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 3 + torch.randn(64, 3, 6, 6)
    reestimate_normalization(model, [Inputs((x,))])  # a trained model's statistics are those of its data
    pruned, _ = prune(model, x, method="magnitude", rate=0.7)
    with torch.no_grad():
        normal = pruned(x).movedim(1, 0).flatten(1)
    alive = pruned.get_parameter("0.weight").flatten(1).any(1)
    torch.testing.assert_close(normal.mean(1), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std(1)[alive], torch.ones(8)[alive], atol=1e-2, rtol=0)
    unmeasured, change = prune(model, x, data=False, method="magnitude", rate=0.7)
    assert torch.equal(unmeasured.get_buffer("1.running_var"), model.get_buffer("1.running_var"))
    assert "no calibration data: normalization statistics are those of the unpruned model" in change.notes


class Backwards(nn.Module):
    """Declares its layers in another order than it runs them; counts its calls and what reaches the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(6, 3), nn.Linear(4, 6)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


@pytest.mark.parametrize("method", DATA_METHODS)
def test_a_layer_sees_what_the_pruned_layers_before_it_pass_on(method: str) -> None:
    model, x = Backwards(), torch.randn(64, 4)
    pruned, _ = prune(model, x, method=method)
    first_only, _ = prune(model, x, method=method, skip=["last"])
    torch.testing.assert_close(pruned.get_parameter("first.weight"), first_only.get_parameter("first.weight"))
    second, _ = prune(first_only, x, method=method, skip=["first"])
    torch.testing.assert_close(pruned.get_parameter("last.weight"), second.get_parameter("last.weight"))


def test_the_cost_is_one_pass_over_the_data_per_layer() -> None:
    technique, model, x = make_technique("weight_pruning", {}), Backwards(), torch.randn(12, 4)
    technique.apply(model, Context(Inputs((x,)), [Inputs((part,)) for part in x.chunk(3)]))
    assert model.calls == 1 + 2 * 3, "one call for the order, three batches for each of two layers"


class Tied(nn.Module):
    """Two layers with one weight, another one tied to an embedding, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.one, self.two, self.twice, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.two.weight, self.out.weight = self.one.weight, self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.twice(self.twice(self.two(self.one(self.embedding(x))))))
        return out


@pytest.mark.parametrize("method", ["magnitude", "surgeon"])
def test_tied_weights_are_treated_once_and_stay_tied(method: str) -> None:
    pruned, change = prune(Tied(), torch.randint(0, 10, (32, 5)), method=method)
    assert change.touched == ("one", "twice")
    assert pruned.get_parameter("two.weight") is pruned.get_parameter("one.weight")
    assert share(pruned, change) == 0.5
    assert reasons(change) == {
        "embedding": "weights of Embedding are not pruned",
        "two": "shares its weight with one and is treated there",
        "out": "shares its weight with embedding, a layer of another kind",
    }
    _, change = prune(Tied(), torch.randint(0, 10, (32, 5)), method=method, skip=["two"])
    assert reasons(change)["one"] == "shares its weight with two, which is asked to be left alone"


def test_kinds_that_are_not_pruned_single_weights_and_computed_weights_are_named() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 1),
        nn.ConvTranspose1d(4, 2, 1),
        nn.Conv1d(2, 1, 1),
        nn.Conv1d(1, 1, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 3, 3)),
    )
    _, change = prune(model, torch.randn(4, 2, 9))
    assert change.touched == ("0", "2")
    found = reasons(change)
    assert found["1"] == "weights of ConvTranspose1d are not pruned"
    assert found["3"] == "has a single block of weights"
    assert found["4"] == "its weight is computed from other parameters"


class Unreached(nn.Module):
    """A layer that never runs, and one that sees infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.unused, self.blind = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.blind(x / 0.0)
        out: Tensor = self.seen(x)
        return out


@pytest.mark.parametrize("method", DATA_METHODS)
def test_layers_without_usable_inputs_are_left_alone_and_named(method: str) -> None:
    model = Unreached()
    pruned, change = prune(model, torch.randn(8, 4), method=method)
    assert change.touched == ("seen",)
    assert reasons(change) == {
        "unused": "is never called as a layer on the calibration data",
        "blind": "its inputs on the calibration data are not finite",
    }
    assert torch.equal(pruned.get_parameter("blind.weight"), model.blind.weight)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_a_layer_too_wide_for_second_moments_is_pruned_by_magnitude_and_named(method: str) -> None:
    pruned, change = prune(nn.Sequential(nn.Linear(8200, 2)), torch.randn(3, 8200), method=method)
    assert share(pruned, change) == 0.5
    assert reasons(change) == {"0": f"not treated by {method} but by magnitude: 8200 inputs are more than 8192"}


@pytest.mark.parametrize("method", ["magnitude", "surgeon"])
def test_half_precision_stays_half(method: str) -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).to(torch.bfloat16)
    pruned, change = prune(model, torch.randn(32, 16).bfloat16(), method=method)
    assert all(p.dtype == torch.bfloat16 for p in pruned.parameters())
    assert share(pruned, change) == pytest.approx(0.5)


def test_layers_to_skip_go_by_path_or_by_the_module_that_holds_them() -> None:
    _, change = prune(TinyConv(), torch.randn(4, 1, 6, 6), skip=("stem", "head"))
    assert change.touched == ("depthwise", "inner.0")
    assert reasons(change) == {"stem.0": "asked to be left alone", "head": "asked to be left alone"}


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"rate": 1.0}, UsageError, "rate must be"),
        ({"pattern": "4:2"}, UsageError, "not a pattern"),
        ({"method": "magnitud"}, UnknownName, "did you mean 'magnitude'"),
        ({"method": "global", "pattern": "2:4"}, UsageError, "cannot be chosen across layers"),
        ({"skip": ("hed",)}, UnknownName, "did you mean 'head'"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], kind: type[SizewiseError], message: str) -> None:
    with pytest.raises(kind, match=message):
        prune(TinyConv(), torch.randn(2, 1, 6, 6), **settings)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_methods_that_look_at_data_need_some(method: str) -> None:
    with pytest.raises(PreconditionError, match=f"{method} needs calibration data"):
        prune(TinyConv(), torch.randn(2, 1, 6, 6), data=False, method=method)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = TinyConv()
    with torch.no_grad():
        model.head.weight[0, 0] = value
    with pytest.raises(PreconditionError, match="weight_pruning, head: weights are not finite"):
        prune(model, torch.randn(2, 1, 6, 6))


def test_a_model_without_layers_to_prune_says_why() -> None:
    with pytest.raises(UnsupportedModel, match="no layer can be pruned") as caught:
        prune(nn.Sequential(nn.ConvTranspose1d(2, 2, 1)), torch.randn(2, 2, 3), method="global")
    assert caught.value.got == "0: weights of ConvTranspose1d are not pruned"


def test_a_record_of_another_model_is_refused() -> None:
    technique = make_technique("weight_pruning", {})
    with pytest.raises(PreconditionError, match="do not fit this model"):
        technique.rebuild(TinyConv(), {"zeros": {"elsewhere": 3}}, Context(Inputs((torch.randn(1, 1, 6, 6),))))


def test_fit_does_not_try_it() -> None:
    levers = [pruning_lever("macs", recovers=False), low_rank_lever("params", recovers=False)]
    assert not any(level.step and level.step.technique == "weight_pruning" for lever in levers for level in lever.levels)
