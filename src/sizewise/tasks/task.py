"""A task: candidate models, example inputs, data splits and a metric."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sizewise.data.batches import as_inputs, check_loader
from sizewise.errors import PreconditionError, UnknownName, UsageError, blaming
from sizewise.evaluate.metrics import Metric, find_metric
from sizewise.protocols import Inputs

__all__ = ["Task", "Untrained", "untrained"]

Factory = Callable[[], nn.Module]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Untrained:
    """A candidate that `fit` trains before anything else; made by `sizewise.untrained`."""

    factory: Factory
    epochs: int = 10
    lr: float = 2e-3
    loss: Loss | None = None


def untrained(factory: Factory, *, epochs: int = 10, lr: float = 2e-3, loss: Loss | None = None) -> Untrained:
    """Mark a candidate as untrained, so that `fit` trains it on the task's `train` loader.

    Args:
        factory: returns a new module with fresh weights.
        epochs: passes over the train loader.
        lr: peak learning rate of AdamW under a one-cycle schedule.
        loss: maps outputs and targets to a scalar; cross-entropy with label smoothing 0.1 by default.

    Raises:
        UsageError: the factory cannot be called, or a setting is not positive.
    """
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UsageError("untrained(...) wants a function that returns a new module", got=type(factory).__name__)
    if epochs < 1 or not lr > 0:
        raise UsageError("epochs and lr must be positive", got=f"epochs={epochs}, lr={lr}")
    return Untrained(factory, epochs, lr, loss)


class Task:
    """What a job needs: candidates of different scales, and data that tells how good each is.

    Args:
        models: name to a trained module, a function that returns a trained module, or `sizewise.untrained(function)`.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs. Its batch size (first
            dimension) is the batch that latency is measured at.
        train: loader with targets; needed for untrained candidates.
        calibration: loader for statistics (targets ignored); the first batches of `train` by default.
        validation: loader with targets that the search looks at; the same examples in the same order at every reading.
        test: loader with targets that only the final verdict looks at; without it quality limits stay undecided.
        metric: "accuracy", "top5", "exact_match", "loss", "cosine" (similarity to the reference model, needs no
            labels), a `sizewise.Metric`, or a function of outputs and targets that returns one score per example.
        reference: the candidate that `max_drop` is counted from. By default the best float candidate on validation, or
            the one with most MACs for metrics that compare with the reference.
        name: for reports.

    A batch is a tensor, a tuple or list (input, target), or a dict of keyword inputs in which "labels" (or "label",
    "targets", "target") is the target. A loader is any re-iterable of batches.

    Raises:
        UsageError: no model, a loader that cannot be read again, or something that is not a model.
        UnknownName: an unknown metric, or a reference that is not among the models.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module | Factory | Untrained],
        example_inputs: Any,
        train: Iterable[Any] | None = None,
        calibration: Iterable[Any] | None = None,
        validation: Iterable[Any] | None = None,
        test: Iterable[Any] | None = None,
        metric: str | Metric | Callable[..., Tensor] = "accuracy",
        *,
        reference: str | None = None,
        name: str = "task",
    ) -> None:
        if not isinstance(models, Mapping) or not models:
            raise UsageError("a task needs at least one model", where="models", wanted="{name: module or function}")
        for key, model in models.items():
            if not isinstance(key, str) or not key:
                raise UsageError("model names are texts", where="models", got=repr(key))
            if not isinstance(model, nn.Module | Untrained) and not callable(model):
                raise UsageError(
                    "not a model", where=f"models[{key!r}]", got=type(model).__name__, wanted="a module or a function returning one"
                )
        if validation is None:
            raise UsageError("a task needs validation data", where="validation", wanted="a re-iterable of batches")
        for where, loader in (("train", train), ("calibration", calibration), ("validation", validation), ("test", test)):
            if loader is not None:
                check_loader(loader, where)
        if reference is not None and reference not in models:
            raise UnknownName("model", reference, models, where="reference")
        self.models = dict(models)
        self.example: Inputs = as_inputs(example_inputs)
        self.train, self.validation, self.test = train, validation, test
        self.calibration = calibration if calibration is not None else train
        self.metric = find_metric(metric)
        self.reference = reference
        self.name = name

    def is_untrained(self, scale: str) -> bool:
        """Whether `fit` has to train this candidate."""
        return isinstance(self._model(scale), Untrained)

    def build(self, scale: str, seed: int = 0) -> nn.Module:
        """The candidate as a module: the module itself, or what its function returns under this seed.

        Raises:
            UnknownName: no such candidate.
            PreconditionError: the function raises or returns something else.
        """
        model = self._model(scale)
        if isinstance(model, nn.Module):
            return model
        factory = model.factory if isinstance(model, Untrained) else model
        with (
            blaming("the function that makes this model failed", f"models[{scale!r}]"),
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(seed)
            built = factory()
        if not isinstance(built, nn.Module):
            raise PreconditionError("the function did not return a module", where=f"models[{scale!r}]", got=type(built).__name__)
        return built

    def recipe(self, scale: str) -> Untrained:
        """How to train an untrained candidate.

        Raises:
            PreconditionError: the candidate is given as trained.
        """
        model = self._model(scale)
        if not isinstance(model, Untrained):
            raise PreconditionError("this candidate is given as trained", where=f"models[{scale!r}]")
        return model

    def _model(self, scale: str) -> nn.Module | Factory | Untrained:
        if scale not in self.models:
            raise UnknownName("model", scale, self.models)
        return self.models[scale]
