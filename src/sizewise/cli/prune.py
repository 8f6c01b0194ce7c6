"""`sizewise prune`: one scale of a task, pruned as asked, to one measured file beside the whole model's."""

from functools import partial
from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Out, Quiet, Recover, Resume, RuntimeName, Seed, Task
from sizewise.cli.job import run_job

__all__ = ["Scale", "Skip", "command", "read_share"]

Rate = Annotated[str | None, typer.Option(help="Share that goes, such as 0.5 or 50%; half by default. N:M says it itself.")]
Scale = Annotated[str | None, typer.Option(help="The candidate that is pruned; the task's reference by default.")]
Granularity = Annotated[
    str,
    typer.Option(help="channel (smaller layers: faster everywhere), block (fewer layers); or zeros: weight, N:M as 2:4, blocks as 4x1."),
]
Method = Annotated[
    str,
    typer.Option(help="Of choosing channels: auto, surgeon, fisher, magnitude; single weights: auto, surgeon, wanda, magnitude, global."),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="What --rate counts when channels go: macs (default), params, latency, or int8_latency, that of the file in integers."
    ),
]
Multiple = Annotated[int | None, typer.Option(help="Channel counts are multiples of this; what the runtime likes by default.")]
Skip = Annotated[list[str] | None, typer.Option(help="Path of a module that is left alone, such as layer1.0.conv1; may be repeated.")]


def command(
    task: Task,
    out: Out,
    rate: Rate = None,
    scale: Scale = None,
    granularity: Granularity = "channel",
    method: Method = "auto",
    target: Target = None,
    multiple: Multiple = None,
    skip: Skip = None,
    recover: Recover = None,
    runtime: RuntimeName = "onnxruntime",
    resume: Resume = False,
    seed: Seed = 0,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Remove a share of a model, without training unless asked for, and measure what is left beside the whole."""
    share = None if rate is None else read_share(rate)
    settings = {"granularity": granularity, "method": method, "target": target, "multiple": multiple, "skip": skip or ()}
    job = partial(_prune, scale, share, settings, recover)
    run_job(job, task, out, recover=recover, runtime=runtime, resume=resume, seed=seed, json=json, quiet=quiet)


def read_share(text: str) -> float:
    """A share as people write it: 0.5 or 50%."""
    from sizewise.errors import UsageError

    number, percent = text.strip().removesuffix("%").rstrip(), text.strip().endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError as error:
        raise UsageError("not a share", where="--rate", got=repr(text), wanted="a number such as 0.5, or 50%") from error


def _prune(scale: str | None, rate: float | None, settings: dict[str, Any], recover: str | None, task: str, options: dict[str, Any]) -> Any:
    from sizewise.pipeline.one_plan import run_plan
    from sizewise.pipeline.prune import pruning_step
    from sizewise.pipeline.recover import recovery_for
    from sizewise.tasks.loading import load_task

    steps = [pruning_step(rate, **settings)]
    loaded = load_task(task)
    if recover is not None:
        steps.append(recovery_for(loaded, recover))
    return run_plan(loaded, steps, scale=scale, **options)
