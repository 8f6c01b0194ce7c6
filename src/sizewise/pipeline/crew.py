"""Who carries out the trials of a search: the run's own process, or several workers beside each other.

Workers are forked, since tasks hold functions that cannot be sent elsewhere. They share the run folder with the run's own process, which
alone chooses plans, keeps the study, and times files: while it does, every worker is stopped by a signal. A worker that dies loses its
trial only, which another one tries again. Workers end with the run's own process, however that ends.
"""

import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import psutil

from sizewise.errors import InternalError, SizewiseError
from sizewise.pipeline.member import work
from sizewise.pipeline.messages import Answer, Done, Failed, Line, TimeBeside, TimeFile, TimeKernels, TimeOperators, Timing, Try, Working
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.timer import RuntimeTimer
from sizewise.pipeline.trial import Bench, beside_reference, run_trial
from sizewise.pipeline.workers import can_fork, raise_told, told
from sizewise.search.planner import Proposal
from sizewise.types import Candidate, Plan

__all__ = ["Alone", "Crew", "Hands", "make_hands"]

DEATHS = 5  # of workers at one plan, after which it has failed
STILL = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
STILL_S = 5.0  # most that is waited for a worker to stop


class Hands(Protocol):
    """What carries out trials."""

    @property
    def free(self) -> bool:
        """Whether another trial can begin."""
        ...

    @property
    def busy(self) -> bool:
        """Whether trials are under way."""
        ...

    def begin(self, proposal: Proposal) -> None:
        """Begin a trial."""
        ...

    def next(self) -> tuple[Proposal, Candidate]:
        """Wait for the next trial to end; the run folder has it."""
        ...

    def drop(self) -> list[Proposal]:
        """Break off what is under way."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Break off what is under way, and let everybody go."""
        ...


def make_hands(setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], workers: int) -> Hands:
    """So many workers, or the run's own process for one, or where none can be forked, which the record then says."""
    if workers > 1 and can_fork():
        return Crew(setup, bench, prepared, workers)
    if workers > 1:
        setup.warnings.append("no worker can be forked on this system, or once CUDA is in use: plans were tried one after the other")
    return Alone(setup, bench, prepared)


class Alone:
    """Carries out one trial at a time in this process.

    Args:
        setup: the run.
        bench: what its trials share.
        prepared: the scales.
    """

    def __init__(self, setup: Setup, bench: Bench, prepared: Mapping[str, Prepared]) -> None:
        self._setup, self._bench, self._prepared = setup, bench, prepared
        self._begun: list[Proposal] = []

    @property
    def free(self) -> bool:
        """Whether nothing is begun."""
        return not self._begun

    @property
    def busy(self) -> bool:
        """Whether something is begun."""
        return bool(self._begun)

    def begin(self, proposal: Proposal) -> None:
        """Remember the plan; the trial is carried out by `next`."""
        self._begun.append(proposal)

    def next(self) -> tuple[Proposal, Candidate]:
        """Carry out what is begun."""
        proposal, store = self._begun[0], self._setup.store
        plan = proposal.plan
        candidate = run_trial(self._prepared[plan.scale].module, plan, store.clear(plan), self._bench)
        store.save_candidate(candidate)
        self._begun.clear()
        return proposal, candidate

    def drop(self) -> list[Proposal]:
        """Forget what is begun."""
        dropped, self._begun = self._begun, []
        return dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


