"""From tried candidates to the outcome: finalists side by side, the choice, the verdict, the record."""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from typing import Any

from sizewise.errors import UnsupportedModel
from sizewise.evaluate.paired import median_interval
from sizewise.evaluate.proof import ERROR, confidence_at
from sizewise.evaluate.scoring import module_call, quality
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.settle import matter_after_all, score_in_full
from sizewise.pipeline.setup import Setup, version
from sizewise.pipeline.trial import Bench, measure_memory
from sizewise.pipeline.turns import Turn, in_turn, looked_at, of_test, unproved
from sizewise.profile.timing import Timings, time_interleaved
from sizewise.search.explain import Reference, companions, explain
from sizewise.search.frontier import best, limits_quality, mark_frontier, nearest, rank_key, relaxations
from sizewise.search.spare import sorted_spares, spare_of
from sizewise.search.untried import Outlook, untried_neighbours
from sizewise.types import Candidate, Explanation, Interval, RunRecord, Unproved

__all__ = ["conclude"]

FINALISTS = 6
SPARE = 2  # files beside them that the test split will probably prove
ROUNDS = 31
BLOCK_S = 0.02
MEMORY_RUNS = 7
COMPANIONS = 12  # files that are timed beside the finalists to tell what each lever bought,
COMPANIONS_S = 60.0  # as many as that takes


@dataclass(frozen=True)
class _Final:
    """What the finalists' rounds tell.

    Attributes:
        candidates: all of them, latencies replaced by those of the rounds where they took part; the frontier is not marked yet.
        chosen: the best that fits by these latencies, else the nearest.
        fits: whether the chosen one does.
        torch_latency: per scale, of its float PyTorch module in the same rounds.
        finalists: the best of them before, as far as they fit: those that may be looked at on the test split.
        file_speedup: how many times faster the chosen file is than the whole model's, where the plan was given.
        timed: the rounds.
        took_part: ids of the candidates that were timed in them.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    fits: bool
    torch_latency: dict[str, Interval]
    finalists: tuple[Candidate, ...]
    timed: Timings
    took_part: frozenset[str]
    file_speedup: Interval | None = None

    def latency_bounds(self, candidate: Candidate) -> Interval:
        """Of a file that took part, each end a one-sided bound; of another one its interval."""
        if candidate.id in self.took_part:
            return median_interval(self.timed.samples[_key(candidate)], confidence_at(ERROR))
        assert candidate.measured is not None
        return candidate.measured.latency

    def speedup(self, candidate: Candidate, reference: str) -> Interval:
        """How many times faster a file that took part is than the reference's module."""
        return self.timed.ratio(_torch_key(reference), _key(candidate))


