"""From tried candidates to the outcome: finalists side by side, the choice, the verdict, the record."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any

from sizewise.errors import UnsupportedModel
from sizewise.evaluate.scoring import module_call, quality, score
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup, version
from sizewise.pipeline.trial import Bench, measure_memory
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
    """What the finalists' rounds tell.

    Attributes:
        candidates: all of them, the finalists' latencies replaced by those of the rounds.
        chosen: the best that fits by these latencies, else the nearest.
        fits: whether the chosen one does.
        torch_latency: per scale, of its float PyTorch module in the same rounds.
        speedup: how many times faster the chosen file is than the reference's module.
        file_speedup: and than the whole model's file, where the plan was given.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    fits: bool
    torch_latency: dict[str, Interval]
    speedup: Interval
    file_speedup: Interval | None = None


def conclude(
    setup: Setup,
    bench: Bench,
    prepared: dict[str, Prepared],
    reference: str,
    candidates: Sequence[Candidate],
    facts: dict[str, Any],
    *,
    given: str | None = None,
) -> RunRecord:
    """Choose, judge, and write everything into a record.

    Args:
        setup: the run.
        bench: what the trials shared.
        prepared: the scales.
        reference: name of the reference scale.
        candidates: all of them, whatever their status.
        facts: fingerprint and data facts, as fields of the record.
        given: id of the candidate that is chosen, whatever the others are; they are measured as closely, to compare with.

    Raises:
        UnsupportedModel: nothing could be measured.
    """
    if not any(c.measured for c in candidates):
        raise UnsupportedModel("no candidate could be measured", got="; ".join(dict.fromkeys(str(c.reason) for c in candidates))[:600])
    setup.progress.working("measuring the finalists side by side" if given is None else "measuring the files side by side")
    final = _finals(setup, prepared, reference, candidates, given)
    setup.progress.working(f"{final.chosen.plan.scale}: {final.chosen.plan.label}: judging on the test split")
    closely = {final.chosen.id} if given is None else {c.id for c in candidates if c.measured}
    everything = tuple(_with(c, memory=_memory(setup, bench, c)) if c.id in closely else c for c in final.candidates)
    chosen = next(c for c in everything if c.id == final.chosen.id)
    assert chosen.measured is not None
    reference_test, test = _test_quality(setup, bench, chosen)
    verdict = judge(setup.budget, chosen.measured, test)
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
        reference_torch_latency=final.torch_latency[reference],
        reference_weight_bytes=prepared[reference].record.cost.weight_bytes,
        scales=tuple(replace(p.record, torch_latency=final.torch_latency[name]) for name, p in prepared.items()),
        candidates=everything,
        chosen=chosen.id,
        feasible=final.fits and verdict.judgement != "refused",
        speedup=final.speedup,
        verdict=verdict,
        relaxations=() if final.fits else relaxations(everything, setup.budget),
        warnings=tuple(setup.warnings),
        searched=given is None,
        file_speedup=final.file_speedup,
    )


def _finals(setup: Setup, prepared: dict[str, Prepared], reference: str, candidates: Sequence[Candidate], given: str | None) -> _Final:
    """Time the best candidates (or the nearest one) and every scale's torch module in the same rounds, then choose."""
    finalists = _best_ones(setup, candidates) if given is None else [c for c in candidates if c.measured]
    timed = _time(setup, prepared, finalists)
    names = {c.id for c in finalists}
    updated = mark_frontier([_timed(c, timed, reference) if c.id in names else c for c in candidates])
    closely = [c for c in updated if c.id in names and given in (None, c.id)]
    best_now = best(closely, setup.budget)
    chosen = best_now or nearest(closely, setup.budget)
    assert chosen is not None
    whole = next((c for c in finalists if given is not None and c.id != given and not c.plan.steps), None)
    return _Final(
        candidates=updated,
        chosen=chosen,
        fits=best_now is not None,
        torch_latency={scale: timed.latency(_torch_key(scale)) for scale in prepared},
        speedup=timed.ratio(_torch_key(reference), _key(chosen)),
        file_speedup=timed.ratio(_key(whole), _key(chosen)) if whole else None,
    )


def _best_ones(setup: Setup, candidates: Sequence[Candidate]) -> list[Candidate]:
    fitting = [c for c in candidates if c.measured and not setup.budget.violations(c.measured)]
    close = nearest(candidates, setup.budget)
    return sorted(fitting, key=lambda c: rank_key(c, setup.budget))[:FINALISTS] or [c for c in [close] if c]


def _time(setup: Setup, prepared: dict[str, Prepared], finalists: Sequence[Candidate]) -> Timings:
    example, threads = setup.task.example, setup.device.threads
    calls: dict[str, Callable[[], object]] = {}
    for scale, found in prepared.items():
        calls[_torch_key(scale)] = partial(module_call(found.module), example)
    for candidate in finalists:
        path = setup.store.folder(candidate.plan) / setup.runtime.file_name
        calls[_key(candidate)] = setup.runtime.load(path, threads=threads).prepare(example)
    return time_interleaved(calls, rounds=ROUNDS, block_s=0.02, seed=setup.seed)


def _torch_key(scale: str) -> str:
    return f"module {scale}"


def _key(candidate: Candidate) -> str:
    return f"file {candidate.id}"


def _timed(candidate: Candidate, timed: Timings, reference: str) -> Candidate:
    ratio = timed.ratio(_key(candidate), _torch_key(reference)).value
    return _with(candidate, latency=timed.latency(_key(candidate)), latency_ratio=ratio)


def _with(candidate: Candidate, **figures: Any) -> Candidate:
    assert candidate.measured is not None
    return replace(candidate, measured=replace(candidate.measured, **figures))


def _memory(setup: Setup, bench: Bench, candidate: Candidate) -> Interval:
    return measure_memory(bench, setup.store.folder(candidate.plan) / setup.runtime.file_name, times=MEMORY_RUNS)


def _test_quality(setup: Setup, bench: Bench, chosen: Candidate) -> tuple[Quality | None, Quality | None]:
    """Quality of the reference and of the chosen file on the test split, compared example by example."""
    if setup.test is None:
        return None, None
    runner = setup.runtime.load(setup.store.folder(chosen.plan) / setup.runtime.file_name, threads=setup.device.threads)
    metric = setup.task.metric
    of_reference = score(bench.reference_call, setup.test, metric, bench.reference_call)
    of_chosen = score(runner, setup.test, metric, bench.reference_call)
    return quality(of_reference, metric), quality(of_chosen, metric, of_reference)


def _versions() -> dict[str, str]:
    packages = ("torch", "torchao", "numpy")
    return {"sizewise": version(), "python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
