"""Two runs in folders of their own that share a study: `sizewise fit` and `sizewise worker`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from tests.postgres import server, why_not
from typer.testing import CliRunner

from sizewise.cli.main import app
from sizewise.errors import UnknownName, UsageError
from sizewise.search.storage import opened, sqlite_url

# Speed is not judged here: one thread, no pauses between timings.
TASK = """
from sizewise.devices import loader
from sizewise.profile.timing import time_interleaved
from sizewise.testing import tiny_task
loader.usable_threads = lambda: 1
time_interleaved.__kwdefaults__["settle_s"] = 0.0
task = tiny_task(96)
"""
SEARCH = ("--size", "1 MB", "--max-drop", "30 %", "--trials", "4", "--quiet")


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "study.db")
        return
    if reason := why_not():
        pytest.skip(reason)
    with server() as url:
        yield url


def begin(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sizewise", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def trials_in(storage: str) -> list[optuna.trial.FrozenTrial]:
    kept = opened(storage, shared=False)
    (study,) = kept.get_all_studies()
    trials = kept.get_all_trials(study._study_id)
    kept.remove_session()
    kept.engine.dispose()
    return trials


@pytest.mark.slow
def test_fit_and_a_worker_share_out_a_search(storage: str, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    fit = begin("fit", "task.py", "--out", "fit", "--storage", storage, *SEARCH, cwd=tmp_path)
    worker = begin("worker", "--task", "task.py", "--out", "worker", "--storage", storage, *SEARCH, cwd=tmp_path)
    told = {"fit": fit.communicate(), "worker": worker.communicate()}
    assert (fit.returncode, worker.returncode) == (0, 0), told
    found = re.match(r"(\d+) plans tried here", told["worker"][0])
    assert found is not None
    tried = {name: {p.parent.name for p in tmp_path.glob(f"{name}/trials/*/candidate.json")} for name in told}
    assert int(found[1]) >= 2
    mild = {"large.float", "large.int8_static", "small.int8_static", "small.float"}
    record = json.loads((tmp_path / "fit" / "run.json").read_text())
    assert len((tried["fit"] & tried["worker"]) - mild) <= 1, "but for mild plans, and the best of the other"
    assert {c["id"] for c in record["candidates"]} >= tried["fit"]
    trials = trials_in(storage)
    assert {t.user_attrs["candidate"] for t in trials if "candidate" in t.user_attrs} >= {
        c for c in tried["fit"] | tried["worker"] if not c.startswith("small")
    }
    assert len({t.user_attrs["owner"] for t in trials}) == 2
    assert not [t for t in trials if t.state.name == "RUNNING"]
    assert not (tmp_path / "worker" / "run.json").exists(), "the choice is the other's"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--task", "digits", "--storage", "sqlite:///x.db", "--out", "o", "--runtime", "onnx"), UnknownName, "onnxruntime"),
        (("--task", "digits", "--storage", "sqlite:///x.db", "--out", "."), UsageError, "not empty"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(arguments: tuple[str, ...], kind: type[Exception], message: str) -> None:
    done = CliRunner().invoke(app, ["worker", *arguments])
    assert isinstance(done.exception, kind)
    assert message in str(done.exception)
