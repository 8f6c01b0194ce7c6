"""Jobs side by side in processes of their own, each on one thread, where the system can fork; else one after the other.

Small networks gain little from a second thread, so two trainings on one thread each finish sooner than one after the other
on two. A job gives nothing back: it writes its result to a file, so that what is finished stays finished. The processes are
forked, since tasks hold functions that cannot be sent elsewhere; a forked process must not use the threads of its parent,
which is why it is kept to one (PyTorch's DataLoader does the same).
"""

import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, TypeVar

import torch

from sizewise import errors
from sizewise.errors import InternalError, SizewiseError

__all__ = ["can_fork", "raise_told", "run_jobs", "told"]

J = TypeVar("J")


def can_fork() -> bool:
    """Whether jobs can run in forked processes here: not on Windows and macOS, nor once CUDA is in use."""
    return sys.platform == "linux" and not (torch.cuda.is_available() and torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def run_jobs(jobs: Sequence[J], run: Callable[[J], None], on_done: Callable[[J], None], *, workers: int) -> None:
    """Run every job, at most `workers` at a time; `on_done` is called in this process, in the order of finishing.

    Raises:
        SizewiseError: what the first failing job raised; the others are stopped.
        InternalError: a job's process died.
    """
    if workers < 2 or not can_fork():
        for job in jobs:
            run(job)
            on_done(job)
        return
    waiting = list(reversed(jobs))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(), run))
            ready = wait([r.pipe for r in running])
            for ended in [r for r in running if r.pipe in ready]:
                running.remove(ended)
                _finish(ended)
                on_done(ended.job)
    finally:
        for left in running:
            left.process.terminate()
            left.process.join()


@dataclass(frozen=True)
class _Running:
    job: Any
    process: Any
    pipe: Connection


def _start(job: Any, run: Callable[[Any], None]) -> _Running:
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(job, run, theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking beside threads: see the module's text
        process.start()
    theirs.close()
    return _Running(job, process, mine)


def _work(job: Any, run: Callable[[Any], None], pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        run(job)
        pipe.send_bytes(b"{}")
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent has to hear of it
        pipe.send_bytes(json.dumps(told(error)).encode())


def told(error: Exception) -> dict[str, Any]:
    """An error in plain words, for another process, where `raise_told` raises it again."""
    if isinstance(error, SizewiseError):
        return {"kind": type(error).__name__, **{name: getattr(error, name) for name in ("what", "where", "got", "wanted", "hint")}}
    if isinstance(error, OSError):  # a full disk has an answer of its own at the top
        return {"kind": "OSError", "errno": error.errno, "text": error.strerror, "file": error.filename}
    return {"kind": "InternalError", "what": f"{type(error).__name__}: {error}"}


def raise_told(said: Mapping[str, Any]) -> NoReturn:
    """Raise what another process told.

    Raises:
        SizewiseError: of the kind that was told, or an `InternalError` that names it.
        OSError: where that was it.
    """
    if said["kind"] == "OSError":
        raise OSError(said["errno"], said["text"], said["file"])
    kind = getattr(errors, said["kind"], SizewiseError)
    error = kind.__new__(kind)
    SizewiseError.__init__(error, **{name: value for name, value in said.items() if name != "kind"})
    raise error


def _finish(ended: _Running) -> None:
    try:
        said = json.loads(ended.pipe.recv_bytes())
    except EOFError:
        said = None
    ended.process.join()
    if said is None:
        code = ended.process.exitcode
        raise InternalError(
            "a training process died", got=f"exit code {code}", hint="memory may have run out: fewer threads, smaller batches"
        )
    if said:
        raise_told(said)
