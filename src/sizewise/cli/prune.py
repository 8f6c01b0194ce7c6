"""`sizewise prune`: one scale of a task, pruned as asked, to one measured file beside the whole model's."""

from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Out, Quiet, Recover, Resume, RuntimeName, Seed, Task, print_result

__all__ = ["Scale", "command", "read_share"]

Rate = Annotated[str | None, typer.Option(help="Share that goes, such as 0.5 or 50%; half by default. N:M says it itself.")]
Scale = Annotated[str | None, typer.Option(help="The candidate that is pruned; the task's reference by default.")]
Granularity = Annotated[
    str, typer.Option(help="channel (smaller layers: faster everywhere); or zeros: weight, N:M such as 2:4, blocks such as 4x1.")
]
Method = Annotated[
    str,
    typer.Option(help="Of choosing channels: auto, surgeon, fisher, magnitude; single weights: auto, surgeon, wanda, magnitude, global."),
]
Target = Annotated[str | None, typer.Option(help="What --rate counts when channels go: macs (default), params or latency.")]
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
    from sizewise.cli.names import check_folder, check_runtime
    from sizewise.pipeline.progress import shown
    from sizewise.units import parse_training

    share = None if rate is None else read_share(rate)
    if recover is not None:
        parse_training(recover, "--recover")
    check_runtime(runtime)
    check_folder(out, resume=resume)
    settings = {"granularity": granularity, "method": method, "target": target, "multiple": multiple, "skip": skip or ()}
    with shown(not quiet) as progress:
        progress.note(f"sizewise: loading the task {task}")
        options = {"scale": scale, "runtime": runtime, "out": out, "resume": resume, "seed": seed, "progress": progress}
        result = _prune(task, share, settings, recover, options)
    print_result(result, as_json=json)


def read_share(text: str) -> float:
    """A share as people write it: 0.5 or 50%."""
    from sizewise.errors import UsageError

    number, percent = text.strip().removesuffix("%").rstrip(), text.strip().endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError as error:
        raise UsageError("not a share", where="--rate", got=repr(text), wanted="a number such as 0.5, or 50%") from error


def _prune(task: str, rate: float | None, settings: dict[str, Any], recover: str | None, options: dict[str, Any]) -> Any:
    from sizewise.pipeline.one_plan import run_plan
    from sizewise.pipeline.prune import pruning_step
    from sizewise.pipeline.recover import recovery_for
    from sizewise.tasks.loading import load_task

    steps = [pruning_step(rate, **settings)]
    loaded = load_task(task)
    if recover is not None:
        steps.append(recovery_for(loaded, recover))
    return run_plan(loaded, steps, **options)
