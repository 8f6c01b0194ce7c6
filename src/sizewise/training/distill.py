"""Train a student to do what its teacher does, for a while, and keep its best state."""

import hashlib
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from sizewise.data.batches import examples_in
from sizewise.data.statistics import normalizations, reestimate_normalization
from sizewise.errors import PreconditionError, UsageError, blaming
from sizewise.graph.trace import eval_copy
from sizewise.protocols import Inputs, Progress, Silent
from sizewise.training import checkpoint as files
from sizewise.training.layout import channels_last
from sizewise.training.looks import Judge, Looks
from sizewise.training.modes import on_device, set_modes, trainable
from sizewise.training.objective import Objective, Weights, matched_paths
from sizewise.training.place import Place, Precision
from sizewise.training.renormalize import renormalized, statistics_apart
from sizewise.training.schedule import Length, learning_rate
from sizewise.training.stream import Stream
from sizewise.training.zeros import Zeros
from sizewise.units import format_seconds

__all__ = ["FEATURES", "LABELS", "TEMPERATURE", "Judge", "Outcome", "Recipe", "distill"]

CHECKS = 4  # looks at the student per run: at every quarter
SAVE_EVERY = 60.0  # seconds between checkpoints
SAY_EVERY = 1.0  # seconds between words to the display
WINDOW = 10  # steps that a loss is averaged over
SAMPLE = 512  # examples for normalization statistics
CLIP = 5.0  # gradients are no longer than this
NORMALIZED_LR, OTHER_LR = 3e-3, 2e-4
LOWER, MOST_LOWERED = 4.0, 5  # a rate under which the loss rises is divided by the first, so often at most
CHANCE = 1e-5  # that a loss which did not rise is taken for one that did; it is looked at once per step
HIGH = 2.0  # times the loss of the start are too much on the way: what batches make of statistics alone raises it somewhat
MEASURED, MEASURING = 20, 0.05  # steps that change nothing, and the share of all that they may be: they tell where the loss begins
TEMPERATURE, FEATURES, LABELS = 4.0, 1000.0, 0.0


@dataclass(frozen=True)
class Recipe:
    """How to distil.

    Attributes:
        length: epochs or seconds.
        weights: of the parts of the objective.
        lr: peak learning rate of Adam; None is `NORMALIZED_LR`, and `OTHER_LR` where no batch normalization keeps activations in bounds.
        seed: of the order of the data, and of what is random in the student.
        patience: stop after so many checks in a row without a better state; None goes on to the end.
        precision: see `Place`.

    Raises:
        UsageError: a number that cannot be meant.
    """

    length: Length
    weights: Weights
    lr: float | None = None
    seed: int = 0
    patience: int | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError("a learning rate is more than 0", where="lr", got=f"{self.lr:g}")
        if self.patience is not None and self.patience < 1:
            raise UsageError("patience is at least one check", where="patience", got=str(self.patience))


