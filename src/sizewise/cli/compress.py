"""`sizewise compress`: one scale of a task, stored in a stated share of its bytes."""

from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Out, Quiet, Recover, Resume, RuntimeName, Seed, Task, print_result
from sizewise.cli.prune import Scale, read_share

__all__ = ["command"]

Rate = Annotated[str, typer.Option(help="Share of the float32 bytes that weights.swz may take, such as 0.1 or 10%.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="pruning, low_rank or sharing; may be repeated. All that may help are tried by default."),
]
Skip = Annotated[list[str] | None, typer.Option(help="Path of a module that is left alone, such as head; may be repeated.")]


def command(
    task: Task,
    out: Out,
    rate: Rate = "0.1",
    scale: Scale = None,
    methods: Methods = None,
    skip: Skip = None,
    recover: Recover = None,
    runtime: RuntimeName = "onnxruntime",
    resume: Resume = False,
    seed: Seed = 0,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Store a model in few bytes (weights.swz), and measure what it is still worth beside the whole."""
    from sizewise.cli.names import check_folder, check_runtime
    from sizewise.pipeline.compress import compression_ways
    from sizewise.pipeline.progress import shown

    ways = compression_ways(read_share(rate), methods or "auto", recover, skip or ())  # type: ignore[arg-type]  # names are checked there
    check_runtime(runtime)
    check_folder(out, resume=resume)
    with shown(not quiet) as progress:
        progress.note(f"sizewise: loading the task {task}")
        options = {"scale": scale, "runtime": runtime, "out": out, "resume": resume, "seed": seed, "progress": progress}
        result = _compress(task, ways, options)
    print_result(result, as_json=json)


def _compress(task: str, ways: Any, options: dict[str, Any]) -> Any:
    from sizewise.pipeline.one_plan import run_ways
    from sizewise.tasks.loading import load_task

    return run_ways(load_task(task), ways, **options)
