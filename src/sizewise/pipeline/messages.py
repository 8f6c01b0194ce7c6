"""What the processes of one search say to each other: one JSON text at a time."""

from multiprocessing.connection import Connection
from typing import Any, Protocol

import msgspec

from sizewise.types import LayerShape, Plan

__all__ = [
    "Answer",
    "Done",
    "Failed",
    "Line",
    "Message",
    "PipeLine",
    "TimeBeside",
    "TimeFile",
    "TimeKernels",
    "TimeOperators",
    "Timing",
    "Try",
    "Working",
]


class Try(msgspec.Struct, frozen=True, tag=True):
    """To a worker: try this plan.

    Attributes:
        rivals: ids of the finished candidates that it may lose against.
    """

    plan: Plan
    rivals: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, tag=True):
    """To a worker: what it asked for, or the error that came of it."""

    value: Any = None
    error: dict[str, Any] | None = None


class Working(msgspec.Struct, frozen=True, tag=True):
    """From a worker: what it is doing."""

    what: str


class TimeFile(msgspec.Struct, frozen=True, tag=True):
    """From a worker: time this file beside the reference."""

    path: str


class TimeKernels(msgspec.Struct, frozen=True, tag=True):
    """From a worker: time these layers, each by itself."""

    shapes: tuple[LayerShape, ...]


class TimeOperators(msgspec.Struct, frozen=True, tag=True):
    """From a worker: time this file and its operators."""

    path: str


class TimeBeside(msgspec.Struct, frozen=True, tag=True):
    """From a worker: which share of one file's latency another takes."""

    whole: str
    other: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the run folder has what became of the plan."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker: an error that ends the run."""

    error: dict[str, Any]


Timing = TimeFile | TimeKernels | TimeOperators | TimeBeside
Message = Try | Answer | Working | TimeFile | TimeKernels | TimeOperators | TimeBeside | Done | Failed


class Line(Protocol):
    """What a worker speaks through."""

    def say(self, message: Message) -> bool:
        """Send a message; False where nobody is there any more."""
        ...

    def hear(self) -> Message | None:
        """The next message, which may take a while; None where nobody is there any more."""
        ...


class PipeLine:
    """One end of a pipe.

    Args:
        pipe: the other end of which another process holds.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def say(self, message: Message) -> bool:
        """Send a message; False where nobody is there any more."""
        try:
            self.pipe.send_bytes(msgspec.json.encode(message))
        except BrokenPipeError:
            return False
        return True

    def hear(self) -> Message | None:
        """The next message, which may take a while; None where nobody is there any more, be it that a message broke off."""
        try:
            heard: Message = msgspec.json.decode(self.pipe.recv_bytes(), type=Message)
        except (EOFError, OSError):
            return None
        return heard
