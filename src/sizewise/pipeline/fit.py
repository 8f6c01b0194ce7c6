"""The main job: from a task and a budget to one measured file."""

import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sizewise.data.batches import CalibrationSample, digest, examples_in
from sizewise.devices.loader import load_device
from sizewise.errors import BudgetInfeasible, SizewiseError, UnsupportedModel
from sizewise.evaluate.scoring import Split, module_call, quality, score
from sizewise.pipeline.bundle import write_bundle
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.scales import Prepared, describe, pick_reference, prepare_module, score_scale
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import REFERENCE, Bench, hopeless, measure_memory, run_trial
from sizewise.pipeline.verdict import judge
from sizewise.profile.static import profile_model
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Context, Progress, Runtime, Silent
from sizewise.search.frontier import best, mark_frontier, nearest, rank_key, relaxations
from sizewise.search.space import harsher, plans_for
from sizewise.tasks.task import Task
from sizewise.types import Budget, Candidate, Device, Interval, Plan, Quality, RunRecord, Verdict
from sizewise.units import format_bytes, format_seconds, parse_seconds

__all__ = ["Result", "fit"]

CALIBRATION_EXAMPLES = 512
FINALISTS = 6


@dataclass(frozen=True)
class Result:
    """What `fit` returns.

    Attributes:
        chosen: the candidate in the bundle.
        frontier: measured candidates that no other beats on all counts, fastest first.
        verdict: proved, undecided or refused, per limit.
        record: everything; the same as `run.json`.
        path: the bundle's folder.
    """

    chosen: Candidate
    frontier: tuple[Candidate, ...]
    verdict: Verdict
    record: RunRecord
    path: Path


