"""Candidates whose evaluation was stopped early and that matter after all: they are scored in full before anything is chosen.

A race is lost against what was known then. Latencies are measured again at the end, a run can go on under another latency or size, and
where nothing fits, the nearest file and what relaxing a limit would buy are wanted. Of files that may be chosen the search read only as
much as could speak for them (`race.py`); what is to be chosen is read to its end.
"""

from collections.abc import Sequence
from dataclasses import replace

from sizewise.pipeline.setup import Setup
from sizewise.pipeline.trial import Bench, complete
from sizewise.report._format import plan_name
from sizewise.search.frontier import best, nearest, relaxations
from sizewise.search.rivals import settled
from sizewise.search.spare import spare_of
from sizewise.types import Budget, Candidate

__all__ = ["matter_after_all", "put_aside", "score_in_full"]


def matter_after_all(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """The candidates to score in full before it is sure what is chosen, or what was nearest.

    Args:
        candidates: all of them, with the latencies that count.
        budget: the limits.
    """
    leader = best(candidates, budget)
    if leader is not None:
        promising = {leader.id, spare_of(candidates, budget).holder}
        if unread := [c for c in candidates if c.id in promising and c.unread]:
            return unread
        return [c for c in candidates if c.status == "beaten" and not settled(c, candidates, budget)]
    seen = [replace(c, measured=c.measured or c.partly) for c in candidates]  # as far as the examples that were read tell
    close = nearest(seen, budget)
    wanted = {close.id if close else None, *(relaxed.candidate for relaxed in relaxations(seen, budget))}
    return [c for c in candidates if c.id in wanted and (c.partly is not None or c.unread)]


def score_in_full(candidates: Sequence[Candidate], wanted: Sequence[Candidate], setup: Setup, bench: Bench) -> list[Candidate]:
    """All candidates, the wanted ones scored in full, which the run folder remembers."""
    ids, found = {c.id for c in wanted}, []
    for candidate in candidates:
        if candidate.id in ids:
            setup.progress.working(f"{candidate.plan.scale}: {candidate.plan.label}: scoring the whole validation split after all")
            candidate = complete(candidate, setup.store.folder(candidate.plan), bench)
            setup.store.save_candidate(candidate)
        found.append(candidate)
    return found


def put_aside(candidates: Sequence[Candidate], chosen: Candidate) -> list[Candidate]:
    """All candidates, those that were not read to their end told as beaten by what is chosen though what is left cannot speak for them."""
    return [_beaten(c, chosen) if c.unread else c for c in candidates]


def _beaten(candidate: Candidate, chosen: Candidate) -> Candidate:
    assert candidate.measured is not None
    read = candidate.measured.quality.score.n
    reason = f"dropped after {read:,} of {read + candidate.unread:,} validation examples: {plan_name(chosen.plan)} is chosen first"
    if candidate.proof_chance is not None:
        reason += f": here a proof has a chance of at most {candidate.proof_chance:.0%}"
    return replace(
        candidate,
        status="beaten",
        reason=reason,
        partly=candidate.measured,
        measured=None,
        unread=0,
        most_chance=candidate.proof_chance,
        proof_chance=None,
        later_chance=None,
    )
