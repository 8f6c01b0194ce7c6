"""`sizewise profile`: what models cost on a device, in total and per layer."""

import sys
from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Quiet, RuntimeName

__all__ = ["command"]

Task = Annotated[str | None, typer.Argument(help="A task, as for fit: every candidate is profiled. Or name models with --zoo.")]
Zoo = Annotated[
    list[str] | None, typer.Option(help="A reference model, such as resnet50 or mobilenet_v2:width=0.5,size=160; may be repeated.")
]
DeviceName = Annotated[str, typer.Option(help="A device (see: sizewise devices), or a .toml file of your own.")]
Batch = Annotated[int | None, typer.Option(help="Examples per call; the task's example inputs (for --zoo: one) by default.")]
Counts = Annotated[bool, typer.Option("--counts", help="Counts alone: nothing is measured or predicted.")]


def command(
    task: Task = None,
    zoo: Zoo = None,
    device: DeviceName = "local",
    batch: Batch = None,
    runtime: RuntimeName = "onnxruntime",
    counts: Counts = False,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Count parameters, MACs, bytes and memory; measure the latency here, or predict it for another device."""
    from sizewise.cli.names import check_device, check_runtime
    from sizewise.errors import UsageError
    from sizewise.pipeline.progress import shown

    check_device(device)
    check_runtime(runtime)
    if (task is None) == (not zoo):
        raise UsageError("name either a task or models of the zoo", wanted="sizewise profile TASK, or sizewise profile --zoo resnet50")
    if batch is not None and batch < 1:
        raise UsageError("a batch holds at least one example", where="--batch", got=str(batch))
    with shown(not quiet) as progress:
        progress.note(f"sizewise: profiling {task if task else ', '.join(zoo or ())}")
        record = _record(task, zoo or [], device, batch, runtime, progress, counts=counts)
    _print(record, as_json=json)


def _record(task: str | None, zoo: list[str], device: str, batch: int | None, runtime: str, progress: Any, *, counts: bool) -> Any:
    from sizewise.data.batches import with_batch
    from sizewise.devices.loader import load_device
    from sizewise.pipeline.calibrate import calibrated
    from sizewise.pipeline.export import find_runtime
    from sizewise.pipeline.profile import profile_models
    from sizewise.pipeline.setup import version
    from sizewise.types import ProfileRecord

    place, found = load_device(device), find_runtime(runtime)
    if task is not None:
        from sizewise.tasks.loading import load_task

        loaded = load_task(task)
        example = with_batch(loaded.example, batch) if batch is not None else loaded.example
        models = {scale: (loaded.build(scale), example) for scale in loaded.scales}
    else:
        from sizewise.zoo.catalog import open_entry

        models = {spec: open_entry(spec, batch or 1)[:2] for spec in zoo}
    if not counts:
        place = calibrated(place, found, progress)
    profiles = profile_models(models, None if counts else place, found)
    return ProfileRecord(version=version(), device=place, runtime=runtime, models=profiles)


def _print(record: Any, *, as_json: bool) -> None:
    from sizewise.report.profile_terminal import profile_summary
    from sizewise.types import to_json

    sys.stdout.write(to_json(record).decode() if as_json else profile_summary(record) + "\n")
