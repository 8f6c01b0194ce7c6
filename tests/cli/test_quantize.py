"""`sizewise quantize` with training, as a person uses it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sizewise.cli.main import app
from sizewise.errors import SizewiseError

TASK = """
from sizewise.testing import tiny_task
task = tiny_task(32)
"""


def quantize(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, ["quantize", *arguments])


@pytest.fixture(autouse=True)
def folder(brief: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "trained.py").write_text(TASK + "task.train = task.calibration\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_integers_are_trained_on_the_tasks_train_data() -> None:
    done = quantize("trained.py", "--out", "out", "--dtype", "int4", "--recover", "2epochs", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    candidate = json.loads(done.stdout)["candidates"][1]
    (step,) = candidate["plan"]["steps"]
    assert step["technique"] == "int8_static"
    assert step["settings"] == {"weight_bits": 4, "recovery": "2epochs"}
    assert any("distilled for" in note for note in candidate["changes"][0]["notes"])


@pytest.mark.slow
def test_a_latency_is_part_of_the_plan_and_what_it_left_float_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the layers of a file take nothing but half as much in integers."""
    from sizewise.pipeline.timer import RuntimeTimer

    def share(_: object) -> float:
        return 0.5

    monkeypatch.setattr(RuntimeTimer, "beside", lambda *_: share)
    done = quantize("task.py", "--out", "out", "--dtype", "mixed", "--latency", "90%", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    candidate = json.loads(done.stdout)["candidates"][1]
    (step,) = candidate["plan"]["steps"]
    assert step["settings"] == {"max_latency": 0.9}
    assert any("50.0 % of the float latency measured on onnxruntime" in note for note in candidate["changes"][0]["notes"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("task.py", "--recover", "2epochs"), "train=..."),
        (("trained.py", "--recover", "1epok"), "--recover"),
        (("trained.py", "--recover", "1epoch", "--scheme", "dynamic"), "only static quantization trains"),
        (("task.py", "--dtype", "mixed"), "one of them"),
        (("task.py", "--dtype", "mixed", "--latency", "60%", "--size", "1kB"), "one would undo the other"),
        (("task.py", "--dtype", "mixed", "--latency", "3 weeks"), "unknown unit 'weeks'"),
        (("task.py", "--dtype", "mixed", "--latency", "60%", "--max-drop", "1%"), "whatever else is limited"),
        (("task.py", "--latency", "60%"), "latency says"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_made(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    refused = quantize(*arguments, "--out", "out", "--quiet").exception
    assert isinstance(refused, SizewiseError)
    assert says in str(refused)
    assert not (folder / "out").exists()
