"""The front door of recovery: a shrunk module and the whole one in, a module out that does more like the whole one."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sizewise.data.batches import batches, check_loader, examples_in
from sizewise.errors import PreconditionError, UsageError
from sizewise.evaluate.metrics import Metric, find_metric
from sizewise.evaluate.scoring import Split, signed_quality
from sizewise.graph.trace import eval_copy, is_graph
from sizewise.pipeline.progress import shown
from sizewise.protocols import Progress
from sizewise.storage.forms import Codebook, Integers, attached_forms
from sizewise.tasks.task import Task
from sizewise.training.account import account
from sizewise.training.checkpoint import model_tensors, restore_model
from sizewise.training.distill import FEATURES, LABELS, TEMPERATURE, Judge, Recipe, distill
from sizewise.training.objective import Objective, Weights
from sizewise.training.place import Precision
from sizewise.training.schedule import Length
from sizewise.types import Step
from sizewise.units import parse_training

__all__ = ["RECOVERY", "check_train", "length_of", "recover", "recovery_for"]

RECOVERY = "recovery"


def recover(
    student: nn.Module,
    teacher: nn.Module,
    train: Iterable[Any],
    *,
    epochs: float | None = None,
    minutes: float | None = None,
    validation: Iterable[Any] | None = None,
    metric: str | Metric | Callable[..., Tensor] | None = None,
    lr: float | Literal["auto"] = "auto",
    temperature: float = TEMPERATURE,
    features: float = FEATURES,
    labels: float = LABELS,
    loss: Callable[[Any, Any], Tensor] | None = None,
    patience: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | Progress = False,
    in_place: bool = False,
) -> nn.Module:
    """Train a shrunk model for a short while to do what the whole one does.

    The teacher's outputs, and what its blocks pass on, are what is wanted, so that data need no targets. Where targets show that
    the first output is class scores, it counts by the divergence of softened probabilities; all other outputs, and the first where
    nothing shows it, count by their squared error as a share of their variance. Zeros of pruned weights stay zero, weights that
    layers share stay shared, and what is frozen stays frozen. Where accelerate finds a GPU, or several processes under
    `accelerate launch`, training runs there.

    Args:
        student: what is left of the teacher; as it was, unless `in_place`.
        teacher: the whole model, for the same inputs and outputs.
        train: loader of batches: inputs, or (input, target); random augmentation is welcome here.
        epochs: passes over the data, not necessarily whole; one where no length is given.
        minutes: of training, instead.
        validation: loader of batches in a fixed order. With it, the best of the states at every quarter of the training and of the
            student as it was is what comes back.
        metric: that says which is best, as for `sizewise.Task`; by default the distance to the teacher's outputs.
        lr: peak learning rate of Adam; "auto" is 0.003, and 0.0002 for models without batch normalization.
        temperature: that softens class scores.
        features: weight of what blocks pass on, beside the outputs; 0 leaves it out. It is large: every block then knows by itself
            what it lacks, and in a short training that brings the outputs nearer to the teacher's than asking for them.
        labels: weight of the loss on targets, where there are any; 1 where a loss is given.
        loss: of outputs and targets, a scalar; cross entropy by default, where targets are class labels. It counts by `labels`.
        patience: stop after so many checks in a row without a better state; by default the training goes on to its end, since
            the rate falls to the last and so what was worse in between is often best then.
        precision: "float32", "bfloat16" with float32 weights, or "auto": bfloat16 on GPUs and CPUs that compute in
            it (AMX, AVX-512 BF16).
        seed: of the order of the data, where the loader shuffles by torch's global generator.
        checkpoint: file that is written about once a minute and at the end; where it exists, training goes on from it, as if it had
            not been interrupted. The loader must give the same batches again.
        progress: whether to show on stderr what is being done, or where to report it.
        in_place: change `student` itself; where anything fails it stays as it was.

    Returns:
        The trained module, in inference mode. Its attribute `recovery` says what was done and what it was worth
        (`sizewise.types.Change`).

    Raises:
        UsageError: a length, number or loader that cannot be meant, or a checkpoint of another training.
        PreconditionError: a model is a graph, has shared weights, or fails, outputs differ in shape, or the loss is not finite.
        UnknownName: no such metric or precision.
    """
    length = Length(1.0 if epochs is None and minutes is None else epochs, None if minutes is None else 60 * minutes)
    weights = Weights(temperature, features, labels or float(loss is not None), loss)
    recipe = Recipe(length, weights, None if lr == "auto" else lr, seed, patience, precision)
    _check_modules(student, teacher)
    check_loader(train, "train")
    judge = _judge(teacher, weights, validation, metric)
    twin = eval_copy(student)
    with shown(progress) as display:
        path = Path(checkpoint) if checkpoint is not None else None
        outcome = distill(twin, teacher, train, recipe, judge=judge, checkpoint=path, progress=display)
    if in_place:
        restore_model(student, model_tensors(twin))
        twin = student.eval()
    twin.recovery = account(twin, outcome)  # type: ignore[assignment]
    return twin


def _check_modules(student: nn.Module, teacher: nn.Module) -> None:
    if student is teacher:
        raise UsageError("student and teacher are the same module", where="teacher", hint="keep a copy of the model before it is shrunk")
    if is_graph(student):
        raise PreconditionError(
            "a quantized or exported graph cannot be trained",
            where="student",
            got=type(student).__name__,
            hint="recover the float module, then quantize it; quantize_model(model, train=...) trains with its integers",
        )
    if any(isinstance(form, Codebook | Integers) and len(form.shape) > 1 for form in attached_forms(student).values()):
        raise PreconditionError(
            "training would undo the shared weights of a compressed model",
            where="student",
            hint="compress_model(model, train=...) recovers what is pruned or factorized before weights are shared",
        )


def _judge(
    teacher: nn.Module, weights: Weights, validation: Iterable[Any] | None, metric: str | Metric | Callable[..., Tensor] | None
) -> Judge | None:
    """What says how good a student is, more is better; None without validation data."""
    if validation is None:
        if metric is not None:
            raise UsageError("a metric needs data to be measured on", where="metric", wanted="validation=...")
        return None
    check_loader(validation, "validation")
    reference = eval_copy(teacher).cpu()
    if metric is None:
        return partial(_nearness, reference, weights, validation)
    return partial(signed_quality, reference, find_metric(metric), Split("validation", validation))


def _nearness(reference: nn.Module, weights: Weights, validation: Iterable[Any], module: nn.Module) -> float:
    """Minus the mean distance of the outputs over the examples."""
    objective, total, examples = Objective(module, reference, weights), 0.0, 0
    for inputs, target in batches(validation, "validation"):
        total += objective.distance(inputs, target) * examples_in(inputs)
        examples += examples_in(inputs)
    return -total / max(examples, 1)


def recovery_for(task: Task, length: str) -> Step:
    """The step of a plan that recovers for so long on the task's train data.

    Args:
        task: whose train data are used.
        length: "1epoch", "0.5 epochs", "10m", "90s".

    Raises:
        UsageError: a length that cannot be read.
        PreconditionError: the task has no train data.
    """
    settings = length_of(length)
    check_train(task)
    return Step(technique=RECOVERY, settings=settings)


def length_of(text: str) -> dict[str, float]:
    """The setting of a recovery that says how long it is.

    Raises:
        UsageError: a length that cannot be read.
    """
    epochs, seconds = parse_training(text, "recover")
    name, value = ("epochs", epochs) if epochs is not None else ("seconds", seconds)
    assert value is not None
    return {name: int(value) if value.is_integer() else value}


def check_train(task: Task) -> None:
    """Pass, or say what recovery needs.

    Raises:
        PreconditionError: the task has no train data.
    """
    if task.train is None:
        raise PreconditionError(
            "recovery trains, and the task has no train data", where="train", hint="give the task train=...; it need not have targets"
        )
