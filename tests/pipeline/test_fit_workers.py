"""A search by several workers, some of which are killed."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

import sizewise
from sizewise.pipeline.workers import can_fork
from sizewise.protocols import Silent
from sizewise.testing import NullRuntime, tiny_task
from sizewise.testing.null_runtime import NullRunner

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers cannot be forked here")

BUDGET = sizewise.Budget(size="1 MB")  # the best in quality is chosen: latencies, which are noisy, decide nothing
LARGE = tiny_task().models["large"]


class Shared(NullRuntime):
    """Files of other processes are told from those of this one, and stand for the large scale: this process only times them."""

    def load(self, path: Path, *, threads: int) -> NullRunner:
        try:
            return super().load(path, threads=threads)
        except sizewise.UsageError:
            assert not isinstance(LARGE, str)
            return NullRunner(LARGE)  # type: ignore[arg-type]


class Killer(Silent):
    """Kills workers at what they are doing, as often as asked for, and remembers what was finished then."""

    def __init__(self, out: Path, times: int) -> None:
        self.out, self.times, self.killed, self.finished = out, times, list[int](), dict[str, int]()

    def working(self, what: str) -> None:
        workers = [child.pid for child in psutil.Process().children() if child.pid not in self.killed]
        if len(self.killed) < self.times and workers and "lowering" in what:
            self.finished |= finished(self.out)
            os.kill(workers[0], signal.SIGKILL)
            self.killed.append(workers[0])


def finished(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/candidate.json")}


def check(found: sizewise.Result, killer: Killer) -> None:
    assert len(killer.killed) == killer.times
    assert len([w for w in found.record.warnings if "its worker died (SIGKILL); it was tried again" in w]) == killer.times
    assert killer.finished.items() <= finished(killer.out).items(), "what was finished stays so"
    assert set(finished(killer.out)) <= {c.id for c in found.record.candidates}
    assert not [c for c in found.record.candidates if c.status == "failed"]


def test_no_finished_trial_is_lost_with_a_killed_worker(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "out", times=1)
    found = sizewise.fit(tiny_task(32), BUDGET, Shared(), out=killer.out, workers=2, trials=2, progress=killer)
    check(found, killer)
    assert found.record.search is not None
    assert found.record.search.tried == 2


@pytest.mark.slow
def test_workers_find_what_one_process_finds_though_some_are_killed(tmp_path: Path) -> None:
    alone = sizewise.fit(tiny_task(32), BUDGET, Shared(), out=tmp_path / "alone")
    killer = Killer(tmp_path / "beside", times=2)
    found = sizewise.fit(tiny_task(32), BUDGET, Shared(), out=killer.out, workers=2, progress=killer)
    check(found, killer)
    assert quality(found) == quality(alone)


@pytest.mark.parametrize("workers", [0, -1])
def test_no_worker_is_no_search(workers: int, tmp_path: Path) -> None:
    with pytest.raises(sizewise.UsageError, match="at least one worker"):
        sizewise.fit(tiny_task(32), BUDGET, NullRuntime(), out=tmp_path / "out", workers=workers)


def quality(found: sizewise.Result) -> Any:
    assert found.chosen.measured is not None
    return found.chosen.measured.quality.score.value
