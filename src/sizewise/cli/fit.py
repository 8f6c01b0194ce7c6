"""`sizewise fit`: from a task and a budget to one measured file."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["check", "command", "print_result", "run"]

Task = Annotated[str, typer.Argument(help="A built-in task (digits), a Python file that defines `task`, or package.module:name.")]
Out = Annotated[Path, typer.Option(help="Folder for the run; it becomes the bundle. Must be absent or empty, unless --resume.")]
Latency = Annotated[str | None, typer.Option(help="Most time per call on the example inputs, such as 5ms.")]
Size = Annotated[str | None, typer.Option(help="Most bytes on disk, such as 2MB (decimal) or 2MiB.")]
Memory = Annotated[str | None, typer.Option(help="Most memory that loading and running the file may add, such as 64MB.")]
MaxDrop = Annotated[str | None, typer.Option(help="Most loss of quality against the reference, in points of the metric, such as 1%.")]
MinQuality = Annotated[str | None, typer.Option(help="Least quality, such as 95%.")]
RuntimeName = Annotated[str, typer.Option(help="What executes the file.")]
DeviceName = Annotated[str, typer.Option(help="Where it is measured.")]
TimeLimit = Annotated[str | None, typer.Option(help="No new work begins after this long, such as 10m.")]
Trials = Annotated[int, typer.Option(min=1, help="Most plans that are tried.")]
StopAtTarget = Annotated[bool, typer.Option("--stop-at-target", help="Stop as soon as a candidate fits the budget.")]
Workers = Annotated[int, typer.Option(min=1, help="Plans that are tried beside each other, each on one thread (Linux).")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="Who tries them: processes here, or a Ray cluster.")]
Storage = Annotated[str | None, typer.Option(help="Where the study is kept, such as sqlite:///study.db; in --out by default.")]
Recover = Annotated[str | None, typer.Option(help="Train what was shrunk for at most so long, such as 1epoch or 10m.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the run record alone to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def command(
    task: Task,
    out: Out,
    latency: Latency = None,
    size: Size = None,
    memory: Memory = None,
    max_drop: MaxDrop = None,
    min_quality: MinQuality = None,
    runtime: RuntimeName = "onnxruntime",
    device: DeviceName = "local",
    time_limit: TimeLimit = None,
    trials: Trials = 24,
    stop_at_target: StopAtTarget = False,
    workers: Workers = 1,
    engine: Engine = "local",
    storage: Storage = None,
    recover: Recover = None,
    resume: Resume = False,
    seed: Seed = 0,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Find the smallest and fastest file that keeps the budget, and prove it."""
    from sizewise.types import Budget

    budget = Budget(latency, size, memory, max_drop, min_quality)
    where = {"runtime": runtime, "device": device}
    length = {"time_limit": time_limit, "trials": trials, "stop_at_target": stop_at_target}
    who = {"workers": workers, "engine": engine, "storage": storage}
    run(task, budget, out, as_json=json, quiet=quiet, **where, **length, **who, recover=recover, resume=resume, seed=seed)


def run(task: str, budget: Any, out: Path, *, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check the names before torch is imported, run `sizewise.fit`, print the outcome; an infeasible one is printed, then raised."""
    from sizewise.errors import BudgetInfeasible
    from sizewise.pipeline.progress import shown

    known = ("runtime", "device", "time_limit", "recover", "resume")
    check(out, **{name: options.get(name) for name in known})
    try:
        with shown(not quiet) as progress:
            result = _fit(task, budget, out, progress, options)
    except BudgetInfeasible as error:
        if error.result is not None:
            print_result(error.result, as_json=as_json)
        raise
    print_result(result, as_json=as_json)


def check(out: Path, *, runtime: Any, device: Any, time_limit: Any, recover: Any, resume: Any) -> None:
    """Check what can be checked before torch is imported.

    Raises:
        UnknownName, UsageError: what cannot be meant.
    """
    from sizewise.cli.names import check_device, check_folder, check_runtime
    from sizewise.units import parse_seconds, parse_training

    check_runtime(runtime)
    check_device(device)
    if time_limit is not None:
        parse_seconds(time_limit, "--time-limit")
    if recover is not None:
        parse_training(recover, "--recover")
    check_folder(out, resume=resume)


def _fit(task: str, budget: Any, out: Path, progress: Any, options: dict[str, Any]) -> Any:
    progress.note(f"sizewise: loading the task {task}")
    from sizewise.pipeline.fit import fit
    from sizewise.tasks.loading import load_task

    return fit(load_task(task), budget, out=out, progress=progress, **options)


def print_result(result: Any, *, as_json: bool) -> None:
    """The record as JSON, or what came out in words and where it is."""
    from sizewise.report.terminal import summary
    from sizewise.types import to_json

    if as_json:
        sys.stdout.write(to_json(result.record).decode())
        return
    sys.stdout.write(summary(result.record) + "\n\n")
    sys.stdout.write(f"report: {result.path / 'report.html'}\nmodel:  {result.path / result.chosen.artefact.path}\n")
