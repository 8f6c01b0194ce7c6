"""Candidates whose evaluation was stopped early and that matter after all: they are scored in full before anything is chosen.

A race is lost against what was known then. Latencies are measured again at the end, a run can go on under another latency or size, and
where nothing fits, the nearest file and what relaxing a limit would buy are wanted. Of files that may be chosen the search read only as
much as could speak for them (`race.py`); what is to be chosen is read to its end.
"""

from collections.abc import Sequence
from dataclasses import replace

from sizewise.pipeline.setup import Setup
from sizewise.pipeline.trial import Bench, complete
from sizewise.search.frontier import best, nearest, relaxations
from sizewise.search.rivals import settled
from sizewise.search.spare import spare_of
from sizewise.types import Budget, Candidate

__all__ = ["matter_after_all", "score_in_full"]


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
