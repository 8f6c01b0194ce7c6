"""Try one plan: shrink, look whether it is hopeless, lower, load back from disk, measure."""

import time
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
from sizewise.evaluate.scoring import Call, Split, measure_parity, module_call, quality, score
from sizewise.files import write_bytes
from sizewise.graph.trace import is_graph
from sizewise.pipeline.apply import Applier
from sizewise.pipeline.bundle import SavedPlan
from sizewise.pipeline.export import check_parity
from sizewise.pipeline.progress import Within
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.small_weights import described
from sizewise.pipeline.store import save_scores
from sizewise.pipeline.weights import SMALL, save_weights
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Context, Runner, Runtime
from sizewise.report._format import limit_value
from sizewise.types import Artefact, Budget, Candidate, Interval, Measurement, Plan, Quality, to_json
from sizewise.units import format_bytes, format_seconds

__all__ = ["Bench", "attempt", "hopeless", "make_bench", "measure_memory", "outcome", "run_trial"]

Scores = Float[ndarray, " n"]
REFERENCE = "reference"


@dataclass(frozen=True)
class Bench:
    """What every trial of a run shares.

    Attributes:
        reference: the reference scale's float module, which latencies are compared with in the same rounds.
        reference_scores: its per-example scores on the validation split.
        applier: keeps what the next plan can go on from.
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
    applier: Applier = field(default_factory=Applier)

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


def make_bench(setup: Setup, reference: Prepared) -> Bench:
    """The bench of a run whose reference scale is known."""
    return Bench(
        runtime=setup.runtime,
        context=setup.context,
        validation=setup.validation,
        metric=setup.task.metric,
        budget=setup.budget,
        threads=setup.device.threads,
        batch=examples_in(setup.task.example),
        reference=reference.module,
        reference_scores=reference.scores,
    )


def hopeless(found: Quality, budget: Budget) -> str | None:
    """Why no luck on other data could bring this quality within the budget, or None.

    The whole interval of the drop (or of the score) must break the limit.
    """
    if budget.max_drop is not None and found.drop is not None and found.drop.low > budget.max_drop:
        low, allowed = (limit_value("max_drop", value, found.metric) for value in (found.drop.low, budget.max_drop))
        return f"the drop on validation is at least {low}, more than {allowed}"
    if budget.min_quality is None:
        return None
    high, low, allowed = (limit_value("min_quality", v, found.metric) for v in (found.score.high, found.score.low, budget.min_quality))
    if found.higher_is_better and found.score.high < budget.min_quality:
        return f"the {found.metric} on validation is at most {high}, less than {allowed}"
    if not found.higher_is_better and found.score.low > budget.min_quality:
        return f"the {found.metric} on validation is at least {low}, more than {allowed}"
    return None


def run_trial(model: nn.Module, plan: Plan, folder: Path, bench: Bench) -> Candidate:
    """Try one plan on a scale's float module; what cannot be done is a value in the result, not an exception."""
    begin = time.perf_counter()
    try:
        return attempt(model, plan, folder, bench)
    except (UnsupportedModel, PreconditionError, ParityError) as error:
        reason = " ".join(str(error).split())
        return Candidate(id=folder.name, plan=plan, status="failed", reason=reason, seconds=time.perf_counter() - begin)


def attempt(model: nn.Module, plan: Plan, folder: Path, bench: Bench) -> Candidate:
    """Try one plan on a scale's float module.

    Raises:
        UnsupportedModel: a step or the runtime cannot treat the model.
        PreconditionError: a step's precondition does not hold.
        ParityError: the file does not compute what the module computes.
    """
    begin = time.perf_counter()
    within = Within(bench.context.progress, f"{plan.scale}: {plan.label}")
    context = replace(bench.context, progress=within, judge=bench.judge)
    module, applied, changes = bench.applier.apply(model, plan, context)
    candidate = Candidate(id=folder.name, plan=plan, status="stopped", changes=tuple(replace(c, record={}) for c in changes))
    found = bench.quality_of(module_call(module))[0] if plan.steps else None
    if found is not None and (reason := hopeless(found, bench.budget)):
        candidate = replace(candidate, reason=f"not lowered: {reason}")
    else:
        context.progress.working("lowering and measuring the file")
        candidate = _lowered(module, applied, candidate, folder, bench)
        if (folder / SMALL).is_file():
            candidate = replace(candidate, stored=described(folder / SMALL, float_bytes(model)))
    return replace(candidate, seconds=time.perf_counter() - begin)


def _lowered(module: nn.Module, applied: Plan, candidate: Candidate, folder: Path, bench: Bench) -> Candidate:
    artefact = bench.runtime.lower(module, bench.context.example, folder / bench.runtime.file_name)
    runner = bench.runtime.load(folder / artefact.path, threads=bench.threads)
    measured, scores = _measure(module, artefact, runner, folder, bench)
    save_weights(module, folder)
    write_bytes(folder / "plan.json", to_json(SavedPlan(plan=applied, runtime=bench.runtime.name, scheme=bench.runtime.scheme)))
    save_scores(folder / "scores.npy", scores)
    return replace(candidate, status="measured", artefact=artefact, measured=measured)


def _measure(module: nn.Module, artefact: Artefact, runner: Runner, folder: Path, bench: Bench) -> tuple[Measurement, Scores]:
    path = folder / artefact.path
    parity = measure_parity(module_call(module), runner, bench.validation)
    check_parity(parity, bench.runtime, quantized=is_graph(module), where=artefact.path)
    found, scores = bench.quality_of(runner)
    example = bench.context.example
    timed = time_interleaved(
        {"file": runner.prepare(example), REFERENCE: lambda: bench.reference_call(example)}, rounds=9, seed=bench.context.seed
    )
    measured = Measurement(
        latency=timed.latency("file"),
        latency_ratio=timed.ratio("file", REFERENCE).value,
        size_bytes=artefact.size_bytes,
        memory=measure_memory(bench, path, times=1),
        quality=found,
        parity=parity,
        threads=bench.threads,
        batch=bench.batch,
        executed=bench.runtime.executed(path, example, threads=bench.threads),
    )
    return measured, scores


def measure_memory(bench: Bench, path: Path, times: int) -> Interval:
    """Peak memory growth of `times` fresh processes, bytes."""
    peaks = [float(bench.runtime.peak_memory(path, bench.context.example, threads=bench.threads)) for _ in range(times)]
    return median_interval(np.array(peaks))


def outcome(candidate: Candidate) -> str:
    """One line for the progress display."""
    if candidate.measured is None:
        return f"{candidate.status}: {candidate.reason}"
    m = candidate.measured
    return f"{m.quality.metric} {m.quality.score.value:.4f}, {format_seconds(m.latency.value)}, {format_bytes(m.size_bytes)}"
