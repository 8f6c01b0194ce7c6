"""The record of a run, which is all that a report reads, and the explanation of its choice."""

from dataclasses import dataclass
from typing import Any, Literal

from sizewise.types.budget import Budget
from sizewise.types.candidates import Candidate, ScaleRecord
from sizewise.types.costs import ModelProfile
from sizewise.types.figures import Interval, Quality
from sizewise.types.places import Device
from sizewise.types.plans import Plan
from sizewise.types.verdicts import Relaxation, Unproved, Verdict

__all__ = ["Explanation", "Gain", "Neighbour", "ProfileRecord", "RunRecord", "SearchRecord", "Why"]

Why = Literal[
    "breaks",
    "unsure",
    "unproved",
    "dearer",
    "worse",
    "further",
    "close",
    "stopped",
    "beaten",
    "failed",
    "untried",
    "harsher",
    "unpromising",
    "open",
    "needless",
]


@dataclass(frozen=True, kw_only=True)
class ProfileRecord:
    """What `sizewise profile` prints."""

    version: str
    device: Device
    runtime: str
    models: tuple[ModelProfile, ...]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a lever changed between two files that differ in it alone, or several levers together.

    Attributes:
        levers: what was done, such as "scale resnet-m" or "int8_static"; several where no file between them was measured.
        before: id of the candidate without it; None is the reference as a float PyTorch module.
        after: id of the candidate with it.
        latency: that of the file with it over that of the one without.
        size_ratio: the same of bytes on disk.
    """

    levers: tuple[str, ...]
    before: str | None
    after: str
    latency: Interval
    size_ratio: float

    @property
    def faster(self) -> bool:
        """Whether the whole interval of the latency's ratio says so."""
        return self.latency.high < 1


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A plan that differs from the chosen one in one lever, and why it was not chosen.

    Attributes:
        change: the difference in words, such as "scale resnet-l instead of resnet-m".
        lever: which one differs.
        why: breaks (a limit); unsure (the test split would probably not prove its quality); unproved (it did not); dearer (costs more);
            worse (in quality); close (no worse, as far as the noise of the latencies tells); further (from the budget, which nothing
            keeps); stopped, beaten, failed, untried (as its candidate); harsher (than one that was stopped or failed); unpromising (not
            tried since it was predicted not to be the best that fits); open (predicted to be worth a trial, but the search had ended);
            needless (it only repairs what the chosen one loses).
        candidate: its id, where the record has it.
        latency: over that of the chosen file; None where nothing is known of it.
        size_ratio: the same of bytes on disk.
        because: id of the candidate that it is harsher than.
        drop: of quality against the reference, where it is predicted.
        chance: predicted, that it keeps every limit and is better than the best that was tried.
    """

    plan: Plan
    change: str
    lever: str
    why: Why
    candidate: str | None = None
    latency: Interval | None = None
    size_ratio: float | None = None
    because: str | None = None
    drop: Interval | None = None
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why the chosen candidate is what it is, from files that were measured.

    Attributes:
        waterfall: from the reference as a float PyTorch module to the chosen file, one lever after the other.
        neighbours: plans that differ from the chosen one in one lever, the most telling first.
        levers: every lever that was measured with and without, all else being equal.
    """

    waterfall: tuple[Gain, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    levers: tuple[Gain, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What the search did, and why it ended.

    Attributes:
        plans: that the space holds, each once.
        tried: of them, on whichever run of this folder.
        most: that were to be tried.
        ended: "done": no plan that is left is expected to be the best that fits; "trials", "time": a limit was reached; "target": something
            fits, which was all that was wanted.
        promising: plans that were left although they might be better.
        set_aside: suggestions of Optuna's that were not tried because of what was predicted of them.
    """

    plans: int
    tried: int
    most: int
    ended: Literal["done", "trials", "time", "target"]
    promising: int = 0
    set_aside: int = 0


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything about a run; the only input of every report.

    Attributes:
        reference: the scale that drops and ratios are counted from, as a float PyTorch module.
        feasible: the chosen file keeps every limit by its point estimates, and the test split does not refuse one.
        chosen: id of the candidate in the bundle; the nearest one when nothing fits.
        speedup: how many times faster the chosen file is than the reference's float PyTorch module.
        unproved: candidates of this run that the test split did not prove; the chosen one is not among them.
        relaxations: what each limit would have to be for a tried candidate to fit, when nothing does.
        searched: whether the chosen plan was found; if not, the caller named it.
        file_speedup: where it was named, how many times faster the chosen file is than the whole model's, in the same rounds.
        search: what the search did; None where nothing was searched.
        explanation: why the chosen candidate is what it is; None where nothing was searched.
        examples_evaluated: validation examples that all candidates were scored on, together; None where nobody counted.
        examples_in_full: how many that would have been without stopping early.
    """

    version: str
    created: str
    seconds: float
    task: str
    metric: str
    fingerprint: str
    data: dict[str, Any]
    budget: Budget
    runtime: str
    device: Device
    seed: int
    versions: dict[str, str]
    reference: str
    reference_quality: Quality
    reference_torch_latency: Interval
    reference_weight_bytes: int
    scales: tuple[ScaleRecord, ...]
    candidates: tuple[Candidate, ...]
    chosen: str
    feasible: bool
    speedup: Interval
    verdict: Verdict
    unproved: tuple[Unproved, ...] = ()
    relaxations: tuple[Relaxation, ...] = ()
    warnings: tuple[str, ...] = ()
    searched: bool = True
    file_speedup: Interval | None = None
    examples_evaluated: int | None = None
    examples_in_full: int | None = None
    search: SearchRecord | None = None
    explanation: Explanation | None = None

    def candidate(self, candidate_id: str) -> Candidate:
        """The candidate of that name.

        Raises:
            KeyError: there is none.
        """
        for candidate in self.candidates:
            if candidate.id == candidate_id:
                return candidate
        raise KeyError(candidate_id)

    @property
    def winner(self) -> Candidate:
        """The chosen candidate."""
        return self.candidate(self.chosen)
