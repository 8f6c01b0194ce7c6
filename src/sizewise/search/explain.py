"""Why the chosen candidate is what it is: what each lever bought, why its neighbours lost, and what levers do on this device.

Only files that were measured are compared; what was not tried is told as the search predicted it (`search/untried.py`).
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from sizewise.search.contrast import RESOLUTION, SCALE, Levers, Setting, change, difference, levers_of
from sizewise.search.frontier import limits_quality, rank_key
from sizewise.search.space import HEALED, HEALER
from sizewise.search.spare import Spare, spare_of
from sizewise.search.waterfall import best_path
from sizewise.types import Budget, Candidate, Explanation, Gain, Interval, Measurement, Neighbour, Plan, Violation, Why

__all__ = ["Reference", "Timed", "companions", "explain"]

MOST = 8  # neighbours
RUNTIME = "runtime"
TRIED: dict[str, Why] = {"stopped": "stopped", "beaten": "beaten", "failed": "failed", "untried": "untried"}
TELLING: tuple[Why, ...] = (
    "close",
    "dearer",
    "worse",
    "unproved",
    "unsure",
    "breaks",
    "further",
    "beaten",
    "open",
    "stopped",
    "harsher",
    "failed",
    "unpromising",
    "untried",
    "needless",
)

Timed = Callable[[str | None, str], Interval | None]


@dataclass(frozen=True)
class Reference:
    """Where all began: a scale's float PyTorch module.

    Attributes:
        scale: its name.
        size_bytes: of its weights.
        runtime: that its file is made for.
        scales: names of all scales.
    """

    scale: str
    size_bytes: int
    runtime: str
    scales: tuple[str, ...]

    def levers(self, candidate: Candidate) -> Levers:
        """Where every lever of a file stands, the runtime among them."""
        return {RUNTIME: Setting(f"runtime {self.runtime}"), **levers_of(candidate.plan, self.scales)}

    @property
    def start(self) -> Levers:
        """The module itself, which runs in PyTorch."""
        return levers_of(Plan(scale=self.scale), self.scales)


def explain(
    candidates: Sequence[Candidate],
    chosen: Candidate,
    budget: Budget,
    reference: Reference,
    *,
    timed: Timed | None = None,
    untried: Sequence[Neighbour] = (),
    unproved: Collection[str] = (),
) -> Explanation:
    """Everything that can be said about the choice.

    Args:
        candidates: all of them.
        chosen: one of them, measured.
        budget: the limits.
        reference: where all began.
        timed: the ratio of two files' latencies, by their ids, where they were timed in the same rounds, else None; no id is the
            reference's module. None where nothing was.
        untried: neighbours that were not tried.
        unproved: ids of candidates that the test split did not prove.
    """
    found = [*_neighbours(candidates, chosen, budget, reference, timed, unproved), *untried]
    return Explanation(
        waterfall=_waterfall(candidates, chosen, reference, timed),
        neighbours=_most_telling(found),
        levers=_alone(candidates, reference, timed),
    )


def companions(candidates: Sequence[Candidate], finalists: Sequence[Candidate], reference: Reference) -> list[Candidate]:
    """Candidates whose files are worth timing beside the finalists, those that explain most first.

    They are on the ways to the finalists, or tell what a lever does where the latencies of its trials leave open whether it is faster.
    """
    known, votes = {c.id for c in finalists}, dict[str, int]()
    for finalist in finalists:
        for stop in _stops(candidates, finalist, reference):
            if stop is not None:
                votes[stop.id] = votes.get(stop.id, 0) + len(candidates) ** 2  # more than all that levers can gather
    for gain in _alone(candidates, reference, None):
        if gain.before is not None and gain.latency.low <= 1 <= gain.latency.high:
            for name in (gain.before, gain.after):
                votes[name] = votes.get(name, 0) + 1
    wanted = [c for c in candidates if c.id in votes and c.id not in known]
    return sorted(wanted, key=lambda c: -votes[c.id])


# ---- what each lever bought


def _stops(candidates: Sequence[Candidate], chosen: Candidate, reference: Reference) -> list[Candidate | None]:
    """The way from the reference's module, which is None, to the chosen file."""
    stops = [(c, reference.levers(c)) for c in sorted(candidates, key=lambda c: c.measured is None) if _file(c) and c.id != chosen.id]
    return [stop for stop, _ in best_path((None, reference.start), stops, (chosen, reference.levers(chosen)))]


def _waterfall(candidates: Sequence[Candidate], chosen: Candidate, reference: Reference, timed: Timed | None) -> tuple[Gain, ...]:
    stops = _stops(candidates, chosen, reference)
    return tuple(_gain(before, after, reference, timed) for before, after in pairwise(stops) if after is not None)


def _gain(before: Candidate | None, after: Candidate, reference: Reference, timed: Timed | None) -> Gain:
    mine, its = reference.start if before is None else reference.levers(before), reference.levers(after)
    names = difference(mine, its)
    return Gain(
        levers=tuple(_label(mine, its, name) for name in names),
        before=before.id if before else None,
        after=after.id,
        latency=_ratio(before, after, timed),
        size_ratio=_size(after) / max(reference.size_bytes if before is None else _size(before), 1),
    )


