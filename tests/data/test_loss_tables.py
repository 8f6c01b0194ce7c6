"""Losses are told once per model and data; anything else is told anew."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sizewise.data import loss_tables
from sizewise.data.channel_losses import group_losses
from sizewise.data.loss_tables import known_losses
from sizewise.graph.coupling import channel_groups
from sizewise.pipeline.apply import apply_plan
from sizewise.pipeline.store import Tables
from sizewise.protocols import Context, Inputs, Silent
from sizewise.testing import TinyConv
from sizewise.types import Plan, Step

X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [Inputs((x,)) for x in torch.split(X, 32)]


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyConv().eval()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counting(*arguments: object) -> object:
        calls.append(1)
        return group_losses(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loss_tables, "group_losses", counting)
    return calls


def test_the_same_model_and_data_are_judged_once(counted: list[int], tmp_path: Path) -> None:
    tables, net = Tables(tmp_path / "tables"), model()
    groups, _ = channel_groups(net, BATCHES[0])
    first = known_losses(tables, net, groups, BATCHES, None, Silent())
    again = known_losses(Tables(tmp_path / "tables"), model(), groups, BATCHES, None, Silent())
    assert first == again == group_losses(net, groups, BATCHES)
    assert len(counted) == 1
    known_losses(tables, model(1), groups, BATCHES, None, Silent())
    known_losses(tables, net, groups, BATCHES[:1], None, Silent())
    known_losses(tables, net, groups, BATCHES, [torch.ones(group.channels) for group in groups], Silent())
    known_losses(None, net, groups, BATCHES, None, Silent())
    assert len(counted) == 5, "other weights, data or scores, and no tables"


def test_a_damaged_table_is_told_anew(counted: list[int], tmp_path: Path) -> None:
    tables, net = Tables(tmp_path), model()
    groups, _ = channel_groups(net, BATCHES[0])
    first = known_losses(tables, net, groups, BATCHES, None, Silent())
    (path,) = tmp_path.iterdir()
    for damage in (b"[[1", b"[]", b"[[1, 2]]", b"null"):
        path.write_bytes(damage)
        assert known_losses(tables, net, groups, BATCHES, None, Silent()) == first
    assert len(counted) == 5


def test_a_plan_gives_the_same_bits_with_a_table_and_without(tmp_path: Path) -> None:
    context = Context(BATCHES[0], BATCHES, channel_multiple=4)
    plan = Plan(scale="x", steps=(Step(technique="channel_pruning", settings={"rate": 0.5}),))
    kept = replace(context, tables=Tables(tmp_path))
    modules = [apply_plan(model(), plan, own)[0] for own in (context, kept, kept)]
    states = [module.state_dict() for module in modules]
    assert len([*tmp_path.iterdir()]) == 1
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
