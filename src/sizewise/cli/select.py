"""`sizewise select`: which scale a task needs, or what scales cost in a scenario."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sizewise.cli.fit import AsJson, Debug, Latency, Memory, Quiet, Resume, RuntimeName, Seed, Size, TimeLimit

__all__ = ["command"]

Task = Annotated[str | None, typer.Argument(help="A task, as for fit. Without one, --scenario compares models of the zoo by cost.")]
Out = Annotated[Path, typer.Option(help="Folder for the run and its report. Must be absent or empty, unless --resume.")]
ScenarioName = Annotated[
    str | None, typer.Option("--scenario", help="mobile-vision, keyword-spotting, … or a .toml file: device, limits and situation.")
]
DeviceName = Annotated[str | None, typer.Option(help="A device or a .toml file; the scenario's by default, else this machine.")]
Seeds = Annotated[int, typer.Option(help="Trainings per scale and number of examples.")]
Tolerance = Annotated[str, typer.Option(help="How much worse than the best a scale may be, in points of the metric.")]


def command(
    task: Task = None,
    scenario: ScenarioName = None,
    latency: Latency = None,
    size: Size = None,
    memory: Memory = None,
    device: DeviceName = None,
    out: Out = Path("runs/select"),
    seeds: Seeds = 3,
    tolerance: Tolerance = "1 %",
    runtime: RuntimeName = "onnxruntime",
    time_limit: TimeLimit = None,
    resume: Resume = False,
    seed: Seed = 0,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Find the smallest scale that is good enough: learning curves of every candidate, what its errors come from, what it costs."""
    from sizewise.cli.names import check_device, check_folder, check_runtime
    from sizewise.errors import UsageError
    from sizewise.pipeline.progress import shown
    from sizewise.select.scenario import load_scenario
    from sizewise.types import Budget
    from sizewise.units import parse_points, parse_seconds

    if task is None and scenario is None:
        raise UsageError("name a task, a scenario, or both", wanted="sizewise select digits, or sizewise select --scenario mobile-vision")
    check_runtime(runtime)
    if device is not None:
        check_device(device)
    check_folder(out, resume=resume)
    parse_points(tolerance, "--tolerance")
    if time_limit is not None:
        parse_seconds(time_limit, "--time-limit")
    situation = load_scenario(scenario) if scenario is not None else None
    budget = Budget(latency, size, memory)
    options = {"runtime": runtime, "device": device, "out": out, "seed": seed, "scenario": situation, "resume": resume}
    with shown(not quiet) as progress:
        if task is None:
            record = _survey(budget, progress, options)
        else:
            progress.note(f"sizewise: loading the task {task}")
            record = _select(task, budget, progress, {**options, "seeds": seeds, "tolerance": tolerance, "time_limit": time_limit})
    _print(record, out, as_json=json)


def _survey(budget: Any, progress: Any, options: dict[str, Any]) -> Any:
    from sizewise.pipeline.survey import survey

    kept = {key: options[key] for key in ("scenario", "runtime", "device", "out", "resume")}
    return survey(budget=budget, progress=progress, **kept)


def _select(task: str, budget: Any, progress: Any, options: dict[str, Any]) -> Any:
    from sizewise.pipeline.select import select_scale
    from sizewise.tasks.loading import load_task

    return select_scale(load_task(task), budget, progress=progress, **options)


def _print(record: Any, out: Path, *, as_json: bool) -> None:
    from sizewise.report.advice_terminal import advice_summary
    from sizewise.types import to_json

    if as_json:
        sys.stdout.write(to_json(record).decode())
        return
    sys.stdout.write(f"{advice_summary(record)}\n\nreport: {out / 'report.html'}\n")