def _label(mine: Levers, its: Levers, name: str) -> str:
    """What was done with a lever; training that came with it is part of it."""
    if name not in its or (name in mine and its[name].technique is not None):
        return change(mine, its, name)
    healed = name in HEALED and HEALER in its and HEALER not in mine
    return f"{its[name].label} + {its[HEALER].label}" if healed else its[name].label


def _file(candidate: Candidate) -> Measurement | None:
    """What is known of its file, be it that not all of its quality was measured."""
    return candidate.measured or candidate.partly


def _size(candidate: Candidate) -> int:
    found = _file(candidate)
    assert found is not None
    return found.size_bytes


def _ratio(before: Candidate | None, after: Candidate, timed: Timed | None) -> Interval:
    """How many times the latency of one file is another's; of files timed at different times by their ratios to the reference.

    Medians are taken to be about normal on a logarithmic axis, and the reference's, timed beside each file, to be as uncertain as the
    file's.
    """
    found = timed(before.id if before else None, after.id) if timed is not None else None
    if found is not None:
        return found
    own = _file(after)
    assert own is not None
    other = _file(before) if before else None
    files = [file for file in (own, other) if file is not None]
    value = own.latency_ratio / (other.latency_ratio if other else 1.0)
    half = math.sqrt(2 * sum((math.log(file.latency.high / file.latency.low) / 2) ** 2 for file in files))
    return Interval(
        value=value,
        low=value * math.exp(-half),
        high=value * math.exp(half),
        n=min(file.latency.n for file in files),
        confidence=min(file.latency.confidence for file in files),
    )


# ---- what levers do, all else being equal


def _alone(candidates: Sequence[Candidate], reference: Reference, timed: Timed | None) -> tuple[Gain, ...]:
    """Every pair of files of which one has a lever that the other lacks, or another scale than the reference."""
    files = [(c, reference.levers(c)) for c in candidates if _file(c)]
    found = []
    for before, mine in files:
        for after, its in files:
            names = difference(mine, its)
            if len(names) == 1 and _adds(mine, its, names[0], reference):
                found.append(_gain(before, after, reference, timed))
    return tuple(found)


def _adds(mine: Levers, its: Levers, name: str, reference: Reference) -> bool:
    if name == SCALE:
        return mine[name] == reference.start[name]
    if name == RESOLUTION:
        return mine.get(name) == reference.start.get(name)
    return name not in mine and name in its


# ---- why not the others


def _neighbours(
    candidates: Sequence[Candidate],
    chosen: Candidate,
    budget: Budget,
    reference: Reference,
    timed: Timed | None,
    unproved: Collection[str],
) -> list[Neighbour]:
    mine, spare = reference.levers(chosen), spare_of(candidates, budget)
    found = []
    for candidate in candidates:
        its = reference.levers(candidate)
        names = difference(mine, its)
        if len(names) == 1 and candidate.id != chosen.id:
            ratio = _ratio(chosen, candidate, timed) if _file(candidate) else None
            size_ratio = _size(candidate) / max(_size(chosen), 1) if ratio is not None else None
            cheapest = ratio.low * size_ratio if ratio and size_ratio else math.inf
            found.append(
                Neighbour(
                    plan=candidate.plan,
                    change=change(mine, its, names[0]),
                    lever=names[0],
                    why="unproved" if candidate.id in unproved else _why(candidate, chosen, budget, cheapest, spare),
                    candidate=candidate.id,
                    latency=ratio,
                    size_ratio=size_ratio,
                )
            )
    return found


def _why(candidate: Candidate, chosen: Candidate, budget: Budget, cheapest: float, spare: Spare) -> Why:
    """Why a candidate is not the chosen one; `cheapest` is its cost over the chosen one's, at the low end of what was measured."""
    if candidate.measured is None:
        return TRIED[candidate.status]
    assert chosen.measured is not None
    broken, chosen_broken = budget.violations(candidate.measured), budget.violations(chosen.measured)
    if chosen_broken:
        return "further" if _over(broken) >= _over(chosen_broken) else "close"
    if broken:
        return "breaks"
    behind = rank_key(candidate, budget, spare) > rank_key(chosen, budget, spare)
    if limits_quality(budget):
        if cheapest >= 1:
            return "dearer"
        less_sure = (candidate.proof_chance or 0.0) < (chosen.proof_chance or 0.0)
        return "unsure" if less_sure and behind else "close"
    return "worse" if behind else "close"


def _over(violations: Sequence[Violation]) -> float:
    return max((v.excess for v in violations), default=1.0)


def _most_telling(found: Sequence[Neighbour]) -> tuple[Neighbour, ...]:
    """The best of every lever first, then the second best of each, as many as a reader wants."""
    by_lever: dict[str, list[Neighbour]] = {}
    for neighbour in sorted(found, key=_telling):
        by_lever.setdefault(neighbour.lever, []).append(neighbour)
    rounds = zip_longest(*by_lever.values())
    return tuple(n for row in rounds for n in row if n is not None)[:MOST]


def _telling(neighbour: Neighbour) -> tuple[int, float, str]:
    """Files before predictions, and of files alike those whose costs are nearest."""
    apart = abs(math.log(neighbour.latency.value * neighbour.size_ratio)) if neighbour.latency and neighbour.size_ratio else 0.0
    return (TELLING.index(neighbour.why), apart, neighbour.plan.id)
