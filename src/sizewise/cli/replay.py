"""`sizewise replay`: a recorded plan carried out again, to the same file or an error that says what differs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sizewise.cli.fit import Debug, Quiet, Task

__all__ = ["command"]

PlanFile = Annotated[Path, typer.Argument(help="A plan.json, or the bundle that holds it.")]
Out = Annotated[Path, typer.Option(help="Folder for the file. Must be absent or empty.")]


def command(
    plan: PlanFile,
    task: Task,
    out: Out = Path("runs/replay"),
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Make a bundle's file again from its plan, and say whether it is the same bit for bit."""
    from sizewise.cli.names import check_folder
    from sizewise.errors import UsageError
    from sizewise.pipeline.progress import shown

    if not (plan / "plan.json" if plan.is_dir() else plan).is_file():
        raise UsageError("no such plan", where=str(plan), wanted="a plan.json, or a bundle")
    check_folder(out, resume=False)
    with shown(not quiet) as progress:
        progress.note(f"sizewise: loading the task {task}")
        from sizewise.pipeline.replay import replay
        from sizewise.tasks.loading import load_task

        found = replay(plan, load_task(task), out, progress=progress)
    sys.stdout.write(f"the same file, bit for bit\nsha256: {found.expected}\nmodel:  {found.path}\n")
