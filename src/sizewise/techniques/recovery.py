"""Short training after pruning: the shrunk model learns to do what the whole one does.

What it does: distils the outputs of the plan's source model, or of the task's reference where that has the same outputs, and the
features on the way that still have the same shape, on the task's train data, with or without targets; what is best on validation is
kept, which may be the model as it was. Helps: accuracy, most of all after harsh pruning. Hurts: nothing but the time. Needs: train data,
the more the better. Cost: per example about that of training the shrunk model and running the whole one.

Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; Romero et al., FitNets, ICLR 2015.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from sizewise.errors import PreconditionError, UnknownName
from sizewise.protocols import Context, Trait
from sizewise.training.account import account
from sizewise.training.distill import FEATURES, LABELS, TEMPERATURE, Recipe, distill
from sizewise.training.objective import Weights
from sizewise.training.schedule import Length
from sizewise.types import Change

__all__ = ["TECHNIQUE", "Recovery"]

Teacher = Literal["source", "reference"]


@dataclass(frozen=True)
class Recovery:
    """Distil what is left from the whole model.

    Args:
        epochs: passes over the train data; one where no length is given.
        seconds: of training, instead.
        lr: peak learning rate; None is what fits the model.
        temperature: of class scores.
        features: weight of the features beside the outputs; 0 leaves them out. None is what suits the teacher.
        labels: weight of cross entropy with targets, where there are class labels.
        teacher: "source" is the model that the plan began with; "reference" the task's, whose outputs have the same shape. Of another
            scale no features are compared unless asked for: layers of the same name need not do the same.

    Raises:
        UsageError: both lengths, or a number that cannot be meant.
        UnknownName: no such teacher.
    """

    epochs: float | None = None
    seconds: float | None = None
    lr: float | None = None
    temperature: float = TEMPERATURE
    features: float | None = None
    labels: float = LABELS
    teacher: Teacher = "source"

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if self.teacher not in get_args(Teacher):
            raise UnknownName("teacher", self.teacher, get_args(Teacher), where="recovery")
        self._recipe(0)

    def requires(self, model: nn.Module, context: Context) -> None:
        """A teacher and train data.

        Raises:
            PreconditionError: either is missing.
        """
        if context.train is None:
            raise PreconditionError(
                "recovery trains, and the task has no train data",
                where="recovery",
                hint="give the task train=...; it need not have targets",
            )
        if self._guide(context) is None:
            what = "the model that the plan began with" if self.teacher == "source" else "the task's reference model"
            name = "teacher" if self.teacher == "source" else "reference"
            raise PreconditionError(f"recovery needs {what}", where="recovery", wanted=f"Context({name}=...)")

    def _guide(self, context: Context) -> nn.Module | None:
        return context.teacher if self.teacher == "source" else context.reference

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Train the model, in place.

        Raises:
            PreconditionError: the models or the data cannot be used, or the loss is not finite.
            UsageError: data that cannot be read.
        """
        guide = self._guide(context)
        assert guide is not None
        outcome = distill(model, guide, context.train or (), self._recipe(context.seed), judge=context.judge, progress=context.progress)
        return model, account(model, outcome)

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The same module: what was learned are values, and values are loaded afterwards."""
        return model

    def _recipe(self, seed: int) -> Recipe:
        one = 1.0 if self.epochs is None and self.seconds is None else self.epochs
        features = self.features if self.features is not None else FEATURES if self.teacher == "source" else 0.0
        return Recipe(Length(one, self.seconds), Weights(self.temperature, features, self.labels), self.lr, seed)


TECHNIQUE = Recovery
