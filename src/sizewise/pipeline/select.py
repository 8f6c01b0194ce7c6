"""Which scale a task needs: train candidates on growing subsets of the data, stop the hopeless, judge the rest."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sizewise.advice import AdviceRecord, ScaleAdvice, Scenario
from sizewise.data.batches import batches, digest, examples_in, with_batch
from sizewise.data.subsets import count_examples, nested_subsets
from sizewise.devices.loader import load_device
from sizewise.errors import PreconditionError, UsageError
from sizewise.evaluate.scoring import module_call
from sizewise.files import write_bytes, write_text
from sizewise.graph.trace import eval_copy
from sizewise.pipeline.advise import cheapest_first, costed, judged, reachable
from sizewise.pipeline.calibrate import calibrated
from sizewise.pipeline.climb import Climb
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.points import Points
from sizewise.pipeline.profile import profile_models
from sizewise.pipeline.setup import Setup, fingerprint, make_setup, read_data, version
from sizewise.pipeline.store import Store
from sizewise.pipeline.wording import decision
from sizewise.protocols import Inputs, Progress, Runtime, Silent
from sizewise.report.advice_html import render_advice
from sizewise.select.halving import rungs
from sizewise.select.judge import Ruling, judge_scales, what_decides
from sizewise.select.scenario import budget_of
from sizewise.select.strategy import strategy
from sizewise.tasks.task import Task
from sizewise.types import Budget, ModelProfile, to_json
from sizewise.units import parse_points, parse_seconds

__all__ = ["select_scale"]

LEAST = 32  # training examples of the smallest subset
SIZES_FOR_A_CURVE = 3


def select_scale(
    task: Task,
    budget: Budget | None = None,
    runtime: str | Runtime = "onnxruntime",
    device: str | None = None,
    out: str | Path = "runs/select",
    *,
    seeds: int = 3,
    tolerance: str | float = "1 %",
    scenario: Scenario | None = None,
    resume: bool = False,
    time_limit: str | float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AdviceRecord:
    """Find the smallest scale that the task needs, from data.

    Every scale is profiled on the device and trained on nested subsets of the training examples, each twice the one before,
    under several seeds; those that cannot catch up any more are stopped. Learning curves, training and validation quality tell
    what a scale's errors come from. The smallest scale whose quality at all examples is within the tolerance of the best is
    recommended, if the data decide it; scales in doubt get up to twice the seeds first. Given (trained) models are
    evaluated and, where there is training data, briefly tuned.

    Args:
        task: candidates, data and metric.
        budget: cost limits; what breaks them even after the best shrinking seen at similar layers is not recommended.
        runtime: a name or a runtime object, for latencies measured here.
        device: name of a device file, or a path to one; the scenario's by default, else this machine.
        out: the run folder, absent or empty unless `resume`; gets `select.json` and `report.html`.
        seeds: trainings per scale on all examples; on fewer, at most two.
        tolerance: how much worse than the best a scale may be: "1 %" is one point of the metric; a number is in its unit.
        scenario: the situation it is for; its limits count where `budget` has none.
        resume: go on with an interrupted run in `out`; finished trainings are not repeated.
        time_limit: no new work begins after this long; what is known then is judged.
        seed: of the first training and of everything else that is random; the others follow it.
        progress: where to report to.

    Raises:
        UsageError: input that cannot be meant.
        PreconditionError: models or data that cannot be used, or too few examples for a curve.
    """
    if seeds < (1 if task.train is None else 2):
        raise UsageError("too few seeds", got=str(seeds), wanted="at least 2: how much trainings differ is part of the answer")
    limit_s = parse_seconds(time_limit, "time_limit") if time_limit is not None else None
    allowed = parse_points(tolerance, "tolerance")
    limits = budget_of(scenario, budget or Budget())
    found, show = find_runtime(runtime), progress or Silent()
    place = calibrated(load_device(device or (scenario.device if scenario else "local")), found, show)
    setup = make_setup(task, limits, found, place, Store(Path(out), resume=resume), seed, show, limit_s)
    record = _run(setup, seeds, allowed, scenario)
    write_bytes(setup.store.out / "select.json", to_json(record))
    write_text(setup.store.out / "report.html", render_advice(record))
    return record


def _run(setup: Setup, seeds: int, tolerance: float, scenario: Scenario | None) -> AdviceRecord:
    if setup.task.metric.target == "reference":
        raise PreconditionError("a metric that compares with a reference cannot tell which scale is good enough", where="metric")
    data = read_data(setup)
    _check_trainable(setup.task)
    identity = fingerprint(setup, {**data, "select": _train_facts(setup)})
    setup.store.identify(identity, setup.task.name)
    sizes = _sizes(setup.task)
    subsets = nested_subsets(setup.task.train, sizes, setup.seed) if setup.task.train is not None else None
    setup.warnings.extend(subsets.notes if subsets is not None else ["the task has no train data: no learning curves"])
    setup.progress.working("profiling every scale")
    profiles = _profiles(setup, scenario)
    advice = {name: costed(profile, setup.budget, setup.device) for name, profile in profiles.items()}
    climb = Climb(setup, Points(setup.task, subsets or {}, setup.store), sizes, seeds, tolerance, profiles)
    climb.run()
    ruling = _rule(climb, advice)
    while (doubtful := _doubtful(climb, ruling)) and not setup.late:
        climb.add_seeds(doubtful)
        ruling = _rule(climb, advice)
    facts = {"fingerprint": identity, "data": data, "scenario": scenario}
    return _record(climb, ruling, advice, facts)


def _check_trainable(task: Task) -> None:
    for scale in task.scales:
        if task.train is None and task.is_untrained(scale):
            raise PreconditionError("this candidate is untrained and the task has no train loader", where=f"models[{scale!r}]")


def _train_facts(setup: Setup) -> Any:
    """What points of learning curves rest on besides `fingerprint`: the training examples and how each scale is trained."""
    task = setup.task
    hashed, count = hashlib.sha256(), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        for inputs, target in batches(task.train, "train") if task.train is not None else ():
            digest(inputs, target, hashed)
            count += examples_in(inputs)
    recipes = [(scale, task.recipe(scale).lr, _name(task.recipe(scale).loss)) for scale in task.scales if task.is_untrained(scale)]
    return count, hashed.hexdigest(), recipes


def _name(loss: Any) -> str:
    return getattr(loss, "__qualname__", type(loss).__name__)


def _sizes(task: Task) -> Sequence[int]:
    """Numbers of training examples to train on.

    Raises:
        PreconditionError: too few for a learning curve.
    """
    if task.train is None:
        return ()
    total = count_examples(task.train)
    sizes = rungs(total, LEAST)
    if len(sizes) < SIZES_FOR_A_CURVE:
        least = LEAST * 2 ** (SIZES_FOR_A_CURVE - 1)
        raise PreconditionError(
            "too few training examples for a learning curve",
            where="train",
            got=f"{total} examples",
            wanted=f"at least {least}: {SIZES_FOR_A_CURVE} sizes, each twice the one before, from {LEAST} on",
        )
    return sizes


def _profiles(setup: Setup, scenario: Scenario | None) -> dict[str, ModelProfile]:
    """Every scale's cost on the device, cheapest first; a model that cannot run at another input size is left out, with a warning.

    Raises:
        PreconditionError: a model fails at its own input size; says which.
    """
    example = with_batch(setup.task.example, scenario.batch) if scenario is not None and scenario.batch > 1 else setup.task.example
    models: dict[str, tuple[nn.Module, Inputs]] = {}
    for scale in setup.task.scales:
        module = setup.task.build(scale, setup.seed)
        if setup.task.level(scale) is not None and (reason := _fails(module, example)):
            setup.warnings.append(f"{scale} is left out: {reason}")
        else:
            models[scale] = (module, example)
    return {p.name: p for p in cheapest_first(profile_models(models, setup.device, setup.runtime))}


def _fails(module: nn.Module, example: Inputs) -> str | None:
    """Why the model cannot run on these inputs, or None."""
    try:
        module_call(eval_copy(module))(example)
    except PreconditionError as error:
        return f"{error.what} ({error.got})"
    return None


def _rule(climb: Climb, advice: Mapping[str, ScaleAdvice]) -> Ruling:
    evidence = climb.evidence()
    return judge_scales(
        evidence,
        climb.errors(evidence),
        order=list(advice),
        allowed=_allowed(advice),
        total=climb.sizes[-1] if climb.sizes else 0,
        tolerance=climb.tolerance,
        seed=climb.setup.seed,
    )


def _allowed(advice: Mapping[str, ScaleAdvice]) -> list[str]:
    return [name for name, scale in advice.items() if reachable(scale)]


def _doubtful(climb: Climb, ruling: Ruling) -> list[str]:
    """Scales that one more seed each may decide between; none when nothing is undecided, twice the seeds would not decide it,
    or everyone has had them.
    """
    if not ruling.choice.undecided or not climb.reached:
        return []
    needed, _ = what_decides(ruling, ruling.choice.undecided[0], climb.tolerance, climb.seeds)
    if needed is None or needed > 2 * climb.seeds:
        return []
    names = dict.fromkeys([ruling.best, *ruling.choice.undecided, *([ruling.choice.safe] if ruling.choice.safe else [])])
    return [name for name in names if climb.extra.get(name, 0) < climb.seeds and name in climb.racing]


def _record(climb: Climb, ruling: Ruling, advice: Mapping[str, ScaleAdvice], facts: dict[str, Any]) -> AdviceRecord:
    setup, evidence = climb.setup, climb.evidence()
    errors = climb.errors(evidence)
    metric = setup.task.metric.name
    if climb.sizes and climb.reached < climb.sizes[-1]:
        setup.warnings.append(f"the time limit was reached: judged at {climb.reached} of {climb.sizes[-1]} training examples")
    scales = tuple(judged(scale, ruling, evidence.get(name), climb.stopped.get(name), errors, metric) for name, scale in advice.items())
    undecided = ruling.choice.undecided
    more_seeds, more_examples = what_decides(ruling, undecided[0], climb.tolerance, climb.seeds) if undecided else (None, None)
    record = AdviceRecord(
        **facts,
        version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - setup.begin,
        task=setup.task.name,
        metric=metric,
        higher_is_better=setup.task.metric.higher_is_better,
        budget=setup.budget,
        device=setup.device,
        runtime=setup.runtime.name,
        seeds=climb.seeds,
        sizes=tuple(climb.sizes),
        tolerance=climb.tolerance,
        scales=scales,
        best=ruling.best,
        recommended=ruling.choice.recommended,
        safe=ruling.choice.safe,
        undecided=undecided,
        decision=decision(ruling, scales, _allowed(advice), climb.tolerance, metric, climb.seeds),
        more_seeds=more_seeds,
        more_examples=more_examples,
        warnings=tuple(setup.warnings),
    )
    return replace(record, strategy=strategy(record))
