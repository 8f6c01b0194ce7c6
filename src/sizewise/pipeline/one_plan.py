"""The main job without its search: one scale, one plan or some ways to the same end, and the whole model's file to compare with."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sizewise.devices.loader import load_device
from sizewise.errors import ParityError, PreconditionError, SizewiseError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.apply import make_technique
from sizewise.pipeline.conclude import conclude
from sizewise.pipeline.contributions import leave_one_out
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.progress import Within
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

__all__ = ["pick_scale", "run_plan", "run_ways"]

Ways = Sequence[Sequence[Sequence[Step]]]
NOTHING = 0.002  # of the whole model's score: a loss that leaves other ways nothing to gain


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
    return run_ways(task, [[steps]], scale=scale, runtime=runtime, out=out, resume=resume, seed=seed, progress=progress)


def run_ways(
    task: Task,
    ways: Ways,
    *,
    scale: str | None = None,
    runtime: str | Runtime = "onnxruntime",
    out: str | Path = "runs/plan",
    resume: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """As `run_plan`, with several ways to shrink the scale; the one that scores best on validation is judged and bundled.

    Args:
        task: candidates, data and metric.
        ways: families of lists of steps. Within a family the next is tried only if the last scored best of all so far, and another
            family only if something was lost so far.
        scale, runtime, out, resume, seed, progress: as for `run_plan`.

    Raises:
        UsageError, PreconditionError, UnsupportedModel, ParityError: as `run_plan`, where no way comes to its end.
    """
    for step in [step for family in ways for steps in family for step in steps]:  # what cannot be meant is refused before training
        make_technique(step.technique, step.settings)
        if step.technique == RECOVERY or step.settings.get("recovery"):
            check_train(task)
    if not all(steps for family in ways for steps in family):
        raise UsageError("a plan has at least one step", where="run_plan", hint="sizewise.export_model lowers a model as it is")
    chosen = pick_scale(task, scale)
    found, place = find_runtime(runtime), load_device("local")
    store, alone = Store(Path(out), resume=resume), _alone(task, chosen, seed)
    setup = make_setup(alone, Budget(), found, place, store, seed, progress or Silent(), None)
    families = [[Plan(scale=chosen, steps=tuple(steps), seed=seed) for steps in family] for family in ways]
    with threads(place.threads):
        return _run(setup, Plan(scale=chosen, seed=seed), families)


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


def _run(setup: Setup, whole: Plan, families: Sequence[Sequence[Plan]]) -> Result:
    data = read_data(setup)
    identity = fingerprint(setup, data)
    setup.store.identify(identity, setup.task.name)
    setup.progress.start(sum(map(len, families)) + 3)
    prepared = prepare_scales(setup)
    (scale,) = prepared
    bench = make_bench(setup, prepared[scale])
    before = _carry_out(setup, whole, prepared[scale], bench)
    tried = _tried(setup, families, prepared[scale], bench, _worth(before, bench))
    best = max((c for c in tried if c.measured), key=lambda c: _worth(c, bench))
    tried = [_accounted(setup, c, prepared[scale], bench) if c is best else c for c in tried]
    record = conclude(setup, bench, prepared, scale, [before, *tried], {"fingerprint": identity, "data": data}, given=best.id)
    return finish(setup, record)


def _tried(setup: Setup, families: Sequence[Sequence[Plan]], scale: Prepared, bench: Bench, whole: float) -> list[Candidate]:
    """What became of the ways that were worth a look, beside what the whole model scores.

    Raises:
        PreconditionError, UnsupportedModel, ParityError: what the first way raised, where none could be measured.
    """
    found: list[Candidate] = []
    failed: list[SizewiseError] = []
    top = -math.inf
    for family in families:
        if top >= whole - NOTHING * abs(whole):
            break
        for plan in family:
            try:
                candidate = _carry_out(setup, plan, scale, bench)
            except (PreconditionError, UnsupportedModel, ParityError) as error:
                failed.append(error)
                reason = " ".join(str(error).split())
                found.append(Candidate(id=Store.identifier(plan), plan=plan, status="failed", reason=reason, failed_step=error.step))
                setup.progress.advance(f"{plan.scale}: {plan.label}: failed: {error.what}")
                break
            found.append(candidate)
            if _worth(candidate, bench) <= top:
                break
            top = _worth(candidate, bench)
    if failed and not any(candidate.measured for candidate in found):
        raise failed[0]
    return found


def _accounted(setup: Setup, candidate: Candidate, scale: Prepared, bench: Bench) -> Candidate:
    """With what every method saves of its stored weights, where that is not known yet."""
    if candidate.stored is None:
        return candidate
    context = replace(bench.context, progress=Within(setup.progress, f"{candidate.plan.scale}: {candidate.plan.label}"))
    changes = leave_one_out(scale.module, candidate.plan, candidate.changes, candidate.stored.size_bytes, context)
    if changes == candidate.changes:
        return candidate
    candidate = replace(candidate, changes=changes)
    setup.store.save_candidate(candidate)
    return candidate


def _worth(candidate: Candidate, bench: Bench) -> float:
    """Its score on validation; more is better."""
    assert candidate.measured is not None
    score = candidate.measured.quality.score.value
    return score if bench.metric.higher_is_better else -score


def _carry_out(setup: Setup, plan: Plan, scale: Prepared, bench: Bench) -> Candidate:
    candidate = setup.store.candidate(plan)
    if candidate is None:
        setup.progress.working(f"{plan.scale}: {plan.label}")
        candidate = attempt(scale.module, plan, setup.store.clear(plan), bench)
        setup.store.save_candidate(candidate)
    setup.progress.advance(f"{plan.scale}: {plan.label}: {outcome(candidate)}")
    return candidate
