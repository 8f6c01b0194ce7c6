"""What is to be had where the first look at the test split proves nothing: a second file, which very probably will be proved.

Files are looked at in turn (`pipeline/turns.py`), so that a bold one, whose proof is not sure, does not cost the safe one: what it is
worth is the mean of its own cost and of what has to do else. Costs are logarithms of latency times size. Proofs of different files are
taken to be independent, though they are looked for on the same examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.types import Budget, Candidate

__all__ = ["Spare", "expected_cost", "log_cost", "sorted_spares", "spare_of"]


@dataclass(frozen=True)
class Spare:
    """What the cost may be expected to be after a first look that proved nothing.

    Attributes:
        cost: with the best file for a second look; None where nothing has anything to prove.
        holder: id of that file.
        other: the same without it.
    """

    cost: float | None = None
    holder: str | None = None
    other: float | None = None

    def beside(self, candidate: str) -> float | None:
        """The same where it was this candidate that was looked at first."""
        return self.other if candidate == self.holder else self.cost


def log_cost(candidate: Candidate) -> float:
    """Of a measured candidate. Latencies are shares of the reference's, which was timed beside each file: machines are not always equally
    fast."""
    assert candidate.measured is not None
    return math.log(candidate.measured.latency_ratio) + math.log(candidate.measured.size_bytes)


def expected_cost(cost: float, chance: float | None, spare: float | None) -> float:
    """Of a file that is looked at first; its own where it costs more than what is spare, which then is looked at before it.

    Args:
        cost: of the file.
        chance: that the look proves its quality; None where there is nothing to prove.
        spare: of what has to do else.
    """
    if chance is None or spare is None or cost >= spare:
        return cost
    return chance * cost + (1 - chance) * spare


def spare_of(candidates: Sequence[Candidate], budget: Budget) -> Spare:
    """The least expected cost of a second look over all that fit."""
    found = sorted_spares(candidates, budget)
    if not found:
        return Spare()
    cost, holder = found[0]
    return Spare(cost, holder.id, found[1][0] if len(found) > 1 else _whole(candidates))


def sorted_spares(candidates: Sequence[Candidate], budget: Budget) -> list[tuple[float, Candidate]]:
    """Candidates that fit and have something to prove, with the expected cost of a second look at them, the best first."""
    fitting = [c for c in candidates if c.fits(budget) and c.proof_chance is not None]
    whole = _whole(candidates)
    found = [(expected_cost(log_cost(c), c.proof_chance if c.later_chance is None else c.later_chance, whole), c) for c in fitting]
    return sorted(found, key=lambda pair: (pair[0], pair[1].id))


def _whole(candidates: Sequence[Candidate]) -> float:
    """What the model costs as it was: the reference's own latency, and the largest file."""
    return math.log(max((c.measured.size_bytes for c in candidates if c.measured), default=1))
