"""A task: candidate models, example inputs, data splits and a metric."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sizewise.data.batches import as_inputs, check_loader
from sizewise.errors import PreconditionError, UnknownName, UsageError, blaming
from sizewise.evaluate.metrics import Metric, find_metric
from sizewise.graph.trace import is_graph
from sizewise.protocols import Inputs
from sizewise.tasks.resize import Level, Resize, Resized, read_levels

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


Model = nn.Module | Factory | Untrained


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
        resize: smaller versions of the inputs. Every model is also a candidate at each of them: `large@96` is the model
            `large` behind a step that makes its inputs smaller, so that its file takes the same inputs; an untrained one is
            trained that way, a given one is taken as it is. Either sizes, such as (96, 160): the shorter side of pictures
            [n, c, h, w], which keep their aspect and are averaged over windows where the ratio is whole, else interpolated
            as well; the frames of [n, time, features], in the same way; the first tokens of integer [n, length], and of
            every other input of two dimensions. Or a function of the input tensor (of `sizewise.Inputs` where there are
            several), which gives the same back and names the candidates. Or several, {label: function}.

    A batch is a tensor, a tuple or list (input, target), or a dict of keyword inputs in which "labels" (or "label",
    "targets", "target") is the target. A loader is any re-iterable of batches.

    Attributes:
        levels: the smaller versions of the inputs, as `resize` declares them.
        source: the name that it was loaded by, by which other processes find it; None where it was made by hand.

    Raises:
        UsageError: no model, a loader that cannot be read again, something that is not a model, a size that inputs cannot be
            brought to, or two candidates of the same name.
        PreconditionError: a function to resize with that fails on the example inputs.
        UnknownName: an unknown metric, or a reference that is not among the candidates.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        example_inputs: Any,
        train: Iterable[Any] | None = None,
        calibration: Iterable[Any] | None = None,
        validation: Iterable[Any] | None = None,
        test: Iterable[Any] | None = None,
        metric: str | Metric | Callable[..., Tensor] = "accuracy",
        *,
        reference: str | None = None,
        name: str = "task",
        resize: Resize | None = None,
    ) -> None:
        _check_models(models)
        if validation is None:
            raise UsageError("a task needs validation data", where="validation", wanted="a re-iterable of batches")
        for where, loader in (("train", train), ("calibration", calibration), ("validation", validation), ("test", test)):
            if loader is not None:
                check_loader(loader, where)
        self.models = dict(models)
        self.example: Inputs = as_inputs(example_inputs)
        self.levels = read_levels(resize, self.example)
        _check_names([_named(name, level) for level in (None, *self.levels) for name in self.models])
        if reference is not None and reference not in self.scales:
            raise UnknownName("model", reference, self.scales, where="reference")
        self.train, self.validation, self.test = train, validation, test
        self.calibration = calibration if calibration is not None else train
        self.metric = find_metric(metric)
        self.reference = reference
        self.name = name
        self.source: str | None = None

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of all candidates: the models at the example's own size, then each of them at every level."""
        return tuple(self._scales())

    def level(self, scale: str) -> Level | None:
        """How this candidate's inputs are made smaller; None where they are not.

        Raises:
            UnknownName: no such candidate.
        """
        return self._find(scale)[1]

    def model_of(self, scale: str) -> str:
        """Name of the model that this candidate is, resized or not.

        Raises:
            UnknownName: no such candidate.
        """
        self._find(scale)
        return self._scales()[scale][0]

    def is_untrained(self, scale: str) -> bool:
        """Whether `fit` has to train this candidate."""
        return isinstance(self._model(scale), Untrained)

    def build(self, scale: str, seed: int = 0) -> nn.Module:
        """The candidate as a module: the module itself, or what its function returns under this seed, resized or not.

        Raises:
            UnknownName: no such candidate.
            PreconditionError: the function raises or returns something else, or the module cannot be resized.
        """
        model, level = self._find(scale)
        built = model if isinstance(model, nn.Module) else self._call(model, scale, seed)
        if level is None:
            return built
        if is_graph(built):
            raise PreconditionError("an exported graph takes the size that it was exported with", where=f"models[{scale!r}]")
        with blaming("this module cannot be resized", f"models[{scale!r}]"):
            return Resized(built, level.change)

    @staticmethod
    def _call(model: Factory | Untrained, scale: str, seed: int) -> nn.Module:
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

    def _model(self, scale: str) -> Model:
        return self._find(scale)[0]

    def _find(self, scale: str) -> tuple[Model, Level | None]:
        scales = self._scales()
        if scale not in scales:
            raise UnknownName("model", scale, scales)
        name, level = scales[scale]
        return self.models[name], level

    def _scales(self) -> dict[str, tuple[str, Level | None]]:
        """Name of a candidate to its model's name and its level."""
        levels: tuple[Level | None, ...] = (None, *self.levels)
        return {_named(name, level): (name, level) for level in levels for name in self.models}


def _named(model: str, level: Level | None) -> str:
    return model if level is None else f"{model}@{level.label}"


def _check_models(models: Any) -> None:
    if not isinstance(models, Mapping) or not models:
        raise UsageError("a task needs at least one model", where="models", wanted="{name: module or function}")
    for key, model in models.items():
        if not isinstance(key, str) or not key:
            raise UsageError("model names are texts", where="models", got=repr(key))
        if not isinstance(model, nn.Module | Untrained) and not callable(model):
            raise UsageError(
                "not a model", where=f"models[{key!r}]", got=type(model).__name__, wanted="a module or a function returning one"
            )


def _check_names(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UsageError("two candidates have the same name", where="resize", got=name, hint="rename the model or the label")
