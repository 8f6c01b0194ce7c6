"""Workers and trainings on a Ray cluster: the one that `RAY_ADDRESS` names, else one that is started on this machine for the run.

A worker is an actor that has a run folder of its own; files travel with what is said. It finds the task by its name, which every node must
know, and begins with the scales that the run has prepared. Files are timed by the run's own process, on its machine; workers on that
machine hold still meanwhile. Ray carries what is said in pickles of its own, so a cluster is for people who trust each other.
"""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import psutil
import torch

from sizewise import registry
from sizewise.errors import InternalError, MissingExtra, UsageError
from sizewise.files import write_bytes
from sizewise.pipeline.crew import Crew
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.member import attend
from sizewise.pipeline.messages import Answer, Done, Failed, Message, TimeBeside, TimeFile, TimeOperators, Try
from sizewise.pipeline.scales import Prepared, pick_reference, prepare_scales
from sizewise.pipeline.setup import Setup, fingerprint, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.train import train_scale
from sizewise.pipeline.trial import Bench, make_bench
from sizewise.pipeline.weights import save_state
from sizewise.pipeline.workers import raise_told, told
from sizewise.protocols import Silent
from sizewise.search.planner import Proposal
from sizewise.tasks.loading import load_task
from sizewise.types import Budget, Device, Plan, to_json

__all__ = ["RayCrew", "check_ray", "connected", "train_scales"]

Files = dict[str, bytes]
LEAVE_S = 5.0  # most that is waited for a worker to leave
CARRIED = ("candidate.json", "scores.npy")  # what a worker has to know of finished candidates


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "ray", where="engine") from error
    return ray


def check_ray(source: str | None, runtime: Any) -> None:
    """What the engine needs.

    Raises:
        MissingExtra: Ray is not installed.
        UsageError: the task or the runtime has no name by which other machines find it.
    """
    _ray()
    if source is None:
        hint = "sizewise.tasks.loading.load_task loads one, as the command line does"
        wanted = "a task that was loaded by its name"
        raise UsageError("other machines have to find the task by a name", where="engine", wanted=wanted, hint=hint)
    if not isinstance(runtime, str) and runtime.name not in registry.names("runtimes"):
        raise UsageError("other machines have to find the runtime by a name", where="runtime", got=runtime.name)


@contextmanager
def connected() -> Iterator[None]:
    """A cluster to work on; one that was started here ends here."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def train_scales(setup: Setup, source: str) -> None:
    """Train all scales that need it on the cluster, each as a task of its own; the run folder has their weights then.

    Raises:
        SizewiseError: what a training ran into.
    """
    ray = _ray()
    wanted = [s for s in setup.task.scales if setup.task.is_untrained(s) and not setup.store.scale_file(s, ".safetensors").exists()]
    if not wanted:
        return
    setup.progress.working(f"training {len(wanted)} scales on the cluster")
    train = ray.remote(_train)
    begun = {train.remote(source, scale, setup.seed): scale for scale in wanted}
    while begun:
        (ended,), _ = ray.wait(list(begun), num_returns=1)
        weights, error = ray.get(ended)
        scale = begun.pop(ended)
        if error is None:
            write_bytes(setup.store.scale_file(scale, ".safetensors"), weights)
        elif setup.task.level(scale) is None or scale == setup.task.reference:
            raise_told(error)
        # else it is tried again when the scales are prepared, and what it runs into is the record's


def _train(source: str, scale: str, seed: int) -> tuple[bytes, dict[str, Any] | None]:
    """On the cluster: a scale's trained weights, or the error."""
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.safetensors"
            save_state(train_scale(load_task(source), scale, seed), path)
            return path.read_bytes(), None
    except Exception as error:  # noqa: BLE001  # whatever it is, the run's own process has to hear of it
        return b"", told(error)


@dataclass(frozen=True)
class _Job:
    """What a worker has to know before it begins, besides files."""

    source: str
    budget: Budget
    runtime: str
    device: Device
    seed: int


