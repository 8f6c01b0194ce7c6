"""Try one plan: shrink, look whether it is hopeless, lower, load back from disk, measure costs, then quality as far as it matters."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import nn

from sizewise.data.batches import examples_in
from sizewise.data.model_size import float_bytes
from sizewise.errors import ParityError, PreconditionError, UnsupportedModel
from sizewise.evaluate.metrics import Metric
from sizewise.evaluate.paired import median_interval
from sizewise.evaluate.proof import level_after, look_level, proof_chance
from sizewise.evaluate.racing import Order
from sizewise.evaluate.sampling import Sample
from sizewise.evaluate.scoring import Call, Split, margins, measure_parity, module_call, quality, score
from sizewise.files import write_bytes
from sizewise.graph.trace import is_graph
from sizewise.pipeline.apply import Applier
from sizewise.pipeline.bundle import SavedPlan, made_here
from sizewise.pipeline.export import check_parity
from sizewise.pipeline.looks import looks_of
from sizewise.pipeline.progress import Within
from sizewise.pipeline.race import FileRace, hopeless, race_file, race_module
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.small_weights import described
from sizewise.pipeline.store import load_scores, save_scores
from sizewise.pipeline.weights import SMALL, save_weights
from sizewise.profile.timing import Timings, time_interleaved
from sizewise.protocols import Context, Runner, Runtime
from sizewise.report._format import plan_name
from sizewise.tasks.resize import named_alike
from sizewise.types import Artefact, Budget, Candidate, Interval, Measurement, Parity, Plan, Quality, to_json
from sizewise.units import format_bytes, format_seconds

__all__ = ["Bench", "attempt", "beside_reference", "complete", "hopeless", "make_bench", "measure_memory", "outcome", "run_trial"]

Scores = Float[ndarray, " n"]
FILE, REFERENCE = "file", "reference"
SCORES, READ = "scores.npy", "read.npy"  # of the whole split in its order; places and scores of a part as it was read


@dataclass(frozen=True)
class Bench:
    """What every trial of a run shares.

    Attributes:
        reference: the reference scale's float module, which latencies are compared with in the same rounds.
        reference_scores: its per-example scores on the validation split.
        sample: that split in a random order.
        reference_name: the reference scale's.
        applier: keeps what the next plan can go on from.
        finished: the candidates that are finished, some of which a race may be lost against.
        test_examples: of the test split; 0 where there is none.
        level: one-sided error of the next look at it.
        timed: times a file beside the reference where that is not done in this process.
        scoring_threads: that a file is scored with, where they are others than it is timed with.
    """

    runtime: Runtime
    context: Context
    validation: Split
    metric: Metric
    budget: Budget
    threads: int
    batch: int
    reference: nn.Module
    reference_scores: Scores
    sample: Sample
    applier: Applier = field(default_factory=Applier)
    reference_name: str = ""
    finished: Callable[[], Sequence[Candidate]] = tuple
    test_examples: int = 0
    level: float = look_level(1)
    timed: Callable[[Path], Timings] | None = None
    scoring_threads: int | None = None

    @property
    def reference_call(self) -> Call:
        """The reference as a function of inputs."""
        return module_call(self.reference)

    def judge(self, module: nn.Module) -> float:
        """How good a module is on the validation split; more is better."""
        mean = self.quality_of(module_call(module))[0].score.value
        return mean if self.metric.higher_is_better else -mean

    def quality_of(self, call: Call) -> tuple[Quality, Scores]:
        """Score on the validation split, with the paired drop against the reference."""
        scores = score(call, self.validation, self.metric, self.reference_call)
        return quality(scores, self.metric, self.reference_scores), scores

    def with_chances(self, candidate: Candidate) -> Candidate:
        """A measured candidate, and how probable it is that the test split proves its quality limits, at most where it was read in part."""
        assert candidate.measured is not None
        found = candidate.measured.quality
        if candidate.unread:  # what is left can only lose: nothing, then
            found = replace(found, score=replace(found.score, n=len(self.reference_scores)))
            found = replace(found, drop=replace(found.drop, n=len(self.reference_scores)) if found.drop else None)
        first, later = (proof_chance(found, self.budget, self.test_examples, level) for level in (self.level, level_after(self.level)))
        return replace(candidate, proof_chance=first, later_chance=later)


def make_bench(setup: Setup, reference: Prepared) -> Bench:
    """The bench of a run whose reference scale is known."""
    looks = looks_of(setup)
    return Bench(
        runtime=setup.runtime,
        context=replace(setup.context, reference=reference.module),
        validation=setup.validation,
        metric=setup.task.metric,
        budget=setup.budget,
        threads=setup.device.threads,
        batch=examples_in(setup.task.example),
        reference=reference.module,
        reference_scores=reference.scores,
        reference_name=reference.record.name,
        sample=Sample(setup.validation, setup.seed, changeable=_changeable(setup, reference)),
        finished=setup.store.finished,
        test_examples=setup.test.count if setup.test is not None else 0,
        level=looks.next_level if looks is not None else look_level(1),
    )


def _changeable(setup: Setup, reference: Prepared) -> Callable[[], Scores] | None:
    """How easily the scores of examples change, told by the reference; None where its metric knows no margins."""
    metric = setup.task.metric
    if metric.margin is None or not np.isin(reference.scores, (0, 1)).all():
        return None

    def changeable() -> Scores:
        path = setup.store.scale_file(reference.record.name, ".margins.npy")
        if path.is_file():
            found = load_scores(path)
        else:
            found = margins(module_call(reference.module), setup.validation, metric)
            save_scores(path, found)
        return np.where(reference.scores == metric.best, -found, np.inf)

    return changeable


def run_trial(model: nn.Module, plan: Plan, folder: Path, bench: Bench, rivals: Collection[str] = ()) -> Candidate:
    """Try one plan on a scale's float module; what cannot be done is a value in the result, not an exception.

    Its file is scored on the whole validation split only while it may still be chosen before its rivals.

    Args:
        model: of the scale.
        plan: what to do to it.
        folder: for the candidate's files.
        bench: what the trials share.
        rivals: ids of the finished candidates that it may lose against.
    """
    begin = time.perf_counter()
    try:
        return attempt(model, plan, folder, bench, [c for c in bench.finished() if c.id in rivals])
    except (UnsupportedModel, PreconditionError, ParityError) as error:
        reason = " ".join(str(error).split())
        seconds = time.perf_counter() - begin
        failed = Candidate(id=folder.name, plan=plan, status="failed", reason=reason, failed_step=error.step, failed_reach=error.reach)
        return replace(failed, seconds=seconds)


def attempt(model: nn.Module, plan: Plan, folder: Path, bench: Bench, rivals: Sequence[Candidate] | None = None) -> Candidate:
    """Try one plan on a scale's float module.

    Args:
        model: of the scale.
        plan: what to do to it.
        folder: for the candidate's files.
        bench: what the trials share.
        rivals: finished candidates that it may lose against before all is known; None where it is tried alone, and scored in full.

    Raises:
        UnsupportedModel: a step or the runtime cannot treat the model.
        PreconditionError: a step's precondition does not hold.
        ParityError: the file does not compute what the module computes.
    """
    begin = time.perf_counter()
    within = Within(bench.context.progress, f"{plan.scale}: {plan.label}")
    context = replace(bench.context, progress=within, judge=bench.judge, reference=named_alike(bench.reference, model))
    module, applied, changes = bench.applier.apply(model, plan, context)
    candidate = Candidate(id=folder.name, plan=plan, status="stopped", changes=tuple(replace(c, record={}) for c in changes))
    if plan.steps:
        raced = race_module(module_call(module), bench)
        in_full = len(bench.reference_scores) if raced.evaluated else 0
        reason = f"not lowered: {raced.stopped}" if raced.stopped else None
        unlowered = raced.found if raced.stopped else None
        candidate = replace(candidate, reason=reason, evaluated=raced.evaluated, in_full=in_full, unlowered=unlowered)
    if candidate.reason is None:
        context.progress.working("lowering and measuring the file")
        candidate = _lowered(module, applied, candidate, folder, bench, rivals)
        if (folder / SMALL).is_file():
            candidate = replace(candidate, stored=described(folder / SMALL, float_bytes(model)))
    return replace(candidate, seconds=time.perf_counter() - begin)


def complete(candidate: Candidate, folder: Path, bench: Bench) -> Candidate:
    """Score the file of a candidate on what it was not scored on of the validation split, because its evaluation was stopped early."""
    figures = candidate.measured or candidate.partly
    assert figures is not None
    assert candidate.artefact is not None
    scores, added = _all_scores(candidate.artefact, folder, bench)
    save_scores(folder / SCORES, scores)
    (folder / READ).unlink(missing_ok=True)
    whole = replace(
        candidate,
        status="measured",
        reason=None,
        beaten_by=None,
        most_chance=None,
        partly=None,
        unread=0,
        measured=replace(figures, quality=quality(scores, bench.metric, bench.reference_scores)),
        evaluated=(candidate.evaluated or 0) + added,
    )
    return bench.with_chances(whole)


def _all_scores(artefact: Artefact, folder: Path, bench: Bench) -> tuple[Scores, int]:
    """Scores of a file on the whole validation split, and on how many examples it had to be scored for them."""
    same = [other.id for other in bench.finished() if other.artefact is not None and other.artefact.sha256 == artefact.sha256]
    if (known := next((path for name in same if (path := folder.parent / name / SCORES).is_file()), None)) is not None:
        return load_scores(known), 0
    runner, order = bench.runtime.load(folder / artefact.path, threads=bench.threads), bench.sample.order
    done, seen = _read(folder, order)
    added = bench.sample.scores(runner, bench.metric, bench.reference_call, done, len(order.parts))
    return order.restored(np.concatenate([seen, added])), len(added)


def _read(folder: Path, order: Order) -> tuple[int, Scores]:
    """How many parts of the validation split a race read, and their scores; none where nobody kept them, or the order was another."""
    path = folder / READ
    places, scores = load_scores(path) if path.is_file() else np.empty((2, 0))
    done = order.parts_with(places.astype(int))
    return done, scores if done else scores[:0]


def _lowered(
    module: nn.Module, applied: Plan, candidate: Candidate, folder: Path, bench: Bench, rivals: Sequence[Candidate] | None
) -> Candidate:
    artefact = bench.runtime.lower(module, bench.context.example, folder / bench.runtime.file_name)
    runner = bench.runtime.load(folder / artefact.path, threads=bench.scoring_threads or bench.threads)
    parity = measure_parity(module_call(module), runner, bench.validation)
    check_parity(parity, bench.runtime, quantized=is_graph(module), where=artefact.path)
    save_weights(module, folder)
    made = made_here(artefact, bench.runtime, bench.reference_name, bench.threads)
    write_bytes(folder / "plan.json", to_json(SavedPlan(plan=applied, runtime=bench.runtime.name, scheme=bench.runtime.scheme, made=made)))
    candidate = replace(candidate, artefact=artefact)
    same = next((c for c in rivals or () if c.artefact and c.artefact.sha256 == artefact.sha256 and (c.measured or c.partly)), None)
    if same is not None:
        return _told_of(same, candidate, folder, bench)
    costs = _costs(artefact, runner, folder, bench)
    raced = race_file(runner, costs, folder, bench, rivals)
    return _raced(candidate, costs, parity, raced, folder / artefact.path, bench)


def _told_of(same: Candidate, candidate: Candidate, folder: Path, bench: Bench) -> Candidate:
    """What is known of another candidate's file goes for these same bytes, too, without a second measurement."""
    assert candidate.artefact is not None
    why = f"byte for byte the file of {plan_name(same.plan)}"
    for name in (SCORES, READ):
        if (known := folder.parent / same.id / name).is_file():
            save_scores(folder / name, load_scores(known))
    return replace(
        same,
        id=candidate.id,
        plan=candidate.plan,
        reason=same.reason and f"{why}: {same.reason}",
        changes=candidate.changes,
        artefact=replace(candidate.artefact, notes=(*candidate.artefact.notes, f"{why}, whose figures are told here")),
        stored=None,
        evaluated=candidate.evaluated,
        in_full=(candidate.in_full or 0) + len(bench.reference_scores),
    )


