"""The vocabulary: frozen dataclasses that go to JSON and back without loss. Nothing here imports torch.

Latencies are seconds, sizes are bytes, quality is in the metric's own unit (accuracy: share of 1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from numbers import Real
from typing import Any, Literal, TypeVar

import msgspec

from sizewise import units
from sizewise.errors import UsageError

__all__ = [
    "Artefact",
    "Budget",
    "Candidate",
    "Change",
    "Contribution",
    "Cost",
    "Device",
    "Executed",
    "Explanation",
    "Gain",
    "How",
    "Interval",
    "LayerCost",
    "LayerKind",
    "LayerShape",
    "Limit",
    "LimitVerdict",
    "Measurement",
    "ModelProfile",
    "Neighbour",
    "Parity",
    "Plan",
    "ProfileRecord",
    "Quality",
    "Rates",
    "Relaxation",
    "RunRecord",
    "ScaleRecord",
    "Scheme",
    "SearchRecord",
    "Skip",
    "Step",
    "StoredTensor",
    "StoredWeights",
    "Trait",
    "Verdict",
    "Violation",
    "from_json",
    "to_json",
]

T = TypeVar("T")
How = Literal["measured", "predicted", "declared"]
LayerKind = Literal["conv", "conv_transpose", "linear", "gru", "lstm", "rnn"]
Limit = Literal["latency", "size", "memory", "max_drop", "min_quality"]
Judgement = Literal["proved", "undecided", "refused"]
Why = Literal[
    "breaks",
    "unsure",
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


def to_json(value: Any) -> bytes:
    """Encode a dataclass of this module, indented, keys in field order; numpy's numbers are written as numbers."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain_number), indent=1) + b"\n"


