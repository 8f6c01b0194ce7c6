"""The main job: from a task and a budget to one measured file."""

import hashlib
from contextlib import closing
from pathlib import Path

from sizewise.devices.loader import load_device
from sizewise.errors import BudgetInfeasible, UsageError
from sizewise.pipeline.conclude import conclude
from sizewise.pipeline.crew import make_hands
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.levers import make_space
from sizewise.pipeline.recover import recovery_for
from sizewise.pipeline.result import Result, finish
from sizewise.pipeline.scales import Prepared, pick_reference, prepare_scales
from sizewise.pipeline.searching import Limits, finished_before, module_latencies, plan_search, search
from sizewise.pipeline.setup import Setup, fingerprint, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import make_bench
from sizewise.profile.timing import threads
from sizewise.protocols import Progress, Runtime, Silent
from sizewise.report._format import limit_value
from sizewise.search.space import Space
from sizewise.search.study import Study, owner_of, sqlite_url
from sizewise.search.untried import outlook
from sizewise.tasks.task import Task
from sizewise.types import Budget, Candidate, Device, Plan, RunRecord, Step
from sizewise.units import parse_seconds

__all__ = ["TRIALS", "Result", "fit"]

TRIALS = 24


def fit(
    task: Task,
    budget: Budget,
    runtime: str | Runtime = "onnxruntime",
    device: str = "local",
    out: str | Path = "runs/fit",
    *,
    resume: bool = False,
    time_limit: str | float | None = None,
    trials: int = TRIALS,
    stop_at_target: bool = False,
    workers: int = 1,
    storage: str | None = None,
    recover: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Find the smallest and fastest file that keeps the budget, and prove it.

    Every scale is profiled, trained if it is untrained, and scored in float. Then plans are tried: scales, channel pruning, low rank
    factors, precision and recovery together, each at several levels. Mild plans come first; what they measured predicts the others, and
    those are tried that may be the best that fits, until none is left or a limit is reached. Every file is lowered, loaded back from disk
    and measured.
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
        trials: most plans that are tried, those of an interrupted run that goes on among them.
        stop_at_target: stop as soon as a candidate fits the budget.
        workers: plans that are tried beside each other, each by a process of its own on one thread (Linux); while a file is timed, all
            others hold still. One tries them in this process, on all threads.
        storage: where the study is kept, any address that Optuna takes as a storage; `study.db` in the run folder by default. Runs of the
            same task and budget that share one, each in a folder of its own, share out the plans.
        recover: train every pruned model for so long, "1epoch" or "10m", to do what the whole one does, on the task's train
            data, with or without targets; see `sizewise.recover`. Smaller scales may then also learn from the reference.
        seed: of everything random.
        progress: where to report to.

    Raises:
        BudgetInfeasible: nothing tried fits, or the final measurement refuses it; `.result` holds the nearest candidate,
            whose bundle is in `out`, marked as outside the budget.
        UsageError: input that cannot be meant.
        PreconditionError: models or data that cannot be used.
        UnsupportedModel: no candidate can be exported.
    """
    if trials < 1:
        raise UsageError("at least one plan is tried", where="trials", got=str(trials))
    if workers < 1:
        raise UsageError("at least one worker tries plans", where="workers", got=str(workers))
    limit_s = parse_seconds(time_limit, "time_limit") if time_limit is not None else None
    recovery = recovery_for(task, recover) if recover is not None else None
    found, place = find_runtime(runtime), _measured(load_device(device))
    setup = make_setup(task, budget, found, place, Store(Path(out), resume=resume), seed, progress or Silent(), limit_s)
    with threads(place.threads):
        return _run(setup, recovery, Limits(trials, stop_at_target), storage, workers)


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


def _run(setup: Setup, recovery: Step | None, limits: Limits, storage: str | None, workers: int) -> Result:
    data = read_data(setup)
    identity = fingerprint(setup, data)
    setup.store.identify(identity, setup.task.name)
    setup.progress.start(len(setup.task.scales) + limits.trials + 1)
    prepared = prepare_scales(setup)
    reference = pick_reference(setup.task, prepared)
    bench = make_bench(setup, prepared[reference])
    latencies = module_latencies(setup, prepared)
    space = make_space(setup, prepared, reference, recovery)
    finished = finished_before(setup, bench, prepared)
    with closing(_study(setup, space, identity, storage)) as study:
        planner = plan_search(setup, bench, prepared, reference, space, study, latencies, finished)
        with make_hands(setup, bench, prepared, workers) as hands:
            candidates, searched = search(setup, bench, prepared, planner, hands, limits, finished)
        expected = outlook(planner)
    candidates += _unprepared(setup, prepared)
    if left := sum(c.status == "untried" for c in candidates):
        setup.warnings.append(f"the time limit was reached: {left} of {len(candidates)} plans were not tried; --resume goes on")
    facts = {"fingerprint": identity, "data": data, "search": searched}
    record = conclude(setup, bench, prepared, reference, candidates, facts, expected=expected)
    result = finish(setup, record)
    if record.feasible:
        return result
    raise BudgetInfeasible(_why_infeasible(record), result=result, hint=_what_helps(record))


def _study(setup: Setup, space: Space, identity: str, storage: str | None) -> Study:
    """The study of this run's plans under this budget: another budget has another, since limits are part of what trials are told."""
    plans = repr([space.plan(point).id for point in space.points])
    name = hashlib.sha256(repr((identity, setup.budget, plans)).encode()).hexdigest()[:12]
    url = storage or sqlite_url(setup.store.out / "study.db")
    return Study(space, url, f"{setup.task.name} {name}", owner_of(setup.store.out), setup.seed)


def _unprepared(setup: Setup, prepared: dict[str, Prepared]) -> list[Candidate]:
    """What became of scales that failed, or were not prepared in time; their plan is to take them as they are."""
    found = []
    for scale in setup.task.scales:
        if scale not in prepared:
            plan, failed = Plan(scale=scale, seed=setup.seed), setup.failed.get(scale)
            reason = failed or "the time limit was reached"
            found.append(Candidate(id=setup.store.identifier(plan), plan=plan, status="failed" if failed else "untried", reason=reason))
    return found


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
