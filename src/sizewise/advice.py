"""What `select` finds: learning curves, diagnoses and a recommendation, as frozen dataclasses that go to JSON and back.

Qualities are in the metric's own unit (accuracy: share of 1), latencies in seconds, sizes in bytes. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from sizewise.types import Budget, Device, Interval, ModelProfile, Violation

__all__ = ["AdviceRecord", "BandPoint", "Curve", "Diagnosis", "Point", "ScaleAdvice", "Scenario", "Shrunk", "Strategy"]

Diagnosis = Literal["underfits", "overfits", "data-limited", "saturated"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training: a scale, on so many examples, under one seed.

    Attributes:
        examples: it was trained on; 0 for a given model as it is.
        train: mean score on (a sample of) those examples, as the train loader gives them; None without train data.
        validation: mean score on the validation split.
        epochs: passes over the examples.
        seconds: of training and scoring.
    """

    examples: int
    seed: int
    train: float | None
    validation: float
    epochs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BandPoint:
    """The fitted curve at so many examples, with its bootstrap band."""

    examples: int
    quality: Interval


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A power law with a floor, fitted to the error e of one scale: e(n) = floor + amplitude n^-exponent.

    For metrics where more is better the error is 1 - score where scores are shares of 1, else -score.

    Attributes:
        ceiling: quality that the fit approaches with endless data: the floor, as a quality.
        at_full: fitted quality at all the training examples there are.
        at_double: the same with twice as many: extrapolated, hence predicted.
        band: for plotting, over four times the examples.
        sizes: different numbers of examples it was fitted to.
    """

    amplitude: float
    exponent: float
    floor: float
    ceiling: Interval
    at_full: Interval
    at_double: Interval
    band: tuple[BandPoint, ...]
    sizes: int


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """What the best shrinking that was seen at similar layers would make of a scale; a stated factor, not a measurement.

    Attributes:
        latency_s: predicted.
        size_bytes: predicted.
        latency_factor: times the float latency.
        size_factor: times the float weights.
        sources: what was seen, and where, per family of layers.
        peak_bytes: of activations, where known.
        breaks: limits still broken.
        misfits: what would still keep it from running on the device.
    """

    latency_s: Interval
    size_bytes: int
    latency_factor: float
    size_factor: float
    sources: tuple[str, ...]
    peak_bytes: int | None = None
    breaks: tuple[Violation, ...] = ()
    misfits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScaleAdvice:
    """What is known of one scale.

    Attributes:
        name: of the scale.
        profile: its cost on the device, as float.
        breaks: cost limits that it breaks before any shrinking.
        shrunk: what shrinking would make of it.
        status: trained on everything; stopped early (see reason); given and evaluated only; costed only (no data).
        reason: why it was stopped, or not looked at.
        points: every training, by examples and seed.
        train: quality on the training examples, at most examples reached.
        validation: quality on validation at all examples; predicted by the curve where it was stopped.
        gap: train minus validation, positive where training looks better (for losses: validation minus train).
        behind: how much worse than the best scale at all examples, paired by example.
        curve: learning curve, where there are at least three sizes.
        diagnosis: what its errors come from.
        certainty: share of bootstrap draws that give this diagnosis.
        evidence: the figures behind it, in words.
    """

    name: str
    profile: ModelProfile
    breaks: tuple[Violation, ...] = ()
    shrunk: Shrunk | None = None
    status: Literal["complete", "stopped", "evaluated", "costed"] = "costed"
    reason: str | None = None
    points: tuple[Point, ...] = ()
    train: Interval | None = None
    validation: Interval | None = None
    gap: Interval | None = None
    behind: Interval | None = None
    curve: Curve | None = None
    diagnosis: Diagnosis | None = None
    certainty: float | None = None
    evidence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A situation that models are chosen for.

    Attributes:
        name: the file's.
        title: for people.
        domain: "vision", "speech" or "text".
        device: name of a device file.
        mode: single calls as they come, a stream without end, or batches.
        batch: examples per call.
        latency: most time of one call, such as "50 ms"; for a stream, of one step.
        size: most bytes of the file, such as "5 MB".
        memory: most bytes of memory, such as "256 kB".
        max_drop: most loss of quality by shrinking, such as "1 %".
        examples: labelled examples available for training.
        private: data must not leave the device.
        offline: it must work without a network.
        candidates: models of the zoo to look at where no task is given.
        notes: what the situation is like, in plain words.
    """

    name: str
    title: str
    domain: Literal["vision", "speech", "text"]
    device: str
    mode: Literal["single", "stream", "batch"] = "single"
    batch: int = 1
    latency: str | None = None
    size: str | None = None
    memory: str | None = None
    max_drop: str | None = None
    examples: int | None = None
    private: bool = False
    offline: bool = False
    candidates: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One piece of advice, and the figures that led to it."""

    advice: str
    because: str


@dataclass(frozen=True, kw_only=True)
class AdviceRecord:
    """Everything that `select` found; the only input of its reports.

    Attributes:
        sizes: numbers of training examples at which scales were trained, rising.
        tolerance: how much worse than the best a scale may be, in the metric's own unit.
        best: the scale with the best quality at all examples; None without data.
        recommended: the smallest scale that is expected to be within the tolerance, when it is known to be.
        safe: the smallest scale that is known to be within the tolerance, whatever is undecided about smaller ones.
        undecided: smaller scales that are expected to be within, but not known to be.
        decision: the recommendation, or why there is none and what would decide, in words.
        more_seeds: seeds per scale that would decide; None where seeds alone would not or nothing is undecided.
        more_examples: validation examples that would decide; None as above.
        strategy: what follows, in plain words.
    """

    version: str
    created: str
    seconds: float
    task: str
    metric: str
    higher_is_better: bool
    fingerprint: str
    budget: Budget
    device: Device
    runtime: str
    seeds: int
    sizes: tuple[int, ...]
    tolerance: float
    scales: tuple[ScaleAdvice, ...]
    best: str | None
    recommended: str | None
    safe: str | None
    undecided: tuple[str, ...]
    decision: str
    more_seeds: int | None = None
    more_examples: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    scenario: Scenario | None = None
    strategy: tuple[Strategy, ...] = ()
    warnings: tuple[str, ...] = ()

    def scale(self, name: str) -> ScaleAdvice:
        """The scale of that name.

        Raises:
            KeyError: there is none.
        """
        for scale in self.scales:
            if scale.name == name:
                return scale
        raise KeyError(name)
