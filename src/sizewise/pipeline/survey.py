"""What the models of a scenario cost on its device: no data, hence no word on quality."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sizewise.advice import AdviceRecord, Scenario
from sizewise.devices.loader import load_device
from sizewise.errors import UsageError
from sizewise.files import write_bytes, write_text
from sizewise.pipeline.advise import cheapest_first, costed, reachable
from sizewise.pipeline.calibrate import calibrated
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.profile import profile_models
from sizewise.pipeline.setup import version
from sizewise.pipeline.store import Store
from sizewise.protocols import Progress, Runtime, Silent
from sizewise.report.advice_html import render_advice
from sizewise.select.scenario import budget_of
from sizewise.select.strategy import strategy
from sizewise.types import Budget, to_json
from sizewise.zoo.catalog import open_entry

__all__ = ["survey"]


def survey(
    scenario: Scenario,
    budget: Budget | None = None,
    runtime: str | Runtime = "onnxruntime",
    device: str | None = None,
    out: str | Path = "runs/select",
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> AdviceRecord:
    """Profile a scenario's candidates (models of the zoo, random weights) and say which can keep its limits, and what follows.

    Args:
        scenario: names candidates, device, batch and limits.
        budget: limits that count before the scenario's.
        runtime: for latencies measured here.
        device: instead of the scenario's.
        out: the run folder, absent or empty unless `resume`; gets `select.json` and `report.html`.
        resume: write over an earlier survey.
        progress: where to report to.

    Raises:
        UsageError: the scenario names no candidates, or a folder that cannot be used.
        UnknownName: a candidate that the zoo does not have.
    """
    begin, show = time.monotonic(), progress or Silent()
    if not scenario.candidates:
        raise UsageError("the scenario names no candidates", where=scenario.name, hint="add candidates = [...], or give a task")
    limits, found = budget_of(scenario, budget or Budget()), find_runtime(runtime)
    store = Store(Path(out), resume=resume)
    place = calibrated(load_device(device or scenario.device), found, show)
    models = {}
    for spec in scenario.candidates:
        show.working(f"building {spec}")
        models[spec] = open_entry(spec, scenario.batch)[:2]
    profiles = cheapest_first(profile_models(models, place, found))
    scales = tuple(costed(profile, limits, place) for profile in profiles)
    possible = [scale.name for scale in scales if reachable(scale)]
    some = f"{', '.join(possible)} can run there and keep the limits, some only after shrinking" if possible else "no candidate can"
    record = AdviceRecord(
        version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - begin,
        task=scenario.title,
        metric="accuracy",
        higher_is_better=True,
        fingerprint="",
        budget=limits,
        device=place,
        runtime=found.name,
        seeds=0,
        sizes=(),
        tolerance=0.0,
        scales=scales,
        best=None,
        recommended=None,
        safe=None,
        undecided=(),
        decision=f"by cost alone, {some}; which is good enough, only data can tell: sizewise select TASK --scenario {scenario.name}",
        scenario=scenario,
    )
    record = replace(record, strategy=strategy(record))
    write_bytes(store.out / "select.json", to_json(record))
    write_text(store.out / "report.html", render_advice(record))
    return record
