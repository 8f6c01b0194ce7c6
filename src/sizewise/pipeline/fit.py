"""The main job: from a task and a budget to one measured file."""

from collections.abc import Sequence
from pathlib import Path

from sizewise.devices.loader import load_device
from sizewise.errors import BudgetInfeasible, UsageError
from sizewise.evaluate.scoring import quality
from sizewise.pipeline.conclude import conclude
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.quantize import quantization_step, scheme_by_work
from sizewise.pipeline.recover import recovery_for
from sizewise.pipeline.result import Result, finish
from sizewise.pipeline.scales import Prepared, pick_reference, prepare_scales
from sizewise.pipeline.setup import Setup, fingerprint, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import Bench, hopeless, make_bench, outcome, run_trial
from sizewise.profile.timing import threads
from sizewise.protocols import Progress, Runtime, Silent
from sizewise.report._format import limit_value
from sizewise.search.space import harsher, plans_for
from sizewise.tasks.task import Task
from sizewise.types import Budget, Candidate, Device, Plan, RunRecord, Step
from sizewise.units import parse_seconds

__all__ = ["Result", "fit"]


def fit(
    task: Task,
    budget: Budget,
    runtime: str | Runtime = "onnxruntime",
    device: str = "local",
    out: str | Path = "runs/fit",
    *,
    resume: bool = False,
    time_limit: str | float | None = None,
    recover: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Find the smallest and fastest file that keeps the budget, and prove it.

    Every scale is profiled, trained if it is untrained, and scored in float; plans (int8, channel pruning, both) are tried
    mildest first, dropping those that are already hopeless; every file is lowered, loaded back from disk and measured.
    With a quality limit in the budget the fitting candidate with the smallest product of latency and size is chosen,
    without one the best in quality. The chosen file is then judged on the test split.

    Args:
        task: candidates, data and metric.
        budget: the limits.
        runtime: a name or a runtime object.
        device: name of a device file.
        out: the run folder, absent or empty unless `resume`; it becomes the bundle.
        resume: go on with an interrupted run in `out`; finished candidates are not repeated.
        time_limit: no new work begins after this long, such as "10m"; what was not tried is recorded.
        recover: train every pruned model for so long, "1epoch" or "10m", to do what the whole one does, on the task's train
            data, with or without targets; see `sizewise.recover`.
        seed: of everything random.
        progress: where to report to.

    Raises:
        BudgetInfeasible: nothing tried fits, or the final measurement refuses it; `.result` holds the nearest candidate,
            whose bundle is in `out`, marked as outside the budget.
        UsageError: input that cannot be meant.
        PreconditionError: models or data that cannot be used.
        UnsupportedModel: no candidate can be exported.
    """
    limit_s = parse_seconds(time_limit, "time_limit") if time_limit is not None else None
    recovery = recovery_for(task, recover) if recover is not None else None
    found, place = find_runtime(runtime), _measured(load_device(device))
    setup = make_setup(task, budget, found, place, Store(Path(out), resume=resume), seed, progress or Silent(), limit_s)
    with threads(place.threads):
        return _run(setup, recovery)


def _measured(device: Device) -> Device:
    if device.how != "measured":
        raise UsageError(
            "fit measures the file, and this device is not here to be measured",
            where="device",
            got=f"{device.name}, whose figures are {device.how}",
            wanted="local",
            hint="`sizewise profile` predicts what models cost there",
        )
    return device


def _run(setup: Setup, recovery: Step | None) -> Result:
    data = read_data(setup)
    identity = fingerprint(setup, data)
    setup.store.identify(identity, setup.task.name)
    each = len(plans_for("", setup.seed, quantization=_quantization(setup, None), recovery=recovery))
    setup.progress.start((1 + each) * len(setup.task.scales) + 1)
    prepared = prepare_scales(setup)
    steps = {scale: _quantization(setup, prepared.get(scale)) for scale in setup.task.scales}
    plans = {scale: plans_for(scale, setup.seed, quantization=step, recovery=recovery) for scale, step in steps.items()}
    reference = pick_reference(setup.task, prepared)
    bench = make_bench(setup, prepared[reference])
    order = sorted(prepared, key=lambda scale: -prepared[scale].record.cost.macs)
    candidates = _try_all(setup, [plan for scale in order for plan in plans[scale]], prepared, bench)
    candidates += _unprepared(setup, [plan for scale in plans if scale not in prepared for plan in plans[scale]])
    if left := sum(c.status == "untried" for c in candidates):
        setup.warnings.append(f"the time limit was reached: {left} of {len(candidates)} plans were not tried; --resume goes on")
    record = conclude(setup, bench, prepared, reference, candidates, {"fingerprint": identity, "data": data})
    result = finish(setup, record)
    if record.feasible:
        return result
    raise BudgetInfeasible(_why_infeasible(record), result=result, hint=_what_helps(record))


def _quantization(setup: Setup, scale: Prepared | None) -> Step | None:
    """The step that suits a scale by what it computes; static where that is not known."""
    if setup.runtime.scheme is None:
        return None
    found = scheme_by_work(scale.record.cost, data=setup.context.calibration is not None) if scale is not None else "static"
    return quantization_step("int8", found)


def _try_all(setup: Setup, plans: Sequence[Plan], prepared: dict[str, Prepared], bench: Bench) -> list[Candidate]:
    done: list[Candidate] = []
    for plan in plans:
        label = f"{plan.scale}: {plan.label}"
        candidate = setup.store.candidate(plan)
        if candidate is None:
            setup.progress.working(label)
            candidate = _give_up(setup, plan, done, prepared[plan.scale], bench)
            if candidate is None:
                candidate = run_trial(prepared[plan.scale].module, plan, setup.store.clear(plan), bench)
            if candidate.status != "untried":
                setup.store.save_candidate(candidate)
        done.append(candidate)
        setup.progress.advance(f"{label}: {outcome(candidate)}")
    return done


def _give_up(setup: Setup, plan: Plan, done: Sequence[Candidate], scale: Prepared, bench: Bench) -> Candidate | None:
    """A candidate that is not worth trying, with the reason; None when it is."""
    if done and setup.late:
        return _untried(setup, plan)
    reason = None
    found = quality(scale.scores, setup.task.metric, bench.reference_scores)
    if plan.steps and (why := hopeless(found, setup.budget)):
        reason = f"not tried: in float, {why}"
    else:
        milder = [other for other in done if other.status == "stopped" and harsher(plan, other.plan)]
        reason = f"not tried: {milder[0].plan.label} was stopped already" if milder else None
    return Candidate(id=setup.store.identifier(plan), plan=plan, status="stopped", reason=reason) if reason else None


def _untried(setup: Setup, plan: Plan) -> Candidate:
    return Candidate(id=setup.store.identifier(plan), plan=plan, status="untried", reason="the time limit was reached")


def _unprepared(setup: Setup, plans: Sequence[Plan]) -> list[Candidate]:
    """What became of plans whose scale failed, or was not prepared in time."""
    if failed := sum(plan.scale in setup.failed for plan in plans):
        setup.progress.advance(f"{', '.join(setup.failed)}: nothing to try", units=failed)
    return [_failed(setup, plan) if plan.scale in setup.failed else _untried(setup, plan) for plan in plans]


def _failed(setup: Setup, plan: Plan) -> Candidate:
    return Candidate(id=setup.store.identifier(plan), plan=plan, status="failed", reason=setup.failed[plan.scale])


def _why_infeasible(record: RunRecord) -> str:
    measured = record.winner.measured
    assert measured is not None
    broken = record.budget.violations(measured)
    name = f"{record.winner.plan.scale}, {record.winner.plan.label}"
    if not broken:
        limits = ", ".join(row.limit for row in record.verdict.limits if row.judgement == "refused")
        return f"{name} fits on validation, but the final measurement refuses {limits}"
    metric = record.metric
    text = "; ".join(f"{v.limit}: {limit_value(v.limit, v.got, metric)}, allowed {limit_value(v.limit, v.allowed, metric)}" for v in broken)
    return f"nothing that was tried fits the budget; nearest is {name}, which breaks {text}"


def _what_helps(record: RunRecord) -> str:
    found = [(r.limit, r.needed, r.candidate) for r in record.relaxations if r.needed is not None]
    rows = [f"{limit} of {limit_value(limit, needed, record.metric)} would fit {name}" for limit, needed, name in found]
    return "; ".join(rows) or "relaxing one limit alone does not help: relax several, or give more or smaller candidates"
