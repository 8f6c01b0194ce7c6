"""`sizewise select`, `profile` and `devices` as a person uses them: help, exit codes, messages, JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sizewise import registry
from sizewise.advice import AdviceRecord
from sizewise.cli.main import app
from sizewise.errors import SizewiseError
from sizewise.types import Device, ProfileRecord, from_json

COMMANDS = ("fit", "select", "profile", "devices", "demo")


def sizewise(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sizewise", *arguments]
    settings = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=settings)


def refused(*arguments: str) -> SizewiseError:
    """The error that a command ends with; `main` prints it and exits with its code, which test_cli.py shows."""
    done = CliRunner().invoke(app, list(arguments))
    assert isinstance(done.exception, SizewiseError), done.output
    assert done.stdout == ""
    return done.exception


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_imports_no_torch(command: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sizewise.cli.main import app\n"
        f"done = CliRunner().invoke(app, [{command!r}, '--help'])\n"
        "print(done.exit_code, '--debug' in done.output or 'Options' in done.output, *('torch' in sys.modules, 'plotly' in sys.modules))"
    )
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["0", "True", "False", "False"]


def test_the_help_lists_every_command(tmp_path: Path) -> None:
    done = sizewise("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert set(COMMANDS) <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("select",), ["name a task, a scenario, or both"]),
        (("select", "--scenario", "mobile-vison"), ["unknown scenario 'mobile-vison'", "did you mean 'mobile-vision'"]),
        (("select", "--scenario", "missing.toml"), ["missing.toml", "cannot be read"]),
        (("select", "--scenario", "mobile-vision", "--device", "raspbery_pi_4"), ["did you mean 'raspberry_pi_4'"]),
        (("select", "digits", "--runtime", "onxruntime"), ["did you mean 'onnxruntime'"]),
        (("select", "digits", "--tolerance", "1 furlong"), ["--tolerance", "furlong"]),
        (("select", "digits", "--time-limit", "soon"), ["--time-limit"]),
        (("select", "digits", "--latency", "5 mss"), ["did you mean 'ms'"]),
        (("profile",), ["either a task or models of the zoo"]),
        (("profile", "digits", "--zoo", "resnet18"), ["either a task or models of the zoo"]),
        (("profile", "--zoo", "resnet81"), ["unknown model 'resnet81'", "did you mean 'resnet"]),
        (("profile", "--zoo", "mobilenet_v2:widht=0.5"), ["widht", "did you mean 'width'"]),
        (("profile", "--zoo", "resnet18", "--device", "cortex_m77"), ["unknown device", "did you mean 'cortex_m7'"]),
        (("profile", "--zoo", "resnet18", "--device", "missing.toml"), ["missing.toml"]),
        (("profile", "--zoo", "resnet18", "--runtime", "onxruntime"), ["unknown runtime", "did you mean 'onnxruntime'"]),
        (("profile", "--zoo", "resnet18", "--batch", "0"), ["--batch", "at least one"]),
        (("profile", "digts"), ["unknown task 'digts'", "did you mean 'digits'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_answered_with_what_was_meant(
    arguments: tuple[str, ...], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(*arguments)
    assert error.exit_code == 2
    for words in says:
        assert words in str(error)
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("select", "--scenario", "mobile-vison"), "did you mean 'mobile-vision'"),
        (("profile", "--zoo", "resnet18", "--device", "locale"), "did you mean 'local'"),
        (("select", "digits", "--tolerence", "1 %"), "--tolerance"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = sizewise(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("what", [("digits",), ("--scenario", "keyword-spotting")])
def test_a_non_empty_folder_is_kept(what: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    error = refused("select", *what, "--out", str(tmp_path))
    assert error.exit_code == 2
    assert "--resume" in str(error.hint)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_devices_lists_every_device_by_name(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["devices"])
    assert done.exit_code == 0, done.output
    for name in registry.device_names():
        assert name in done.stdout


def test_devices_as_json_are_devices_with_their_sources() -> None:
    done = CliRunner().invoke(app, ["devices", "--json"])
    assert done.exit_code == 0, done.output
    found = from_json(list[Device], done.stdout)
    assert tuple(device.name for device in found) == registry.device_names()
    for device in found:
        if device.name != "local":
            assert device.rates is not None
            assert device.sources


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    done = CliRunner().invoke(app, ["profile", "--zoo", "resnet20_cifar", "--counts", "--json"])
    assert done.exit_code == 0, done.output
    from_json(ProfileRecord, done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_profile_as_json_has_totals_and_the_same_figures_per_layer(counted: dict[str, Any]) -> None:
    keys = {"params", "macs", "weight_bytes", "activation_bytes", "peak_bytes", "latency_s"}
    (model,) = counted["models"]
    assert keys <= set(model)
    assert model["layers"]
    for layer in model["layers"]:
        assert keys <= set(layer)
    for key in ("params", "macs", "activation_bytes"):
        assert sum(layer[key] for layer in model["layers"]) == model[key], key
    assert max(layer["peak_bytes"] for layer in model["layers"]) == model["peak_bytes"]


def test_a_profile_counts_what_is_published(counted: dict[str, Any]) -> None:
    (model,) = counted["models"]
    assert model["name"] == "resnet20_cifar"
    assert model["params"] == 269_722
    assert model["macs"] == pytest.approx(40.8e6, rel=0.01)
    assert model["latency_s"] is None, "counts alone"


def test_models_are_profiled_in_the_order_given_and_the_batch_multiplies_macs() -> None:
    one, eight = (
        CliRunner().invoke(app, ["profile", "--zoo", "gru_medium", "--zoo", "gru_small", "--counts", "--json", "--quiet", *more])
        for more in ([], ["--batch", "8"])
    )
    first, second = json.loads(one.stdout)["models"], json.loads(eight.stdout)["models"]
    assert [m["name"] for m in first] == ["gru_medium", "gru_small"]
    for a, b in zip(first, second, strict=True):
        assert (a["batch"], b["batch"]) == (1, 8)
        assert b["macs"] == 8 * a["macs"]
        assert b["params"] == a["params"]


def test_on_another_device_the_latency_is_predicted_and_the_text_says_so() -> None:
    arguments = ["profile", "--zoo", "gru_small", "--device", "raspberry_pi_4"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    (model,) = found["models"]
    assert found["device"]["name"] == "raspberry_pi_4"
    assert model["latency_s"]["how"] == "predicted"
    assert model["latency_s"]["low"] < model["latency_s"]["value"] < model["latency_s"]["high"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "predicted" in done.stdout
    assert "gru_small" in done.stdout


SCENARIO = """
title = "Tiny models"
domain = "speech"
device = "raspberry_pi_4"
latency = "1 s"
candidates = ["gru_small:hidden=8,size=10", "gru_small:hidden=16,size=10"]
"""


def test_a_survey_prints_its_record_and_writes_a_report(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SCENARIO)
    arguments = ["select", "--scenario", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    record = from_json(AdviceRecord, done.stdout)
    assert record == from_json(AdviceRecord, (tmp_path / "o" / "select.json").read_bytes())
    assert [s.status for s in record.scales] == ["costed", "costed"]
    again = CliRunner().invoke(app, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert again.stdout.rstrip().splitlines()[-1] == f"report: {tmp_path / 'o' / 'report.html'}"


TASK = """
import torch
from torch import nn
import sizewise
x = torch.randn(192, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
parts = [(x[i:i + 32], y[i:i + 32]) for i in range(0, 192, 32)]
task = sizewise.Task(
    {"s": sizewise.untrained(lambda: nn.Linear(4, 2), epochs=1), "m": sizewise.untrained(lambda: nn.Linear(4, 2), epochs=1)},
    x[:1], train=parts[:4], validation=parts[4:], name="halves",
)
"""


def test_select_on_a_task_prints_the_decision_and_where_the_report_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    arguments = ("select", "task.py", "--device", "raspberry_pi_4", "--out", "o", "--seeds", "2")
    done = sizewise(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = from_json(AdviceRecord, (tmp_path / "o" / "select.json").read_bytes())
    assert record.task == "halves"
    assert done.stdout.rstrip().splitlines()[-1] == "report: o/report.html"
    assert "128 examples" in done.stderr, "progress goes to stderr"
    again = CliRunner().invoke(app, [*arguments, "--resume", "--json", "--quiet"])
    assert again.exit_code == 0, again.output
    assert from_json(AdviceRecord, again.stdout).decision == record.decision
    assert again.stderr == ""
