"""What the commands that shrink one scale of a task in a given way share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sizewise.cli.fit import print_result

__all__ = ["run_job"]


def run_job(
    job: Callable[[str, dict[str, Any]], Any],
    task: str,
    out: Path,
    *,
    recover: str | None,
    runtime: str,
    resume: bool,
    seed: int,
    json: bool,
    quiet: bool,
) -> None:
    """Check the names before torch is imported, let a job load the task and run, and print what came out.

    Args:
        job: of the task's name and of what `run_ways` takes besides the task, the ways and the scale.
        task: a name or file.
        out: the run folder.
        recover: how long is trained, or None.
        runtime, resume, seed, json, quiet: as people give them.
    """
    from sizewise.cli.names import check_folder, check_runtime
    from sizewise.pipeline.progress import shown
    from sizewise.units import parse_training

    if recover is not None:
        parse_training(recover, "--recover")
    check_runtime(runtime)
    check_folder(out, resume=resume)
    with shown(not quiet) as progress:
        progress.note(f"sizewise: loading the task {task}")
        result = job(task, {"runtime": runtime, "out": out, "resume": resume, "seed": seed, "progress": progress})
    print_result(result, as_json=json)
