"""`run_plan` on a tiny task: what is measured, chosen, bundled, gone on with, and refused."""

from pathlib import Path

import pytest
import torch

import sizewise
from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.pipeline import one_plan
from sizewise.pipeline.one_plan import run_plan
from sizewise.pipeline.prune import pruning_step
from sizewise.protocols import Inputs
from sizewise.report.terminal import summary
from sizewise.testing import NullRuntime, TinyConv, tiny_task
from sizewise.types import Step


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> sizewise.Result:
    return run_plan(tiny_task(), [pruning_step(0.5)], runtime=NullRuntime(), out=tmp_path_factory.mktemp("run") / "out")


def test_the_reference_is_pruned_and_measured_beside_the_whole(result: sizewise.Result) -> None:
    record = result.record
    assert [(c.plan.scale, c.plan.label, c.status) for c in record.candidates] == [
        ("large", "float", "measured"),
        ("large", "channel_pruning(rate=0.5)", "measured"),
    ]
    assert [s.name for s in record.scales] == ["large"]
    assert record.reference == "large"
    assert not record.searched
    assert record.file_speedup is not None
    assert all(c.measured is not None and c.measured.memory.n == 7 for c in record.candidates), "both as closely"


def test_the_plan_is_bundled_though_the_whole_is_better_and_judged_on_the_test_split(result: sizewise.Result) -> None:
    assert result.chosen.plan.steps
    test = result.record.verdict.test_quality
    assert test is not None
    assert test.drop is not None
    assert test.drop.low <= test.drop.value <= test.drop.high
    module = sizewise.load(result.path, tiny_task())
    x = Inputs((torch.randn(3, 1, 6, 6),))
    with torch.no_grad():
        assert torch.equal(x.call(module), NullRuntime().load(result.path / "model.null", threads=1)(x)[0])


def test_nothing_reads_as_if_there_had_been_a_search(result: sizewise.Result) -> None:
    told = summary(result.record) + (result.path / "README.md").read_text() + (result.path / "report.html").read_text()
    for words in ("which the search", "that was tried", "picked this file", "verdict: proved", "Verdict: proved"):
        assert words not in told
    assert "of the MACs removed" in summary(result.record)


def test_another_scale_is_its_own_reference(tmp_path: Path) -> None:
    found = run_plan(tiny_task(32), [pruning_step(0.3)], scale="small", runtime=NullRuntime(), out=tmp_path / "out")
    assert found.record.reference == "small"
    assert found.record.candidate("small.float").measured is not None
    whole = found.record.candidate("small.float").measured
    assert whole is not None
    assert whole.quality.drop is not None
    assert whole.quality.drop.value == 0


def test_a_scale_with_smaller_inputs_and_its_bundle(tmp_path: Path) -> None:
    base = tiny_task(32)

    def task() -> sizewise.Task:
        return sizewise.Task(base.models, base.example, calibration=base.calibration, validation=base.validation, resize=(4,))

    found = run_plan(task(), [pruning_step(0.4)], scale="large@4", runtime=NullRuntime(), out=tmp_path / "out")
    x = Inputs((torch.randn(2, 1, 6, 6),))
    with torch.no_grad():
        assert torch.equal(x.call(sizewise.load(found.path, task())), NullRuntime().load(found.path / "model.null", threads=1)(x)[0])


def test_only_the_scale_that_is_asked_for_is_trained(tmp_path: Path) -> None:
    base = tiny_task(32)
    built: list[str] = []

    def make(name: str) -> TinyConv:
        built.append(name)
        return TinyConv(width=8)

    models = {name: sizewise.untrained(lambda name=name: make(name), epochs=2) for name in ("a", "b")}  # type: ignore[misc]
    task = sizewise.Task(models, base.example, train=base.calibration, validation=base.validation)
    found = run_plan(task, [pruning_step(0.3)], scale="b", runtime=NullRuntime(), out=tmp_path / "out")
    assert set(built) == {"b"}
    assert found.record.scales[0].trained == "trained here for 2 epochs"


def test_resume_repeats_nothing_and_takes_another_rate(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run_plan(tiny_task(32), [pruning_step(0.3)], runtime=NullRuntime(), out=out)
    finished = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/candidate.json")}
    with pytest.raises(UsageError, match="not empty"):
        run_plan(tiny_task(32), [pruning_step(0.3)], runtime=NullRuntime(), out=out)
    again = run_plan(tiny_task(32), [pruning_step(0.3)], runtime=NullRuntime(), out=out, resume=True)
    assert again.chosen.changes == first.chosen.changes
    assert {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/candidate.json")} == finished
    other = run_plan(tiny_task(32), [pruning_step(0.5)], runtime=NullRuntime(), out=out, resume=True)
    assert other.chosen.plan.label == "channel_pruning(rate=0.5)"
    assert {p.parent.name for p in out.glob("trials/*/candidate.json")} > set(finished)


def test_several_steps_are_one_plan(tmp_path: Path) -> None:
    steps = [pruning_step(0.3), Step(technique="int8_static")]
    found = run_plan(tiny_task(32), steps, runtime=NullRuntime(), out=tmp_path / "out")
    assert [step.technique for step in found.chosen.plan.steps] == ["channel_pruning", "int8_static"]
    assert len(found.chosen.changes) == 2


def test_a_step_that_fails_is_an_error_and_can_be_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PreconditionError, match="cannot be removed"):
        run_plan(tiny_task(32), [pruning_step(0.999)], runtime=NullRuntime(), out=out)
    assert run_plan(tiny_task(32), [pruning_step(0.3)], runtime=NullRuntime(), out=out, resume=True).chosen.measured is not None


@pytest.mark.parametrize(
    ("steps", "what"), [([], "at least one step"), ([Step(technique="channel_pruning", settings={"rate": 2})], "rate")]
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(steps: list[Step], what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        run_plan(tiny_task(32), steps, runtime=NullRuntime(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_which_scale(tmp_path: Path) -> None:
    task = tiny_task(32)
    with pytest.raises(UnknownName, match="unknown scale 'larg'"):
        one_plan.pick_scale(task, "larg")
    task.reference = None
    with pytest.raises(UsageError, match="names no reference"):
        one_plan.pick_scale(task, None)
    del task.models["small"]
    assert one_plan.pick_scale(task, None) == "large"
