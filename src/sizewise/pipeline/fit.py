"""The main job: from a task and a budget to one measured file."""

from pathlib import Path

from sizewise.errors import BudgetInfeasible
from sizewise.pipeline.conclude import conclude
from sizewise.pipeline.engines import Engine, Place, check_place
from sizewise.pipeline.result import Result, finish
from sizewise.pipeline.run_search import TRIALS, Options, begin, run_search
from sizewise.pipeline.searching import Limits
from sizewise.profile.timing import threads
from sizewise.protocols import Progress, Runtime
from sizewise.report._format import limit_value
from sizewise.tasks.task import Task
from sizewise.types import Budget, RunRecord

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
    trials: int = TRIALS,
    stop_at_target: bool = False,
    workers: int = 1,
    engine: Engine = "local",
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
    With a quality limit in the budget the fitting candidate is chosen that costs least, by the geometric mean of latency and size over
    the chance that the test split will prove the limit; without one the best in quality. The chosen file is then judged on the test split.

    Args:
        task: candidates, data and metric.
        budget: the limits.
        runtime: a name or a runtime object.
        device: name of a device file.
        out: the run folder, absent or empty unless `resume`; it becomes the bundle.
        resume: go on with an interrupted run in `out`; finished candidates are not repeated.
        time_limit: no new work begins after this long, such as "10m", or that by its like would not be done by then; what was not tried
            is recorded.
        trials: most plans that are tried, those of an interrupted run that goes on among them.
        stop_at_target: stop as soon as a candidate fits the budget.
        workers: plans that are tried beside each other, each by a process of its own on one thread (Linux); while a file is timed, all
            others hold still. One tries them in this process, on all threads. Which of several is faster decides nothing.
        engine: "ray" has scales trained and plans tried by a Ray cluster, by so many workers, each on a core: the one that `RAY_ADDRESS`
            names, else one that is started here. Files are timed here all the same. The task must be one that every node can load by
            the name that it was loaded by.
        storage: where the study is kept, any address that Optuna takes as a storage; `study.db` in the run folder by default. Runs of the
            same task and budget that share one, each in a folder of its own, share out the plans.
        recover: train every pruned model for so long, "1epoch" or "10m", to do what the whole one does, on the task's train
            data, with or without targets; see `sizewise.recover`. Where targets are labels, models may learn them, too, and smaller scales
            may learn from the reference. A long training is tried for a quarter of its time first, and whole where that lost too much.
        seed: of everything random.
        progress: where to report to.

    Raises:
        BudgetInfeasible: nothing tried fits, or the final measurement refuses it; `.result` holds the nearest candidate,
            whose bundle is in `out`, marked as outside the budget.
        UsageError: input that cannot be meant.
        PreconditionError: models or data that cannot be used.
        UnsupportedModel: no candidate can be exported.
    """
    limits = Limits(trials, stop_at_target)
    place = Place(workers, engine)
    check_place(place, task, runtime)
    options = Options(resume=resume, time_limit=time_limit, recover=recover, seed=seed, progress=progress)
    setup, recovery = begin(task, budget, runtime, device, out, options)
    with threads(setup.device.threads), setup.store.held():
        found = run_search(setup, recovery, limits, storage, place)
        if left := sum(c.status == "untried" for c in found.candidates):
            setup.warnings.append(f"the time limit was reached: {left} of {len(found.candidates)} plans were not tried; --resume goes on")
        facts = {"fingerprint": found.identity, "data": found.data, "search": found.record}
        record = conclude(setup, found.bench, found.prepared, found.reference, found.candidates, facts, expected=found.expected)
        result = finish(setup, record)
    if record.feasible:
        return result
    raise BudgetInfeasible(_why_infeasible(record), result=result, hint=_what_helps(record))


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
