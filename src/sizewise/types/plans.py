"""Ordered technique settings, what each step did, and the file that came out."""

from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any, Literal

__all__ = ["TIMED_TARGETS", "Artefact", "Change", "Contribution", "Plan", "Skip", "Step", "Trait"]

TIMED_TARGETS = ("latency", "int8_latency")  # what a rate may count that only a clock tells


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
        seconds: that it took; of no meaning for what was done.
    """

    touched: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    contributions: tuple[Contribution, ...] = ()
    seconds: float = field(default=0.0, compare=False)


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
