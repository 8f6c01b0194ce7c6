"""Looks at the test split in turn: at what promises most first, and where that proves nothing, at what very probably will be proved.

A bold file may so be looked at without giving up a safe one. All looks are counted, and all of them together err no more than one would
(`pipeline/looks.py`); the first errs most, so that it is the bold file's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from numpy import ndarray

from sizewise.evaluate.proof import confidence_at
from sizewise.evaluate.scoring import quality, score
from sizewise.pipeline.looks import looks_of
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.trial import Bench
from sizewise.pipeline.verdict import NO_TEST, ORDER, judge
from sizewise.search.spare import sorted_spares
from sizewise.types import Candidate, Interval, Quality, Unproved, Verdict

__all__ = ["Turn", "in_turn", "looked_at", "of_test", "unproved"]

Scores = Float[ndarray, " n"]
NOT_LOOKED = "the test split was not looked at, since nothing fits"
LIKELY = 0.5  # chance of proof from which a further look is taken: each leaves a fifth of the error to those that come after


@dataclass(frozen=True)
class Turn:
    """One candidate and what the test split says, example by example beside the reference.

    Attributes:
        candidate: a measured one, with what was measured last.
        verdict: on every limit.
        reference: the reference's quality on the test split; None where that was not looked at.
    """

    candidate: Candidate
    verdict: Verdict
    reference: Quality | None = None

    @property
    def lacks_proof(self) -> bool:
        """Whether a limit of quality is not proved, which a look at another file may be."""
        return any(row.judgement != "proved" and row.limit in ("max_drop", "min_quality") for row in self.verdict.limits)


def of_test(setup: Setup, bench: Bench, candidate: Candidate, latency: Interval, reference: str, *, look: bool = True) -> Turn:
    """Judge a candidate, its quality on the test split, unless these bytes were looked at before: then their scores are known.

    Args:
        setup: the run.
        bench: what the trials shared.
        candidate: a measured one.
        latency: of its file, each end a one-sided bound.
        reference: name of the reference scale.
        look: whether the test split is looked at.
    """
    test, metric, artefact, measured = setup.test, setup.task.metric, candidate.artefact, candidate.measured
    assert measured is not None
    measured = replace(measured, latency=latency)
    looks = looks_of(setup)
    if test is None or looks is None or artefact is None or not look:
        untested = NO_TEST if test is None else NOT_LOOKED
        return Turn(candidate, judge(setup.budget, measured, None, untested=untested))

    def scores_of_candidate() -> Scores:
        runner = setup.runtime.load(setup.store.folder(candidate.plan) / setup.runtime.file_name, threads=setup.device.threads)
        return score(runner, test, metric, bench.reference_call)

    taken = looks.take(artefact.sha256)
    of_reference = looks.scores(f"reference {reference}", lambda: score(bench.reference_call, test, metric, bench.reference_call))
    own = looks.scores(f"{artefact.sha256} beside {reference}", scores_of_candidate)
    found, bounds = (quality(own, metric, of_reference, *level) for level in ((), (confidence_at(taken.level),)))
    return Turn(candidate, judge(setup.budget, measured, found, bounds=bounds, look=taken), quality(of_reference, metric))


def looked_at(setup: Setup, candidate: Candidate) -> bool:
    """Whether its file was looked at on the test split."""
    looks = looks_of(setup)
    if looks is None or candidate.artefact is None or candidate.measured is None:
        return False
    return looks.taken(candidate.artefact.sha256)


def in_turn(
    first: Turn,
    others: Sequence[Candidate],
    setup: Setup,
    bench: Bench,
    take: Callable[[Candidate], Turn],
    read: Callable[[Candidate], Candidate],
) -> Turn:
    """The first of all turns that is proved, else the one that came nearest to it.

    Args:
        first: turn.
        others: candidates that may have a turn where it proves nothing.
        setup: the run.
        bench: what the trials shared.
        take: a turn.
        read: a candidate that was read in part to its end, before it is its turn.
    """
    best = first
    while best.lacks_proof and (following := _following(others, setup, bench)) is not None:
        if following.unread:
            others = [read(c) if c.id == following.id else c for c in others]
            continue
        turn = take(following)
        best = min(best, turn, key=lambda turn: ORDER.index(turn.verdict.judgement))
    return best


def _following(others: Sequence[Candidate], setup: Setup, bench: Bench) -> Candidate | None:
    """The candidate to look at next; None where none will probably be proved."""
    looks = looks_of(setup)
    if looks is None:
        return None
    now = replace(bench, level=looks.next_level)
    # the look that is next now is what was the one after it
    left = [replace(now.with_chances(c), later_chance=None) for c in others if not looked_at(setup, c)]
    _, found = next(iter(sorted_spares(left, setup.budget)), (0.0, None))
    return found if found is not None and (found.proof_chance or 0.0) >= LIKELY else None


def unproved(turns: Sequence[Turn], chosen: Candidate) -> tuple[Unproved, ...]:
    """What was looked at and not proved, without the chosen one."""
    return tuple(
        Unproved(candidate=turn.candidate.id, verdict=turn.verdict) for turn in turns if turn.candidate.id != chosen.id and turn.lacks_proof
    )
