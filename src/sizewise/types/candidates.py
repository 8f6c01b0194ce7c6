"""Scales and candidates, with what became of them and what their stored weights take."""

from dataclasses import dataclass
from typing import Literal

from sizewise.types.budget import Budget
from sizewise.types.costs import Cost
from sizewise.types.figures import Interval, Measurement, Quality
from sizewise.types.plans import Artefact, Change, Plan

__all__ = ["Candidate", "ScaleRecord", "StoredTensor", "StoredWeights"]


@dataclass(frozen=True, kw_only=True)
class ScaleRecord:
    """One candidate scale: what it costs, how it was trained, how good and how fast its float PyTorch module is."""

    name: str
    cost: Cost
    trained: str
    quality: Quality
    torch_latency: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """How one tensor of the torch module is stored.

    Attributes:
        name: in the state dict; of a shared one the first.
        size_bytes: in the file.
        float_bytes: as float32.
        form: the kind of its form, such as "integers".
    """

    name: str
    size_bytes: int
    float_bytes: int
    form: str


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """The file of the torch module's weights, where a technique made it small.

    Attributes:
        path: relative to the candidate's folder.
        size_bytes: on disk.
        whole_bytes: of the parameters and buffers that the scale had before, as float32.
        tensors: what of it each takes.
    """

    path: str
    size_bytes: int
    whole_bytes: int
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One plan tried.

    Attributes:
        id: also the folder under `trials/`.
        status: measured, on the whole validation split but for what is `unread`; stopped (its quality surely breaks a limit, see
            reason); beaten (another candidate is better whatever the rest of the validation split says); failed (see reason); untried
            (time ran out).
        reason: why it is not measured.
        failed_step: place in the plan of the step that failed; None where none did, or nobody knows which.
        failed_reach: the highest rate that this step could have had after the steps before it, where it failed because of its rate.
        on_frontier: no other measured candidate is at least as good on every count and better on one.
        stored: the small file of its weights; None where weights are stored as they are.
        seconds: what trying it took.
        evaluated: validation examples that its module and its file were scored on, together; None where nobody counted.
        in_full: how many that would have been without stopping early.
        unread: validation examples that a measured file was not scored on yet; they can only make it worse, and are read before it is
            chosen. Until then its quality is as if they were no worse than the reference's.
        partly: figures of a file whose evaluation was stopped early: its quality is that of the examples seen. Not for choosing.
        unlowered: quality of the module where it was given up before there was a file, as far as the examples read tell; None else.
        beaten_by: id of a candidate that is surely as good, where that is why it is beaten.
        most_chance: how probable that may be at most of a file whose evaluation was stopped early; None where it was not told.
        proof_chance: how probable it is that the test split proves its quality limits at the next look, 0 or 1 where its file was looked
            at before the run went on; None without such limits or a test split.
        later_chance: the same at the look after the next, where another file takes that; None where nobody told.
    """

    id: str
    plan: Plan
    status: Literal["measured", "stopped", "beaten", "failed", "untried"]
    reason: str | None = None
    failed_step: int | None = None
    failed_reach: float | None = None
    changes: tuple[Change, ...] = ()
    artefact: Artefact | None = None
    measured: Measurement | None = None
    stored: StoredWeights | None = None
    on_frontier: bool = False
    seconds: float = 0.0
    evaluated: int | None = None
    in_full: int | None = None
    unread: int = 0
    partly: Measurement | None = None
    unlowered: Quality | None = None
    beaten_by: str | None = None
    most_chance: float | None = None
    proof_chance: float | None = None
    later_chance: float | None = None

    def fits(self, budget: Budget) -> bool:
        """Whether it was measured, and its figures keep every limit."""
        return self.measured is not None and not budget.violations(self.measured)
