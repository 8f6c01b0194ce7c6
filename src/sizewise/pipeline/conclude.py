"""From tried candidates to the outcome: finalists side by side, the choice, the verdict, the record."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from sizewise.errors import UnsupportedModel
from sizewise.evaluate.scoring import quality, score
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup, version
from sizewise.pipeline.trial import REFERENCE, Bench, measure_memory
from sizewise.pipeline.verdict import judge
from sizewise.profile.timing import Timings, time_interleaved
from sizewise.search.frontier import best, mark_frontier, nearest, rank_key, relaxations
from sizewise.types import Candidate, Interval, Quality, RunRecord

__all__ = ["conclude"]

FINALISTS = 6
ROUNDS = 31
MEMORY_RUNS = 7


@dataclass(frozen=True)
class _Final:
    """Candidates with the finalists' latencies, and what only the finalists' rounds tell."""

    candidates: tuple[Candidate, ...]
    torch_latency: Interval
    speedups: dict[str, Interval]


def conclude(
    setup: Setup, bench: Bench, prepared: dict[str, Prepared], reference: str, candidates: Sequence[Candidate], facts: dict[str, Any]
) -> RunRecord:
    """Choose, judge, and write everything into a record.

    Args:
        setup: the run.
        bench: what the trials shared.
        prepared: the scales.
        reference: name of the reference scale.
        candidates: all of them, whatever their status.
        facts: fingerprint and data facts, as fields of the record.

    Raises:
        UnsupportedModel: nothing could be measured.
    """
    if not any(c.measured for c in candidates):
        raise UnsupportedModel("no candidate could be measured", got="; ".join(dict.fromkeys(str(c.reason) for c in candidates))[:600])
    setup.progress.working("measuring the finalists side by side")
    final, fits = _choose(setup, bench, candidates)
    chosen = final[1]
    setup.progress.working(f"{chosen.plan.scale}: {chosen.plan.label}: judging on the test split")
    memory = measure_memory(bench, setup.store.folder(chosen.plan) / setup.runtime.file_name, times=MEMORY_RUNS)
    chosen = _with(chosen, memory=memory)
    assert chosen.measured is not None
    reference_test, test = _test_quality(setup, bench, chosen)
    verdict = judge(setup.budget, chosen.measured, test)
    found = final[0]
    everything = tuple(chosen if c.id == chosen.id else c for c in found.candidates)
    return RunRecord(
        **facts,
        version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - setup.begin,
        task=setup.task.name,
        metric=setup.task.metric.name,
        budget=setup.budget,
        runtime=setup.runtime.name,
        device=setup.device,
        seed=setup.seed,
        versions={**_versions(), **setup.runtime.versions()},
        reference=reference,
        reference_quality=reference_test or quality(prepared[reference].scores, setup.task.metric),
        reference_torch_latency=found.torch_latency,
        reference_weight_bytes=prepared[reference].record.cost.weight_bytes,
        scales=tuple(_scale(p, found.torch_latency if name == reference else None) for name, p in prepared.items()),
        candidates=everything,
        chosen=chosen.id,
        feasible=fits and verdict.judgement != "refused",
        speedup=found.speedups[chosen.id],
        verdict=verdict,
        relaxations=() if fits else relaxations(everything, setup.budget),
        warnings=tuple(setup.warnings),
    )


def _choose(setup: Setup, bench: Bench, candidates: Sequence[Candidate]) -> tuple[tuple[_Final, Candidate], bool]:
    """The best that fits by the finalists' own rounds, else the nearest, timed as well; and whether it fits."""
    fitting = [c for c in candidates if c.measured and not setup.budget.violations(c.measured)]
    finalists = sorted(fitting, key=lambda c: rank_key(c, setup.budget))[:FINALISTS]
    if not finalists:
        close = nearest(candidates, setup.budget)
        assert close is not None
        finalists = [close]
    final = _time_finalists(setup, bench, candidates, [c.id for c in finalists])
    ids = {c.id for c in finalists}
    timed = [c for c in final.candidates if c.id in ids]
    chosen = best(timed, setup.budget)
    if chosen is None:
        close = nearest(timed, setup.budget)
        assert close is not None
        return (final, close), False
    return (final, chosen), True


def _time_finalists(setup: Setup, bench: Bench, candidates: Sequence[Candidate], names: Sequence[str]) -> _Final:
    """Time the finalists and the reference's torch module in the same rounds; their latencies replace the trials'."""
    example = setup.task.example
    calls: dict[str, Callable[[], object]] = {REFERENCE: lambda: bench.reference_call(example)}
    for candidate in candidates:
        if candidate.id in names:
            path = setup.store.folder(candidate.plan) / setup.runtime.file_name
            calls[_key(candidate)] = setup.runtime.load(path, threads=setup.device.threads).prepare(example)
    timed = time_interleaved(calls, rounds=ROUNDS, block_s=0.02, seed=setup.seed)
    updated = [_timed(c, timed) if c.id in names else c for c in candidates]
    speedups = {c.id: timed.ratio(REFERENCE, _key(c)) for c in updated if c.id in names}
    return _Final(mark_frontier(updated), timed.latency(REFERENCE), speedups)


def _key(candidate: Candidate) -> str:
    return f"file {candidate.id}"


def _timed(candidate: Candidate, timed: Timings) -> Candidate:
    ratio = timed.ratio(_key(candidate), REFERENCE).value
    return _with(candidate, latency=timed.latency(_key(candidate)), latency_ratio=ratio)


def _with(candidate: Candidate, **figures: Any) -> Candidate:
    assert candidate.measured is not None
    return replace(candidate, measured=replace(candidate.measured, **figures))


def _test_quality(setup: Setup, bench: Bench, chosen: Candidate) -> tuple[Quality | None, Quality | None]:
    """Quality of the reference and of the chosen file on the test split, compared example by example."""
    if setup.test is None:
        return None, None
    runner = setup.runtime.load(setup.store.folder(chosen.plan) / setup.runtime.file_name, threads=setup.device.threads)
    metric = setup.task.metric
    of_reference = score(bench.reference_call, setup.test, metric, bench.reference_call)
    of_chosen = score(runner, setup.test, metric, bench.reference_call)
    return quality(of_reference, metric), quality(of_chosen, metric, of_reference)


def _scale(prepared: Prepared, torch_latency: Interval | None) -> Any:
    return replace(prepared.record, torch_latency=torch_latency)


def _versions() -> dict[str, str]:
    packages = ("torch", "torchao", "torch-pruning", "numpy")
    return {"sizewise": version(), "python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
