"""Points of learning curves: train a scale on so many examples, score it, keep the result; each point is one file."""

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import nn

from sizewise.advice import Point
from sizewise.data.batches import batches, examples_in
from sizewise.errors import PreconditionError
from sizewise.evaluate.scoring import Split, module_call, score
from sizewise.files import write_bytes
from sizewise.pipeline.store import Store, load_scores, save_scores
from sizewise.pipeline.train import train_module
from sizewise.tasks.task import Task, Untrained
from sizewise.types import from_json, to_json

__all__ = ["Job", "Points", "recipe_for"]

Scores = Float[ndarray, " examples"]
TUNE_EPOCHS, TUNE_LR = 2, 2e-4  # of models that are given as trained
TRAIN_SAMPLE = 1000  # training examples that are scored


@dataclass(frozen=True)
class Job:
    """One training to do; `examples` is 0 for a given model as it is."""

    scale: str
    examples: int
    seed: int
    epochs: int


def recipe_for(task: Task, scale: str) -> Untrained:
    """How to train a scale: its own recipe, or a short tuning of a copy where the model is given as trained."""
    if task.is_untrained(scale):
        return task.recipe(scale)
    return Untrained(lambda: copy.deepcopy(task.build(scale)), epochs=TUNE_EPOCHS, lr=TUNE_LR)


@dataclass(frozen=True)
class Points:
    """Trains, scores and remembers points.

    Attributes:
        task: with validation data, and train data unless nothing is trained.
        subsets: number of examples to a loader of them.
        store: where results are kept.
    """

    task: Task
    subsets: Mapping[int, Iterable[Any]]
    store: Store

    def find(self, job: Job) -> tuple[Point, Scores] | None:
        """A finished point and its scores on every validation example."""
        path = self.store.scale_file(_name(job), ".json")
        if not path.exists():
            return None
        point = from_json(Point, path.read_bytes(), where=str(path))
        return (point, load_scores(path.with_suffix(".npy"))) if point.epochs == job.epochs else None

    def get(self, job: Job) -> tuple[Point, Scores]:
        """A point that is known to be finished."""
        found = self.find(job)
        assert found is not None
        return found

    def run(self, job: Job) -> None:
        """Train, score and keep one point.

        Raises:
            PreconditionError: the model or the data cannot be used.
        """
        begin = time.perf_counter()
        module = self._module(job)
        scores = score(module_call(module), Split("validation", self.task.validation), self.task.metric)
        with torch.random.fork_rng(devices=[]):  # loaders shuffle and augment by the global generator
            torch.manual_seed(job.seed)
            train = self._train_score(module, job)
        path = self.store.scale_file(_name(job), ".json")
        save_scores(path.with_suffix(".npy"), scores)
        point = Point(
            examples=job.examples,
            seed=job.seed,
            train=train,
            validation=float(np.mean(scores)),
            epochs=job.epochs,
            seconds=time.perf_counter() - begin,
        )
        write_bytes(path, to_json(point))

    def _module(self, job: Job) -> nn.Module:
        if not job.examples:
            return copy.deepcopy(self.task.build(job.scale)).eval()
        recipe = replace(recipe_for(self.task, job.scale), epochs=job.epochs)
        untrained = self.task.is_untrained(job.scale)
        model = self.task.build(job.scale, job.seed) if untrained else recipe.factory()
        return train_module(model, self.subsets[job.examples], recipe, job.seed, f"models[{job.scale!r}]")

    def _train_score(self, module: nn.Module, job: Job) -> float | None:
        """Mean score on the first training examples of the job's subset, as the loader gives them."""
        loader = self.subsets.get(job.examples or max(self.subsets, default=0))
        if loader is None:
            return None
        return float(np.mean(score(module_call(module), Split("train", _Head(loader, TRAIN_SAMPLE)), self.task.metric)))


@dataclass(frozen=True)
class _Head:
    """The first batches of a loader that hold `limit` examples."""

    loader: Iterable[Any]
    limit: int

    def __iter__(self) -> Any:
        left = self.limit
        for inputs, target in batches(self.loader, "train"):
            if target is None:
                raise PreconditionError("the train batches carry no target", where="train", wanted="(input, target) batches")
            yield inputs, target
            left -= examples_in(inputs)
            if left <= 0:
                return


def _name(job: Job) -> str:
    return f"{job.scale}.examples-{job.examples}.seed-{job.seed}"