@dataclass
class Outcome:
    """What a training did; a checkpoint holds it beside tensors.

    Attributes:
        step: optimizer steps done.
        epoch: passes finished.
        batch: batches read of the pass that was begun.
        seconds: spent, without what lies between interruption and resumption.
        first: losses of the first steps.
        last: losses of the last steps.
        lr: peak learning rate.
        lowered: times that the training began anew at a lower one, because loss or score had become worse than at the start.
        since: step at which it last did.
        measured: steps at the beginning that changed nothing.
        undone: whether it was worse in the end, and the student was handed back as it was.
        scores: what the judge said: of the student as it was, then at every check; empty without a judge.
        best: place in `scores` of the state that was kept.
        checks: quarters finished.
        stopped: whether it ended early because nothing got better.
        done: whether it ended.
        features: how many features were compared.
        examples: seen, by all processes together.
        zeros: weights that stayed zero.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    lr: float = 0.0
    lowered: int = 0
    since: int = 0
    measured: int = 0
    undone: bool = False
    scores: list[float] = field(default_factory=list)
    best: int = 0
    checks: int = 0
    stopped: bool = False
    done: bool = False
    features: int = 0
    examples: int = 0
    zeros: int = 0

    @property
    def begun(self) -> list[float]:
        """Losses of the student as it was, where some were measured, else of the first steps."""
        return self.first[: self.measured] or self.first

    @property
    def risen(self) -> bool:
        """Whether the last losses lie above those of the student as it was, beyond what batches differ by; on the way, far above.

        Source: Student's test of two means. Deviation: the deviation is that of the losses at the start alone, since a training that
        goes wrong scatters them.
        """
        if self.measured < 3 or self.step - self.since < 2 * WINDOW:
            return False
        error = statistics.stdev(self.begun) * math.sqrt(1 / len(self.begun) + 1 / len(self.last))
        before, after = statistics.fmean(self.begun), statistics.fmean(self.last)
        by_chance = before + error * float(stdtrit(len(self.begun) - 1, 1 - CHANCE))
        return after > by_chance and (self.done or after > HIGH * before)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    train: Iterable[Any],
    recipe: Recipe,
    *,
    judge: Judge | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    pruned: nn.Module | None = None,
) -> Outcome:
    """Train `student` itself.

    Adam under a short linear rise and a cosine; the student runs as in inference (`set_modes`, `renormalized`), after its
    normalization statistics were re-estimated, if that brings its outputs nearer to the teacher's. Zeros of pruned weights stay
    zero, and what modules share stays shared. With a judge, the best of the start and of its averages (`Average`) at every quarter is kept.

    Args:
        student: changed in place; of no use when this raises.
        teacher: whose outputs are wanted; a copy of it is used.
        train: loader of batches, with targets or without. One that shuffles by torch's global generator shuffles by the seed.
        recipe: how long, and how.
        judge: how good a module is; more is better.
        checkpoint: file that is written now and then, and that an interrupted run goes on from.
        progress: told how far it is.
        pruned: a module whose zeros stay zero; the student's own by default.

    Raises:
        PreconditionError: a model fails, nothing can be trained, or the loss is not finite.
        UsageError: data that cannot be read, or a checkpoint of another run.
    """
    place = Place(recipe.precision)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.enable_grad())
        stream = Stream(train, recipe.seed, place.rank, place.processes)
        first = place.moved(stream.first())
        guide = eval_copy(teacher).to(place.device)
        stack.enter_context(on_device(student, place.device))
        stack.enter_context(trainable(student))
        for model in (student, guide):
            stack.enter_context(channels_last(model, first))
        objective = Objective(student, guide, recipe.weights, _paths(student, guide, recipe, first))
        looks, zeros = Looks(judge, place, student) if judge else None, Zeros(student, pruned)
        run = _Run(objective, stream, recipe, place, looks, zeros, progress or Silent())
        run.go(_Book(checkpoint, _identity(student, teacher, recipe)) if checkpoint else None)
    student.eval()
    return run.outcome


def _paths(student: nn.Module, teacher: nn.Module, recipe: Recipe, first: Inputs) -> tuple[str, ...]:
    with blaming("the student or the teacher failed on these inputs", "train"):
        return matched_paths(student, teacher, first) if recipe.weights.features else ()


def _identity(student: nn.Module, teacher: nn.Module, recipe: Recipe) -> str:
    """What makes two trainings the same, but for the data."""
    weights = recipe.weights
    facts = (
        recipe.length,
        recipe.lr,
        recipe.seed,
        recipe.patience,
        weights.temperature,
        weights.features,
        weights.labels,
        bool(weights.loss),
    )
    hashed = hashlib.sha256(repr(facts).encode())
    for model in (student, teacher):
        for name, tensor in files.model_tensors(model).items():
            hashed.update(f"{name} {tuple(tensor.shape)} {float(tensor.detach().double().sum()):.12g}".encode())
    return hashed.hexdigest()


@dataclass(frozen=True)
class _Book:
    """The checkpoint of one training.

    Attributes:
        path: of the file.
        identity: of the training that it must belong to.
    """

    path: Path
    identity: str

    def load(self) -> tuple[dict[str, Tensor], Outcome] | None:
        """What was saved, or None."""
        if not self.path.exists():
            return None
        tensors, facts = files.read(self.path)
        if facts.get("identity") != self.identity:
            raise UsageError(
                "the checkpoint is of another training",
                where=str(self.path),
                hint="student, teacher or settings differ; name another file, or delete this one",
            )
        return tensors, Outcome(**facts["outcome"])

    def save(self, tensors: dict[str, Tensor], outcome: Outcome) -> None:
        files.write(self.path, tensors, {"identity": self.identity, "outcome": asdict(outcome)})


class _Run:
    """One training, step by step."""

    def __init__(
        self, objective: Objective, stream: Stream, recipe: Recipe, place: Place, looks: Looks | None, zeros: Zeros, progress: Progress
    ) -> None:
        self.objective, self.stream, self.recipe, self.place = objective, stream, recipe, place
        self.looks, self.progress = looks, progress if place.first else Silent()
        self.student, self.joined = objective.student, place.joined(objective.student)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.zeros, self.rounds = zeros, stream.rounds()
        self.outcome = Outcome(
            lr=recipe.lr or (NORMALIZED_LR if normalizations(self.student) else OTHER_LR),
            features=len(objective.paths),
            zeros=self.zeros.count,
        )
        self.optimizer = self._new_optimizer()
        self.start: dict[str, Tensor] = {}
        self.apart: dict[str, Tensor] = {}
        self.generator: Tensor | None = None
        self.begin = self.saved = self.said = time.monotonic()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters, lr=self.outcome.lr, fused=True)

    def go(self, book: _Book | None) -> None:
        """Train from where the book says to the end, and leave the student in its best state."""
        self.progress.start(CHECKS)
        if not self._resumed(book):
            self._prepare()
            self.start = files.model_copy(self.student)
        with renormalized(self.student, self.apart):
            while not self.outcome.done:
                self._pass(book)
        if self.looks and self.looks.kept:
            self.looks.restore()

    def _prepare(self) -> None:
        """Look at the student as it was given, and let it begin with the better of two normalization statistics."""
        if self.looks:
            self._look()
        if not normalizations(self.student):
            return
        sample = [self.place.moved(inputs) for inputs in self.stream.sample(SAMPLE)]
        before, old = self._distance(sample), {name: value.clone() for name, value in self.student.named_buffers()}
        reestimate_normalization(self.student, sample)
        if not self._distance(sample) <= before:
            for name, value in self.student.named_buffers():
                value.copy_(old[name])
            self.apart = statistics_apart(self.student, sample)

    def _distance(self, sample: Sequence[Inputs]) -> float:
        """How far the outputs are from the teacher's, in inference."""
        self.student.eval()
        return sum(self.objective.distance(inputs, None) * examples_in(inputs) for inputs in sample)

    def _pass(self, book: _Book | None) -> None:
        """What is left of one pass over the data, or of the training."""
        out = self.outcome
        set_modes(self.student)
        for inputs, target in self.stream.read(out.epoch, out.batch, self.generator):
            self._step(self.place.moved(inputs), self.place.moved(target))
            fell = False
            if self._checked():
                set_modes(self.student)
                fell = bool(out.scores) and out.scores[-1] < out.scores[0]
            if self.place.common(float((fell or out.risen) and (out.done or out.lowered < MOST_LOWERED))):
                self._undo()
            self._keep(book)
            if out.done:
                return
        out.epoch, out.batch = out.epoch + 1, 0

    def _undo(self) -> None:
        """Go back to the student as it was, at a lower rate: one that is close is thrown back by a rate that others need."""
        out = self.outcome
        files.restore_model(self.student, self.start)
        out.undone = out.done
        if out.done:
            return
        out.lr, out.lowered, out.since = out.lr / LOWER, out.lowered + 1, out.step
        self.optimizer = self._new_optimizer()
        self.progress.note(f"recovering: it got worse; beginning anew at a rate of {out.lr:.2g}")

    @property
    def position(self) -> float:
        """How far it is, from 0 to 1."""
        return self.recipe.length.position(self.outcome.step, self.outcome.seconds, self.rounds)

    def _step(self, inputs: Inputs, target: Any) -> None:
        out = self.outcome
        waits = out.step < MEASURED and self.position < MEASURING
        out.measured += waits
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if waits else learning_rate(out.lr, self.position, out.step - out.since)
        self.optimizer.zero_grad(set_to_none=True)
        with self.place.autocast():
            loss = self.objective(lambda batch: batch.call(self.joined), inputs, target)
        value = float(loss.detach())
        if not math.isfinite(value):
            hint = f"a lower lr than {out.lr:g}, or data without numbers that are not finite"
            raise PreconditionError("recovery diverged: the loss is not finite", where=f"step {out.step + 1}", hint=hint)
        loss.backward()  # type: ignore[no-untyped-call]
        self.zeros.mask_gradients()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.zeros.mask_values()
        if self.looks and not waits:
            self.looks.average.follow(out.step + 1 - max(out.since, out.measured))
        self._count(value, examples_in(inputs))

    def _count(self, loss: float, examples: int) -> None:
        out = self.outcome
        out.step, out.batch, out.examples = out.step + 1, out.batch + 1, out.examples + examples * self.place.processes
        out.first, out.last = [*out.first, loss][:MEASURED], [*out.last, loss][-WINDOW:]
        now = time.monotonic()
        # processes must end together, so they all go by one clock
        out.seconds, self.begin = self.place.common(out.seconds + now - self.begin), now
        if now - self.said >= SAY_EVERY:
            self.said = now
            left = out.seconds * (1 / self.position - 1) if self.position else 0.0
            self.progress.working(f"recovering, {min(self.position, 1.0):.0%}, loss {loss:.3g}, {format_seconds(max(left, 0.0))} left")

    def _checked(self) -> bool:
        """Look at the student's average at every quarter; says whether it did."""
        out, due = self.outcome, min(int(self.position * CHECKS + 1e-9), CHECKS)
        if due <= out.checks:
            return False
        passed, out.checks = due - out.checks, due
        told = f"loss {sum(out.last) / len(out.last):.3g}"
        if self.looks:
            self._look()
            told += f", validation {out.scores[-1]:.4g}, {out.scores[0]:.4g} before"
            out.stopped = self.recipe.patience is not None and self.looks.since >= self.recipe.patience and due < CHECKS
        out.done = due == CHECKS or out.stopped
        self.progress.advance(f"recovered for {out.step} steps: {told}", units=CHECKS if out.stopped else passed)
        return True

    def _look(self) -> None:
        assert self.looks is not None
        self.progress.working("recovering: scoring on validation data")
        self.looks.look()
        self.outcome.scores, self.outcome.best = list(self.looks.scores), self.looks.best

    def _resumed(self, book: _Book | None) -> bool:
        """Take up what the book holds; says whether it held anything."""
        loaded = book.load() if book else None
        if loaded is None:
            return False
        tensors, self.outcome = loaded
        files.restore_model(self.student, _part(tensors, "model/"))
        files.restore_optimizer(self.student, self.optimizer, _part(tensors, "optimizer/"))
        self.generator, self.start, self.apart = tensors["generator"], _part(tensors, "start/"), _part(tensors, "apart/")
        if self.looks:
            self.looks.average.resume(_part(tensors, "average/"))
            self.looks.scores, self.looks.best = list(self.outcome.scores), self.outcome.best
            self.looks.kept = {name: tensor.to(self.place.device) for name, tensor in _part(tensors, "best/").items()}
        self.progress.note(f"recovering: going on after {self.outcome.step} steps")
        return True

    def _keep(self, book: _Book | None) -> None:
        """Write the checkpoint when it is time."""
        now = time.monotonic()
        if book is None or not self.place.first or (now - self.saved < SAVE_EVERY and not self.outcome.done):
            return
        parts = {
            "model/": files.model_tensors(self.student),
            "optimizer/": files.optimizer_tensors(self.student, self.optimizer),
            "best/": self.looks.kept if self.looks else {},
            "start/": self.start,
            "apart/": self.apart,
            "average/": self.looks.average.tensors if self.looks else {},
        }
        tensors = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
        book.save({**tensors, "generator": torch.get_rng_state()}, self.outcome)
        self.saved = now


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
