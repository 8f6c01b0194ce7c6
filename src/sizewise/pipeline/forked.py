"""Workers as forked processes on this machine.

They are forked, since tasks hold functions that cannot be sent elsewhere. They share the run folder with the run's own process, and end
with it, however it ends.
"""

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil

from sizewise.errors import InternalError
from sizewise.pipeline.crew import Crew
from sizewise.pipeline.member import work
from sizewise.pipeline.messages import Answer, Message, PipeLine, Try
from sizewise.search.planner import Proposal
from sizewise.types import Plan

__all__ = ["ForkedCrew"]

STILL = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
STILL_S = 5.0  # most that is waited for a worker to stop


@dataclass
class _Forked:
    """A worker in a process of its own."""

    process: Any
    line: PipeLine
    proposal: Proposal | None = None
    last: Plan | None = None

    def say(self, message: Try | Answer) -> None:
        self.line.say(message)

    def hear(self) -> Message | None:
        return self.line.hear()

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)
        limit = time.monotonic() + STILL_S
        while _runs(self.process.pid):
            if time.monotonic() > limit:
                raise InternalError("a worker does not stop", got=f"process {self.process.pid}")
            time.sleep(1e-3)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> str:
        self._signal(signal.SIGKILL)
        self.process.join()
        self.line.pipe.close()
        code: int | None = self.process.exitcode
        self.process.close()
        return _said(code)

    def _signal(self, number: int) -> None:
        """To the worker and the processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class ForkedCrew(Crew[_Forked]):
    """Forked workers; see `Crew`."""

    def _start(self, scratch: Path) -> _Forked:
        mine, theirs = multiprocessing.Pipe()
        told_to = (PipeLine(theirs), self._setup, self._bench, self._prepared, scratch, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=work, args=told_to)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking beside threads: see `pipeline/workers.py`
            process.start()
        theirs.close()
        with suppress(ProcessLookupError, PermissionError):  # both sides do it, since either may be first
            os.setpgid(process.pid or 0, process.pid or 0)
        return _Forked(process, PipeLine(mine))

    def _next_of(self, members: Sequence[_Forked]) -> _Forked:
        pipes: dict[Any, _Forked] = {member.line.pipe: member for member in members}
        return pipes[wait(list(pipes))[0]]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in STILL
    except psutil.NoSuchProcess:
        return False


def _said(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
