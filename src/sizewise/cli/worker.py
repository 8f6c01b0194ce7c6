"""`sizewise worker`: try plans of a search that `sizewise fit` makes elsewhere, with the same storage."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sizewise.cli.fit import (
    Debug,
    DeviceName,
    Latency,
    MaxDrop,
    Memory,
    MinQuality,
    Quiet,
    Recover,
    Resume,
    RuntimeName,
    Seed,
    Size,
    TimeLimit,
    Trials,
    Workers,
    check,
)

__all__ = ["command"]

Task = Annotated[str, typer.Option(help="The task: a built-in one (digits), a Python file that defines `task`, or package.module:name.")]
Storage = Annotated[str, typer.Option(help="Where the study is kept, such as postgresql+psycopg://user@host/name.")]
Out = Annotated[Path, typer.Option(help="Folder for what is tried here. Must be absent or empty, unless --resume.")]


def command(
    task: Task,
    storage: Storage,
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
    workers: Workers = 1,
    recover: Recover = None,
    resume: Resume = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Try plans of a search that `sizewise fit` makes with the same task, budget, runtime, --recover, --seed and --storage."""
    from sizewise.pipeline.progress import shown
    from sizewise.types import Budget

    budget = Budget(latency, size, memory, max_drop, min_quality)
    check(out, runtime=runtime, device=device, time_limit=time_limit, recover=recover, resume=resume)
    with shown(not quiet) as progress:
        progress.note(f"sizewise: loading the task {task}")
        from sizewise.pipeline.join import join
        from sizewise.tasks.loading import load_task

        done = join(
            load_task(task),
            budget,
            storage,
            runtime,
            device,
            out,
            resume=resume,
            time_limit=time_limit,
            trials=trials,
            workers=workers,
            recover=recover,
            seed=seed,
            progress=progress,
        )
    sys.stdout.write(f"{done.tried} plans tried here; the study has what came of them, and the files are in {out / 'trials'}\n")
