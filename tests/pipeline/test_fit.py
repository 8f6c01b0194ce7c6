"""The main job on a tiny task with the null runtime: choice, verdict, bundle, resume, bad input."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.protocols import Inputs
from sizewise.search.storage import sqlite_url
from sizewise.testing import NullRuntime, TinyConv, tiny_task
from sizewise.types import RunRecord, from_json, to_json

WHOLE = sizewise.Budget(latency="10 s", size="1 MB", memory="1 GB", max_drop="30 %")


# Finished runs that tests read, or go on from in a copy.


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> sizewise.Result:
    return sizewise.fit(tiny_task(), WHOLE, NullRuntime(), out=tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def without_quality_limit(tmp_path_factory: pytest.TempPathFactory) -> sizewise.Result:
    return sizewise.fit(tiny_task(32), sizewise.Budget(size="1 MB"), NullRuntime(), out=tmp_path_factory.mktemp("free") / "out")


@pytest.fixture(scope="module")
def infeasible(tmp_path_factory: pytest.TempPathFactory) -> sizewise.BudgetInfeasible:
    budget = sizewise.Budget(size="10 B", max_drop="20 %")
    with pytest.raises(sizewise.BudgetInfeasible) as caught:
        sizewise.fit(tiny_task(32), budget, NullRuntime(), out=tmp_path_factory.mktemp("impossible") / "out")
    return caught.value


def test_everything_that_was_tried_is_accounted_for(result: sizewise.Result) -> None:
    record = result.record
    assert len({c.plan.id for c in record.candidates}) == len(record.candidates)
    for candidate in record.candidates:
        assert (candidate.measured is not None) == (candidate.status == "measured")
        assert candidate.status == "measured" or candidate.reason
    assert record.search is not None
    assert record.search.ended == "done"
    assert record.search.promising == 0
    tried = [c for c in record.candidates if c.seconds > 0]
    assert record.search.tried == len(tried) < record.search.plans
    assert {"large.float", "large.int8_static"} <= {c.id for c in tried}, "mild plans come first"


def test_the_choice_keeps_the_budget_and_is_the_cheapest_that_does(result: sizewise.Result) -> None:
    record = result.record
    assert record.feasible
    assert record.winner.measured is not None
    assert not record.budget.violations(record.winner.measured)
    files = [file for c in record.candidates if (file := c.measured or c.partly)]  # which others are read in full goes by their latencies
    assert record.winner.measured.size_bytes < max(file.size_bytes for file in files)
    assert all(c.on_frontier for c in result.frontier)


def test_the_choice_is_explained(result: sizewise.Result) -> None:
    record = result.record
    found, measured = record.explanation, record.winner.measured
    assert found is not None
    assert measured is not None
    assert [gain.before for gain in found.waterfall] == [None, *(gain.after for gain in found.waterfall[:-1])]
    assert found.waterfall[-1].after == record.chosen
    bytes_left = math.prod(gain.size_ratio for gain in found.waterfall)
    assert bytes_left == pytest.approx(measured.size_bytes / record.reference_weight_bytes)
    assert any(neighbour.candidate is None for neighbour in found.neighbours), "what was not tried is told as predicted"
    for neighbour in found.neighbours:
        assert neighbour.candidate is None or record.candidate(neighbour.candidate).plan == neighbour.plan


def test_the_reference_has_no_drop_against_itself(result: sizewise.Result) -> None:
    float_file = result.record.candidate("large.float")
    own = float_file.measured or float_file.partly
    assert own is not None
    assert own.quality.drop is not None
    assert own.quality.drop.value == 0
    assert own.quality.score.value == 1.0, "labels are what the large model says"


def test_the_bundle_is_whole(result: sizewise.Result) -> None:
    names = {"model.null", "weights.safetensors", "plan.json", "run.json", "report.html", "README.md", "SHA256SUMS"}
    assert names <= {p.name for p in result.path.iterdir()}
    record = from_json(RunRecord, (result.path / "run.json").read_bytes())
    assert record == result.record
    assert from_json(RunRecord, to_json(record)) == record
    assert len((result.path / "SHA256SUMS").read_text().splitlines()) == 6


def test_the_bundle_loads_back_without_data(result: sizewise.Result) -> None:
    task = tiny_task()
    module = sizewise.load(result.path, task)
    file = NullRuntime().load(result.path / "model.null", threads=1)
    x = Inputs((next(iter(task.validation))[0],))
    with torch.no_grad():
        assert torch.equal(x.call(module), file(x)[0])


def test_every_measured_candidate_loads_back(result: sizewise.Result) -> None:
    for candidate in result.record.candidates:
        if candidate.measured is not None:
            folder = result.path / "trials" / candidate.id
            module = sizewise.load(folder, tiny_task())
            x = Inputs((torch.randn(3, 1, 6, 6),))
            with torch.no_grad():
                assert torch.equal(x.call(module), NullRuntime().load(folder / "model.null", threads=1)(x)[0])


def test_a_damaged_bundle_is_refused(result: sizewise.Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(result.path, copy)
    (copy / "weights.safetensors").write_bytes((copy / "weights.safetensors").read_bytes()[:-7])
    with pytest.raises(sizewise.UsageError, match="checksum"):
        sizewise.load(copy, tiny_task())
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(sizewise.UsageError, match="damaged"):
        sizewise.load(copy, tiny_task())


def test_another_tasks_bundle_is_refused(result: sizewise.Result) -> None:
    task = tiny_task()
    task.models = {name: TinyConv(classes=7) for name in task.models}
    with pytest.raises(sizewise.UsageError, match="do not fit"):
        sizewise.load(result.path, task)


def test_quality_decides_when_no_quality_limit_is_given(without_quality_limit: sizewise.Result) -> None:
    found = without_quality_limit
    measured = [c.measured for c in found.record.candidates if c.measured]
    assert found.chosen.measured is not None
    assert found.chosen.measured.quality.score.value == max(m.quality.score.value for m in measured)


def test_an_impossible_budget_names_the_limit_the_nearest_and_what_would_help(infeasible: sizewise.BudgetInfeasible) -> None:
    record, out = infeasible.result.record, infeasible.result.path
    assert re.search(r"size: .* allowed 10 B", str(infeasible))
    assert infeasible.exit_code == 5
    assert not record.feasible
    by_limit = {r.limit: r for r in record.relaxations}
    assert by_limit["size"].candidate is not None
    assert by_limit["size"].needed == record.candidate(by_limit["size"].candidate).measured.size_bytes
    assert by_limit["max_drop"].needed is None, "more drop alone does not reach 10 bytes"
    assert (out / "SHA256SUMS").exists()
    assert "outside" in (out / "README.md").read_text().lower()
    assert "outside" in (out / "report.html").read_text().lower()


def test_a_hopeless_scale_is_stopped_and_says_why(tmp_path: Path) -> None:
    task = tiny_task()
    found = sizewise.fit(task, sizewise.Budget(max_drop="1 %"), NullRuntime(), out=tmp_path / "out")
    small = found.record.candidate("small.int8_static")
    assert small.status == "stopped"
    assert "drop on validation is at least" in str(small.reason)


class Stop(Exception):
    """Stands for SIGKILL."""


class StopAfter:
    """A progress display that stops the run after some units."""

    def __init__(self, units: int) -> None:
        self.left, self.lines = units, list[str]()

    def start(self, total: int, work: float | None = None) -> None: ...

    def working(self, what: str) -> None: ...

    def note(self, line: str) -> None: ...

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        self.lines.append(line)
        self.left -= 1
        if self.left == 0:
            raise Stop


def _finished(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("trials/*/candidate.json")}


@pytest.mark.parametrize("units", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_and_repeats_nothing(units: int, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    with pytest.raises(Stop):
        sizewise.fit(tiny_task(), WHOLE, NullRuntime(), out=out, progress=StopAfter(units))
    finished = _finished(out)
    with pytest.raises(sizewise.UsageError, match="not empty"):
        sizewise.fit(tiny_task(), WHOLE, NullRuntime(), out=out)
    (out / "trials" / ".part-1234-left-over").write_bytes(b"half")
    resumed = sizewise.fit(tiny_task(), WHOLE, NullRuntime(), out=out, resume=True)
    assert finished.items() <= _finished(out).items(), "finished candidates are not repeated"
    assert set(finished) <= {c.id for c in resumed.record.candidates}
    assert resumed.record.feasible
    assert not list(out.rglob(".part-*"))
    trials = _trials(out)
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    assert {trial.user_attrs.get("candidate") for trial in trials} >= {c.id for c in resumed.record.candidates if c.seconds > 0}


def _trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = sqlite_url(out / "study.db")
    return [trial for name in optuna.get_all_study_names(storage) for trial in optuna.load_study(study_name=name, storage=storage).trials]


def test_resume_under_another_cost_limit_repeats_nothing(infeasible: sizewise.BudgetInfeasible, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(infeasible.result.path, out)
    before = _finished(out)
    budget, searched = sizewise.Budget(size="1 MB", max_drop="20 %"), infeasible.result.record.search
    found = sizewise.fit(tiny_task(32), budget, NullRuntime(), out=out, resume=True, trials=searched.tried)
    assert found.record.feasible
    assert {c.id for c in found.record.candidates} >= set(before)
    # what was stopped early may be scored on the rest of the examples, but no plan is carried out again
    plans = [{p.parent.name: p.stat().st_mtime_ns for p in folder.glob("trials/*/plan.json")} for folder in (infeasible.result.path, out)]
    assert plans[0].keys() == plans[1].keys()
    assert not list(out.rglob(".part-*"))


def test_as_many_plans_are_tried_as_asked_for_and_more_when_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=out, trials=2)
    assert first.record.search is not None
    assert (first.record.search.tried, first.record.search.ended) == (2, "trials")
    assert first.record.search.promising > 0
    same = sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=out, trials=2, resume=True)
    assert [c.id for c in same.record.candidates] == [c.id for c in first.record.candidates]
    more = sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=out, trials=3, resume=True)
    assert more.record.search is not None
    assert more.record.search.tried == 3


def test_it_stops_at_the_target_where_that_is_all_that_is_wanted(tmp_path: Path) -> None:
    found = sizewise.fit(tiny_task(96), WHOLE, NullRuntime(), out=tmp_path / "out", stop_at_target=True)
    assert found.record.search is not None
    assert (found.record.search.ended, found.record.search.tried) == ("target", 1)
    assert found.record.feasible


@pytest.mark.slow
def test_two_runs_share_a_study(tmp_path: Path) -> None:
    storage = sqlite_url(tmp_path / "shared.db")
    first = sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=tmp_path / "a", storage=storage, trials=3)
    second = sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=tmp_path / "b", storage=storage, trials=4)
    done = [{c.id for c in found.record.candidates if c.seconds > 0} for found in (first, second)]
    assert (tmp_path / "shared.db").exists()
    assert not (tmp_path / "a" / "study.db").exists()
    assert len((done[0] & done[1]) - {"large.float", "large.int8_static"}) <= 1, "but for mild plans, and the best of the other"


@pytest.mark.parametrize(("options", "message"), [({"trials": 0}, "at least one plan"), ({"storage": "nonsense"}, "cannot be kept there")])
def test_options_of_the_search_that_cannot_be_meant(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(sizewise.UsageError, match=message):
        sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=tmp_path / "out", **options)


def test_resume_of_another_run_is_refused(without_quality_limit: sizewise.Result, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(without_quality_limit.path, out)
    with pytest.raises(sizewise.UsageError, match="another run"):
        sizewise.fit(tiny_task(32, seed=1), sizewise.Budget(size="1 MB"), NullRuntime(), out=out, resume=True)


def test_a_time_limit_leaves_the_rest_untried_and_resume_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sizewise.search.levers.PRUNING_RATES", ())
    out = tmp_path / "out"
    short = sizewise.fit(tiny_task(32), sizewise.Budget(size="1 MB"), NullRuntime(), out=out, time_limit="0 s")
    untried = [c for c in short.record.candidates if c.status == "untried"]
    assert untried
    assert any("time limit" in warning for warning in short.record.warnings)
    rest = sizewise.fit(tiny_task(32), sizewise.Budget(size="1 MB"), NullRuntime(), out=out, resume=True)
    assert not [c for c in rest.record.candidates if c.status == "untried"]


def test_no_trial_is_begun_that_will_not_be_done_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sizewise.pipeline.searching.expected_seconds", lambda done, plan: 7200.0 if len(plan.steps) > 1 else 1.0)
    found = sizewise.fit(tiny_task(32), sizewise.Budget(max_drop="90 %"), NullRuntime(), out=tmp_path / "out", time_limit="1 h")
    tried = [c.plan for c in found.record.candidates if c.status not in ("untried", "stopped")]
    assert max(len(plan.steps) for plan in tried) == 1
    untried = [c for c in found.record.candidates if c.status == "untried"]
    assert any(len(c.plan.steps) > 1 for c in untried)
    assert found.record.search is not None
    assert found.record.search.ended == "time"


def test_untrained_candidates_are_trained_the_same_way_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sizewise.search.levers.PRUNING_RATES", ())  # what is done to a trained model is the same for all
    base = tiny_task(64)
    train = list(base.calibration or [])

    def task() -> sizewise.Task:
        models = {"a": sizewise.untrained(lambda: TinyConv(width=8), epochs=3)}
        return sizewise.Task(models, base.example, train=train, validation=base.validation)

    first = sizewise.fit(task(), sizewise.Budget(), NullRuntime(), out=tmp_path / "1")
    second = sizewise.fit(task(), sizewise.Budget(), NullRuntime(), out=tmp_path / "2")
    assert first.record.scales[0].quality == second.record.scales[0].quality
    assert first.record.scales[0].trained == "trained here for 3 epochs"
    qualities = [{c.id: c.measured.quality for c in found.record.candidates if c.measured} for found in (first, second)]
    both = qualities[0].keys() & qualities[1].keys()
    assert len(both) >= 2
    assert all(qualities[0][name] == qualities[1][name] for name in both)


def test_without_labels_the_reference_models_outputs_are_the_measure(tmp_path: Path) -> None:
    base = tiny_task(32)
    unlabelled = [x for x, _ in base.validation]
    task = sizewise.Task(base.models, base.example, calibration=unlabelled, validation=unlabelled, test=unlabelled, metric="cosine")
    found = sizewise.fit(task, sizewise.Budget(max_drop="50 %"), NullRuntime(), out=tmp_path / "out")
    assert found.record.reference == "large"
    assert found.record.candidate("large.float").measured is not None
    scores = {s.name: s.quality.score.value for s in found.record.scales}
    assert scores["large"] == pytest.approx(1.0)
    assert scores["small"] < 1.0


class Nan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * self.weight * float("nan")


class Untraceable(TinyConv):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:  # data-dependent control flow
            return super().forward(-x)
        return super().forward(x)


def _task(**changes: Any) -> sizewise.Task:
    base = tiny_task(32)
    arguments: dict[str, Any] = {
        "models": base.models, "example_inputs": base.example, "calibration": base.calibration, "validation": base.validation,
    }  # fmt: skip
    return sizewise.Task(**{**arguments, **changes})


def _once() -> Iterator[Any]:
    yield torch.randn(2, 1, 6, 6), torch.zeros(2, dtype=torch.long)


def _fit(task: sizewise.Task, out: Path) -> sizewise.Result:
    return sizewise.fit(task, sizewise.Budget(size="1 MB"), NullRuntime(), out=out)


def test_nan_outputs_name_the_model(tmp_path: Path) -> None:
    with pytest.raises(sizewise.PreconditionError, match=r"models\['bad'\].*not finite"):
        _fit(_task(models={"bad": Nan()}), tmp_path / "out")


def test_labels_outside_the_classes_say_which(tmp_path: Path) -> None:
    wrong = [(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 9, 3]))]
    with pytest.raises(sizewise.UsageError, match="labels outside the classes") as caught:
        _fit(_task(validation=wrong), tmp_path / "out")
    assert "0 to 9" in str(caught.value)
    assert "0 to 3" in str(caught.value)


def test_a_shuffled_validation_loader_is_noticed(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(64, 1, 6, 6), torch.randint(0, 4, (64,)))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    with pytest.raises(sizewise.UsageError, match="no shuffling"):
        _fit(_task(validation=loader), tmp_path / "out")


@pytest.mark.parametrize(("loader", "message"), [([], "no batch"), (_once(), "only once")])
def test_loaders_that_cannot_be_used(loader: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(sizewise.UsageError, match=message):
        _fit(_task(validation=loader), tmp_path / "out")


def test_an_untrained_model_without_train_data(tmp_path: Path) -> None:
    task = _task(models={"fresh": sizewise.untrained(TinyConv)}, calibration=None)
    with pytest.raises(sizewise.PreconditionError, match="no train loader"):
        _fit(task, tmp_path / "out")


def test_a_model_that_torch_cannot_export_is_a_failed_candidate_beside_others(tmp_path: Path) -> None:
    torch.manual_seed(0)  # with other weights the good model may be so much worse than the bad one that it is rightly left alone
    task = _task(models={"good": TinyConv(), "bad": Untraceable()}, reference="bad")
    found = sizewise.fit(task, sizewise.Budget(max_drop="90 %"), NullRuntime(), out=tmp_path / "out")
    failed = next(c for c in found.record.candidates if c.plan.scale == "bad" and len(c.plan.steps) == 1)
    assert failed.status == "failed"
    assert "cannot export" in str(failed.reason)
    assert found.record.candidate("good.int8_static").status == "measured"
    assert sum(c.plan.scale == "bad" for c in found.record.candidates) <= 6, "what fails with all is not tried at every rate"


def test_the_given_models_are_not_changed(tmp_path: Path) -> None:
    model = TinyConv().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _fit(_task(models={"mine": model}), tmp_path / "out")
    assert model.training, "the caller's module keeps its mode"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_out_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(sizewise.UsageError, match="is a file"):
        _fit(_task(), path)
    assert path.read_text() == "mine"


def test_the_record_is_plain_json(result: sizewise.Result) -> None:
    plain = json.loads((result.path / "run.json").read_text())
    assert plain["data"]["validation"]["examples"] == 96
    assert set(plain["versions"]) >= {"sizewise", "torch", "python"}


def test_what_is_pruned_is_recovered_before_it_is_quantized(tmp_path: Path) -> None:
    task = tiny_task(32)
    task.train = [batch for batch, _ in task.calibration or ()]  # targets are not needed
    found = sizewise.fit(task, sizewise.Budget(max_drop="50 %"), NullRuntime(), out=tmp_path / "out", recover="2epochs", trials=5)
    pruned = [c for c in found.record.candidates if c.plan.steps and c.plan.steps[0].technique == "channel_pruning"]
    assert pruned
    for candidate in pruned:
        assert candidate.plan.steps[1].technique == "recovery"
        assert any("distilled for 2 steps" in note for note in candidate.changes[1].notes), candidate.reason
        if candidate.measured is not None:
            module = sizewise.load(found.path / "trials" / candidate.id, task)
            with torch.no_grad():
                assert bool(torch.isfinite(task.example.call(module)).all())


def test_recovery_without_train_data_says_what_to_give_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(sizewise.PreconditionError, match="no train data") as caught:
        sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=tmp_path / "out", recover="1epoch")
    assert "train=..." in str(caught.value)
    with pytest.raises(sizewise.UsageError, match="not a length"):
        sizewise.fit(tiny_task(32), WHOLE, NullRuntime(), out=tmp_path / "out", recover="long")
    assert not (tmp_path / "out").exists()
