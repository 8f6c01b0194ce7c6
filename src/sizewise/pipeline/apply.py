"""The only place where techniques run: copies, seeds, checks traits and verifies what a technique promised."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from sizewise import registry
from sizewise.data.model_size import float_bytes
from sizewise.errors import InternalError, PreconditionError, SizewiseError, UnknownName
from sizewise.evaluate.metrics import primary_output
from sizewise.graph.trace import eval_copy, is_graph
from sizewise.protocols import Context, Technique, Trait
from sizewise.types import Change, Plan, Step

__all__ = ["Applier", "apply_plan", "make_technique", "rebuild_plan", "run_technique"]

KEPT_BYTES = 2**28  # of models, beside the latest, that later plans may go on from


def make_technique(name: str, settings: Mapping[str, Any]) -> Technique:
    """The technique of that name with these settings.

    Raises:
        UnknownName: no such technique, or a setting it does not have.
    """
    kind = registry.get("techniques", name)
    known = [f.name for f in fields(kind)]
    for key in settings:
        if key not in known:
            raise UnknownName(f"setting of {name}", key, known)
    # a plan from JSON has lists; settings compare and hash as tuples
    technique: Technique = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
    return technique


def apply_plan(model: nn.Module, plan: Plan, context: Context) -> tuple[nn.Module, Plan, tuple[Change, ...]]:
    """Run one plan's steps on a copy of `model`; see `Applier.apply`."""
    return Applier().apply(model, plan, context)


@dataclass(frozen=True)
class _State:
    """How far a plan has come.

    Attributes:
        source: the model that it began with.
        steps: done so far, as the plan names them.
        changes: what each of them did.
    """

    source: nn.Module
    module: nn.Module
    traits: Trait
    seed: int
    steps: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()

    def begins(self, source: nn.Module, plan: Plan, seed: int) -> bool:
        """Whether the plan, on that model and under that seed, comes through here."""
        return self.source is source and self.seed == seed and plan.steps[: len(self.steps)] == self.steps

    @property
    def seconds(self) -> float:
        """What it would take to come so far again."""
        return sum(change.seconds for change in self.changes)


class Applier:
    """Runs the plans of one run, and does not repeat the steps that a plan shares with earlier ones.

    Pruning and training take longest, and what comes of them is tried in float and again in integers. Models are kept as they were
    after steps that left layers to work on: the latest, and of the others those that took longest, as far as there is room. Steps
    always work on a copy of what they begin with, and under a seed of their own, so that a plan gives the same bits whether it
    starts anew or from a kept model. All plans must be given the same calibration data.
    """

    def __init__(self) -> None:
        self._kept: list[_State] = []

    def apply(self, model: nn.Module, plan: Plan, context: Context) -> tuple[nn.Module, Plan, tuple[Change, ...]]:
        """Run a plan's steps on a copy of `model`. Steps that have a record repeat the choices in it (`Context.chosen`).

        Returns:
            the shrunk module in inference mode, the plan with every step's record filled in, and what each step did.

        Raises:
            PreconditionError: a step needs something the model no longer is, or its own precondition fails.
            UnsupportedModel: a step cannot treat the model.
            InternalError: a technique changed the original or broke the model's outputs.
        """
        before, context = _marks(model), replace(context, teacher=model)
        state = self._start(model, plan, context.seed)
        for step in plan.steps[len(state.steps) :]:
            state = _after(state, step, context)
            if Trait.MODULE in state.traits:
                self._kept = [state, *_dearest(self._kept, KEPT_BYTES)]
                state = replace(state, module=eval_copy(state.module))
        if _marks(model) != before:
            raise InternalError("a technique changed the original model", where=plan.label)
        steps = (replace(step, record=change.record) for step, change in zip(plan.steps, state.changes, strict=True))
        return state.module, replace(plan, steps=tuple(steps)), state.changes

    def _start(self, model: nn.Module, plan: Plan, seed: int) -> _State:
        able = [kept for kept in self._kept if kept.begins(model, plan, seed)]
        if able:
            furthest = max(able, key=lambda kept: len(kept.steps))
            return replace(furthest, module=eval_copy(furthest.module))
        # before another is made: two that are large need not fit into memory
        self._kept = list(_dearest(self._kept, KEPT_BYTES))
        return _State(model, eval_copy(model), _traits(model), seed)


def _dearest(states: list[_State], room: int) -> Iterator[_State]:
    """Those that took longest, as far as there is room for their models."""
    for state in sorted(states, key=lambda state: -state.seconds):
        if (size := float_bytes(state.module)) <= room:
            room -= size
            yield state


def _after(state: _State, step: Step, context: Context) -> _State:
    try:
        return _done(state, step, context)
    except SizewiseError as error:
        error.step = len(state.steps)
        raise


def _done(state: _State, step: Step, context: Context) -> _State:
    technique = make_technique(step.technique, step.settings)
    _check_traits(step.technique, technique, state.traits)
    begin = time.perf_counter()
    module, change = run_technique(technique, state.module, replace(context, chosen=step.record))
    change = replace(change, seconds=time.perf_counter() - begin)
    _check_outputs(step.technique, module, context)
    traits = state.traits & ~technique.removes | technique.gives
    return replace(state, module=module, traits=traits, steps=(*state.steps, step), changes=(*state.changes, change))


def run_technique(technique: Technique, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
    """Let a technique change `model` itself, if it can, under the context's seed.

    Raises:
        PreconditionError: the technique's own precondition fails.
        UnsupportedModel: it cannot treat the model.
    """
    technique.requires(model, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return technique.apply(model, context)


def rebuild_plan(model: nn.Module, plan: Plan, context: Context) -> nn.Module:
    """The structure that `apply_plan` made, without data; the caller loads the weights.

    Raises:
        PreconditionError: the plan was never applied, or does not fit the model.
    """
    current = eval_copy(model)
    for step in plan.steps:
        if step.record is None:
            raise PreconditionError("the plan has no record of this step", where=step.technique)
        current = make_technique(step.technique, step.settings).rebuild(current, step.record, context)
    return current


def _traits(model: nn.Module) -> Trait:
    return Trait.FLOAT if is_graph(model) else Trait.FLOAT | Trait.MODULE


def _check_traits(name: str, technique: Technique, traits: Trait) -> None:
    missing = technique.needs & ~traits
    if missing:
        raise PreconditionError(
            f"{name} needs a model that still is {missing.name}", where=name, got=str(traits.name), hint="put it earlier in the plan"
        )


def _check_outputs(name: str, model: nn.Module, context: Context) -> None:
    with torch.inference_mode():
        outputs = primary_output(context.example.call(model))
    if not bool(torch.isfinite(outputs).all()):
        raise PreconditionError("outputs are not finite after this step", where=name)


def _marks(model: nn.Module) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """What changes when a tensor of the model is written to or replaced."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, id(t), t._version, tuple(t.shape)) for name, t in tensors]
