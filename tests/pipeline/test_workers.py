"""Jobs side by side: processes, threads, errors, deaths, and the order in which ends are told."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sizewise.errors import InternalError, PreconditionError, SizewiseError, UnknownName, UnsupportedModel, UsageError
from sizewise.pipeline.workers import can_fork, run_jobs
from sizewise.profile.timing import threads

forking = pytest.mark.skipif(not can_fork(), reason="jobs run in this process here")


def writing(folder: Path) -> Callable[[int], None]:
    """A job that writes which process it ran in, with how many threads."""

    def run(job: int) -> None:
        (folder / str(job)).write_text(json.dumps({"pid": os.getpid(), "threads": torch.get_num_threads()}))

    return run


def nothing(_: int) -> None:
    """For who does not listen."""


def wait_for(path: Path) -> None:
    for _ in range(2000):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)


@forking
def test_every_job_runs_in_a_process_of_its_own_on_one_thread(tmp_path: Path) -> None:
    with threads(2):
        run_jobs(range(4), writing(tmp_path), nothing, workers=2)
    found = [json.loads((tmp_path / str(job)).read_text()) for job in range(4)]
    assert len({f["pid"] for f in found} | {os.getpid()}) == 5
    assert {f["threads"] for f in found} == {1}


def test_one_worker_runs_in_this_process_in_order(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    run_jobs([3, 1, 2], lambda job: seen.append(("run", job)), lambda job: seen.append(("done", job)), workers=1)
    assert seen == [(what, job) for job in (3, 1, 2) for what in ("run", "done")]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_jobs_are_no_work(workers: int) -> None:
    seen: list[int] = []
    run_jobs(list[int](), seen.append, seen.append, workers=workers)
    assert seen == []


@forking
def test_every_end_is_told_once_in_the_order_of_finishing_and_after_the_result_is_there(tmp_path: Path) -> None:
    def run(job: int) -> None:
        if job == 0:
            wait_for(tmp_path / "told-2")
        (tmp_path / str(job)).touch()

    told: list[int] = []

    def on_done(job: int) -> None:
        assert (tmp_path / str(job)).exists()
        (tmp_path / f"told-{job}").touch()
        told.append(job)

    run_jobs([0, 1, 2], run, on_done, workers=2)
    assert told == [1, 2, 0]


@forking
def test_no_more_than_the_workers_run_at_a_time(tmp_path: Path) -> None:
    def run(job: int) -> None:
        (tmp_path / f"in-{job}").touch()
        running = [p for p in tmp_path.glob("in-*") if not (tmp_path / p.name.replace("in", "out")).exists()]
        (tmp_path / f"count-{job}").write_text(str(len(running)))
        time.sleep(0.02)
        (tmp_path / f"out-{job}").touch()

    run_jobs(range(6), run, nothing, workers=2)
    assert max(int(p.read_text()) for p in tmp_path.glob("count-*")) <= 2


ERRORS: list[SizewiseError] = [
    UsageError("a", where="b", got="c", wanted="d", hint="e"),
    PreconditionError("training diverged", where="models['x'], epoch 3", hint="lower lr"),
    UnsupportedModel("what"),
    UnknownName("model", "smal", ["small"], where="here"),
    InternalError("ours"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_back_with_its_type_and_fields(error: SizewiseError, workers: int) -> None:
    def run(job: int) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_jobs([0], run, nothing, workers=workers)
    for name in ("what", "where", "got", "wanted", "hint"):
        assert getattr(caught.value, name) == getattr(error, name)
    assert str(caught.value) == str(error)
    assert caught.value.exit_code == error.exit_code


@forking
def test_a_foreign_error_is_told_with_its_type() -> None:
    def run(job: int) -> None:
        raise ZeroDivisionError("by nought")

    with pytest.raises(SizewiseError, match="ZeroDivisionError: by nought"):
        run_jobs([0], run, nothing, workers=2)


@forking
def test_the_first_error_stops_the_running_and_leaves_the_waiting_undone(tmp_path: Path) -> None:
    def run(job: int) -> None:
        if job == 1:
            wait_for(tmp_path / "pid")
            raise UsageError("stop")
        if job == 0:
            (tmp_path / "draft").write_text(str(os.getpid()))
            (tmp_path / "draft").rename(tmp_path / "pid")
            time.sleep(60)
        (tmp_path / f"ran-{job}").touch()

    told: list[int] = []
    with pytest.raises(UsageError, match="stop"):
        run_jobs([0, 1, 2], run, told.append, workers=2)
    assert told == []
    assert not list(tmp_path.glob("ran-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@forking
def test_jobs_finished_before_an_error_were_told(tmp_path: Path) -> None:
    def run(job: int) -> None:
        if job == 1:
            wait_for(tmp_path / "told")
            raise UsageError("stop")

    told: list[int] = []

    def on_done(job: int) -> None:
        told.append(job)
        (tmp_path / "told").touch()

    with pytest.raises(UsageError, match="stop"):
        run_jobs([0, 1], run, on_done, workers=2)
    assert told == [0]


@forking
def test_a_killed_process_is_told_with_a_hint() -> None:
    def run(job: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InternalError, match="died") as caught:
        run_jobs([0], run, nothing, workers=2)
    assert "-9" in str(caught.value.got)
    assert "memory" in str(caught.value.hint)


@forking
def test_an_error_of_the_listener_stops_the_jobs(tmp_path: Path) -> None:
    def run(job: int) -> None:
        if job == 1:
            time.sleep(60)
            (tmp_path / "ran").touch()

    def on_done(job: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([0, 1], run, on_done, workers=2)
    assert not (tmp_path / "ran").exists()
