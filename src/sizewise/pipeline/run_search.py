"""A search from its beginning to its end: what `fit` does before it concludes, and what a worker at another machine's search does."""

import hashlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sizewise.devices.loader import load_device
from sizewise.errors import UsageError
from sizewise.pipeline.engines import Place, make_hands, ready
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.levers import make_space
from sizewise.pipeline.recover import recovery_for
from sizewise.pipeline.scales import Prepared, pick_reference, prepare_scales
from sizewise.pipeline.searching import Limits, finished_before, module_latencies, plan_search, search
from sizewise.pipeline.setup import Setup, fingerprint, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import Bench, make_bench
from sizewise.protocols import Progress, Runtime, Silent
from sizewise.search.space import Space
from sizewise.search.storage import sqlite_url
from sizewise.search.study import Study, owner_of
from sizewise.search.untried import Outlook, outlook
from sizewise.tasks.task import Task
from sizewise.types import Budget, Candidate, Device, Plan, SearchRecord, Step
from sizewise.units import parse_seconds

__all__ = ["TRIALS", "Options", "Searched", "begin", "run_search"]

TRIALS = 24


@dataclass(frozen=True)
class Options:
    """Arguments of `fit` that a worker at another run's search takes, too."""

    resume: bool
    time_limit: str | float | None
    recover: str | None
    seed: int
    progress: Progress | None


@dataclass(frozen=True)
class Searched:
    """A search that has ended.

    Attributes:
        identity: the run's fingerprint.
        data: facts about the splits.
        prepared: the scales.
        reference: name of the one that drops are counted from.
        bench: what the trials shared.
        candidates: all of them, whatever became of them.
        record: what the search did.
        expected: what it expects of the plans that it did not try.
    """

    identity: str
    data: dict[str, Any]
    prepared: dict[str, Prepared]
    reference: str
    bench: Bench
    candidates: list[Candidate]
    record: SearchRecord
    expected: Outlook


def begin(
    task: Task,
    budget: Budget,
    runtime: str | Runtime,
    device: str,
    out: str | Path,
    options: Options,
) -> tuple[Setup, Step | None]:
    """What the phases share, and the step that recovers, with the arguments of `fit`.

    Raises:
        UsageError: input that cannot be meant.
        PreconditionError: models or data that cannot be used.
    """
    limit_s = parse_seconds(options.time_limit, "time_limit") if options.time_limit is not None else None
    recovery = recovery_for(task, options.recover) if options.recover is not None else None
    found, place = find_runtime(runtime), _measured(load_device(device))
    store = Store(Path(out), resume=options.resume)
    setup = make_setup(task, budget, found, place, store, options.seed, options.progress or Silent(), limit_s)
    return setup, recovery


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


def run_search(
    setup: Setup, recovery: Step | None, limits: Limits, storage: str | None, place: Place, *, concludes: bool = True
) -> Searched:
    """Prepare the scales, then try plans.

    Args:
        setup: the run.
        recovery: the training that follows what shrinks; None where nothing may be trained.
        limits: how long it goes on.
        storage: address of the study; the run folder has it by default.
        place: where plans are tried.
        concludes: whether a file is chosen afterwards, for which the best of other runs is made here, too.
    """
    data = read_data(setup)
    identity = fingerprint(setup, data)
    setup.store.identify(identity, setup.task.name)
    setup.progress.start(len(setup.task.scales) + limits.trials + concludes)
    with ready(setup, place):
        prepared = prepare_scales(setup)
        reference = pick_reference(setup.task, prepared)
        bench = make_bench(setup, prepared[reference])
        latencies = module_latencies(setup, prepared)
        space = make_space(setup, prepared, reference, recovery)
        finished = finished_before(setup, bench, prepared)
        with closing(_study(setup, space, identity, storage)) as study:
            planner = plan_search(setup, bench, prepared, reference, space, study, latencies, finished, borrows=concludes)
            with make_hands(setup, bench, prepared, place) as hands:
                candidates, record = search(setup, bench, prepared, planner, hands, limits, finished)
            expected = outlook(planner)
    candidates += _unprepared(setup, prepared)
    return Searched(identity, data, prepared, reference, bench, candidates, record, expected)


def _study(setup: Setup, space: Space, identity: str, storage: str | None) -> Study:
    """The study of this run's plans under this budget: another budget has another, since limits are part of what trials are told."""
    plans = repr([space.plan(point).id for point in space.points])
    name = hashlib.sha256(repr((identity, setup.budget, plans)).encode()).hexdigest()[:12]
    url = storage or sqlite_url(setup.store.out / "study.db")
    timer = setup.context.timer
    device = hashlib.sha256(timer.facts.encode()).hexdigest()[:12] if timer is not None else ""
    owner = owner_of(setup.store.out)
    return Study(space, url, f"{setup.task.name} {name}", owner, setup.seed, device=device, shared=storage is not None)


def _unprepared(setup: Setup, prepared: dict[str, Prepared]) -> list[Candidate]:
    """What became of scales that failed, or were not prepared in time; their plan is to take them as they are."""
    found = []
    for scale in setup.task.scales:
        if scale not in prepared:
            plan, failed = Plan(scale=scale, seed=setup.seed), setup.failed.get(scale)
            reason = failed or "the time limit was reached"
            found.append(Candidate(id=setup.store.identifier(plan), plan=plan, status="failed" if failed else "untried", reason=reason))
    return found
