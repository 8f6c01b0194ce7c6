"""Prepare every scale: build, train where needed, profile, score in float."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray
from torch import nn

from sizewise.errors import InternalError, SizewiseError
from sizewise.evaluate.scoring import Call, module_call, quality, score
from sizewise.graph.trace import eval_copy
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.train import train_scale
from sizewise.pipeline.weights import load_state, save_state
from sizewise.profile.static import static_cost
from sizewise.tasks.task import Task
from sizewise.types import ScaleRecord
from sizewise.units import format_count, format_seconds

__all__ = ["Prepared", "pick_reference", "prepare_scales", "scale_module"]

Scores = Float[ndarray, " n"]


@dataclass(frozen=True)
class Prepared:
    """A scale ready for trials."""

    record: ScaleRecord
    module: nn.Module
    scores: Scores


def prepare_scales(setup: Setup) -> dict[str, Prepared]:
    """Every scale the time limit allows, at least one; the task's reference first, then models at their own size.

    A model that cannot be used at another size than its own is left to `setup.failed`.

    Raises:
        SizewiseError: a model fails, gives outputs that are not finite, or does not fit the data; says which.
    """
    task, prepared = setup.task, dict[str, Prepared]()
    reference = _relative_reference(setup)
    for scale in sorted(task.scales, key=lambda name: name != task.reference):
        if prepared and setup.late:
            setup.progress.advance(f"{scale}: not prepared, the time limit is reached")
            continue
        try:
            prepared[scale] = _prepare(setup, scale, reference)
        except SizewiseError as error:
            name = f"models[{scale!r}]"
            if not (error.where or "").startswith(name):
                error.where = f"{name}, {error.where}" if error.where else name
            if task.level(scale) is None or scale == task.reference or isinstance(error, InternalError):
                raise
            setup.failed[scale] = " ".join(str(error).split())
            setup.progress.advance(f"{scale}: failed: {setup.failed[scale]}")
            continue
        setup.progress.advance(_describe(prepared[scale].record))
    return prepared


def _prepare(setup: Setup, scale: str, reference: Call | None) -> Prepared:
    """Build, profile and score the scale, or take what is known of it from the store."""
    module, how = scale_module(setup, scale)
    if known := setup.store.scale(scale):
        return Prepared(known[0], module, known[1])
    setup.progress.working(f"{scale}: profiling and scoring in float")
    cost = static_cost(module, setup.task.example)
    scores = score(module_call(module), setup.validation, setup.task.metric, reference)
    record = ScaleRecord(name=scale, cost=cost, trained=how, quality=quality(scores, setup.task.metric))
    setup.store.save_scale(record, scores)
    return Prepared(record, module, scores)


def scale_module(setup: Setup, scale: str) -> tuple[nn.Module, str]:
    """The scale's float module in inference mode, trained (or its trained weights loaded), and how it came to be."""
    task, seed = setup.task, setup.seed
    if not task.is_untrained(scale):
        return eval_copy(task.build(scale, seed)), "given as trained"
    how = f"trained here for {task.recipe(scale).epochs} epochs"
    weights = setup.store.scale_file(scale, ".safetensors")
    if weights.exists():
        module = task.build(scale, seed).eval()
        load_state(module, weights)
        return module, how
    begin = time.perf_counter()

    def report(done: int, of: int) -> None:
        left = (time.perf_counter() - begin) / done * (of - done)
        setup.progress.working(f"{scale}: training, epoch {done} of {of}, {format_seconds(left)} left")

    setup.progress.working(f"{scale}: training")
    module = train_scale(task, scale, seed, report)
    save_state(module, weights)
    return module, how


def _relative_reference(setup: Setup) -> Call | None:
    """For metrics that compare with a reference, which must be known before anything is scored."""
    task = setup.task
    if task.metric.target != "reference":
        return None
    chosen = task.reference
    if chosen is None:
        macs = {name: static_cost(task.build(name, setup.seed), task.example).macs for name in task.models}
        chosen = max(macs, key=lambda name: (macs[name], name))
    return module_call(scale_module(setup, chosen)[0])


def _describe(record: ScaleRecord) -> str:
    cost = f"{format_count(record.cost.params)} parameters, {format_count(record.cost.macs)} MACs"
    return f"{record.name}: {cost}, {record.quality.metric} {record.quality.score.value:.4f} in float"


def pick_reference(task: Task, prepared: Mapping[str, Prepared]) -> str:
    """The scale that drops are counted from: the task's choice, else the best on validation, ties to more MACs."""
    if task.reference is not None and task.reference in prepared:
        return task.reference
    sign = 1 if task.metric.higher_is_better else -1

    def strength(name: str) -> tuple[float, int, str]:
        record = prepared[name].record
        return (sign * record.quality.score.value, record.cost.macs, name)

    return max(prepared, key=strength)
