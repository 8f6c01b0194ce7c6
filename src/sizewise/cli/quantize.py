"""`sizewise quantize`: one scale of a task in fewer bits, to one measured file beside the float model's."""

from functools import partial
from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Out, Quiet, Resume, RuntimeName, Seed, Task
from sizewise.cli.job import run_job
from sizewise.cli.prune import Scale

__all__ = ["command"]

Dtype = Annotated[
    str,
    typer.Option(
        help="int8, int4 (weights), mixed (8 and 4 bits, as --size asks, or 8 bits and float, as --latency allows), float16 or bfloat16."
    ),
]
Scheme = Annotated[
    str,
    typer.Option(help="static (integers throughout, needs calibration data), dynamic (linear layers), weight_only, or auto."),
]
Group = Annotated[int | None, typer.Option(help="Inputs that share a scale, of weight_only int4: 16 to 256, 64 by default.")]
Size = Annotated[str | None, typer.Option(help="Of mixed: the weights of layers may take so much, such as 200kB.")]
Latency = Annotated[
    str | None,
    typer.Option(help="Of mixed: as many layers stay float as this allows: a share of the float file's latency, such as 60%, or 2ms."),
]
MaxDrop = Annotated[
    str | None, typer.Option(help="Of static: layers stay float until the metric on validation data drops by no more, such as 0.5%.")
]
Recover = Annotated[str | None, typer.Option(help="Of static: train the integers, such as 1epoch or 10m, to do what the float model does.")]
Skip = Annotated[list[str] | None, typer.Option(help="Path of a module that stays float, such as head; may be repeated.")]


def command(
    task: Task,
    out: Out,
    dtype: Dtype = "int8",
    scheme: Scheme = "auto",
    scale: Scale = None,
    group: Group = None,
    size: Size = None,
    latency: Latency = None,
    max_drop: MaxDrop = None,
    skip: Skip = None,
    recover: Recover = None,
    runtime: RuntimeName = "onnxruntime",
    resume: Resume = False,
    seed: Seed = 0,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Give a model fewer bits, without training unless asked for, and measure what comes out beside the float file."""
    settings = {"group": group, "size": size, "latency": latency, "max_drop": max_drop, "skip": skip or (), "recovery": recover}
    job = partial(_quantize, scale, dtype, scheme, settings)
    run_job(job, task, out, recover=recover, runtime=runtime, resume=resume, seed=seed, json=json, quiet=quiet)


def _quantize(scale: str | None, dtype: str, scheme: str, settings: dict[str, Any], task: str, options: dict[str, Any]) -> Any:
    from sizewise.pipeline.one_plan import pick_scale, run_plan
    from sizewise.pipeline.quantize import quantization_step, scheme_for
    from sizewise.tasks.loading import load_task

    loaded = load_task(task)
    chosen = pick_scale(loaded, scale)
    trained = settings["recovery"] is not None
    known = scheme_for(loaded, chosen, dtype, scheme, options["runtime"], options["seed"], trained=trained)
    return run_plan(loaded, [quantization_step(dtype, known, **settings)], scale=chosen, **options)
