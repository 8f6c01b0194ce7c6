"""Carry out a recorded plan again, and say whether the same file comes out, bit for bit."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sizewise.devices.loader import load_device
from sizewise.errors import ParityError, UnknownName, UsageError
from sizewise.evaluate.scoring import signed_quality
from sizewise.pipeline.apply import Applier
from sizewise.pipeline.bundle import Made, SavedPlan, made_here, read_plan
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.scales import scale_module
from sizewise.pipeline.setup import Setup, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.weights import save_weights
from sizewise.profile.timing import threads
from sizewise.protocols import Progress, Runtime, Silent
from sizewise.tasks.resize import named_alike
from sizewise.tasks.task import Task
from sizewise.types import Artefact, Budget, Plan

__all__ = ["Replayed", "replay"]


@dataclass(frozen=True)
class Replayed:
    """What a replay made.

    Attributes:
        artefact: the file.
        path: where it is.
        expected: sha256 of the recorded file.
    """

    artefact: Artefact
    path: Path
    expected: str


def replay(
    plan: str | Path,
    task: Task,
    out: str | Path = "runs/replay",
    *,
    runtime: str | Runtime | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Make a bundle's file again from its plan, the task's model and data, and the recorded seed.

    Choices that rested on measured times (how many channels of which group, which layers stay float) are taken from the record; all
    else, weights among it, is computed anew. The file is then compared with the recorded one by its hash.

    Args:
        plan: a `plan.json`, or the folder that holds it.
        task: the task that the plan was made for.
        out: where the file is written, absent or empty.
        runtime: a runtime object, where the recorded name is not one that is installed.
        progress: where to report to.

    Raises:
        UsageError: no plan, one that was made before hashes were recorded, or a folder that cannot be used.
        UnknownName: the task has no such candidate, or there is no such runtime.
        PreconditionError: models or data cannot be used.
        UnsupportedModel: a step or the runtime cannot treat the model.
        ParityError: another file came out; says what differs.
    """
    path = Path(plan) / "plan.json" if Path(plan).is_dir() else Path(plan)
    saved = read_plan(path)
    if saved.made is None:
        hint = "export it from a run folder of this version"
        raise UsageError("the plan does not say which file it made", where=str(path), wanted="a plan.json of a bundle", hint=hint)
    for scale in (saved.plan.scale, saved.made.reference):
        if scale not in task.scales:
            raise UnknownName("model", scale, task.scales, where=str(path))
    found, place = find_runtime(saved.runtime if runtime is None else runtime), load_device("local")
    store = Store(Path(out), resume=False)
    setup = make_setup(task, Budget(), found, place, store, saved.plan.seed, progress or Silent(), None)
    with threads(saved.made.threads):
        data = read_data(setup)
        applied, artefact = _carried_out(setup, saved)
    if artefact.sha256 != saved.made.sha256:
        raise _other(saved, applied, artefact, found, path, data)
    setup.progress.note(f"the same file, bit for bit: sha256 {artefact.sha256}")
    return Replayed(artefact, store.out / artefact.path, saved.made.sha256)


def _carried_out(setup: Setup, saved: SavedPlan) -> tuple[Plan, Artefact]:
    """The plan with new records, and the file in the run folder."""
    assert saved.made is not None
    model, _ = scale_module(setup, saved.plan.scale)
    reference = model if saved.made.reference == saved.plan.scale else scale_module(setup, saved.made.reference)[0]
    judge = partial(signed_quality, reference, setup.task.metric, setup.validation)
    context = replace(setup.context, judge=judge, reference=named_alike(reference, model))
    setup.progress.working(f"{saved.plan.scale}: {saved.plan.label}")
    module, applied, _ = Applier().apply(model, saved.plan, context)
    artefact = setup.runtime.lower(module, setup.task.example, setup.store.out / setup.runtime.file_name)
    save_weights(module, setup.store.out)
    return applied, artefact


def _other(saved: SavedPlan, applied: Plan, artefact: Artefact, runtime: Runtime, path: Path, data: dict[str, object]) -> ParityError:
    """Another file came out, for one of these reasons."""
    assert saved.made is not None
    now = made_here(artefact, runtime, saved.made.reference, saved.made.threads)
    reasons = [*_other_data(path, data), *_other_tools(saved.made, now), *_other_steps(saved.plan, applied)]
    return ParityError(
        "the replayed file is not the recorded one",
        where=artefact.path,
        got=f"sha256 {artefact.sha256[:16]}",
        wanted=f"sha256 {saved.made.sha256[:16]}",
        hint="; ".join(reasons) or "versions, threads and choices are the same: models or data differ, or something is random",
    )


def _other_data(path: Path, data: dict[str, object]) -> list[str]:
    """Splits that are not the recorded ones, where the bundle's record is beside the plan."""
    record = path.parent / "run.json"
    if not record.is_file():
        return []
    known = json.loads(record.read_bytes()).get("data", {})
    return [f"other {name} data" for name, facts in data.items() if name in known and known[name] != facts]


def _other_tools(then: Made, now: Made) -> list[str]:
    names = sorted(then.versions.keys() | now.versions.keys())
    versions = [(name, now.versions.get(name), then.versions.get(name)) for name in names]
    found = [f"{name} is {new}, was {old}" for name, new, old in versions if new != old]
    return found + ([f"another processor: {now.machine}, was {then.machine}"] if now.machine != then.machine else [])


def _other_steps(then: Plan, now: Plan) -> list[str]:
    """Steps whose records are not the recorded ones, and those that nobody can repeat."""
    found = []
    for before, after in zip(then.steps, now.steps, strict=True):
        old, new = before.record or {}, json.loads(json.dumps(after.record or {}))
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if keys:
            found.append(f"{before.technique} came to another {', '.join(keys)}")
        length = before.settings.get("recovery") or ""
        if "seconds" in before.settings or (isinstance(length, str) and length.strip().endswith(("s", "m", "h")) and "epoch" not in length):
            found.append(f"{before.technique} trained for a time, in which no machine does the same twice")
    return found
