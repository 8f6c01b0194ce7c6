"""What a technique, a runtime and a progress display must offer. Nothing here imports torch at run time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sizewise.types import Trait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from sizewise.types import Artefact, Change, Cost, Executed, LayerShape, Scheme

__all__ = ["Context", "Inputs", "Progress", "Runner", "Runtime", "Silent", "Tables", "Technique", "Timer", "Trait"]


@dataclass(frozen=True)
class Inputs:
    """Inputs of one call: positional and keyword tensors (or nested tuples of tensors)."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def call(self, function: Any) -> Any:
        """Call `function` with these inputs."""
        return function(*self.args, **(self.kwargs or {}))


class Timer(Protocol):
    """How fast layers and models are on the runtime and the machine that they are meant for; all that techniques know of either."""

    @property
    def name(self) -> str:
        """The runtime's, for messages."""
        ...

    @property
    def facts(self) -> str:
        """What its figures hold for: runtime, versions, threads, machine."""
        ...

    @property
    def folder(self) -> Path:
        """Where figures are kept between runs."""
        ...

    def kernel_seconds(self, shapes: "Sequence[LayerShape]") -> list[float]:
        """Seconds of every layer by itself, in order."""
        ...

    def profile(self, model: "nn.Module", example: Inputs) -> "Cost":
        """What one call costs, with its measured latency, split over layers where the runtime can tell."""
        ...

    def beside(self, model: "nn.Module", example: Inputs) -> "Callable[[nn.Module], float]":
        """A function that tells which share of the model's latency another one takes, timed side by side."""
        ...


class Progress(Protocol):
    """Where a long run reports to. `total` counts units; `work` is what they weigh together, where they differ in length."""

    def start(self, total: int, work: float | None = None) -> None:
        """The work begins and has `total` units."""
        ...

    def working(self, what: str) -> None:
        """What is being done now."""
        ...

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        """So many units are done (or not needed any more); `line` says with which result."""
        ...

    def note(self, line: str) -> None:
        """Something worth a line that is not a unit of work."""
        ...


class Silent:
    """A progress display that shows nothing."""

    def start(self, total: int, work: float | None = None) -> None:
        """Ignore."""

    def working(self, what: str) -> None:
        """Ignore."""

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        """Ignore."""

    def note(self, line: str) -> None:
        """Ignore."""


class Tables(Protocol):
    """Figures that are told by content and need not be measured again: what a key held stays true."""

    def get(self, key: str) -> Any | None:
        """What was kept, as plain JSON; None where nothing whole was."""
        ...

    def put(self, key: str, value: Any) -> None:
        """Keep something that JSON can say."""
        ...


@dataclass(frozen=True)
class Context:
    """What a technique may use besides the model.

    Attributes:
        example: inputs of one call.
        calibration: re-iterable of inputs without targets, or None when the task has no calibration data.
        scheme: how the target runtime wants quantized graphs, or None when it has no integer kernels.
        channel_multiple: channel counts that the runtime likes are multiples of this.
        seed: of everything random.
        progress: told what a technique is doing.
        labelled: calibration inputs with their targets, or None.
        timer: of the target runtime, or None where nothing can be timed: the device is elsewhere.
        teacher: the model that the plan began with, which nothing may change.
        reference: the model of the task that drops are counted from, which nothing may change; None where there is no task.
        train: loader of batches to train on, with or without targets, or None.
        tables: figures of this run that need not be measured again, or None.
        chosen: what the same step chose when the plan was made, its record, where the plan is replayed: choices that rest on measured
            times are made again, all else is computed anew. None where a plan is carried out for the first time.
        judge: how good a module is on validation data, more is better; None where nothing can tell.
    """

    example: Inputs
    calibration: Iterable[Inputs] | None = None
    scheme: "Scheme | None" = None
    channel_multiple: int = 8
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    timer: Timer | None = None
    labelled: "Iterable[tuple[Inputs, Any]] | None" = None
    teacher: "nn.Module | None" = None
    train: Iterable[Any] | None = None
    judge: "Callable[[nn.Module], float] | None" = None
    reference: "nn.Module | None" = None
    tables: Tables | None = None
    chosen: Mapping[str, Any] | None = None


class Technique(Protocol):
    """One way to shrink. An implementation is a frozen dataclass whose fields are its settings."""

    needs: ClassVar[Trait]
    removes: ClassVar[Trait]
    gives: ClassVar[Trait]

    def requires(self, model: "nn.Module", context: Context) -> None:
        """Pass, or raise PreconditionError saying what is missing."""
        ...

    def apply(self, model: "nn.Module", context: Context) -> "tuple[nn.Module, Change]":
        """Change `model` (the runner has made a copy) and say what was done and what was left alone."""
        ...

    def rebuild(self, model: "nn.Module", record: Mapping[str, Any], context: Context) -> "nn.Module":
        """Make the structure that `apply` made, from its record, without data; values are loaded afterwards."""
        ...


class Runner(Protocol):
    """A loaded file, ready to be called."""

    def __call__(self, inputs: Inputs) -> "tuple[Tensor, ...]":
        """Run once; all outputs in order."""
        ...

    def prepare(self, inputs: Inputs) -> "Callable[[], object]":
        """A function without arguments that runs once on these inputs, with conversion done ahead; for timing."""
        ...


class Runtime(Protocol):
    """What executes the shipped file."""

    name: ClassVar[str]
    file_name: ClassVar[str]
    scheme: ClassVar["Scheme | None"]
    channel_multiple: ClassVar[int]

    def lower(self, model: "nn.Module", example: Inputs, path: Path, *, named: bool = False) -> "Artefact":
        """Write one file; `named` keeps in it what `layer_seconds` needs. Raises UnsupportedModel when the model cannot be exported."""
        ...

    def load(self, path: Path, *, threads: int) -> Runner:
        """Load the file from disk."""
        ...

    def peak_memory(self, path: Path, example: Inputs, *, threads: int) -> int:
        """Peak growth of resident memory, in bytes, of a fresh process that loads and runs the file."""
        ...

    def layer_seconds(self, path: Path, example: Inputs, *, threads: int) -> dict[tuple[str, int], float]:
        """Seconds per call by module path and how-manieth operator of that module; empty when the runtime cannot tell.

        The file is one that was lowered with `named`.
        """
        ...

    def kernel_seconds(self, shapes: "Sequence[LayerShape]", *, threads: int) -> list[float]:
        """Seconds of every layer by itself, in order: finite and above 0; without what surrounds it in a model."""
        ...

    def executed(self, path: Path, example: Inputs, *, threads: int) -> "Executed | None":
        """Which part of the file's arithmetic really runs as integers; None when the runtime cannot tell."""
        ...

    def tolerance(self, *, quantized: bool) -> float:
        """Largest mean difference to the torch module that still counts as the same model, as a share of the outputs' scale."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of what executes the file."""
        ...

    def snippet(self, artefact: "Artefact", inputs: "Sequence[tuple[tuple[int, ...], str]]") -> str:
        """About five lines of code that run the file with this runtime alone; shapes and dtypes of the inputs are given."""
        ...
