"""Channel pruning beyond the conformance kit: what it keeps, what it repairs, what it leaves alone."""

import pytest
import torch
from torch import nn

from sizewise.errors import UnknownName, UnsupportedModel, UsageError
from sizewise.graph.surgery import PassOn
from sizewise.pipeline.apply import apply_plan, rebuild_plan
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs
from sizewise.types import Change, Plan, Step
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet import resnet_cifar


def prune(model: nn.Module, example: torch.Tensor, rate: float, *, data: list[Inputs] | None = None) -> tuple[nn.Module, Change]:
    plan = Plan(scale="x", steps=(Step(technique="channel_pruning", settings={"rate": rate}),))
    module, _, changes = apply_plan(model, plan, Context(Inputs((example,)), data, channel_multiple=4))
    return module, changes[0]


def test_macs_really_fall() -> None:
    x = torch.randn(2, 3, 16, 16)
    model = resnet_cifar(8)
    pruned, _ = prune(model, x, 0.5)
    before, after = static_cost(model, Inputs((x,))).macs, static_cost(pruned, Inputs((x,))).macs
    assert 0.45 * before < after <= 0.52 * before
    assert sum(p.numel() for p in pruned.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_the_output_layer_is_left_alone_and_named() -> None:
    _, change = prune(MobileNetV2(0.25, classes=7), torch.randn(1, 3, 32, 32), 0.25)
    assert [(s.what, s.reason) for s in change.skipped if "output" in s.reason] == [("classifier.1", "makes the model's output")]


def test_a_pruned_model_trains() -> None:
    pruned, _ = prune(MobileNetV2(0.25, classes=7), torch.randn(2, 3, 32, 32), 0.5)
    pruned.train()
    pruned(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters() if p.requires_grad)


class Redundant(nn.Module):
    """Half of the hidden channels are mixtures of the other half, so that losing them need cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3)
        with torch.no_grad():
            mix = torch.randn(4, 4)
            self.first.weight[4:] = torch.einsum("ij,jkab->ikab", mix, self.first.weight[:4])
            self.first.bias[4:] = mix @ self.first.bias[:4] + 1.0  # type: ignore[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x)).mean((2, 3))
        return out


def test_what_can_be_predicted_is_repaired() -> None:
    torch.manual_seed(0)
    model, x = Redundant(), torch.randn(32, 3, 9, 9)
    repaired, _ = prune(model, x, 0.5, data=[Inputs((x,))])
    bare, _ = prune(model, x, 0.5)
    y = torch.randn(16, 3, 9, 9)
    with torch.no_grad():
        scale = float(model(y).std())
        assert float((repaired(y) - model(y)).abs().max()) < 0.01 * scale, "only damping differs"
        assert float((bare(y) - model(y)).abs().max()) > 0.3 * scale


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_a_rate_outside_its_range(rate: float) -> None:
    with pytest.raises(UsageError, match="rate must be"):
        prune(Redundant(), torch.randn(1, 3, 9, 9), rate)


def test_a_model_without_prunable_channels_says_why() -> None:
    with pytest.raises(UnsupportedModel, match="makes the model's output"):
        prune(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4), 0.5)


def test_what_is_skipped_stays_and_so_does_the_block_around_it() -> None:
    model, x = resnet_cifar(8, classes=5), torch.randn(8, 3, 16, 16)
    plan = Plan(scale="m", steps=(Step(technique="channel_pruning", settings={"rate": 0.3, "skip": ("layer1.0.conv1",)}),))
    pruned, _, (change,) = apply_plan(model, plan, Context(Inputs((x,)), [Inputs((x,))]))
    assert pruned.get_submodule("layer1.0.conv1").out_channels == 16
    assert "layer1.0" in {skip.what for skip in change.skipped if skip.reason == "skipped on request"}
    unknown = Plan(scale="m", steps=(Step(technique="channel_pruning", settings={"rate": 0.3, "skip": ("layer1.0.conv3",)}),))
    with pytest.raises(UnknownName, match=r"layer1\.0\.conv3"):
        apply_plan(model, unknown, Context(Inputs((x,))))


def test_a_block_that_changes_nothing_is_left_out_first() -> None:
    model, x = resnet_cifar(20, classes=5).eval(), torch.randn(16, 3, 16, 16)
    torch.nn.init.zeros_(model.get_parameter("layer1.1.bn2.weight"))
    torch.nn.init.zeros_(model.get_parameter("layer1.1.bn2.bias"))
    whole = model(x)
    plan = Plan(scale="m", steps=(Step(technique="channel_pruning", settings={"rate": 0.1}),))
    pruned, applied, (change,) = apply_plan(model, plan, Context(Inputs((x,)), [Inputs((x,))]))
    assert any("left out whole: layer1.1" in note for note in change.notes)
    assert isinstance(pruned.get_submodule("layer1.1"), PassOn)
    torch.testing.assert_close(pruned(x), whole, rtol=1e-3, atol=1e-3)
    again = rebuild_plan(model, applied, Context(Inputs((x,))))
    again.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(again(x), pruned(x))
