"""Try one plan: shrink, look whether it is hopeless, lower, load back from disk, measure."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import nn

from sizewise.errors import ParityError, PreconditionError, UnsupportedModel
from sizewise.evaluate.metrics import Metric
from sizewise.evaluate.paired import median_interval
from sizewise.evaluate.scoring import Call, Split, measure_parity, module_call, quality, score
from sizewise.files import write_bytes
from sizewise.graph.trace import is_graph
from sizewise.pipeline.apply import apply_plan
from sizewise.pipeline.bundle import SavedPlan
from sizewise.pipeline.export import check_parity
from sizewise.pipeline.store import save_scores
from sizewise.pipeline.weights import save_state
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Context, Runner, Runtime
from sizewise.report._format import limit_value
from sizewise.types import Artefact, Budget, Candidate, Interval, Measurement, Plan, Quality, to_json

__all__ = ["Bench", "hopeless", "run_trial"]

Scores = Float[ndarray, " n"]
REFERENCE = "reference"


@dataclass(frozen=True)
class Bench:
    """What every trial of a run shares.

    Attributes:
        reference: the reference scale's float module, which latencies are compared with in the same rounds.
        reference_scores: its per-example scores on the validation split.
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

    @property
    def reference_call(self) -> Call:
        """The reference as a function of inputs."""
        return module_call(self.reference)

    def quality_of(self, call: Call) -> tuple[Quality, Scores]:
        """Score on the validation split, with the paired drop against the reference."""
        scores = score(call, self.validation, self.metric, self.reference_call)
        return quality(scores, self.metric, self.reference_scores), scores


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
    candidate = Candidate(id=folder.name, plan=plan, status="failed")
    try:
        candidate = _try(model, candidate, folder, bench)
    except (UnsupportedModel, PreconditionError, ParityError) as error:
        candidate = replace(candidate, reason=" ".join(str(error).split()))
    return replace(candidate, seconds=time.perf_counter() - begin)


def _try(model: nn.Module, candidate: Candidate, folder: Path, bench: Bench) -> Candidate:
    module, plan, changes = apply_plan(model, candidate.plan, bench.context)
    candidate = replace(candidate, changes=tuple(replace(c, record={}) for c in changes))
    if plan.steps:
        found, _ = bench.quality_of(module_call(module))
        if reason := hopeless(found, bench.budget):
            return replace(candidate, status="stopped", reason=f"not lowered: {reason}")
    artefact = bench.runtime.lower(module, bench.context.example, folder / bench.runtime.file_name)
    runner = bench.runtime.load(folder / artefact.path, threads=bench.threads)
    measured, scores = _measure(module, artefact, runner, folder, bench)
    save_state(module, folder / "weights.safetensors")
    write_bytes(folder / "plan.json", to_json(SavedPlan(plan=plan, runtime=bench.runtime.name, scheme=bench.runtime.scheme)))
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
    )
    return measured, scores


def measure_memory(bench: Bench, path: Path, times: int) -> Interval:
    """Peak memory growth of `times` fresh processes, bytes."""
    peaks = [float(bench.runtime.peak_memory(path, bench.context.example, threads=bench.threads)) for _ in range(times)]
    return median_interval(np.array(peaks))
