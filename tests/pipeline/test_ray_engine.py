"""Trainings and trials on a local Ray cluster of two processes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import sizewise
from sizewise.errors import UnknownName
from sizewise.testing import NullRuntime, tiny_task

rayed = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (the extra ray)")

# Speed is not judged here: one thread, no pauses between timings.
TASK = """
from functools import partial
from sizewise import Task
from sizewise.devices import loader
from sizewise.profile.timing import time_interleaved
from sizewise.tasks.task import untrained
from sizewise.testing import TinyConv, tiny_task
loader.usable_threads = lambda: 1
time_interleaved.__kwdefaults__["settle_s"] = 0.0
base = tiny_task(96)
task = Task(
    models={"large": base.models["large"], "fresh": untrained(partial(TinyConv, width=12), epochs=1, lr=1e-2)},
    example_inputs=base.example, train=base.calibration, calibration=base.calibration, validation=base.validation, test=base.test,
    reference="large", name="on a cluster",
)
"""
SEARCH = """
import json, sys
import psutil
import sizewise
from sizewise.pipeline import train
from sizewise.protocols import Silent
from sizewise.tasks.loading import load_task


class Killer(Silent):
    killed = 0

    def working(self, what):
        if not self.killed and "lowering" in what:
            actors = [p for p in psutil.Process().children(recursive=True) if "_Actor" in " ".join(p.cmdline())]
            actors[0].kill()
            self.killed = actors[0].pid


def refuse(*_):
    raise AssertionError("the cluster trains")


train.train_module = refuse
killer = Killer()
found = sizewise.fit(load_task("task.py"), sizewise.Budget(size="1 MB"), out="out", trials=3, workers=2, engine="ray", progress=killer)
print(json.dumps({"killed": killer.killed, "warnings": found.record.warnings, "tried": found.record.search.tried}))
"""


@rayed
@pytest.mark.slow
def test_a_cluster_trains_and_tries_and_a_killed_actor_loses_its_trial_only(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.py").write_text(SEARCH)
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "RAY_ADDRESS": "", "TMPDIR": str(tmp_path / "temporary"), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run([sys.executable, "search.py"], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([*(tmp_path / "temporary").glob("sizewise-*")]) <= 1, "what a killed actor had is all that may be left"
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"]
    assert [w for w in told["warnings"] if "tried again" in w and "actor died" in w]
    assert told["tried"] == 3
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {s["name"]: s["trained"] for s in record["scales"]}["fresh"].startswith("trained here for 1 epoch")
    for candidate in record["candidates"]:
        if candidate["status"] == "measured":
            folder = tmp_path / "out" / "trials" / candidate["id"]
            assert {"model.onnx", "plan.json", "scores.npy", "weights.safetensors"} <= {p.name for p in folder.iterdir()}
    assert sum(c["status"] == "measured" for c in record["candidates"]) >= 2


@rayed
def test_a_task_without_a_name_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(sizewise.UsageError, match="find the task by a name"):
        sizewise.fit(tiny_task(32), sizewise.Budget(), out=tmp_path / "out", engine="ray")


@rayed
def test_a_runtime_without_a_name_is_refused_before_any_work(tmp_path: Path) -> None:
    task = tiny_task(32)
    task.source = "task.py"
    with pytest.raises(sizewise.UsageError, match="find the runtime by a name"):
        sizewise.fit(task, sizewise.Budget(), NullRuntime(), out=tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="ray"):
        sizewise.fit(tiny_task(32), sizewise.Budget(), NullRuntime(), out=tmp_path / "out", engine="rey")  # type: ignore[arg-type]


def test_ray_that_is_missing_is_named_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sizewise.errors.MissingExtra, match=r"sizewise\[ray\]"):
        sizewise.fit(tiny_task(32), sizewise.Budget(), NullRuntime(), out=tmp_path / "out", engine="ray")
