"""The command line as a person uses it: help, exit codes, messages, JSON."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sizewise.cli.main import app
from sizewise.errors import SizewiseError
from sizewise.pipeline.progress import PlainProgress

# Speed is not judged here: one thread, no pauses between timings, one rate.
TASK = """
import sizewise
from sizewise.devices import loader
from sizewise.search import levers
from sizewise.profile.timing import time_interleaved
from sizewise.testing import tiny_task
loader.usable_threads = lambda: 1
time_interleaved.__kwdefaults__["settle_s"] = 0.0
levers.PRUNING_RATES = (0.5,)
task = tiny_task(32)
task.models = {"small": task.models["small"]}
task.reference = "small"
"""


def sizewise(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "sizewise", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def refused(*arguments: str) -> SizewiseError:
    """The error that a command ends with, in this process, where torch is loaded already."""
    done = CliRunner().invoke(app, list(arguments))
    assert isinstance(done.exception, SizewiseError), done.output
    assert done.stdout == ""
    return done.exception


def test_help_names_the_commands_without_importing_torch(tmp_path: Path) -> None:
    done = sizewise("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert {"fit", "demo"} <= set(done.stdout.split())
    code = "import sys, sizewise.cli.main; print('torch' in sys.modules, 'plotly' in sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "digits", "--out", "o", "--latancy", "5ms"), ["--latency"]),
        (("fit", "digits", "--out", "o", "--latency", "5 mss"), ["'mss'", "did you mean 'ms'"]),
        (("fit", "digits", "--out", "o", "--trials", "0"), ["--trials", "greater than or equal to 1"]),
        (("fitt",), ["fitt"]),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: tuple[str, ...], says: list[str], tmp_path: Path) -> None:
    done = sizewise(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    for words in says:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "o").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", "2"), ["no unit", "2 MB"]),
        (("--runtime", "onxruntime"), ["onxruntime", "did you mean 'onnxruntime'"]),
        (("--device", "locale"), ["did you mean 'local'"]),
        (("digts",), ["unknown task 'digts'", "did you mean 'digits'"]),
        (("missing.py",), ["no such task file", "missing.py"]),
    ],
)
def test_bad_input_is_answered_with_what_was_meant(
    arguments: tuple[str, ...], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = ("digits",) if arguments[0].startswith("--") else ()
    error = refused("fit", *task, "--out", "o", *arguments)
    assert error.exit_code == 2
    for words in says:
        assert words in str(error)
    assert not (tmp_path / "o").exists(), "nothing half-written"


def test_a_task_file_that_raises_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\ny = x / 0\n")
    done = sizewise("fit", "bad.py", "--out", "o", cwd=tmp_path)
    assert done.returncode == 4
    assert "bad.py, line 2" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
    debug = sizewise("fit", "bad.py", "--out", "o", "--debug", cwd=tmp_path)
    assert debug.returncode == 4
    assert "Traceback" in debug.stderr


def test_a_non_empty_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("mine")
    done = sizewise("fit", "digits", "--out", "o", cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["mine.txt"]


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    error = refused("fit", "digits", "--out", str(tmp_path / "file" / "o"))
    assert error.exit_code == 2
    assert "cannot be written" in str(error)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "task.py").write_text(TASK)
    return folder, sizewise("fit", "task.py", "--out", "o", "--size", "1MB", "--max-drop", "50%", "--trials", "2", "--json", cwd=folder)


def test_json_prints_the_record_alone(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "o" / "run.json").read_text())
    assert re.search(r"^\[\d+/4\] small: int8_static", done.stderr, re.MULTILINE), "progress goes to stderr, as plain lines in a pipe"
    assert "\x1b" not in done.stderr


def test_resuming_a_finished_run_prints_where_everything_is(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    done = sizewise(
        "fit", "task:task", "--out", "o", "--size", "1MB", "--max-drop", "50%", "--trials", "2", "--resume", "--quiet", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.rstrip().splitlines()[-2:] == ["report: o/report.html", "model:  o/model.onnx"]


def test_an_impossible_budget_exits_5_with_the_nearest_bundle(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    done = sizewise("fit", "task.py", "--out", "o", "--size", "10B", "--max-drop", "50%", "--trials", "2", "--resume", cwd=folder)
    assert done.returncode == 5
    assert "allowed 10 B" in done.stderr
    assert "would fit" in done.stderr
    assert (folder / "o" / "SHA256SUMS").exists()


@pytest.mark.slow
def test_the_bundle_replays_to_the_same_file(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    done = sizewise("replay", "o", "task.py", "--out", "again", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "the same file, bit for bit"
    assert (folder / "again" / "model.onnx").read_bytes() == (folder / "o" / "model.onnx").read_bytes()
    plan = json.loads((folder / "o" / "plan.json").read_text())
    plan["made"]["sha256"] = "0" * 64
    (folder / "other.json").write_text(json.dumps(plan))
    other = sizewise("replay", "other.json", "task.py", "--out", "other", "--quiet", cwd=folder)
    assert other.returncode == 6
    assert "the replayed file is not the recorded one" in other.stderr


def test_replay_wants_a_plan() -> None:
    error = refused("replay", "nowhere.json", "digits", "--out", "o")
    assert "no such plan" in str(error)


def test_plain_lines_say_how_far_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.start(3)
    progress.begin -= 10
    progress.advance("first")
    assert capsys.readouterr().err == "[1/3] first (about 20.0 s left)\n"