def conclude(
    setup: Setup,
    bench: Bench,
    prepared: dict[str, Prepared],
    reference: str,
    candidates: Sequence[Candidate],
    facts: dict[str, Any],
    *,
    given: str | None = None,
    expected: Outlook | None = None,
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
        expected: what the search expects of the plans that it did not try.

    Raises:
        UnsupportedModel: nothing could be measured.
    """
    candidates = [_with_chance(c, setup, bench, reference) for c in candidates]
    while given is None and (wanted := matter_after_all(candidates, setup.budget)):
        candidates = score_in_full(candidates, wanted, setup, bench)
    if not any(c.measured for c in candidates):
        raise UnsupportedModel("no candidate could be measured", got="; ".join(dict.fromkeys(str(c.reason) for c in candidates))[:600])
    setup.progress.working("measuring the finalists side by side" if given is None else "measuring the files side by side")
    final = _finals(setup, prepared, reference, candidates, given)
    while given is None and (wanted := matter_after_all(final.candidates, setup.budget)):
        candidates = score_in_full(candidates, wanted, setup, bench)
        final = _finals(setup, prepared, reference, candidates, given)
    judged = _judged(setup, bench, final, reference, given)
    chosen, verdict = judged.turn.candidate, judged.turn.verdict
    final = replace(final, candidates=mark_frontier(judged.candidates))
    return RunRecord(
        **{**facts, "data": _with_order(facts["data"], bench)},
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
        reference_quality=judged.turn.reference or quality(prepared[reference].scores, setup.task.metric),
        reference_torch_latency=final.torch_latency[reference],
        reference_weight_bytes=prepared[reference].record.cost.weight_bytes,
        scales=tuple(replace(p.record, torch_latency=final.torch_latency[name]) for name, p in prepared.items()),
        candidates=final.candidates,
        chosen=chosen.id,
        feasible=final.fits and verdict.judgement != "refused",
        speedup=final.speedup(chosen, reference),
        verdict=verdict,
        unproved=judged.unproved,
        relaxations=() if final.fits else relaxations(final.candidates, setup.budget),
        warnings=(*setup.warnings, *_unraced(setup, bench)),
        searched=given is None,
        explanation=_explained(setup, prepared, reference, final, chosen, expected, judged.unproved) if given is None else None,
        file_speedup=final.file_speedup,
        examples_evaluated=sum(c.evaluated or 0 for c in final.candidates),
        examples_in_full=sum(c.in_full or 0 for c in final.candidates),
    )


@dataclass(frozen=True)
class _Judged:
    """What the test split says.

    Attributes:
        turn: of the chosen candidate.
        candidates: all of them, with the memory of those that were judged measured closely.
        unproved: what was looked at, too.
    """

    turn: Turn
    candidates: tuple[Candidate, ...]
    unproved: tuple[Unproved, ...]


def _judged(setup: Setup, bench: Bench, final: _Final, reference: str, given: str | None) -> _Judged:
    """Look at the test split, at one candidate after the other if need be."""
    tests = final.fits or given is not None  # a look is not spent on a file that is outside the budget anyhow
    closely = {final.chosen.id} if given is None else {c.id for c in final.candidates if c.measured}
    everything = {c.id: _with(c, memory=_memory(setup, bench, c)) if c.id in closely else c for c in final.candidates}
    turns: dict[str, Turn] = {}

    def take(candidate: Candidate) -> Turn:
        setup.progress.working(f"{candidate.plan.scale}: {candidate.plan.label}: judging{' on the test split' if tests else ''}")
        if candidate.id not in closely:
            everything[candidate.id] = candidate = _with(candidate, memory=_memory(setup, bench, candidate))
        turns[candidate.id] = of_test(setup, bench, candidate, final.latency_bounds(candidate), reference, look=tests)
        return turns[candidate.id]

    def read(candidate: Candidate) -> Candidate:
        (everything[candidate.id],) = score_in_full([candidate], [candidate], setup, bench)
        return everything[candidate.id]

    turn = take(everything[final.chosen.id])
    if given is not None:
        return _Judged(turn, tuple(everything.values()), ())
    if tests:
        turn = in_turn(turn, final.finalists, setup, bench, take, read)
    before = [c for c in everything.values() if c.id not in turns and looked_at(setup, c)]
    looked = [*turns.values(), *(of_test(setup, bench, c, final.latency_bounds(c), reference) for c in before)]
    return _Judged(turn, tuple(everything.values()), unproved(looked, turn.candidate))


def _with_order(data: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """How validation was read for the races, where there were any."""
    return {**data, "validation": {**data["validation"], "order": bench.sample.how}} if bench.sample.how else data


def _unraced(setup: Setup, bench: Bench) -> list[str]:
    if math.isfinite(bench.metric.best) or not limits_quality(setup.budget):
        return []
    return [f"nobody knows the best score of {bench.metric.name} (Metric.bounds), so every candidate was scored on all validation examples"]


def _with_chance(candidate: Candidate, setup: Setup, bench: Bench, reference: str) -> Candidate:
    """Told anew, since the next look at the test split may err less than the one that was next when it was measured.

    Of what was looked at it is known.
    """
    if candidate.measured is None:
        return candidate
    told = bench.with_chances(candidate)
    if told.proof_chance is None or not looked_at(setup, candidate):
        return told
    known = float(not of_test(setup, bench, candidate, candidate.measured.latency, reference).lacks_proof)
    return replace(told, proof_chance=known, later_chance=known)


def _explained(
    setup: Setup,
    prepared: dict[str, Prepared],
    reference: str,
    final: _Final,
    chosen: Candidate,
    expected: Outlook | None,
    not_proved: Sequence[Unproved],
) -> Explanation:
    def timed(before: str | None, after: str) -> Interval | None:
        names = {after} if before is None else {before, after}
        start = _torch_key(reference) if before is None else _file_key(before)
        return final.timed.ratio(_file_key(after), start) if names <= final.took_part else None

    scales = setup.task.scales
    untried = untried_neighbours(expected, chosen, final.candidates, scales) if expected is not None else ()
    looked = [found.candidate for found in not_proved]
    beginning = _beginning(setup, prepared, reference)
    return explain(final.candidates, chosen, setup.budget, beginning, timed=timed, untried=untried, unproved=looked)


def _beginning(setup: Setup, prepared: dict[str, Prepared], reference: str) -> Reference:
    return Reference(
        scale=reference,
        size_bytes=prepared[reference].record.cost.weight_bytes,
        runtime=setup.runtime.name,
        scales=setup.task.scales,
    )


def _finals(setup: Setup, prepared: dict[str, Prepared], reference: str, candidates: Sequence[Candidate], given: str | None) -> _Final:
    """Time the best candidates (or the nearest one), what explains them and every scale's torch module in the same rounds, then choose."""
    finalists = _best_ones(setup, candidates) if given is None else [c for c in candidates if c.measured]
    beside = _beside(setup, prepared, reference, candidates, finalists) if given is None else []
    timed = _time(setup, prepared, [*finalists, *beside])
    names = frozenset(c.id for c in [*finalists, *beside])
    updated = tuple(_timed(c, timed, reference) if c.id in names else c for c in candidates)
    closely = [c for c in updated if c.id in names and given in (None, c.id)]
    best_now = best(closely, setup.budget)
    chosen = best_now or nearest(closely, setup.budget)
    assert chosen is not None
    may_be_looked_at = {c.id for c in finalists}
    whole = next((c for c in finalists if given is not None and c.id != given and not c.plan.steps), None)
    return _Final(
        candidates=updated,
        chosen=chosen,
        fits=best_now is not None,
        torch_latency={scale: timed.latency(_torch_key(scale)) for scale in prepared},
        finalists=tuple(c for c in closely if c.id in may_be_looked_at and c.fits(setup.budget)),
        timed=timed,
        took_part=names,
        file_speedup=timed.ratio(_key(whole), _key(chosen)) if whole else None,
    )


def _best_ones(setup: Setup, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that promise most, and what is to be looked at where the first look proves nothing."""
    fitting = [c for c in candidates if c.fits(setup.budget)]
    close, spare = nearest(candidates, setup.budget), spare_of(candidates, setup.budget)
    found = sorted(fitting, key=lambda c: rank_key(c, setup.budget, spare))[:FINALISTS]
    others = [c for _, c in sorted_spares(candidates, setup.budget)[:SPARE] if c.id not in {f.id for f in found}]
    return [*found, *others] or [c for c in [close] if c]


def _beside(
    setup: Setup, prepared: dict[str, Prepared], reference: str, candidates: Sequence[Candidate], finalists: Sequence[Candidate]
) -> list[Candidate]:
    """What is timed beside the finalists to explain them, within a minute."""
    found, spent = list[Candidate](), 0.0
    for candidate in companions(candidates, finalists, _beginning(setup, prepared, reference))[:COMPANIONS]:
        file = candidate.measured or candidate.partly
        assert file is not None
        spent += ROUNDS * max(BLOCK_S, 5 * file.latency.value)
        if spent <= COMPANIONS_S:
            found.append(candidate)
    return found


def _time(setup: Setup, prepared: dict[str, Prepared], candidates: Sequence[Candidate]) -> Timings:
    example, threads = setup.task.example, setup.device.threads
    calls: dict[str, Callable[[], object]] = {}
    for scale, found in prepared.items():
        calls[_torch_key(scale)] = partial(module_call(found.module), example)
    for candidate in candidates:
        path = setup.store.folder(candidate.plan) / setup.runtime.file_name
        calls[_key(candidate)] = setup.runtime.load(path, threads=threads).prepare(example)
    return time_interleaved(calls, rounds=ROUNDS, block_s=BLOCK_S, seed=setup.seed)


def _torch_key(scale: str) -> str:
    return f"module {scale}"


def _key(candidate: Candidate) -> str:
    return _file_key(candidate.id)


def _file_key(candidate_id: str) -> str:
    return f"file {candidate_id}"


def _timed(candidate: Candidate, timed: Timings, reference: str) -> Candidate:
    ratio = timed.ratio(_key(candidate), _torch_key(reference)).value
    latency = timed.latency(_key(candidate))
    if candidate.partly is not None:
        return replace(candidate, partly=replace(candidate.partly, latency=latency, latency_ratio=ratio))
    return _with(candidate, latency=latency, latency_ratio=ratio)


def _with(candidate: Candidate, **figures: Any) -> Candidate:
    assert candidate.measured is not None
    return replace(candidate, measured=replace(candidate.measured, **figures))


def _memory(setup: Setup, bench: Bench, candidate: Candidate) -> Interval:
    return measure_memory(bench, setup.store.folder(candidate.plan) / setup.runtime.file_name, times=MEMORY_RUNS)


def _versions() -> dict[str, str]:
    packages = ("torch", "torchao", "numpy")
    return {"sizewise": version(), "python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
