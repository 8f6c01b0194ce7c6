"""The main job without its search: one scale, one plan, and the whole model's file to compare with."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sizewise.devices.loader import load_device
from sizewise.errors import UnknownName, UsageError
from sizewise.pipeline.apply import make_technique
from sizewise.pipeline.conclude import conclude
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.recover import RECOVERY, check_train
from sizewise.pipeline.result import Result, finish
from sizewise.pipeline.scales import Prepared, prepare_scales
from sizewise.pipeline.setup import Setup, fingerprint, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import Bench, attempt, make_bench, outcome
from sizewise.profile.timing import threads
from sizewise.protocols import Progress, Runtime, Silent
from sizewise.tasks.task import Task
from sizewise.types import Budget, Candidate, Plan, Step

__all__ = ["pick_scale", "run_plan"]


def run_plan(
    task: Task,
    steps: Sequence[Step],
    *,
    scale: str | None = None,
    runtime: str | Runtime = "onnxruntime",
    out: str | Path = "runs/plan",
    resume: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Shrink one scale in a given way, and prove what came out as `fit` does.

    The scale is trained if it is untrained, and scored in float. It is lowered whole, and again after the steps; both files are
    loaded back from disk and measured side by side. The second is judged on the test split and bundled, be it better or not.

    Args:
        task: candidates, data and metric.
        steps: what is done to the scale, in this order.
        scale: the candidate; the task's reference by default, or its only one. Drops are counted from it.
        runtime: a name or a runtime object.
        out: the run folder, absent or empty unless `resume`; it becomes the bundle.
        resume: go on in `out`; what is trained and measured there is not repeated. Other steps may be asked for.
        seed: of everything random.
        progress: where to report to.

    Raises:
        UsageError: input that cannot be meant.
        PreconditionError: the model or the data cannot be used, or a step's precondition does not hold.
        UnsupportedModel: a step or the runtime cannot treat the model.
        ParityError: a file does not compute what its module computes.
    """
    if not steps:
        raise UsageError("a plan has at least one step", where="run_plan", hint="sizewise.export_model lowers a model as it is")
    for step in steps:  # what cannot be meant is refused before anything is trained
        make_technique(step.technique, step.settings)
        if step.technique == RECOVERY:
            check_train(task)
    chosen = pick_scale(task, scale)
    found, place = find_runtime(runtime), load_device("local")
    store, alone = Store(Path(out), resume=resume), _alone(task, chosen, seed)
    setup = make_setup(alone, Budget(), found, place, store, seed, progress or Silent(), None)
    plans = [Plan(scale=chosen, steps=part, seed=seed) for part in ((), tuple(steps))]
    with threads(place.threads):
        return _run(setup, plans)


def pick_scale(task: Task, scale: str | None) -> str:
    """The candidate of that name, else the task's reference, else its only one.

    Raises:
        UnknownName: no such candidate.
        UsageError: several, and nothing says which.
    """
    if scale is not None and scale not in task.scales:
        raise UnknownName("scale", scale, task.scales)
    if chosen := scale or task.reference or (task.scales[0] if len(task.scales) == 1 else None):
        return chosen
    raise UsageError("the task has several candidates and names no reference", where="scale", wanted=f"one of {', '.join(task.scales)}")


def _alone(task: Task, scale: str, seed: int) -> Task:
    """The task with that candidate and no other, so that nothing else is trained or judged."""
    twin = copy.copy(task)
    if task.is_untrained(scale):
        twin.models = {scale: replace(task.recipe(scale), factory=partial(task.build, scale, seed))}
    else:
        twin.models = {scale: task.build(scale, seed)}
    twin.levels, twin.reference = (), scale  # a smaller input is inside the module that was built
    return twin


def _run(setup: Setup, plans: Sequence[Plan]) -> Result:
    data = read_data(setup)
    identity = fingerprint(setup, data)
    setup.store.identify(identity, setup.task.name)
    setup.progress.start(len(plans) + 2)
    prepared = prepare_scales(setup)
    (scale,) = prepared
    bench = make_bench(setup, prepared[scale])
    candidates = [_carry_out(setup, plan, prepared[scale], bench) for plan in plans]
    record = conclude(setup, bench, prepared, scale, candidates, {"fingerprint": identity, "data": data}, given=candidates[-1].id)
    return finish(setup, record)


def _carry_out(setup: Setup, plan: Plan, scale: Prepared, bench: Bench) -> Candidate:
    candidate = setup.store.candidate(plan)
    if candidate is None:
        setup.progress.working(f"{plan.scale}: {plan.label}")
        candidate = attempt(scale.module, plan, setup.store.clear(plan), bench)
        setup.store.save_candidate(candidate)
    setup.progress.advance(f"{plan.scale}: {plan.label}: {outcome(candidate)}")
    return candidate
