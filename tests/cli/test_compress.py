"""`sizewise compress` as a person uses it."""

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


def compress(*arguments: str) -> Result:
    """In this process, where torch and its exporters are loaded already."""
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, ["compress", *arguments])


@pytest.fixture(autouse=True)
def _inside(brief: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)


def test_the_bundle_holds_the_small_file_and_the_figures_say_so() -> None:
    found = compress("task.py", "--rate", "60%", "--method", "sharing", "--out", "run", "--quiet")
    assert found.exit_code == 0, found.output
    assert "weights.swz" in found.output
    record = json.loads((Path("run") / "run.json").read_bytes())
    (chosen,) = (c for c in record["candidates"] if c["id"] == record["chosen"])
    assert chosen["stored"]["size_bytes"] == (Path("run") / "weights.swz").stat().st_size
    assert chosen["stored"]["size_bytes"] <= 0.6 * chosen["stored"]["whole_bytes"]


@pytest.mark.slow
def test_at_rate_1_values_stay_as_they_are() -> None:
    found = compress("task.py", "--rate", "1", "--out", "run", "--quiet")
    assert found.exit_code == 0, found.output
    record = json.loads((Path("run") / "run.json").read_bytes())
    (chosen,) = (c for c in record["candidates"] if c["id"] == record["chosen"])
    assert chosen["stored"]["size_bytes"] <= chosen["stored"]["whole_bytes"]
    assert "entropy coding" in found.output
    assert "entropy coding" in (Path("run") / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rate", "much"), "not a share"),
        (("--rate", "2"), "rate must be more than 0"),
        (("--method", "shraing"), "sharing"),
        (("--recover", "long"), "--recover"),
        (("--runtime", "onxruntime"), "onnxruntime"),
    ],
)
def test_bad_input_is_told(arguments: tuple[str, str], says: str) -> None:
    found = compress("task.py", *arguments, "--out", "run", "--quiet")
    assert isinstance(found.exception, SizewiseError)
    assert found.exception.exit_code == 2
    assert says in str(found.exception)
