"""What a student is asked for: its teacher's outputs, its teacher's features, and targets where there are any."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.arith.distillation import attention_error, label_loss, relative_error, softened_divergence
from sizewise.data.outputs import output_tensors
from sizewise.errors import PreconditionError, UsageError, blaming
from sizewise.evaluate.metrics import primary_output
from sizewise.graph.hooks import hooked
from sizewise.protocols import Inputs

__all__ = ["Objective", "Weights", "matched_paths"]

# features beyond so many say the same again, and take time: ResNet-56 without half of its blocks had 88.4 % after an epoch with 5, 88.2 %
# with 3 or with all 13, in 0.87 and 0.84 of the time
MOST_PATHS = 5
Features = dict[str, list[Tensor]]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Weights:
    """How much every part of the objective counts.

    Attributes:
        temperature: of class scores.
        features: weight of the features' mean relative error beside the outputs'; 0 leaves them out.
        labels: weight of the loss on targets, where batches have them; 0 leaves it out.
        loss: of outputs and targets, instead of cross entropy.

    Raises:
        UsageError: a number that cannot be meant.
    """

    temperature: float
    features: float
    labels: float
    loss: Loss | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UsageError("a temperature is more than 0", where="temperature", got=f"{self.temperature:g}")
        for name, weight in (("features", self.features), ("labels", self.labels)):
            if not 0 <= weight < math.inf:
                raise UsageError("a weight is 0 or more", where=name, got=f"{weight:g}")


class Objective:
    """The loss of a student beside its teacher on one batch.

    The first output counts by the softened divergence where targets show that it is class scores, integers of its shape without
    the last dimension, else like every other real output by its relative error. Outputs beside the first are compared where
    shapes agree.

    Args:
        student: whose gradients are wanted.
        teacher: the same job, in inference mode.
        weights: of the parts.
        paths: of modules whose outputs are compared, as `matched_paths` finds them.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weights: Weights, paths: Sequence[str] = ()) -> None:
        self.student, self.teacher, self.weights = student, teacher, weights
        self.paths = tuple(paths) if weights.features else ()
        self._mine: Features = {}
        self._theirs: Features = {}

    def __call__(self, call: Callable[[Inputs], Any], inputs: Inputs, target: Any) -> Tensor:
        """The loss, a scalar; `call` runs the student, perhaps wrapped.

        Raises:
            PreconditionError: a model fails, or first outputs of different shapes.
        """
        self._mine.clear()
        self._theirs.clear()
        # hooks for one call only: whoever else calls the student meanwhile fills no memory
        with hooked([*_watch(self.student, self.paths, self._mine), *_watch(self.teacher, self.paths, self._theirs)]):
            got, want = self._outputs(call, inputs)
        loss = self._outputs_loss(got, want, target)
        if self.paths:
            loss = loss + self.weights.features * self._features_loss(loss)
        if self.weights.labels and target is not None:
            loss = loss + self.weights.labels * self._target_loss(got, target)
        return loss

    def distance(self, inputs: Inputs, target: Any) -> float:
        """How far the student's outputs are from the teacher's, without features and targets; both as they are."""
        with torch.no_grad():
            got, want = self._outputs(lambda batch: batch.call(self.student), inputs)
            return float(self._outputs_loss(got, want, target))

    def _outputs(self, call: Callable[[Inputs], Any], inputs: Inputs) -> tuple[Any, Any]:
        with blaming("the teacher failed on these inputs", "train"), torch.no_grad():
            want = inputs.call(self.teacher)
        with blaming("the student failed on these inputs", "train"):
            return call(inputs), want

    def _outputs_loss(self, got: Any, want: Any, target: Any) -> Tensor:
        mine, theirs = _ordered(got), _ordered(want)
        if mine[0].shape != theirs[0].shape:
            raise PreconditionError(
                "the outputs of student and teacher differ in shape",
                where="teacher",
                got=f"{tuple(mine[0].shape)} and {tuple(theirs[0].shape)}",
                hint="is it the model that the student was made from?",
            )
        if are_classes(mine[0], target):
            first = softened_divergence(mine[0], theirs[0], self.weights.temperature)
        else:
            first = relative_error(mine[0], theirs[0])
        others = [relative_error(a, b) for a, b in zip(mine[1:], theirs[1:], strict=False) if a.shape == b.shape]
        return torch.stack([first, *others]).sum()

    def _features_loss(self, like: Tensor) -> Tensor:
        pairs = [pair for path in self.paths for pair in zip(self._mine.get(path, ()), self._theirs.get(path, ()), strict=False)]
        errors = [_feature_error(mine.float(), theirs.float()) for mine, theirs in pairs if _comparable(mine, theirs)]
        # the logarithm damps what is hopelessly far, and is the error itself where that is small
        return torch.stack(errors).log1p().mean() if errors else torch.zeros_like(like)

    def _target_loss(self, got: Any, target: Any) -> Tensor:
        if self.weights.loss is not None:
            with blaming("the loss failed", "loss"):
                return self.weights.loss(got, target)
        scores = _ordered(got)[0]
        return label_loss(scores, target) if are_classes(scores, target) else scores.new_zeros(())