class _Actor:
    """A worker on the cluster: tries plans in a thread, and says what that has to say whenever it is asked."""

    def __init__(self, job: bytes, files: Files) -> None:
        self._job = msgspec.json.decode(job, type=_Job)
        self._folder = Path(tempfile.mkdtemp(prefix="sizewise-"))
        self._heard, self._said = SimpleQueue[bytes](), SimpleQueue[Message]()
        self._plan: Plan | None = None
        self._put(files)
        threading.Thread(target=self._work, daemon=True).start()

    def whereabouts(self) -> tuple[str, int]:
        """The node's name and the process."""
        return str(_ray().get_runtime_context().get_node_id()), os.getpid()

    def converse(self, message: bytes, files: Files) -> tuple[bytes, Files]:
        """Hear a message, or nothing, and say the next one; files come and go with both."""
        self._put(files)
        if message:
            heard = msgspec.json.decode(message, type=Message)
            self._plan = heard.plan if isinstance(heard, Try) else self._plan
            self._heard.put(message)
        said = self._said.get()
        return msgspec.json.encode(said), self._files_of(said)

    def leave(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def say(self, message: Message) -> bool:
        """From the working thread."""
        self._said.put(message)
        return True

    def hear(self) -> Message | None:
        """For the working thread."""
        heard: Message = msgspec.json.decode(self._heard.get(), type=Message)
        return heard

    def _put(self, files: Files) -> None:
        for name in sorted(files, key=lambda name: name.endswith("candidate.json")):
            write_bytes(self._folder / "run" / name, files[name])

    def _files_of(self, said: Message) -> Files:
        if isinstance(said, Done):
            assert self._plan is not None
            folder = self._store.folder(self._plan)
            return {path.name: path.read_bytes() for path in folder.iterdir()}
        return {path: Path(path).read_bytes() for path in _paths(said)}

    def _work(self) -> None:
        torch.set_num_threads(1)
        scratch = self._folder / "scratch"
        scratch.mkdir()
        try:
            setup, bench, prepared = self._prepare()
        except Exception as error:  # noqa: BLE001  # whatever it is, the run's own process has to hear of it
            self.say(Failed(told(error)))
            return
        attend(self, setup, bench, prepared, scratch)

    def _prepare(self) -> tuple[Setup, Bench, dict[str, Prepared]]:
        """The run as it is after its scales are prepared; another task or other data than the run's are refused."""
        job, self._store = self._job, Store(self._folder / "run", resume=True)
        task = load_task(job.source)
        setup = make_setup(task, job.budget, find_runtime(job.runtime), job.device, self._store, job.seed, Silent(), None)
        self._store.identify(fingerprint(setup, read_data(setup)), task.name)
        prepared = prepare_scales(setup)
        return setup, make_bench(setup, prepared[pick_reference(task, prepared)]), prepared


def _paths(said: Message) -> tuple[str, ...]:
    if isinstance(said, TimeFile | TimeOperators):
        return (said.path,)
    return (said.whole, said.other) if isinstance(said, TimeBeside) else ()


@dataclass
class _Remote:
    """A worker as the run's own process sees it.

    Attributes:
        actor: Ray's handle.
        store: the run's folder.
        scratch: for files that are only timed.
        pid: of its process where that is on this machine, else None.
        ref: what it will say next.
        known: candidates that it has been told of.
    """

    actor: Any
    store: Store
    scratch: Path
    pid: int | None
    ref: Any = None
    known: set[str] = field(default_factory=set)
    proposal: Proposal | None = None
    last: Plan | None = None

    def say(self, message: Try | Answer) -> None:
        files = self._news() if isinstance(message, Try) else {}
        self.ref = self.actor.converse.remote(msgspec.json.encode(message), files)

    def hear(self) -> Message | None:
        ray = _ray()
        try:
            message, files = ray.get(self.ref)
        except ray.exceptions.RayActorError:
            return None
        said: Message = msgspec.json.decode(message, type=Message)
        if isinstance(said, Done):
            self._keep(files)
        elif files:
            return self._here(said, files)
        else:
            self.ref = self.actor.converse.remote(b"", {})
        return said

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> str:
        self.go_on()
        ray = _ray()
        with suppress(ray.exceptions.RayError):
            ray.get(self.actor.leave.remote(), timeout=LEAVE_S)
        ray.kill(self.actor, no_restart=True)
        return "its actor died"

    def _signal(self, number: int) -> None:
        """Where it is on this machine, to the worker and the processes that it has started."""
        if self.pid is None:
            return
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            for one in (process, *process.children(recursive=True)):
                one.send_signal(number)

    def _news(self) -> Files:
        found: Files = {}
        for candidate in self.store.finished():
            if candidate.id not in self.known:
                folder = self.store.folder(candidate.plan)
                found |= {f"trials/{folder.name}/{name}": (folder / name).read_bytes() for name in CARRIED if (folder / name).exists()}
                self.known.add(candidate.id)
        return found

    def _keep(self, files: Files) -> None:
        """The candidate's files, last the one that says that it is finished."""
        assert self.proposal is not None
        folder = self.store.clear(self.proposal.plan)
        for name in sorted(files, key=lambda name: name == "candidate.json"):
            write_bytes(folder / name, files[name])
        self.known.add(folder.name)

    def _here(self, said: Message, files: Files) -> Message:
        """The same question about files on this machine."""
        places = {}
        for number, (path, content) in enumerate(files.items()):
            places[path] = str(self.scratch / f"{number}-{Path(path).name}")
            write_bytes(Path(places[path]), content)
        if isinstance(said, TimeBeside):
            return TimeBeside(places[said.whole], places[said.other])
        assert isinstance(said, TimeFile | TimeOperators)
        return type(said)(places[said.path])


class RayCrew(Crew[_Remote]):
    """Workers on a Ray cluster; see `Crew`.

    Args:
        setup: the run.
        bench: what its trials share.
        prepared: the scales.
        workers: at least one; each wants a processor core of the cluster.
        source: the task's name.
    """

    def __init__(self, setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], workers: int, source: str) -> None:
        super().__init__(setup, bench, prepared, workers)
        job = _Job(source, setup.budget, setup.runtime.name, setup.device, setup.seed)
        learned = [setup.store.trials / "run.json", *(setup.store.trials / "scales").iterdir()]
        files = {str(path.relative_to(setup.store.out)): path.read_bytes() for path in learned}
        ray = _ray()
        self._ray, self._kind = ray, ray.remote(max_concurrency=2)(_Actor)  # it may be told to leave amid a conversation
        self._job, self._files = to_json(job), ray.put(files)

    def _start(self, scratch: Path) -> _Remote:
        actor = self._kind.remote(self._job, self._files)
        try:
            node, pid = self._ray.get(actor.whereabouts.remote())
        except self._ray.exceptions.RayActorError as error:
            raise InternalError("a worker on the cluster does not start", got=str(error)[:300]) from error
        here = node == self._ray.get_runtime_context().get_node_id()
        return _Remote(actor, self._setup.store, scratch, pid if here else None)

    def _next_of(self, members: Sequence[_Remote]) -> _Remote:
        refs = {member.ref: member for member in members}
        ready, _ = self._ray.wait(list(refs), num_returns=1)
        return refs[ready[0]]
