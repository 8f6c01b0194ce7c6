"""Recovery as a step of a plan."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.pipeline.apply import Applier, apply_plan, rebuild_plan
from sizewise.protocols import Context, Inputs
from sizewise.techniques.recovery import Recovery
from sizewise.testing import NullRuntime, TinyConv
from sizewise.types import Plan, Step, from_json, to_json

X = torch.randn(96, 1, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [Inputs((x,)) for x in torch.split(X, 32)]
CONTEXT = Context(BATCHES[0], BATCHES, NullRuntime.scheme, channel_multiple=4, train=list(torch.split(X, 32)))
CUT = Step(technique="weight_pruning", settings={"rate": 0.6, "method": "magnitude"})
RECOVER = Step(technique="recovery", settings={"epochs": 10})
INT8 = Step(technique="int8_static")


def plan(*steps: Step) -> Plan:
    return Plan(scale="tiny", steps=steps)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = TinyConv()
    found.train()
    for _ in range(20):
        found(X)
    return found.eval()


def outputs(module: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(X)
    return found


def test_a_pruned_model_comes_nearer_to_the_plans_source_and_is_quantized_after(model: nn.Module) -> None:
    applier, want = Applier(), outputs(model)
    pruned, _, _ = applier.apply(model, plan(CUT), CONTEXT)
    recovered, applied, changes = applier.apply(model, plan(CUT, RECOVER), CONTEXT)
    integers, _, _ = applier.apply(model, plan(CUT, RECOVER, INT8), CONTEXT)
    errors = [float((outputs(module) - want).square().mean()) for module in (pruned, recovered, integers)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < errors[0]
    assert changes[1].record["steps"] == 30
    assert changes[1].touched
    assert int((recovered.get_parameter("inner.0.weight") == 0).sum()) == int((pruned.get_parameter("inner.0.weight") == 0).sum())
    assert torch.equal(outputs(model), want)
    saved = from_json(Plan, to_json(applied), where="plan")
    rebuilt = rebuild_plan(model, saved, Context(CONTEXT.example))
    rebuilt.load_state_dict(recovered.state_dict())
    assert torch.equal(outputs(rebuilt), outputs(recovered))


def test_the_same_seed_gives_the_same_bits(model: nn.Module) -> None:
    first, second = (outputs(apply_plan(model, plan(CUT, RECOVER), CONTEXT)[0]) for _ in range(2))
    assert torch.equal(first, second)


def test_what_the_judge_likes_is_kept(model: nn.Module) -> None:
    pruned, _, _ = apply_plan(model, plan(CUT), CONTEXT)
    contrary = replace(CONTEXT, judge=lambda module: float((outputs(module) - outputs(model)).square().mean()))
    found, _, changes = apply_plan(model, plan(CUT, RECOVER), contrary)
    assert torch.equal(outputs(found), outputs(pruned)), "it likes the farthest, which is the start"
    assert any("did not help" in note for note in changes[1].notes)


def test_what_is_missing_is_said(model: nn.Module) -> None:
    with pytest.raises(PreconditionError, match="no train data"):
        apply_plan(model, plan(CUT, RECOVER), replace(CONTEXT, train=None))
    with pytest.raises(PreconditionError, match="model that the plan began with"):
        Recovery().requires(model, CONTEXT)
    with pytest.raises(PreconditionError, match="needs a model that still is"):
        apply_plan(model, plan(INT8, RECOVER), CONTEXT)


@pytest.mark.parametrize("settings", [{"epochs": 1, "seconds": 1}, {"epochs": -1}, {"lr": 0.0}, {"temperature": -1.0}])
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Recovery(**settings)


def test_the_reference_teaches_where_it_is_asked_for() -> None:
    """A smaller scale learns what the task's reference says, not what it says itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference, small = TinyConv(width=16).eval(), TinyConv(width=8).eval()
    inputs = [torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    step = Step(technique="recovery", settings={"epochs": 10, "teacher": "reference"})
    plain = Context(Inputs((inputs[0][:1],)), train=inputs)
    with pytest.raises(PreconditionError, match="the task's reference model"):
        apply_plan(small, plan(step), plain)
    taught, _, _ = apply_plan(small, plan(step), replace(plain, reference=reference))
    with torch.no_grad():
        wanted = torch.cat([reference(x) for x in inputs])
        before, after = ((torch.cat([model(x) for x in inputs]) - wanted).square().mean() for model in (small, taught))
    assert after < 0.7 * before
    with pytest.raises(UnknownName, match="teacher"):
        Recovery(teacher="nobody")  # type: ignore[arg-type]
