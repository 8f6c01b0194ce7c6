"""Who carries out the trials of a search: the run's own process, or several workers beside each other.

Workers do what one process would do, but that the run's own process alone chooses plans, keeps the study, and times files: while it does,
every worker on this machine is stopped. A worker that dies loses its trial only, which another one tries again.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from sizewise.errors import SizewiseError
from sizewise.pipeline.messages import (
    Answer,
    Done,
    Failed,
    Message,
    TimeBeside,
    TimeFile,
    TimeKernels,
    TimeOperators,
    Timing,
    Try,
    Working,
)
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.timer import RuntimeTimer
from sizewise.pipeline.trial import Bench, beside_reference, run_trial
from sizewise.pipeline.workers import raise_told, told
from sizewise.search.planner import Proposal
from sizewise.types import Candidate, Plan

__all__ = ["DEATHS", "Alone", "Crew", "Hands", "Member"]

DEATHS = 5  # of workers at one plan, after which it has failed


class Hands(Protocol):
    """What carries out trials."""

    @property
    def workers(self) -> int:
        """How many trials can be under way at once."""
        ...

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
    def workers(self) -> int:
        """This process alone."""
        return 1

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
        candidate = run_trial(self._prepared[plan.scale].module, plan, store.clear(plan), self._bench, proposal.rivals)
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


class Member(Protocol):
    """A worker.

    Attributes:
        proposal: what it is at.
        last: what it was at before.
    """

    proposal: Proposal | None
    last: Plan | None

    def say(self, message: Try | Answer) -> None:
        """Tell it something; that it is dead already shows when it is listened to."""
        ...

    def hear(self) -> Message | None:
        """What it says; None where it has died."""
        ...

    def stop(self) -> None:
        """Hold it still, where it is on this machine; it is when this returns, or it has ended."""
        ...

    def go_on(self) -> None:
        """After `stop`."""
        ...

    def end(self) -> str:
        """End it at once; how it had ended before, if it had."""
        ...


M = TypeVar("M", bound=Member)


class Crew(ABC, Generic[M]):
    """Workers that carry out trials beside each other, each on one thread.

    Args:
        setup: the run.
        bench: what its trials share.
        prepared: the scales.
        workers: at least one.
    """

    def __init__(self, setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], workers: int) -> None:
        self._setup, self._bench, self._prepared, self.workers = setup, bench, prepared, workers
        self._members: list[M] = []
        self._deaths: dict[str, int] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="sizewise-")
        self._started = 0

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""
        return len(self._at_work()) < self.workers

    @property
    def busy(self) -> bool:
        """Whether any worker has something to do."""
        return bool(self._at_work())

    def _at_work(self) -> list[M]:
        return [member for member in self._members if member.proposal is not None]

    def begin(self, proposal: Proposal) -> None:
        """Give a plan to an idle worker: the one whose last plan began with the most of the same steps."""
        idle = [member for member in self._members if member.proposal is None]
        if len(self._members) < self.workers:
            self._started += 1
            scratch = Path(self._scratch.name) / str(self._started)
            scratch.mkdir()
            idle.append(self._start(scratch))
            self._members.append(idle[-1])
        member = max(idle, key=lambda member: _shared(member.last, proposal.plan))
        member.proposal = proposal
        member.say(Try(proposal.plan, proposal.rivals))

    def next(self) -> tuple[Proposal, Candidate]:
        """Do what workers ask for until one of them is done."""
        while True:
            member = self._next_of(self._at_work())
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

    @abstractmethod
    def _start(self, scratch: Path) -> M:
        """A new worker, and a folder of its own for files that pass."""

    @abstractmethod
    def _next_of(self, members: Sequence[M]) -> M:
        """The first of these that says something, or dies."""

    def _listen(self, member: M) -> Candidate | None:
        """What became of a worker's plan, if that is what it says."""
        assert member.proposal is not None
        message = member.hear()
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
            member.say(answer)
        return None

    def _died(self, member: M) -> Candidate | None:
        """Try its plan again, unless it was finished just before, or kills every worker."""
        proposal, store = member.proposal, self._setup.store
        assert proposal is not None
        self._members.remove(member)
        how = member.end()
        plan = proposal.plan
        if (finished := store.candidate(plan)) is not None:
            return finished
        died = self._deaths[plan.id] = self._deaths.get(plan.id, 0) + 1
        if died < DEATHS:
            self._setup.warnings.append(f"{plan.scale}: {plan.label}: its worker died ({how}); it was tried again")
            self.begin(proposal)
            return None
        reason = f"{died} workers died of it (the last by {how}): memory may have run out; fewer workers or threads need less"
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
                member.go_on()

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
