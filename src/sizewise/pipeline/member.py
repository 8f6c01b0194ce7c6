"""What a worker of a search does: it tries the plans that it is given, on one thread, and has the run's own process time what is timed.

A process that was forked must not use the threads of its parent, so it computes on one (`pipeline/workers.py` says more). The run's own
process times on all of them, while every worker holds still.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import nn

from sizewise.errors import InternalError
from sizewise.pipeline.apply import Applier
from sizewise.pipeline.messages import Answer, Done, Failed, Line, TimeBeside, TimeFile, TimeKernels, TimeOperators, Timing, Try, Working
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.timer import RuntimeTimer
from sizewise.pipeline.trial import Bench, run_trial
from sizewise.pipeline.workers import raise_told, told
from sizewise.profile.timing import Timings
from sizewise.protocols import Inputs
from sizewise.types import Interval, LayerShape

__all__ = ["attend", "work"]

T = TypeVar("T")
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def work(line: Line, setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], scratch: Path, parent: int) -> None:
    """Try plans until the line is cut.

    Args:
        line: to the run's own process.
        setup: the run.
        bench: what its trials share.
        prepared: the scales.
        scratch: folder of this worker's own.
        parent: id of the run's own process, with which this one ends, however it does.
    """
    _settle_in(parent)
    attend(line, setup, bench, prepared, scratch)


def attend(line: Line, setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], scratch: Path) -> None:
    """The same in a process that is settled already."""
    try:
        bench = _remote(line, setup, bench, scratch)
        while isinstance(message := line.hear(), Try):
            plan = message.plan
            module, folder = prepared[plan.scale].module, setup.store.clear(plan)
            setup.store.save_candidate(run_trial(module, plan, folder, bench, message.rivals))
            line.say(Done())
    except Exception as error:  # noqa: BLE001  # whatever it is, the run's own process has to hear of it
        line.say(Failed(told(error)))


def _settle_in(parent: int) -> None:
    """A group of its own, so that it is stopped with all its children and not by the terminal; no handlers of the parent's; one thread."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # also ends a process that is held still
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)


def _remote(line: Line, setup: Setup, bench: Bench, scratch: Path) -> Bench:
    """The bench as a worker has it."""

    def timed(path: Path) -> Timings:
        samples = _ask(line, TimeFile(str(path)), dict[str, list[float]])
        return Timings({name: np.array(found) for name, found in samples.items()})

    context = replace(bench.context, progress=_Told(line))
    if context.timer is not None:
        context = replace(context, timer=_AskingTimer(setup, line, scratch))
    return replace(bench, context=context, timed=timed, scoring_threads=1, applier=Applier())


def _ask(line: Line, question: Timing, kind: type[T]) -> T:
    """What the run's own process answers, or the error that it ran into."""
    line.say(question)
    answer = line.hear()
    if answer is None:
        os._exit(1)  # nobody is left to work for
    assert isinstance(answer, Answer)
    if answer.error is not None:
        raise_told(answer.error)
    return msgspec.convert(answer.value, kind)


class _Told:
    """A worker's progress: its parts are told to the run, which counts trials, not what they consist of."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def start(self, total: int, work: float | None = None) -> None:
        pass

    def working(self, what: str) -> None:
        self._line.say(Working(what))

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        pass

    def note(self, line: str) -> None:
        self.working(line)


class _AskingTimer(RuntimeTimer):
    """Lowers here, and has the files timed by the run's own process, on the run's example inputs."""

    def __init__(self, setup: Setup, line: Line, scratch: Path) -> None:
        super().__init__(setup.runtime, setup.device)
        self._line, self._example, self._scratch = line, setup.task.example, scratch

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        return _ask(self._line, TimeKernels(tuple(shapes)), list[float])

    def file_seconds(self, path: Path, example: Inputs) -> tuple[Interval, dict[tuple[str, int], float]]:
        self._check(example)
        whole, rows = _ask(self._line, TimeOperators(str(path)), tuple[Interval, list[tuple[str, int, float]]])
        return whole, {(module, turn): seconds for module, turn, seconds in rows}

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        self._check(example)
        whole, other = (self._scratch / f"{name}-{self.runtime.file_name}" for name in ("whole", "other"))
        self.runtime.lower(model, example, whole)
        kept = whole.read_bytes()  # another step may ask about another model, and then this one again

        def share(against: nn.Module) -> float:
            whole.write_bytes(kept)
            self.runtime.lower(against, example, other)
            return _ask(self._line, TimeBeside(str(whole), str(other)), float)

        return share

    def _check(self, example: Inputs) -> None:
        if example is not self._example:
            raise InternalError("a technique times a model on other inputs than the run's", where=self.name)