def _plain_number(value: Any) -> Any:
    if isinstance(value, Real) and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def from_json(kind: type[T], data: bytes | str, *, where: str = "record") -> T:
    """Decode and check; the inverse of `to_json`.

    Raises:
        UsageError: the text is not JSON or does not have the shape of `kind`.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"not a valid {kind.__name__}", where=where, got=str(error), hint="the file is damaged or from another version"
        ) from error


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
class Cost:
    """Cost of one forward pass, in total and per layer.

    Attributes:
        params: parameters, shared ones counted once.
        macs: multiply-accumulates of convolutions, linear layers, attention, recurrent cells and matrix products (one MAC
            = two FLOPs). Elementwise work is not in it but in `elementwise`.
        weight_bytes: bytes of parameters and buffers in the stored dtype, shared ones counted once.
        batch: examples in the pass that was counted.
        uncounted: operators that no handler knows and how often each ran.
        activation_bytes: bytes of every tensor that an operator writes; views write nothing.
        peak_bytes: most bytes of activations (inputs and outputs among them, weights not) alive at one time when operators
            run in the graph's order; None where the model cannot be exported.
        elementwise: scalar operations outside the MACs, such as activations, additions, normalization, pooling.
        intensity: MACs per byte that operators read and write, weights included.
        latency_s: seconds of one pass; None where it was not asked for.
        layers: one row per module that runs operators, in the order of running; empty where the model cannot be exported.
        notes: what could not be said, and why.
    """

    params: int
    macs: int
    weight_bytes: int
    batch: int
    uncounted: dict[str, int] = field(default_factory=dict)
    activation_bytes: int = 0
    peak_bytes: int | None = None
    elementwise: int = 0
    intensity: float = 0.0
    latency_s: Interval | None = None
    layers: tuple["LayerCost", ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one module costs by itself, its submodules not counted.

    Attributes:
        path: module path; "" is the model itself.
        kind: the module's class.
        family: what most of its work is: conv, conv1d, pointwise, depthwise, matmul, recurrent, or memory (no MACs).
        calls: operators run.
        params: its own parameters; those shared with an earlier layer are counted there.
        macs, weight_bytes, activation_bytes, elementwise, intensity, uncounted: as in `Cost`.
        peak_bytes: most bytes of activations alive while it runs.
        latency_s: its part of the pass; 0 where the runtime folded it into another layer.
    """

    path: str
    kind: str
    family: str
    calls: int
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    peak_bytes: int
    elementwise: int
    intensity: float
    latency_s: Interval | None = None
    uncounted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelProfile(Cost):
    """A named model's cost on a device.

    Attributes:
        name: of the model.
        inputs: shape and dtype of every input tensor, such as "1x3x224x224 float32".
        predicted_s: the roofline's prediction, where `latency_s` is measured.
        misfits: why the device cannot run it; empty when nothing is known to be in the way.
    """

    name: str
    inputs: tuple[str, ...]
    predicted_s: Interval | None = None
    misfits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProfileRecord:
    """What `sizewise profile` prints."""

    version: str
    device: "Device"
    runtime: str
    models: tuple[ModelProfile, ...]


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


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A limit that a candidate breaks."""

    limit: Limit
    got: float
    allowed: float

    @property
    def excess(self) -> float:
        """How many times over (or under, for a least quality) the limit the figure is; at least 1."""
        if self.limit == "min_quality":  # least for scores, most for losses: the ratio that is above one
            ratio = max(self.allowed, 1e-12) / max(self.got, 1e-12)
            return max(ratio, 1 / ratio)
        if self.limit == "max_drop":
            # a drop is additive and its limit may be zero, so one further point counts like doubling the cost
            return 1.0 + (self.got - self.allowed) / max(self.allowed, 0.01)
        return self.got / max(self.allowed, 1e-12)


@dataclass(frozen=True, init=False)
class Budget:
    """What the shipped file may cost. A limit left out is no limit.

    Args:
        latency: median time of one call on the example inputs, such as "5 ms"; a number is seconds.
        size: bytes on disk, such as "2 MB" (decimal) or "2 MiB"; a number is bytes.
        memory: peak growth of resident memory while loading and running the file; a number is bytes.
        max_drop: largest loss of quality against the reference, in percentage points of the metric: "1 %" allows
            accuracy 0.960 where the reference has 0.970. It is a difference, not a ratio. A bare number is in the
            metric's own unit (0.01 is one point of accuracy).
        min_quality: least quality, such as "95 %"; a bare number is in the metric's own unit. For a metric where
            less is better (a loss), the most that is accepted.

    Raises:
        UsageError: a quantity that cannot be read, or a limit of zero where nothing could fit.
    """

    latency_s: float | None
    size_bytes: int | None
    memory_bytes: int | None
    max_drop: float | None
    min_quality: float | None

    def __init__(
        self,
        latency: str | float | None = None,
        size: str | float | None = None,
        memory: str | float | None = None,
        max_drop: str | float | None = None,
        min_quality: str | float | None = None,
    ) -> None:
        def read(name: str, text: str | float | None, parse: Any, least: float) -> Any:
            value = None if text is None else parse(text, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be more than zero", got=repr(text))
            return value

        tiny = 1e-12
        for name, value in (
            ("latency_s", read("latency", latency, units.parse_seconds, tiny)),
            ("size_bytes", read("size", size, units.parse_bytes, 1)),
            ("memory_bytes", read("memory", memory, units.parse_bytes, 1)),
            ("max_drop", read("max_drop", max_drop, units.parse_points, 0.0)),
            ("min_quality", read("min_quality", min_quality, units.parse_points, 0.0)),
        ):
            object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        # decoding from JSON comes here without passing through __init__
        for name in ("latency_s", "size_bytes", "memory_bytes", "max_drop", "min_quality"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be finite and not negative", got=repr(value))

    def violations(self, measured: Measurement) -> tuple[Violation, ...]:
        """The limits that the point estimates of `measured` break, in the order of the fields."""
        drop = measured.quality.drop
        sign = 1 if measured.quality.higher_is_better else -1
        rows: tuple[tuple[Limit, float | None, float | None], ...] = (
            ("latency", measured.latency.value, self.latency_s),
            ("size", measured.size_bytes, self.size_bytes),
            ("memory", measured.memory.value, self.memory_bytes),
            ("max_drop", drop.value if drop else None, self.max_drop),
        )
        broken = [
            Violation(limit=limit, got=got, allowed=allowed)
            for limit, got, allowed in rows
            if got is not None and allowed is not None and got > allowed + 1e-12
        ]
        score = measured.quality.score.value
        if self.min_quality is not None and sign * score < sign * self.min_quality - 1e-12:
            broken.append(Violation(limit="min_quality", got=score, allowed=self.min_quality))
        return tuple(broken)


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Something a technique left alone, and why."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one method saves of a stored file: the file without it, with the others as they are.

    Attributes:
        method: in words.
        size_bytes: of the file with all methods.
        bytes_without: of the file without this one.
        change: of the model's outputs with all methods, as a share of their variance; None where it was not measured.
        change_without: the same without this one.
    """

    method: str
    size_bytes: int
    bytes_without: int
    change: float | None = None
    change_without: float | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a technique did.

    Attributes:
        touched: module paths (or graph nodes) that changed.
        skipped: what was left alone, each with its reason.
        notes: remarks for the report.
        record: JSON-able facts that `rebuild` needs to make the same structure again without data.
        contributions: what of the stored file's size is owed to it.
    """

    touched: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    contributions: tuple[Contribution, ...] = ()


class Trait(Flag):
    """What a model is at some point of a plan; techniques say what they need, take away and give."""

    NONE = 0
    MODULE = auto()  # layers are nn.Module objects whose shapes surgery can change
    FLOAT = auto()  # parameters are floating point
    QUANTIZED = auto()  # the graph holds quantize/dequantize pairs


@dataclass(frozen=True, kw_only=True)
class Step:
    """One technique with its settings, and once applied the record that rebuilds its structure."""

    technique: str
    settings: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Ordered steps for one scale; replayable."""

    scale: str
    steps: tuple[Step, ...] = ()
    seed: int = 0

    @property
    def label(self) -> str:
        """A short name: "float", "int8_static", "channel_pruning(ratio=0.5) + int8_static"."""
        return " + ".join(_step_label(step) for step in self.steps) or "float"

    @property
    def id(self) -> str:
        """The scale and the label in one word: "resnet-s.channel_pruning-ratio-0.5.int8_static"."""
        parts = ["-".join([step.technique, *(f"{k}-{v}" for k, v in step.settings.items())]) for step in self.steps]
        return ".".join([self.scale, *(parts or ["float"])])