@dataclass
class _Member:
    """A worker, and what it is at."""

    process: Any
    line: Line
    proposal: Proposal | None = None
    last: Plan | None = None

    def signal(self, number: int) -> None:
        """To the worker and the processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """Hold it still; it is when this returns, or it has ended."""
        self.signal(signal.SIGSTOP)
        limit = time.monotonic() + STILL_S
        while _runs(self.process.pid):
            if time.monotonic() > limit:
                raise InternalError("a worker does not stop", got=f"process {self.process.pid}")
            time.sleep(1e-3)

    def end(self) -> int | None:
        """End it at once, with the processes that it has started; its exit code."""
        self.signal(signal.SIGKILL)
        self.process.join()
        self.line.pipe.close()
        code: int | None = self.process.exitcode
        self.process.close()
        return code


class Crew:
    """Workers that carry out trials beside each other, each on one thread.

    Args:
        setup: the run.
        bench: what its trials share.
        prepared: the scales.
        workers: at least one.
    """

    def __init__(self, setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], workers: int) -> None:
        self._setup, self._bench, self._prepared, self._workers = setup, bench, prepared, workers
        self._members: list[_Member] = []
        self._deaths: dict[Plan, int] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="sizewise-")
        self._started = 0

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._at_work()) < self._workers

    @property
    def busy(self) -> bool:
        """Whether any worker has something to do."""
        return bool(self._at_work())

    def _at_work(self) -> list[_Member]:
        return [member for member in self._members if member.proposal is not None]

    def begin(self, proposal: Proposal) -> None:
        """Give a plan to an idle worker: the one whose last plan began with the most of the same steps."""
        idle = [member for member in self._members if member.proposal is None]
        if len(self._members) < self._workers:
            idle.append(self._start())
        member = max(idle, key=lambda member: _shared(member.last, proposal.plan))
        member.proposal = proposal
        member.line.say(Try(proposal.plan))  # that it is dead already shows when it is listened to

    def next(self) -> tuple[Proposal, Candidate]:
        """Do what workers ask for until one of them is done."""
        while True:
            lines: dict[Any, _Member] = {member.line.pipe: member for member in self._at_work()}
            member = lines[wait(list(lines))[0]]
            ended = self._listen(member)
            if ended is not None:
                proposal, member.proposal = member.proposal, None
                assert proposal is not None
                member.last = proposal.plan
                return proposal, ended

    def drop(self) -> list[Proposal]:
        """End the workers that are at work."""
        dropped = []
        for member in self._at_work():
            self._members.remove(member)
            member.end()
            assert member.proposal is not None
            dropped.append(member.proposal)
        return dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for member in self._members:
            member.end()
        self._members.clear()
        self._scratch.cleanup()

    def _start(self) -> _Member:
        mine, theirs = multiprocessing.Pipe()
        self._started += 1
        scratch = Path(self._scratch.name) / str(self._started)
        scratch.mkdir()
        told_to = (Line(theirs), self._setup, self._bench, self._prepared, scratch, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=work, args=told_to)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking beside threads: see `pipeline/workers.py`
            process.start()
        theirs.close()
        with suppress(ProcessLookupError, PermissionError):  # both sides do it, since either may be first
            os.setpgid(process.pid or 0, process.pid or 0)
        member = _Member(process, Line(mine))
        self._members.append(member)
        return member

    def _listen(self, member: _Member) -> Candidate | None:
        """What became of a worker's plan, if that is what it says."""
        assert member.proposal is not None
        message = member.line.hear()
        if message is None:
            return self._died(member)
        if isinstance(message, Working):
            self._setup.progress.working(message.what)
        elif isinstance(message, Done):
            return self._setup.store.candidate(member.proposal.plan)
        elif isinstance(message, Failed):
            raise_told(message.error)
        else:
            assert isinstance(message, Timing)
            with self._still():
                answer = self._time(message)
            member.line.say(answer)
        return None

    def _died(self, member: _Member) -> Candidate | None:
        """Try its plan again, unless it was finished just before, or kills every worker."""
        proposal, store = member.proposal, self._setup.store
        assert proposal is not None
        self._members.remove(member)
        code = member.end()
        plan = proposal.plan
        if (finished := store.candidate(plan)) is not None:
            return finished
        died = self._deaths[plan] = self._deaths.get(plan, 0) + 1
        if died < DEATHS:
            self._setup.warnings.append(f"{plan.scale}: {plan.label}: its worker died ({_said(code)}); it was tried again")
            self.begin(proposal)
            return None
        reason = f"{died} workers died of it (the last by {_said(code)}): memory may have run out; fewer workers or threads need less"
        failed = Candidate(id=store.identifier(plan), plan=plan, status="failed", reason=reason)
        store.save_candidate(failed)
        return failed

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Every worker is stopped, the one that asks too."""
        try:
            for member in self._members:
                member.stop()
            yield
        finally:
            for member in self._members:
                member.signal(signal.SIGCONT)

    def _time(self, wanted: Timing) -> Answer:
        try:
            return Answer(self._timed(wanted))
        except (SizewiseError, OSError) as error:
            return Answer(error=told(error))

    def _timed(self, wanted: Timing) -> Any:
        bench, example = self._bench, self._setup.task.example
        if isinstance(wanted, TimeFile):
            runner = bench.runtime.load(Path(wanted.path), threads=bench.threads)
            return {name: found.tolist() for name, found in beside_reference(runner, bench).samples.items()}
        timer = self._setup.context.timer
        assert isinstance(timer, RuntimeTimer)
        if isinstance(wanted, TimeKernels):
            return timer.kernel_seconds(wanted.shapes)
        if isinstance(wanted, TimeOperators):
            whole, operators = timer.file_seconds(Path(wanted.path), example)
            return whole, [(module, turn, seconds) for (module, turn), seconds in operators.items()]
        assert isinstance(wanted, TimeBeside)
        return timer.file_share(Path(wanted.whole), Path(wanted.other), example)


def _shared(last: Plan | None, plan: Plan) -> int:
    """How many steps a worker need not repeat."""
    if last is None or last.scale != plan.scale:
        return 0
    pairs = zip(last.steps, plan.steps, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(last.steps), len(plan.steps)))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (
            psutil.STATUS_STOPPED,
            psutil.STATUS_TRACING_STOP,
            psutil.STATUS_ZOMBIE,
            psutil.STATUS_DEAD,
        )
    except psutil.NoSuchProcess:
        return False


def _said(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
