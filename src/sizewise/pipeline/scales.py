"""Prepare every scale: build, train where needed, profile, score in float."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray
from torch import nn

from sizewise.evaluate.scoring import Call, Split, module_call, quality, score
from sizewise.pipeline.store import Store
from sizewise.pipeline.train import train_scale
from sizewise.pipeline.weights import load_state, save_state
from sizewise.profile.static import profile_model
from sizewise.protocols import Progress
from sizewise.tasks.task import Task
from sizewise.types import ScaleRecord
from sizewise.units import format_count, format_seconds

__all__ = ["Prepared", "pick_reference", "prepare_module", "score_scale"]

Scores = Float[ndarray, " n"]


@dataclass(frozen=True)
class Prepared:
    """A scale ready for trials."""

    record: ScaleRecord
    module: nn.Module
    scores: Scores


def prepare_module(task: Task, scale: str, store: Store, seed: int, progress: Progress) -> tuple[nn.Module, str]:
    """The scale's float module in inference mode, trained (or its trained weights loaded), and how it came to be."""
    weights = store.scale_file(scale, ".safetensors")
    if not task.is_untrained(scale):
        return task.build(scale, seed).eval(), "given as trained"
    recipe = task.recipe(scale)
    how = f"trained here for {recipe.epochs} epochs"
    if weights.exists():
        module = task.build(scale, seed).eval()
        load_state(module, weights)
        return module, how
    begin = time.perf_counter()

    def report(done: int, of: int) -> None:
        left = (time.perf_counter() - begin) / done * (of - done)
        progress.working(f"{scale}: training, epoch {done} of {of}, {format_seconds(left)} left" if left else f"{scale}: trained")

    progress.working(f"{scale}: training")
    module = train_scale(task, scale, seed, report)
    save_state(module, weights)
    return module, how


def score_scale(task: Task, scale: str, module: nn.Module, how: str, store: Store, validation: Split, reference: Call | None) -> Prepared:
    """Profile the module and score it on the validation split, or take both from the store."""
    if known := store.scale(scale):
        return Prepared(known[0], module, known[1])
    cost = profile_model(module, task.example)
    scores = score(module_call(module), validation, task.metric, reference)
    record = ScaleRecord(name=scale, cost=cost, trained=how, quality=quality(scores, task.metric))
    store.save_scale(record, scores)
    return Prepared(record, module, scores)


def describe(record: ScaleRecord) -> str:
    """One line about a prepared scale."""
    assert record.quality is not None
    cost = f"{format_count(record.cost.params)} parameters, {format_count(record.cost.macs)} MACs"
    return f"{record.name}: {cost}, {record.quality.metric} {record.quality.score.value:.4f} in float"


def pick_reference(task: Task, prepared: Mapping[str, Prepared]) -> str:
    """The scale that drops are counted from: the task's choice, else the best on validation, ties to more MACs."""
    if task.reference is not None and task.reference in prepared:
        return task.reference
    sign = 1 if task.metric.higher_is_better else -1

    def strength(name: str) -> tuple[float, int, str]:
        record = prepared[name].record
        assert record.quality is not None
        return (sign * record.quality.score.value, record.cost.macs, name)

    return max(prepared, key=strength)
