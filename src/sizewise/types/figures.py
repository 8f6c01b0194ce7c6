"""What was measured: intervals, quality, parity, what ran as integers, and a candidate's figures together."""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Executed", "How", "Interval", "Measurement", "Parity", "Quality"]

How = Literal["measured", "predicted", "declared"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with what is known about it.

    Attributes:
        value: the estimate (a median for latencies, a mean for qualities).
        low: lower end of the confidence interval.
        high: upper end.
        n: how many observations it rests on; 0 where it does not apply.
        how: measured here, predicted from a model, or declared by somebody.
        confidence: two-sided level of [low, high]; 1 where the figure is exact.
    """

    value: float
    low: float
    high: float
    n: int
    how: How = "measured"
    confidence: float = 0.95

    @classmethod
    def exact(cls, value: float, how: How = "measured") -> "Interval":
        """A figure without uncertainty, such as a file size."""
        return cls(value=value, low=value, high=value, n=1, how=how, confidence=1.0)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality on one split.

    Attributes:
        score: mean of the per-example scores.
        drop: paired difference to the reference, positive = worse.
        flips: for scores of 0 and 1, on how many examples this one is worse than the reference, and better.
    """

    metric: str
    higher_is_better: bool
    score: Interval
    drop: Interval | None = None
    flips: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the file is from the torch module it was made from, over `n` validation examples."""

    max_abs: float
    mean_abs: float
    output_scale: float
    top1_agreement: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Executed:
    """What a runtime really executes of a file, kernel by kernel: which part of the arithmetic is integers.

    An operator is named as the runtime names its kernel, but a fused one like a plain one; it is counted once, however often a loop
    runs it.

    Attributes:
        integer_macs: multiply-accumulates of one call in integer kernels.
        float_macs: those in floating point.
        integer_ops: operators with MACs that run as integers, and how many of each.
        float_ops: operators with MACs that run in floating point.
        between: other operators on floats that lie between integer ones, such as activations that were not fused.
        conversions: operators that turn floats into integers or back and stayed by themselves.
        weight_conversions: how many of those turn stored weights into floats, again at every call.
        signed: integer operators that read signed activations.
        signed_activations: activations that the file quantizes to signed integers; the runtime may make some of them unsigned.
        depthwise: integer convolutions of every channel by itself, which move about as much as they multiply.
        kernels: that one call starts.
        seconds: per call and operator, by the runtime's profiler, which slows small kernels down: for shares.
        uncounted: operators that multiply but have no formula here; their MACs are in neither figure.
        machine: architecture of the processor, such as "x86_64".
    """

    integer_macs: int
    float_macs: int
    integer_ops: dict[str, int] = field(default_factory=dict)
    float_ops: dict[str, int] = field(default_factory=dict)
    between: dict[str, int] = field(default_factory=dict)
    conversions: dict[str, int] = field(default_factory=dict)
    weight_conversions: int = 0
    signed: int = 0
    signed_activations: int = 0
    depthwise: int = 0
    kernels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)
    machine: str = ""

    @property
    def share(self) -> float:
        """The part of the MACs that runs as integers; 0 where nothing is multiplied."""
        return self.integer_macs / max(self.integer_macs + self.float_macs, 1)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured on one file, loaded back from disk.

    Attributes:
        latency: seconds of one call on the example inputs.
        latency_ratio: the same over that of the reference's float PyTorch module, timed in the same rounds.
        size_bytes: on disk.
        memory: bytes, peak growth of a fresh process that loads and runs the file.
        quality: on the validation split.
        parity: to the shrunk torch module.
        threads: threads per call.
        batch: examples per call.
        executed: which part of it runs as integers; None where the runtime cannot tell.
    """

    latency: Interval
    latency_ratio: float
    size_bytes: int
    memory: Interval
    quality: Quality
    parity: Parity
    threads: int
    batch: int
    executed: Executed | None = None