def fit(
    task: Task,
    budget: Budget,
    runtime: str | Runtime = "onnxruntime",
    device: str = "local",
    out: str | Path = "runs/fit",
    *,
    resume: bool = False,
    time_limit: str | float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Find the smallest and fastest file that keeps the budget, and prove it.

    Every scale is profiled, trained if it is untrained, and scored in float; plans (int8, channel pruning, both) are tried
    mildest first, dropping those that are already hopeless; every file is lowered, loaded back from disk and measured.
    With a quality limit in the budget the fitting candidate with the smallest product of latency and size is chosen,
    without one the best in quality. The chosen file is then judged on the test split.

    Args:
        task: candidates, data and metric.
        budget: the limits.
        runtime: a name or a runtime object.
        device: name of a device file.
        out: the run folder, absent or empty unless `resume`; it becomes the bundle.
        resume: go on with an interrupted run in `out`; finished candidates are not repeated.
        time_limit: no new work begins after this long, such as "10m"; what was not tried is recorded.
        seed: of everything random.
        progress: where to report to.

    Raises:
        BudgetInfeasible: nothing tried fits, or the test split refuses it; `.result` holds the nearest candidate, whose
            bundle is in `out`, marked as outside the budget.
        UsageError: input that cannot be meant.
        PreconditionError: models or data that cannot be used.
        UnsupportedModel: no candidate can be exported.
    """
    run = _Run(task, budget, find_runtime(runtime), load_device(device), Path(out), resume, seed, progress or Silent())
    run.deadline = time.monotonic() + parse_seconds(time_limit, "time_limit") if time_limit is not None else None
    with _threads(run.device.threads):
        return run.execute()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """One call of `fit`, phase by phase."""

    def __init__(
        self,
        task: Task,
        budget: Budget,
        runtime: Runtime,
        device: Device,
        out: Path,
        resume: bool,
        seed: int,
        progress: Progress,
    ) -> None:
        self.task, self.budget, self.runtime, self.device = task, budget, runtime, device
        self.seed, self.progress = seed, progress
        self.begin, self.deadline = time.monotonic(), None  # type: float, float | None
        self.validation = Split("validation", task.validation)
        self.test = Split("test", task.test) if task.test is not None else None
        self.store = Store(out, resume=resume)
        self.warnings: list[str] = []
        calibration = CalibrationSample(task.calibration, CALIBRATION_EXAMPLES) if task.calibration is not None else None
        self.context = Context(task.example, calibration, runtime.scheme, runtime.channel_multiple, seed)

    def execute(self) -> Result:
        """Fingerprint, prepare, try, choose, judge, bundle."""
        data = self._data()
        fingerprint = self._fingerprint(data)
        self.store.identify(fingerprint, self.task.name)
        plans = {scale: plans_for(scale, self.seed, integers=self.runtime.scheme is not None) for scale in self.task.models}
        self.progress.start(len(plans) + sum(map(len, plans.values())) + 1)
        prepared = self._prepare()
        bench = self._bench(prepared)
        order = sorted(prepared, key=lambda s: -prepared[s].record.cost.macs)
        candidates = self._try_all([plan for scale in order for plan in plans[scale]], prepared, bench)
        candidates += [self._untried(plan) for scale in plans if scale not in prepared for plan in plans[scale]]
        self._note_untried(candidates)
        return self._conclude(candidates, prepared, bench, data, fingerprint)

    # ---- data and identity

    def _data(self) -> dict[str, Any]:
        """Read the fixed splits once: counts and fingerprints, which later readings are checked against."""
        self.progress.working("reading the data")
        facts: dict[str, Any] = {}
        for split in (self.validation, self.test):
            if split is not None:
                for _ in split.read():
                    pass
                facts[split.name] = {"examples": split.count, "sha256": split.fingerprint}
        if self.context.calibration is not None:
            hashed, count = hashlib.sha256(), 0
            explicit = self.task.calibration is not self.task.train
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                for inputs in self.context.calibration:
                    digest(inputs, None, hashed)
                    count += examples_in(inputs)
            facts["calibration"] = {"examples": count, "sha256": hashed.hexdigest(), "from": "calibration" if explicit else "train"}
        if self.test is None:
            self.warnings.append("the task has no test split: quality limits stay undecided")
        if self.context.calibration is None:
            self.warnings.append("the task has no calibration or train data: static int8 cannot be tried")
        return facts

    def _fingerprint(self, data: dict[str, Any]) -> str:
        """What makes two runs the same: models, data, metric, quality limits, runtime, seed and version."""
        hashed = hashlib.sha256()
        facts = (_version(), self.task.name, self.task.metric.name, self.task.reference, self.runtime.name, self.seed)
        hashed.update(repr((facts, self.budget.max_drop, self.budget.min_quality, sorted(data.items()))).encode())
        digest(self.task.example, None, hashed)
        for name, model in self.task.models.items():
            hashed.update(f"{name} {'module' if isinstance(model, nn.Module) else 'function'}".encode())
            if isinstance(model, nn.Module):
                for key, tensor in model.state_dict().items():
                    hashed.update(f"{key} {tuple(tensor.shape)} {float(tensor.double().sum()):.12g}".encode())
        return hashed.hexdigest()

    # ---- scales

    def _prepare(self) -> dict[str, Prepared]:
        modules: dict[str, tuple[nn.Module, str]] = {}
        order = sorted(self.task.models, key=lambda name: name != self.task.reference)
        for scale in order:
            if modules and self._late():
                self.progress.advance(f"{scale}: not prepared, the time limit is reached")
                continue
            modules[scale] = prepare_module(self.task, scale, self.store, self.seed, self.progress)
        reference = self._relative_reference(modules)
        prepared: dict[str, Prepared] = {}
        for scale, (module, how) in modules.items():
            self.progress.working(f"{scale}: profiling and scoring in float")
            try:
                prepared[scale] = score_scale(self.task, scale, module, how, self.store, self.validation, reference)
            except SizewiseError as error:
                error.where = f"models[{scale!r}]" + (f", {error.where}" if error.where else "")
                raise
            self.progress.advance(describe(prepared[scale].record))
        return prepared

    def _relative_reference(self, modules: dict[str, tuple[nn.Module, str]]) -> Callable[..., Any] | None:
        """For metrics that compare with a reference, which must be known before anything is scored."""
        if self.task.metric.target != "reference":
            return None
        chosen = self.task.reference
        if chosen is None:
            chosen = max(modules, key=lambda name: (profile_model(modules[name][0], self.task.example).macs, name))
        return module_call(modules[chosen][0])

    def _bench(self, prepared: dict[str, Prepared]) -> Bench:
        self.reference = pick_reference(self.task, prepared)
        return Bench(
            runtime=self.runtime,
            context=self.context,
            validation=self.validation,
            metric=self.task.metric,
            budget=self.budget,
            threads=self.device.threads,
            batch=examples_in(self.task.example),
            reference=prepared[self.reference].module,
            reference_scores=prepared[self.reference].scores,
        )

    # ---- trials

    def _try_all(self, plans: Sequence[Plan], prepared: dict[str, Prepared], bench: Bench) -> list[Candidate]:
        done: list[Candidate] = []
        for plan in plans:
            label = f"{plan.scale}: {plan.label}"
            candidate = self.store.candidate(plan)
            if candidate is None:
                self.progress.working(label)
                candidate = self._give_up(plan, done, prepared[plan.scale], bench)
                if candidate is None:
                    candidate = run_trial(prepared[plan.scale].module, plan, self.store.clear(plan), bench)
                if candidate.status != "untried":
                    self.store.save_candidate(candidate)
            done.append(candidate)
            self.progress.advance(f"{label}: {_outcome(candidate)}")
        return done

    def _give_up(self, plan: Plan, done: Sequence[Candidate], scale: Prepared, bench: Bench) -> Candidate | None:
        """A candidate that is not worth trying, with the reason; None when it is."""
        if done and self._late():
            return self._untried(plan)
        reason = None
        found = quality(scale.scores, self.task.metric, bench.reference_scores)
        if plan.steps and (why := hopeless(found, self.budget)):
            reason = f"not tried: in float, {why}"
        for other in done:
            if other.status == "stopped" and harsher(plan, other.plan) and not reason:
                reason = f"not tried: {other.plan.label} alone was stopped"
        return Candidate(id=self.store.identifier(plan), plan=plan, status="stopped", reason=reason) if reason else None

    def _untried(self, plan: Plan) -> Candidate:
        return Candidate(id=self.store.identifier(plan), plan=plan, status="untried", reason="the time limit was reached")

    def _note_untried(self, candidates: Sequence[Candidate]) -> None:
        left = sum(c.status == "untried" for c in candidates)
        if left:
            self.warnings.append(f"the time limit was reached: {left} of {len(candidates)} plans were not tried; --resume goes on")

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    # ---- conclusion

    def _conclude(
        self, candidates: list[Candidate], prepared: dict[str, Prepared], bench: Bench, data: dict[str, Any], fingerprint: str
    ) -> Result:
        if not any(c.measured for c in candidates):
            raise UnsupportedModel("no candidate could be measured", got="; ".join(dict.fromkeys(str(c.reason) for c in candidates))[:600])
        self.progress.working("measuring the finalists side by side")
        candidates, torch_latency, speedups = self._measure_finalists(candidates, bench)
        candidates = list(mark_frontier(candidates))
        fitting = best(candidates, self.budget)
        chosen = fitting or nearest(candidates, self.budget)
        assert chosen is not None
        assert chosen.measured is not None
        if chosen.id not in speedups:  # the nearest one was no finalist
            candidates, torch_latency, speedups = self._measure_finalists(candidates, bench, [chosen.id])
        self.progress.working(f"{chosen.plan.scale}: {chosen.plan.label}: judging on the test split")
        memory = measure_memory(bench, self.store.folder(chosen.plan) / self.runtime.file_name, times=7)
        candidates = [_with(c, memory=memory) if c.id == chosen.id else c for c in candidates]
        chosen = next(c for c in candidates if c.id == chosen.id)
        assert chosen.measured is not None
        reference_test, test = self._test_quality(chosen, prepared, bench)
        verdict = judge(self.budget, chosen.measured, test)
        feasible = fitting is not None and verdict.judgement != "refused"
        reference = prepared[self.reference].record
        record = RunRecord(
            version=_version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.monotonic() - self.begin,
            task=self.task.name,
            metric=self.task.metric.name,
            fingerprint=fingerprint,
            data=data,
            budget=self.budget,
            runtime=self.runtime.name,
            device=self.device,
            seed=self.seed,
            versions={**_versions(), **self.runtime.versions()},
            reference=self.reference,
            reference_quality=reference_test or quality(prepared[self.reference].scores, self.task.metric),
            reference_torch_latency=torch_latency,
            reference_weight_bytes=reference.cost.weight_bytes,
            scales=tuple(
                replace(p.record, torch_latency=torch_latency) if name == self.reference else p.record for name, p in prepared.items()
            ),
            candidates=tuple(candidates),
            chosen=chosen.id,
            feasible=feasible,
            speedup=speedups[chosen.id],
            verdict=verdict,
            relaxations=() if fitting else relaxations(candidates, self.budget),
            warnings=tuple(self.warnings),
        )
        self._bundle(record, chosen)
        self.progress.advance(f"chosen: {chosen.plan.scale}, {chosen.plan.label}")
        return self._result(record)

    def _measure_finalists(
        self, candidates: list[Candidate], bench: Bench, only: Sequence[str] | None = None
    ) -> tuple[list[Candidate], Interval, dict[str, Interval]]:
        """Time the best candidates and the reference's torch module in the same rounds; their latencies replace the trials'."""
        fitting = [c for c in candidates if c.measured and not self.budget.violations(c.measured)]
        names = only or [c.id for c in sorted(fitting, key=lambda c: rank_key(c, self.budget))[:FINALISTS]]
        example = self.task.example
        calls: dict[str, Callable[[], object]] = {REFERENCE: lambda: bench.reference_call(example)}
        for candidate in candidates:
            if candidate.id in names:
                path = self.store.folder(candidate.plan) / self.runtime.file_name
                calls[f"file {candidate.id}"] = self.runtime.load(path, threads=self.device.threads).prepare(example)
        timed = time_interleaved(calls, rounds=31, block_s=0.02, seed=self.seed)
        updated = []
        for c in candidates:
            if c.id in names:
                key = f"file {c.id}"
                c = _with(c, latency=timed.latency(key), latency_ratio=timed.ratio(key, REFERENCE).value)
            updated.append(c)
        return updated, timed.latency(REFERENCE), {name: timed.ratio(REFERENCE, f"file {name}") for name in names}

    def _test_quality(self, chosen: Candidate, prepared: dict[str, Prepared], bench: Bench) -> tuple[Quality | None, Quality | None]:
        if self.test is None:
            return None, None
        runner = self.runtime.load(self.store.folder(chosen.plan) / self.runtime.file_name, threads=self.device.threads)
        metric = self.task.metric
        of_reference = score(bench.reference_call, self.test, metric, bench.reference_call)
        of_chosen = score(runner, self.test, metric, bench.reference_call)
        return quality(of_reference, metric), quality(of_chosen, metric, of_reference)

    def _bundle(self, record: RunRecord, chosen: Candidate) -> None:
        artefact = chosen.artefact
        assert artefact is not None
        leaves = pytree.tree_leaves((self.task.example.args, dict(self.task.example.kwargs or {})))
        first = next(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        snippet = self.runtime.snippet(artefact, first.shape, str(first.dtype).removeprefix("torch."))
        write_bundle(self.store.out, self.store.folder(chosen.plan), record, snippet)

    def _result(self, record: RunRecord) -> Result:
        frontier = sorted((c for c in record.candidates if c.on_frontier and c.measured), key=lambda c: c.measured.latency.value)  # type: ignore[union-attr]
        result = Result(record.winner, tuple(frontier), record.verdict, record, self.store.out)
        if record.feasible:
            return result
        raise BudgetInfeasible(_why_infeasible(record, self.budget), result=result, hint=_what_helps(record))


def _with(candidate: Candidate, **figures: Any) -> Candidate:
    assert candidate.measured is not None
    return replace(candidate, measured=replace(candidate.measured, **figures))


def _outcome(candidate: Candidate) -> str:
    if candidate.measured is None:
        return f"{candidate.status}: {candidate.reason}"
    m = candidate.measured
    return f"{m.quality.metric} {m.quality.score.value:.4f}, {format_seconds(m.latency.value)}, {format_bytes(m.size_bytes)}"


def _why_infeasible(record: RunRecord, budget: Budget) -> str:
    measured = record.winner.measured
    assert measured is not None
    broken = budget.violations(measured)
    name = f"{record.winner.plan.scale}, {record.winner.plan.label}"
    if not broken:
        limits = ", ".join(row.limit for row in record.verdict.limits if row.judgement == "refused")
        return f"{name} fits on validation, but the final measurement refuses {limits}"
    text = "; ".join(f"{v.limit}: {_figure(v.limit, v.got)}, allowed {_figure(v.limit, v.allowed)}" for v in broken)
    return f"nothing that was tried fits the budget; nearest is {name}, which breaks {text}"


def _what_helps(record: RunRecord) -> str:
    rows = [f"{r.limit} of {_figure(r.limit, r.needed)} would fit {r.candidate}" for r in record.relaxations if r.needed is not None]
    return "; ".join(rows) or "relaxing one limit alone does not help: relax several, or give more or smaller candidates"


def _figure(limit: str, value: float) -> str:
    formats: dict[str, Callable[[float], str]] = {"latency": format_seconds, "size": format_bytes, "memory": format_bytes}
    return formats.get(limit, lambda v: f"{v:.4g}")(value)


def _version() -> str:
    return metadata.version("sizewise")


def _versions() -> dict[str, str]:
    packages = ("torch", "torchao", "torch-pruning", "numpy")
    return {"sizewise": _version(), "python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
