"""A plan carried out again gives the same bits, without timing anything; or an error that says what differs."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sizewise
from sizewise.data.static_int8 import respared
from sizewise.errors import ParityError, UnknownName, UsageError
from sizewise.graph.factorize import Factoring
from sizewise.pipeline.bundle import read_plan
from sizewise.pipeline.one_plan import run_plan
from sizewise.pipeline.replay import replay
from sizewise.profile.latency_target import Choice
from sizewise.protocols import Context, Inputs
from sizewise.techniques import channel_pruning
from sizewise.techniques.int8_static import Int8Static
from sizewise.techniques.low_rank import LowRank
from sizewise.testing import NullRuntime, TinyConv, tiny_task
from sizewise.types import Artefact, Step, to_json

CUT = Step(technique="channel_pruning", settings={"rate": 0.5})
INT8 = Step(technique="int8_static")


class Hashing(NullRuntime):
    """The null runtime, whose file is told by the weights in it."""

    def lower(self, model: nn.Module, example: Inputs, path: Path, *, named: bool = False) -> Artefact:
        made = super().lower(model, example, path, named=named)
        content = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            content.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        return replace(made, sha256=content.hexdigest())


def made(out: Path, *steps: Step, task: sizewise.Task | None = None) -> Path:
    return run_plan(task or tiny_task(32), steps, runtime=Hashing(), out=out).path


def again(bundle: Path, out: Path, task: sizewise.Task | None = None) -> str:
    return replay(bundle, task or tiny_task(32), out, runtime=Hashing()).artefact.sha256


def test_the_same_file_comes_out_bit_for_bit(tmp_path: Path) -> None:
    task = tiny_task(32)
    task.train = [batch for batch, _ in task.calibration or ()]
    bundle = made(tmp_path / "bundle", CUT, Step(technique="recovery", settings={"epochs": 1}), INT8, task=task)
    saved = read_plan(bundle / "plan.json")
    assert saved.made is not None
    assert again(bundle, tmp_path / "replay", task) == saved.made.sha256
    assert (tmp_path / "replay" / "weights.safetensors").exists()
    assert again(bundle / "plan.json", tmp_path / "by_file", task) == saved.made.sha256


@pytest.mark.slow
def test_every_candidate_of_a_search_replays_the_same(tmp_path: Path) -> None:
    found = sizewise.fit(tiny_task(32), sizewise.Budget(max_drop="60 %"), Hashing(), out=tmp_path / "out", trials=5)
    plans = sorted((found.path / "trials").glob("*/plan.json"))
    assert len(plans) >= 3
    for number, plan in enumerate(plans):
        saved = read_plan(plan)
        assert saved.made is not None
        assert again(plan, tmp_path / f"replay{number}") == saved.made.sha256


def _forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("a replay times nothing")


def _channels(monkeypatch: pytest.MonkeyPatch) -> tuple[Step, Callable[[], None]]:
    def counts(model: nn.Module, groups: Any, losses: Any, levels: Any, *_: Any, **__: Any) -> Choice:
        return Choice([own[len(own) // 2] for own in levels], 0.4)

    monkeypatch.setattr(channel_pruning, "counts_for_latency", counts)
    step = Step(technique="channel_pruning", settings={"rate": 0.4, "target": "latency"})
    return step, lambda: monkeypatch.setattr(channel_pruning, "counts_for_latency", _forbidden)


def _floats(monkeypatch: pytest.MonkeyPatch) -> tuple[Step, Callable[[], None]]:
    class Layers:
        def __init__(self, calibration: Any) -> None:
            self.calibration = calibration

        def spend(self, best: Any) -> tuple[Any, str]:
            return respared(self.calibration, best, ["inner.0"]), "one layer in float"

    monkeypatch.setattr(Int8Static, "_float_layers", lambda _, calibration, *__: Layers(calibration))
    step = Step(technique="int8_static", settings={"max_seconds": 1.0})
    return step, lambda: monkeypatch.setattr(Int8Static, "_float_layers", _forbidden)


def _ranks(monkeypatch: pytest.MonkeyPatch) -> tuple[Step, Callable[[], None]]:
    def plan(*_: Any, **__: Any) -> tuple[dict[str, Factoring], float, tuple[()]]:
        return {"inner.0": Factoring("spatial", (4,))}, 0.2, ()

    monkeypatch.setattr(LowRank, "_plan", plan)
    step = Step(technique="low_rank", settings={"rate": 0.2, "target": "latency"})
    return step, lambda: monkeypatch.setattr(LowRank, "_plan", _forbidden)


@pytest.mark.parametrize("how", [_channels, _floats, _ranks])
def test_choices_that_rest_on_times_are_taken_from_the_record(how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, forbid = how(monkeypatch)
    bundle = made(tmp_path / "bundle", step)
    saved = read_plan(bundle / "plan.json")
    assert saved.made is not None
    forbid()
    assert again(bundle, tmp_path / "replay") == saved.made.sha256


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("made") / "bundle", CUT)


def test_other_data_give_another_file_and_are_named(bundle: Path, tmp_path: Path) -> None:
    task = tiny_task(32)
    task.calibration = [(x + 1, y) for x, y in task.calibration or ()]
    with pytest.raises(ParityError, match="not the recorded one") as caught:
        again(bundle, tmp_path / "replay", task)
    assert "other calibration data" in str(caught.value)


def test_other_versions_and_threads_are_named(bundle: Path, tmp_path: Path) -> None:
    saved = read_plan(bundle / "plan.json")
    assert saved.made is not None
    old = replace(saved, made=replace(saved.made, sha256="0" * 64, versions={**saved.made.versions, "torch": "1.0"}, machine="z80"))
    (tmp_path / "plan.json").write_bytes(to_json(old))
    with pytest.raises(ParityError) as caught:
        again(tmp_path / "plan.json", tmp_path / "replay")
    assert f"torch is {torch.__version__}, was 1.0" in str(caught.value)
    assert "was z80" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_plan_that_cannot_be_replayed_says_why(bundle: Path, tmp_path: Path) -> None:
    plain = json.loads((bundle / "plan.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({**plain, "made": None}))
    with pytest.raises(UsageError, match="does not say which file"):
        again(tmp_path / "old.json", tmp_path / "a")
    with pytest.raises(UsageError, match=r"no plan\.json"):
        again(tmp_path, tmp_path / "b")
    task = tiny_task(32)
    other = sizewise.Task({"other": TinyConv()}, task.example, calibration=task.calibration, validation=task.validation)
    with pytest.raises(UnknownName, match="large"):
        again(bundle, tmp_path / "c", other)
    with pytest.raises(UsageError, match="not empty"):
        again(bundle, tmp_path)


def test_a_recorded_choice_is_made_again_whatever_the_data_say(bundle: Path) -> None:
    """What is cut comes from the record; the fit of what is left from the data."""
    saved, task = read_plan(bundle / "plan.json"), tiny_task(32)
    (step,) = saved.plan.steps
    inputs = [Inputs((x + 3,)) for x, _ in task.calibration or ()]
    technique = channel_pruning.ChannelPruning(**step.settings)
    context = Context(task.example, inputs, channel_multiple=4, chosen=step.record)
    _, change = technique.apply(task.build("large", 0), context)
    assert step.record is not None
    assert change.record["kept"] == step.record["kept"]
