"""Plans that share their first steps: what is done once, and that it changes nothing."""

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sizewise.data.model_size import float_bytes
from sizewise.errors import PreconditionError
from sizewise.pipeline import apply as apply_module
from sizewise.pipeline.apply import Applier, apply_plan
from sizewise.protocols import Context, Inputs
from sizewise.techniques.channel_pruning import ChannelPruning
from sizewise.testing import NullRuntime, TinyConv
from sizewise.types import Plan, Step

X = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CONTEXT = Context(Inputs((X[:1],)), [Inputs((X,))], NullRuntime.scheme, channel_multiple=4)
INT8 = Step(technique="int8_static")


def cut(rate: float) -> Step:
    return Step(technique="channel_pruning", settings={"rate": rate})


def plan(*steps: Step) -> Plan:
    return Plan(scale="tiny", steps=steps)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return TinyConv(width=16).eval()


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates at which channels were cut, in order."""
    done: list[float] = []
    apply = ChannelPruning.apply

    def counted(self: ChannelPruning, model: nn.Module, context: Context) -> object:
        done.append(self.rate)
        return apply(self, model, context)

    monkeypatch.setattr(ChannelPruning, "apply", counted)
    return done


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_cut_is_made_once_and_all_results_are_the_same_bits(model: nn.Module, cuts: list[float]) -> None:
    plans = [plan(), plan(INT8), plan(cut(0.3)), plan(cut(0.3), INT8), plan(cut(0.5)), plan(cut(0.5), INT8)]
    alone = [apply_plan(model, p, CONTEXT) for p in plans]
    assert cuts == [0.3, 0.3, 0.5, 0.5]
    cuts.clear()
    applier = Applier()
    for p, (module, applied, changes) in zip(plans, alone, strict=True):
        found, found_plan, found_changes = applier.apply(model, p, CONTEXT)
        assert same(found.state_dict(), module.state_dict())
        with torch.no_grad():
            assert torch.equal(found(X), module(X))
        assert found_plan == applied
        assert found_changes == changes
    assert cuts == [0.3, 0.5]


def test_what_is_done_to_a_result_does_not_reach_the_next_plan(model: nn.Module) -> None:
    applier = Applier()
    first, _, _ = applier.apply(model, plan(cut(0.3)), CONTEXT)
    want, _, _ = apply_plan(model, plan(cut(0.3), cut(0.2)), CONTEXT)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    found, _, _ = applier.apply(model, plan(cut(0.3), cut(0.2)), CONTEXT)
    assert same(found.state_dict(), want.state_dict())


def test_another_model_or_seed_starts_anew(model: nn.Module, cuts: list[float]) -> None:
    applier = Applier()
    other = TinyConv(width=16).eval()
    for source, seed in ((model, 0), (other, 0), (other, 1), (model, 0)):
        applier.apply(source, plan(cut(0.3)), Context(CONTEXT.example, CONTEXT.calibration, CONTEXT.scheme, 4, seed))
    assert len(cuts) == 3  # the first is still there


def test_without_room_only_the_latest_is_kept(model: nn.Module, cuts: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_module, "KEPT_BYTES", 0)
    applier = Applier()
    for p in (plan(cut(0.3)), plan(cut(0.3), INT8), plan(cut(0.5)), plan(cut(0.3))):
        applier.apply(model, p, CONTEXT)
    assert cuts == [0.3, 0.5, 0.3]


def test_what_took_longest_is_kept_beside_the_latest(model: nn.Module, cuts: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    room = float_bytes(apply_plan(model, plan(cut(0.3)), CONTEXT)[0])
    cuts.clear()
    ticks = iter((0.0, 9.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0))  # the first cut takes nine seconds, the others one
    monkeypatch.setattr(apply_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(apply_module, "KEPT_BYTES", room)
    applier = Applier()
    for rate in (0.3, 0.5, 0.4, 0.3, 0.5):
        applier.apply(model, plan(cut(rate)), CONTEXT)
    assert cuts == [0.3, 0.5, 0.4, 0.5]


def test_a_step_that_fails_leaves_what_was_kept(model: nn.Module, cuts: list[float]) -> None:
    applier = Applier()
    applier.apply(model, plan(cut(0.3)), CONTEXT)
    with pytest.raises(PreconditionError):
        applier.apply(model, plan(cut(0.3), cut(0.999)), CONTEXT)
    found, _, _ = applier.apply(model, plan(cut(0.3), INT8), CONTEXT)
    assert cuts == [0.3, 0.999]
    assert same(found.state_dict(), apply_plan(model, plan(cut(0.3), INT8), CONTEXT)[0].state_dict())