@dataclass(frozen=True)
class _Costs:
    """Of one file, measured before its quality is, so that its race knows whether it can still win."""

    latency: Interval
    latency_ratio: float
    size_bytes: int
    memory: Interval


def _costs(artefact: Artefact, runner: Runner, folder: Path, bench: Bench) -> _Costs:
    timed = bench.timed(folder / artefact.path) if bench.timed else beside_reference(runner, bench)
    return _Costs(
        latency=timed.latency(FILE),
        latency_ratio=timed.ratio(FILE, REFERENCE).value,
        size_bytes=artefact.size_bytes,
        memory=measure_memory(bench, folder / artefact.path, times=1),
    )


def beside_reference(runner: Runner, bench: Bench) -> Timings:
    """The times of a file and of the reference's module, in the same rounds."""
    example = bench.context.example
    calls = {FILE: runner.prepare(example), REFERENCE: lambda: bench.reference_call(example)}
    return time_interleaved(calls, rounds=9, seed=bench.context.seed)


def _raced(candidate: Candidate, costs: _Costs, parity: Parity, raced: FileRace, path: Path, bench: Bench) -> Candidate:
    measured = Measurement(
        latency=costs.latency,
        latency_ratio=costs.latency_ratio,
        size_bytes=costs.size_bytes,
        memory=costs.memory,
        quality=raced.found,
        parity=parity,
        threads=bench.threads,
        batch=bench.batch,
        executed=bench.runtime.executed(path, bench.context.example, threads=bench.threads),
    )
    evaluated, in_full = (candidate.evaluated or 0) + raced.evaluated, (candidate.in_full or 0) + len(bench.reference_scores)
    candidate = replace(candidate, status=raced.status, reason=raced.reason, evaluated=evaluated, in_full=in_full)
    if raced.scores is not None:
        save_scores(path.with_name(SCORES), raced.scores)
    if raced.lap is not None:
        save_scores(path.with_name(READ), np.stack([raced.lap.examples.astype(float), raced.lap.scores]))
    if raced.status != "measured":
        return replace(candidate, partly=measured, beaten_by=raced.beaten_by, most_chance=raced.most_chance)
    return bench.with_chances(replace(candidate, measured=measured, unread=len(bench.reference_scores) - raced.evaluated))


def measure_memory(bench: Bench, path: Path, times: int) -> Interval:
    """Peak memory growth of `times` fresh processes, bytes."""
    peaks = [float(bench.runtime.peak_memory(path, bench.context.example, threads=bench.threads)) for _ in range(times)]
    return median_interval(np.array(peaks))


def outcome(candidate: Candidate) -> str:
    """One line for the progress display."""
    if candidate.measured is None:
        return f"{candidate.status}: {candidate.reason}"
    m = candidate.measured
    so_far = " as far as it was read" if candidate.unread else ""
    return f"{m.quality.metric} {m.quality.score.value:.4f}{so_far}, {format_seconds(m.latency.value)}, {format_bytes(m.size_bytes)}"