def are_classes(outputs: Tensor, target: Any) -> bool:
    """Whether targets show that outputs are scores of classes: whole numbers in the outputs' shape without its last dimension."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        return False
    return outputs.ndim >= 2 and outputs.shape[-1] >= 2 and target.shape == outputs.shape[:-1]


def _ordered(outputs: Any) -> list[Tensor]:
    """All real outputs in single precision or better, the one that metrics look at first."""
    leaves = output_tensors(outputs)
    try:
        primary = primary_output(outputs)
    except PreconditionError:  # nested otherwise; the first real tensor will do
        primary = leaves[0]
    leaves.sort(key=lambda leaf: leaf is not primary)
    return [leaf.float() if leaf.dtype in (torch.float16, torch.bfloat16) else leaf for leaf in leaves]


def _watch(model: nn.Module, paths: Sequence[str], into: Features) -> list[Any]:
    def hook(path: str, _: nn.Module, __: Any, output: Any) -> None:
        if (tensor := _feature(output)) is not None:
            into.setdefault(path, []).append(tensor)

    return [model.get_submodule(path).register_forward_hook(partial(hook, path)) for path in paths]


def _feature(output: Any) -> Tensor | None:
    """The tensor that stands for a module's output: itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() and first.ndim >= 2 else None


def _comparable(mine: Tensor, theirs: Tensor) -> bool:
    """The same shape, or pictures, which may differ in channels and in size."""
    return mine.shape == theirs.shape or (mine.ndim == theirs.ndim == 4 and mine[0, 0].numel() > 1)


def _feature_error(mine: Tensor, theirs: Tensor) -> Tensor:
    if mine.ndim == 4 and mine.shape[2:] != theirs.shape[2:]:
        theirs = F.interpolate(theirs, mine.shape[2:], mode="bilinear", antialias=True)
    return relative_error(mine, theirs) if mine.shape == theirs.shape else attention_error(mine, theirs)


def matched_paths(student: nn.Module, teacher: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Paths of the modules whose outputs can be compared, evenly thinned, in the order of running.

    Modules that hold others stand for them, such as the blocks of a residual network; where none of them can be compared, single
    layers do. What already is an output of the model is left out, and so is what hands on a tensor that another gives.
    """
    shared = [path for path, _ in teacher.named_modules() if path and path in dict(student.named_modules())]
    mine, theirs = _seen(student, shared, inputs), _seen(teacher, shared, inputs)
    good = [path for path in mine if path in theirs and len(mine[path]) == len(theirs[path])]
    good = [path for path in good if all(map(_comparable, mine[path], theirs[path]))]
    holders = [path for path in good if _holds(teacher, path)]
    chosen = holders or good
    picked = (
        {round(i * (len(chosen) - 1) / (MOST_PATHS - 1)) for i in range(MOST_PATHS)} if len(chosen) > MOST_PATHS else range(len(chosen))
    )
    return tuple(chosen[i] for i in sorted(picked))


def _seen(model: nn.Module, paths: Sequence[str], inputs: Inputs) -> Mapping[str, list[Tensor]]:
    """Every module's features in the order of running, each tensor under the outermost block that gives it, else a layer."""
    found: Features = {}
    with hooked(_watch(model, paths, found)), torch.no_grad():
        outputs = inputs.call(model)
    known, unique = {id(leaf) for leaf in output_tensors(outputs)}, set[str]()
    # a module is done after those within, so outer ones are late; a layer may also hand on what a block before it gave
    holders, layers = ([path for path in found if _holds(model, path) is holds] for holds in (True, False))
    for path in (*reversed(holders), *reversed(layers)):
        if not any(id(tensor) in known for tensor in found[path]):
            unique.add(path)
            known |= {id(tensor) for tensor in found[path]}
    return {path: tensors for path, tensors in found.items() if path in unique}


def _holds(model: nn.Module, path: str) -> bool:
    return next(model.get_submodule(path).children(), None) is not None
