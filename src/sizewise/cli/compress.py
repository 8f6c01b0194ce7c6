"""`sizewise compress`: one scale of a task, stored in a stated share of its bytes."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Out, Quiet, Recover, Resume, RuntimeName, Seed, Task
from sizewise.cli.job import run_job
from sizewise.cli.prune import Scale, Skip, read_share

__all__ = ["command"]

Rate = Annotated[str, typer.Option(help="Share of the float32 bytes that weights.swz may take, such as 0.1 or 10%.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="pruning, low_rank or sharing; may be repeated. All that may help are tried by default."),
]


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
    job = partial(_compress, scale, read_share(rate), methods or "auto", recover, skip or ())
    run_job(job, task, out, recover=recover, runtime=runtime, resume=resume, seed=seed, json=json, quiet=quiet)


def _compress(
    scale: str | None, rate: float, methods: Any, recover: str | None, skip: Sequence[str], task: str, options: dict[str, Any]
) -> Any:
    from sizewise.pipeline.compress import compression_ways
    from sizewise.pipeline.one_plan import run_ways
    from sizewise.tasks.loading import load_task

    ways = compression_ways(rate, methods, recover, skip)
    return run_ways(load_task(task), ways, scale=scale, **options)
