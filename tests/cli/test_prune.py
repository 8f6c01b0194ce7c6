"""`sizewise prune` as a person uses it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sizewise.cli.main import app
from sizewise.errors import SizewiseError

TASK = """
from sizewise.testing import tiny_task
task = tiny_task(32)
"""


def prune(*arguments: str) -> Result:
    """In this process, where torch and its exporters are loaded already; `sizewise` of test_cli.py starts a new one."""
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, ["prune", *arguments])


@pytest.fixture(scope="module")
def folder(brief: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prune")
    (path / "task.py").write_text(TASK)
    return path


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "1.5"), ["rate must be more than 0 and less than 1", "1.5"]),
        (("--rate", "half"), ["--rate: not a share", "0.5, or 50%"]),
        (("--scale", "larg"), ["unknown scale 'larg'", "did you mean 'large'"]),
        (("--granularity", "chanel"), ["unknown granularity", "did you mean 'channel'"]),
        (("--granularity", "2:4", "--target", "params"), ["target", "only where channels go"]),
        (("--granularity", "2:4", "--rate", "70%"), ["removes 50% of the weights", "leave it out"]),
        (("--granularity", "weight", "--method", "magnitud"), ["did you mean 'magnitude'"]),
        (("--recover", "1epok"), ["--recover: unknown unit", "did you mean 'epoch'"]),
        (("--target", "flops"), ["unknown target", "'flops'"]),
    ],
)
def test_bad_input_is_answered_with_what_was_meant(arguments: tuple[str, ...], says: list[str], folder: Path) -> None:
    done = prune("task.py", "--out", "bad", *arguments)
    assert isinstance(done.exception, SizewiseError), done.output
    assert done.exception.exit_code == 2
    for words in says:
        assert words in str(done.exception)
    assert done.stdout == ""
    assert not (folder / "bad").exists()


def test_bad_input_is_one_message_and_exit_code_2(folder: Path) -> None:
    command = [sys.executable, "-m", "sizewise", "prune", "task.py", "--out", "bad", "--rate", "1.5"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "rate must be more than 0 and less than 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (folder / "bad").exists()


def test_channels_go_and_both_files_are_shown(folder: Path) -> None:
    done = prune("task.py", "--rate", "50%", "--out", "channels")
    assert done.exit_code == 0, done.output
    assert "[4/4] bundled: large, channel_pruning(rate=0.5)" in done.stderr
    for words in ("Beside the file of the whole large:", "this file", "of the MACs removed", "32 test examples; drop"):
        assert words in done.stdout
    assert done.stdout.rstrip().splitlines()[-2:] == ["report: channels/report.html", "model:  channels/model.onnx"]
    assert (folder / "channels" / "SHA256SUMS").exists()
    again = prune("task.py", "--out", "channels").exception
    assert isinstance(again, SizewiseError)
    assert again.exit_code == 2
    assert "--resume" in str(again)


def test_zeros_say_that_they_are_stored_smaller_and_run_no_faster(folder: Path) -> None:
    done = prune("task.py", "--granularity", "weight", "--rate", "0.6", "--out", "zeros", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert "runtimes with dense kernels do not run it faster" in text
    assert "stored where zeros are coded" in text
    same = prune("task.py", "--granularity", "weight", "--rate", "0.6", "--out", "zeros", "--resume", "--json")
    record = json.loads(same.stdout)
    assert record == json.loads((folder / "zeros" / "run.json").read_text())
    assert record["searched"] is False
    assert [c["plan"]["scale"] for c in record["candidates"]] == ["large", "large"]


def test_what_is_cut_is_recovered_on_the_tasks_train_data(folder: Path) -> None:
    (folder / "trained.py").write_text(TASK + "task.train = task.calibration\n")
    done = prune("trained.py", "--out", "recovered", "--recover", "2epochs", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    candidate = json.loads(done.stdout)["candidates"][1]
    assert [step["technique"] for step in candidate["plan"]["steps"]] == ["channel_pruning", "recovery"]
    refused = prune("task.py", "--out", "untrained", "--recover", "2epochs").exception
    assert isinstance(refused, SizewiseError)
    assert "train=..." in str(refused)
    assert not (folder / "untrained").exists()