def _step_label(step: Step) -> str:
    inner = ", ".join(f"{k}={v}" for k, v in step.settings.items())
    return f"{step.technique}({inner})" if inner else step.technique


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A shipped file.

    Attributes:
        runtime: what executes it.
        path: where it is, relative to the folder that names it.
        sha256: of the file.
        size_bytes: on disk.
        inputs: names of the graph's inputs, in order.
        outputs: names of the graph's outputs, in order.
        batch: "dynamic", or the fixed number of examples the file accepts.
        notes: what a user of the file should know.
    """

    runtime: str
    path: str
    sha256: str
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int | Literal["dynamic"]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What the time of one layer depends on, so that the layer can be timed alone, at any number of channels.

    Attributes:
        kind: of layer.
        out_channels: output channels or features; hidden units of one direction of a recurrent layer.
        in_channels: input channels or features.
        batch: examples per call; for "linear" all rows that are multiplied.
        sides: of the input behind batch and channels; the number of steps of a recurrent layer; empty for "linear".
        kernel, stride, dilation: of a convolution, one per side.
        padding: of a convolution, at the beginning of every side, then at the end of every side.
        groups: of a convolution.
        directions: 2 for a recurrent layer that also reads backwards.
        stacked: whether a recurrent layer reads the hidden states of the one before it in the same module.
    """

    kind: LayerKind
    out_channels: int
    in_channels: int
    batch: int
    sides: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    directions: int = 1
    stacked: bool = False

    @property
    def tied(self) -> bool:
        """Whether inputs go with outputs: a grouped convolution loses whole groups."""
        return self.groups > 1 or self.stacked

    def resized(self, out_channels: int, in_channels: int) -> "LayerShape":
        """The same layer with other channels; where inputs go with outputs, `in_channels` does not count."""
        if self.tied:
            in_channels = self.in_channels * out_channels // self.out_channels
        groups = self.groups if self.groups == 1 else self.groups * out_channels // self.out_channels
        return replace(self, out_channels=out_channels, in_channels=in_channels, groups=groups)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a runtime wants quantized graphs, so that it executes them as integers.

    Attributes:
        activation: dtype and range of activations, per tensor, affine.
        weight: dtype and range of weights, symmetric, one scale per output channel.
        fused_activations: activations that the runtime folds into the layer before them; they share its output scale.
    """

    name: str
    activation: Literal["uint8", "int8"]
    activation_range: tuple[int, int]
    weight: Literal["int8"]
    weight_range: tuple[int, int]
    fused_activations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where latency and memory are measured or predicted.

    Attributes:
        name: the file's name.
        title: for people.
        how: "measured" when this machine is the device.
        threads: threads per call.
        machine: what was found (processor, cores, memory, system).
        sources: where the numbers come from.
        kind: what sort of machine.
        ram_bytes: memory for activations, and for weights where `flash_bytes` is None.
        flash_bytes: where weights are stored and executed from; None where they are loaded into RAM.
        rates: how fast it is; None for the local device before it is calibrated.
        unsupported: operators that its usual runtime lacks, each with the reason.
    """

    name: str
    title: str
    how: How
    threads: int
    machine: dict[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    kind: Literal["cpu", "gpu", "microcontroller"] = "cpu"
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    rates: "Rates | None" = None
    unsupported: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The numbers of a roofline: what a device computes and moves per second, and what every operator costs besides.

    Attributes:
        peak_macs_per_s: per dtype ("float32", "float16", "int8"), all threads together.
        efficiency: share of the peak that each family of operators reaches when data is at hand: conv (kernels larger than
            1x1), conv1d (1-d convolutions but depthwise ones, which CPU runtimes have poorer kernels for; a device file without it
            takes conv's), pointwise (1x1 convolutions), depthwise, matmul, recurrent.
        bandwidth_bytes_per_s: sustained, from main memory.
        cache_bytes: working sets up to this size stay in the cache.
        cache_bandwidth_bytes_per_s: sustained, from the cache.
        operator_overhead_s: per operator, before it computes.
        step_overhead_s: per time step of a recurrent layer, since steps wait for one another.
        error_factor: a prediction p stands for [p / error_factor, p * error_factor].
    """

    peak_macs_per_s: dict[str, float]
    efficiency: dict[str, float]
    bandwidth_bytes_per_s: float
    cache_bytes: float
    cache_bandwidth_bytes_per_s: float
    operator_overhead_s: float
    step_overhead_s: float
    error_factor: float


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
        status: measured, on the whole validation split; stopped (its quality surely breaks a limit, see reason); beaten (another
            candidate is better whatever the rest of the validation split says); failed (see reason); untried (time ran out).
        reason: why it is not measured.
        on_frontier: no other measured candidate is at least as good on every count and better on one.
        stored: the small file of its weights; None where weights are stored as they are.
        seconds: what trying it took.
        evaluated: validation examples that its module and its file were scored on, together; None where nobody counted.
        in_full: how many that would have been without stopping early.
        partly: figures of a file whose evaluation was stopped early: its quality is that of the examples seen. Not for choosing.
        beaten_by: id of a candidate that is surely as good, where that is why it is beaten.
        proof_chance: how probable it is that the test split proves its quality limits; None without such limits or a test split.
    """

    id: str
    plan: Plan
    status: Literal["measured", "stopped", "beaten", "failed", "untried"]
    reason: str | None = None
    changes: tuple[Change, ...] = ()
    artefact: Artefact | None = None
    measured: Measurement | None = None
    stored: StoredWeights | None = None
    on_frontier: bool = False
    seconds: float = 0.0
    evaluated: int | None = None
    in_full: int | None = None
    partly: Measurement | None = None
    beaten_by: str | None = None
    proof_chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class LimitVerdict:
    """Whether one limit is kept: proved, undecided or refused, with the figure it rests on.

    `needed` is how many test examples would decide an undecided quality limit, at the effect and spread seen.
    """

    limit: Limit
    judgement: Judgement
    figure: Interval
    allowed: float
    reason: str
    needed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All limits, and the worst of them.

    Attributes:
        look: the how-manieth file of the run that was judged on this test split; None where none was.
        level: how probable it may be, at this look, that a quality limit which does not hold is called proved, or one which
            holds refused.
    """

    judgement: Judgement
    limits: tuple[LimitVerdict, ...]
    test_quality: Quality | None = None
    look: int | None = None
    level: float | None = None


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """The value of one limit at which a tried candidate would fit while every other limit stays."""

    limit: Limit
    allowed: float
    needed: float | None
    candidate: str | None


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
        why: breaks (a limit); unsure (the test split would probably not prove its quality); dearer (costs more); worse (in quality);
            close (no worse, as far as the noise of the latencies tells); further (from the budget, which nothing keeps); stopped,
            beaten, failed, untried (as its candidate); harsher (than one that was stopped or failed); unpromising (not tried since it
            was predicted not to be the best that fits); open (predicted to be worth a trial, but the search had ended); needless (it
            only repairs what the chosen one loses).
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


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A dataclass of this module as plain dictionaries and lists."""
    result: Mapping[str, Any] = msgspec.to_builtins(value)
    return result
