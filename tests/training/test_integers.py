"""Training with integers simulated: that it helps, that what ships is what was trained, what it keeps, and what it refuses."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UsageError
from sizewise.graph.learned_codes import learning
from sizewise.graph.observers import WeightObserver, mode
from sizewise.graph.prepared import Prepared, convert, folded, prepare
from sizewise.graph.trace import trace
from sizewise.pipeline.apply import apply_plan, make_technique, rebuild_plan, run_technique
from sizewise.protocols import Context, Inputs
from sizewise.testing import NullRuntime, TinyConv
from sizewise.training import distill as loop
from sizewise.training.integers import LEARNED, Learned, frozen_names, train_integers
from sizewise.training.schedule import Length
from sizewise.types import Change, Plan, Step, from_json, to_json


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PICTURES = randn(0, 256, 1, 6, 6)
BARE = list(torch.split(PICTURES, 32))
BATCHES = [Inputs((x,)) for x in BARE]
CONTEXT = Context(BATCHES[0], BATCHES[:4], NullRuntime.scheme, train=BARE)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = TinyConv()
    found.train()
    for _ in range(20):
        found(PICTURES)
    return found.eval()


def plan(**settings: Any) -> Plan:
    return Plan(scale="tiny", steps=(Step(technique="int8_static", settings=settings),))


def quantized(model: nn.Module, context: Context = CONTEXT, **settings: Any) -> tuple[nn.Module, Change]:
    plain = {"weight_bits": 4, "ranges": "minmax", "equalize": False}
    module, _, changes = apply_plan(model, plan(**{**plain, **settings}), context)
    return module, changes[0]


def outputs(module: nn.Module, x: Tensor = PICTURES) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(x)
    return found


def distance(module: nn.Module, model: nn.Module) -> float:
    return float((outputs(module) - outputs(model)).square().mean())


def same(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def ranged(model: nn.Module, bits: int = 4) -> tuple[Prepared, Any]:
    graph = folded(trace(model, CONTEXT.example))
    assert NullRuntime.scheme is not None
    prepared = prepare(graph, NullRuntime.scheme, (), bits)
    prepared.watch(BATCHES)
    prepared.set_ranges("minmax")
    return prepared, graph


@pytest.mark.parametrize(("settings", "share"), [({"rounding": "nearest"}, 0.8), ({"equalize": True, "ranges": "auto"}, 0.9)])
def test_four_bits_come_nearer_to_the_float_model(model: nn.Module, settings: dict[str, Any], share: float) -> None:
    plain, _ = quantized(model, **settings)
    trained, change = quantized(model, **settings, recovery="10 epochs")
    assert distance(trained, model) < share * distance(plain, model)
    assert change.record["recovery"]["steps"] == 80
    assert any("distilled for 80 steps" in note for note in change.notes)
    codes = [value for value in trained.state_dict().values() if value.dtype == torch.int8]
    assert codes
    assert all(int(value.abs().max()) <= 7 for value in codes)


@pytest.mark.parametrize("learn", LEARNED)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_converted_graph_computes_what_was_trained(model: nn.Module, bits: int, learn: Learned) -> None:
    prepared, graph = ranged(model, bits)
    train_integers(prepared, graph, BARE, Length(1.0), learn=learn, pruned=graph)
    with mode(prepared.graph, "simulate"):
        simulated = outputs(prepared.graph)
    converted = convert(prepared)
    assert torch.equal(outputs(converted), simulated)


def test_weights_that_are_trained_too_get_other_codes(model: nn.Module) -> None:
    plain, _ = quantized(model, rounding="nearest")
    trained, _ = quantized(model, rounding="nearest", recovery="10 epochs", learn="codes")
    scaled, _ = quantized(model, rounding="nearest", recovery="1 epochs")
    assert distance(trained, model) < 0.8 * distance(plain, model)
    for other, equal in ((trained, False), (scaled, True)):
        assert all(torch.equal(codes, dict(_codes(other))[name]) for name, codes in _codes(plain)) is equal


def _codes(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in module.state_dict().items() if value.dtype == torch.int8 and value.ndim > 1]


def test_without_a_step_nothing_but_rounding_happens(model: nn.Module) -> None:
    prepared, _ = ranged(model)
    with mode(prepared.graph, "simulate"):
        before = outputs(prepared.graph)
    with learning(prepared.graph):
        torch.testing.assert_close(outputs(prepared.graph), before)
    with mode(prepared.graph, "simulate"):
        torch.testing.assert_close(outputs(prepared.graph), before)
    torch.testing.assert_close(outputs(convert(prepared)), before)


def test_gradients_reach_codes_scales_and_ranges(model: nn.Module) -> None:
    prepared, _ = ranged(model)
    with learning(prepared.graph):
        for parameter in prepared.graph.parameters():
            parameter.requires_grad_(True)
        prepared.graph(PICTURES).square().mean().backward()
        silent = [name for name, parameter in prepared.graph.named_parameters() if parameter.grad is None]
        growing = [name for name, _ in prepared.graph.named_parameters() if name.endswith("growth")]
    assert silent == []
    assert len(growing) > sum(isinstance(module, WeightObserver) for module in prepared.graph.modules())
    assert not any(name.endswith("growth") for name, _ in prepared.graph.named_parameters())


def test_learned_scales_and_ranges_are_converted_as_they_were_trained(model: nn.Module) -> None:
    prepared, _ = ranged(model)
    ranges = dict(prepared.ranges)
    with learning(prepared.graph):
        with torch.no_grad():
            for name, parameter in prepared.graph.named_parameters():
                if name.endswith("growth"):
                    parameter.add_(0.1 * randn(len(name), *parameter.shape))
        trained = outputs(prepared.graph)
    assert prepared.ranges != ranges
    got = outputs(convert(prepared))
    assert float((got - trained).square().mean()) < 1e-4 * float(trained.var()), "a value may fall on the other side of a border"


def test_the_same_seed_gives_the_same_bits(model: nn.Module) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(PICTURES), batch_size=32, shuffle=True)
    context = replace(CONTEXT, train=loader)
    first, second, other = (quantized(model, replace(context, seed=seed), recovery="1 epochs")[0] for seed in (0, 0, 1))
    assert same(first, second)
    assert not same(first, other)


def test_the_record_rebuilds_the_graph(model: nn.Module) -> None:
    trained, applied, _ = apply_plan(model, plan(weight_bits=4, recovery="2 epochs"), CONTEXT)
    rebuilt = rebuild_plan(model, from_json(Plan, to_json(applied), where="plan"), Context(CONTEXT.example, scheme=NullRuntime.scheme))
    rebuilt.load_state_dict(trained.state_dict())
    assert torch.equal(outputs(rebuilt), outputs(trained))


def test_what_the_judge_likes_is_kept(model: nn.Module) -> None:
    plain, _ = quantized(model)
    falling = iter(range(100, 0, -1))
    kept, change = quantized(model, replace(CONTEXT, judge=lambda module: float(next(falling))), recovery="1 epochs")
    assert torch.equal(outputs(kept), outputs(plain)), "it likes the first best"
    assert any("did not help" in note for note in change.notes)


def test_zeros_of_a_pruned_model_stay_and_those_of_rounding_do_not(model: nn.Module) -> None:
    prepared, graph = ranged(model)
    with torch.no_grad():
        graph.get_parameter("inner.0.weight")[::2] = 0
        prepared.graph.get_parameter("inner.0.weight")[::2] = 0
    before = {name: value.clone() for name, value in prepared.graph.named_parameters()}
    outcome = train_integers(prepared, graph, BARE, Length(4.0), learn="codes", pruned=graph)
    after = dict(prepared.graph.named_parameters())
    assert outcome.zeros == before["inner.0.weight"][::2].numel()
    assert bool((after["inner.0.weight"][::2] == 0).all())
    assert bool((after["inner.0.weight"][1::2] != before["inner.0.weight"][1::2]).any())


def test_what_is_frozen_stays(model: nn.Module) -> None:
    model.get_parameter("head.bias").requires_grad_(False)
    assert frozen_names(model) == {"head.bias"}
    prepared, graph = ranged(model)
    train_integers(prepared, graph, BARE, Length(2.0), pruned=graph, frozen=frozen_names(model))
    assert torch.equal(prepared.graph.get_parameter("head.bias"), model.get_parameter("head.bias"))
    assert frozen_names(model.requires_grad_(False)) == frozenset(), "it was frozen for inference"


def test_another_teacher_is_learned_from(model: nn.Module) -> None:
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.get_parameter("head.bias").add_(randn(5, 4))
    found = {}
    for recovery in (None, "5 epochs"):
        technique = make_technique("int8_static", {"ranges": "minmax", "rounding": "nearest", "recovery": recovery})
        graph, _ = run_technique(technique, student, replace(CONTEXT, teacher=model))
        found[recovery] = distance(graph, model)
    assert found["5 epochs"] < 0.8 * found[None]


class Broken(list[Tensor]):
    """Fails after so many batches, as a machine that is switched off does."""

    def __init__(self, batches: list[Tensor], after: int) -> None:
        super().__init__(batches)
        self.left = after

    def __iter__(self) -> Iterator[Tensor]:
        for batch in super().__iter__():
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


def test_an_interrupted_training_goes_on_to_the_same_bits(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole, change = quantized(model, recovery="2 epochs")
    path = tmp_path / "training.safetensors"
    options: dict[str, Any] = {"recovery": "2 epochs", "checkpoint": str(path)}
    with pytest.raises(KeyboardInterrupt):
        quantized(model, replace(CONTEXT, train=Broken(BARE, 12)), **options)
    assert path.exists()
    resumed, again = quantized(model, **options)
    assert same(resumed, whole)
    assert again.record == change.record
    with pytest.raises(UsageError, match="of another training"):
        quantized(model, **{**options, "recovery": "3 epochs"})


class Fixed(nn.Module):
    """Knows how many examples a batch has."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x.reshape(32, 36))
        return found


def test_a_model_that_fixes_its_batch(model: nn.Module) -> None:
    module, change = quantized(Fixed().eval(), recovery="1epoch")
    assert change.record["recovery"]["steps"] == 8
    assert outputs(module, BARE[0]).shape == (32, 4)
    with pytest.raises(PreconditionError, match="fixes how many examples"):
        quantized(Fixed().eval(), replace(CONTEXT, train=list(torch.split(PICTURES, 16))), recovery="1epoch")


def test_what_is_missing_or_cannot_be_meant_is_said(model: nn.Module) -> None:
    with pytest.raises(PreconditionError, match="needs train data"):
        quantized(model, replace(CONTEXT, train=None), recovery="1epoch")
    with pytest.raises(UsageError, match="recovery"):
        quantized(model, recovery="1epok")
    with pytest.raises(UsageError, match="unknown learn"):
        quantized(model, recovery="1epoch", learn="all")
    with pytest.raises(UsageError, match="checkpoint is of a training"):
        quantized(model, checkpoint="here")
    with pytest.raises(PreconditionError, match="not finite"):
        quantized(model, replace(CONTEXT, train=[BARE[0] * torch.nan]), recovery="1epoch")
