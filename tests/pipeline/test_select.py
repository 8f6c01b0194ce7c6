"""`select` on tiny networks with the null runtime: the record, the choice, resuming, limits and bad input."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.advice import AdviceRecord, Scenario
from sizewise.errors import PreconditionError, SizewiseError, UsageError
from sizewise.pipeline import points as points_module
from sizewise.pipeline.select import select_scale
from sizewise.pipeline.survey import survey
from sizewise.pipeline.train import train_module
from sizewise.pipeline.workers import run_jobs
from sizewise.tasks.task import Task, Untrained
from sizewise.testing import NullRuntime
from sizewise.types import Budget, Device, Rates, from_json, to_json

CLASSES, FEATURES = 4, 8


@pytest.fixture(autouse=True)
def _rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """No micro-benchmark: a predicted device with figures made up, so that cost depends on the models alone."""
    device = Device(name="made-up", title="made up", how="predicted", threads=1, rates=rates())
    for module in ("select", "survey", "profile"):
        monkeypatch.setattr(f"sizewise.pipeline.{module}.calibrated", lambda *_, **__: device)


def rates() -> Rates:
    return Rates(
        peak_macs_per_s={"float32": 1e9},
        efficiency={"conv": 0.5, "conv1d": 0.5, "pointwise": 0.5, "depthwise": 0.5, "matmul": 0.5, "recurrent": 0.5},
        bandwidth_bytes_per_s=1e9,
        cache_bytes=1e6,
        cache_bandwidth_bytes_per_s=1e10,
        operator_overhead_s=1e-6,
        step_overhead_s=1e-6,
        error_factor=2.0,
    )


def mlp(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))


class Constant(nn.Module):
    """Learns nothing but how often each class occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.only(0 * x)
        return logits


def data(count: int, seed: int, noise: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    """Batches of points whose class is the quadrant of their first two features."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    wrong = torch.rand(count, generator=generator) < noise
    y = torch.where(wrong, torch.randint(0, CLASSES, (count,), generator=generator), y)
    return [(x[i : i + 32], y[i : i + 32]) for i in range(0, count, 32)]


def toy(train: int | None = 256, validation: int = 192, **changes: Any) -> Task:
    models = {"small": sizewise.untrained(mlp(8), epochs=4, lr=2e-2), "large": sizewise.untrained(mlp(64), epochs=4, lr=2e-2)}
    arguments: dict[str, Any] = {
        "models": models,
        "example_inputs": torch.zeros(1, FEATURES),
        "train": data(train, 0) if train is not None else None,
        "validation": data(validation, 1),
        "name": "toy",
    }
    return Task(**{**arguments, **changes})


def toy_with(train: list[tuple[Tensor, Tensor]]) -> Task:
    task = toy(128)
    task.train = task.calibration = train
    return task


def run(task: Task, out: Path, budget: Budget | None = None, **options: Any) -> AdviceRecord:
    return select_scale(task, budget, NullRuntime(), out=out, **{"seeds": 2, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdviceRecord, Path]:
    with pytest.MonkeyPatch.context() as patch:
        _rates.__wrapped__(patch)  # type: ignore[attr-defined]
        out = tmp_path_factory.mktemp("select") / "out"
        return run(toy(), out, tolerance="5 %"), out


def without_times(record: AdviceRecord) -> AdviceRecord:
    scales = tuple(replace(s, points=tuple(replace(p, seconds=0.0) for p in s.points)) for s in record.scales)
    return replace(record, created="", seconds=0.0, scales=scales)


def test_the_record_comes_back_from_its_file(finished: tuple[AdviceRecord, Path]) -> None:
    record, out = finished
    assert from_json(AdviceRecord, (out / "select.json").read_bytes()) == record
    assert from_json(AdviceRecord, to_json(record)) == record
    report = (out / "report.html").read_text()
    assert "small" in report
    assert "large" in report


def test_every_scale_has_every_size_under_every_seed(finished: tuple[AdviceRecord, Path]) -> None:
    record, _ = finished
    assert record.sizes == (32, 64, 128, 256)
    for scale in record.scales:
        assert scale.status == "complete"
        for size in record.sizes:
            seeds = [p.seed for p in scale.points if p.examples == size]
            assert seeds[: record.seeds] == [0, 1]
            assert len(seeds) == len(set(seeds)), "nothing counts twice"
        assert scale.curve is not None
        assert scale.curve.sizes == 4
        assert scale.diagnosis is not None
        assert scale.evidence is not None


def test_smaller_subsets_are_trained_for_more_epochs(finished: tuple[AdviceRecord, Path]) -> None:
    record, _ = finished
    epochs = {p.examples: p.epochs for p in record.scale("large").points}
    assert epochs[256] == 4
    assert epochs[32] > epochs[128] > epochs[256]


def test_scales_come_cheapest_first_and_the_best_is_not_behind_itself(finished: tuple[AdviceRecord, Path]) -> None:
    record, _ = finished
    assert [s.name for s in record.scales] == ["small", "large"]
    assert record.best is not None
    own = record.scale(record.best).behind
    assert own is not None
    assert (own.value, own.low, own.high) == (0, 0, 0)


def test_figures_agree_with_the_points(finished: tuple[AdviceRecord, Path]) -> None:
    record, _ = finished
    for scale in record.scales:
        at_full = [p for p in scale.points if p.examples == 256]
        mean = sum(p.validation for p in at_full) / len(at_full)
        train = sum(p.train for p in at_full if p.train is not None) / len(at_full)
        assert scale.validation is not None
        assert scale.train is not None
        assert scale.gap is not None
        assert scale.validation.value == pytest.approx(mean)
        assert scale.train.value == pytest.approx(train)
        assert scale.gap.value == pytest.approx(train - mean)
        assert scale.validation.low <= mean <= scale.validation.high


def test_the_decision_names_what_it_recommends_or_what_would_decide(finished: tuple[AdviceRecord, Path]) -> None:
    record, _ = finished
    if record.recommended is not None:
        assert record.decision.startswith(record.recommended)
    else:
        assert record.undecided
        assert "undecided" in record.decision


def test_the_same_seed_gives_the_same_record(finished: tuple[AdviceRecord, Path], tmp_path: Path) -> None:
    record, _ = finished
    torch.manual_seed(12345)
    torch.rand(17)
    assert without_times(run(toy(), tmp_path / "out", tolerance="5 %")) == without_times(record)


def test_the_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(toy(128), tmp_path / "out", seeds=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_given_modules_are_not_changed(tmp_path: Path) -> None:
    model = mlp(8)().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(toy(128, models={"a": model}), tmp_path / "out", seeds=2)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Trainings as they happen: where, and under which seed."""
    seen: list[tuple[str, int]] = []
    plain = train_module

    def counted(model: nn.Module, loader: Any, recipe: Untrained, seed: int, where: str, *rest: Any) -> nn.Module:
        seen.append((where, seed))
        return plain(model, loader, recipe, seed, where, *rest)

    monkeypatch.setattr(points_module, "train_module", counted)
    monkeypatch.setattr("sizewise.pipeline.climb.usable_threads", lambda: 1)  # in this process, where they can be counted
    return seen


def test_a_finished_run_is_not_trained_again(trainings: list[tuple[str, int]], tmp_path: Path) -> None:
    first = run(toy(128), tmp_path / "out", seeds=2)
    done = len(trainings)
    assert done == sum(len(s.points) for s in first.scales)
    again = run(toy(128), tmp_path / "out", seeds=2, resume=True)
    assert len(trainings) == done
    assert without_times(again) == without_times(first)


class Stop(Exception):
    """Stands for a kill."""


def test_an_interrupted_run_goes_on_where_it_stopped(
    trainings: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    want = without_times(run(toy(128), tmp_path / "whole", seeds=2))
    whole = len(trainings)
    trainings.clear()
    counted: Callable[..., nn.Module] = points_module.train_module  # type: ignore[attr-defined]

    def stopping(*arguments: Any) -> nn.Module:
        if len(trainings) == 3:
            raise Stop
        return counted(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(points_module, "train_module", stopping)
        with pytest.raises(Stop):
            run(toy(128), tmp_path / "out", seeds=2)
    assert without_times(run(toy(128), tmp_path / "out", seeds=2, resume=True)) == want
    assert len(trainings) == whole


def test_more_seeds_on_resume_train_only_the_new_ones(trainings: list[tuple[str, int]], tmp_path: Path) -> None:
    run(toy(128), tmp_path / "out", seeds=2, tolerance=1.0)
    trainings.clear()
    record = run(toy(128), tmp_path / "out", seeds=3, tolerance=1.0, resume=True)
    assert {seed for _, seed in trainings} == {2}
    assert record.seeds == 3


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    run(toy(128), tmp_path / "out", seeds=2)
    with pytest.raises(UsageError, match="another run"):
        run(toy(128, name="other"), tmp_path / "out", seeds=2, resume=True)
    with pytest.raises(UsageError, match="not empty"):
        run(toy(128), tmp_path / "out", seeds=2)


def test_different_training_data_is_another_run(tmp_path: Path) -> None:
    run(toy(128, calibration=data(32, 9)), tmp_path / "out", seeds=2)
    with pytest.raises(UsageError, match="another run"):
        run(toy(256, calibration=data(32, 9)), tmp_path / "out", seeds=2, resume=True)


def test_other_recipes_are_trained_again(trainings: list[tuple[str, int]], tmp_path: Path) -> None:
    task = toy(128)
    run(task, tmp_path / "out", seeds=2)
    trainings.clear()
    task.models = {name: replace(model, epochs=5) for name, model in task.models.items() if isinstance(model, Untrained)}
    run(task, tmp_path / "out", seeds=2, resume=True)
    assert trainings


def test_another_learning_rate_is_trained_again_or_refused(trainings: list[tuple[str, int]], tmp_path: Path) -> None:
    task = toy(128)
    run(task, tmp_path / "out", seeds=2)
    trainings.clear()
    task.models = {name: replace(model, lr=1e-6) for name, model in task.models.items() if isinstance(model, Untrained)}
    refused = False
    try:
        run(task, tmp_path / "out", seeds=2, resume=True)
    except UsageError:
        refused = True
    assert refused or trainings


def test_other_train_labels_are_another_run(tmp_path: Path) -> None:
    run(toy(128), tmp_path / "out", seeds=2)
    wrong = [(x, (y + 1) % CLASSES) for x, y in data(128, 0)]
    with pytest.raises(UsageError, match="another run"):
        run(toy_with(wrong), tmp_path / "out", seeds=2, resume=True)


def test_too_little_data_says_how_much_is_needed(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="too few training examples") as caught:
        run(toy(127), tmp_path / "out")
    assert caught.value.where == "train"
    assert caught.value.got == "127 examples"
    assert "128" in str(caught.value.wanted)


def test_a_metric_that_compares_with_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="reference") as caught:
        run(toy(metric="cosine"), tmp_path / "out")
    assert caught.value.where == "metric"


@pytest.mark.parametrize(
    ("options", "says"),
    [({"seeds": 0}, "seeds"), ({"seeds": 1}, "seeds"), ({"tolerance": "1 furlong"}, "tolerance"), ({"time_limit": "x"}, "time_limit")],
)
def test_settings_that_cannot_be_meant_are_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        run(toy(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def trained(width: int, examples: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp(width)()
    return train_module(model, data(examples, 0), Untrained(mlp(width), epochs=10, lr=2e-2), 0, "here")


def test_given_models_without_train_data_are_only_evaluated(trainings: list[tuple[str, int]], tmp_path: Path) -> None:
    models = {"small": trained(8, 256), "large": trained(64, 256)}
    trainings.clear()
    record = run(toy(train=None, models=models), tmp_path / "out")
    assert trainings == []
    assert record.sizes == ()
    for scale in record.scales:
        assert scale.status == "evaluated"
        assert [p.examples for p in scale.points] == [0]
        assert scale.curve is None
        assert scale.train is None
        assert scale.diagnosis is None
        assert scale.behind is not None
    assert any("no train data" in warning for warning in record.warnings)
    assert from_json(AdviceRecord, to_json(record)) == record


def test_untrained_models_without_train_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SizewiseError, match="untrained"):
        run(toy(train=None), tmp_path / "out")


def test_a_given_model_is_tuned_where_there_is_train_data_and_kept_as_it_is_where_that_is_better(tmp_path: Path) -> None:
    good = trained(64, 256)
    record = run(toy(128, models={"good": good}), tmp_path / "out", seeds=2)
    scale = record.scale("good")
    assert {p.examples for p in scale.points} == {0, 32, 64, 128}
    as_given = next(p for p in scale.points if p.examples == 0)
    tuned = next(p for p in scale.points if p.examples == 128)
    assert scale.validation is not None
    assert scale.validation.value == pytest.approx(max(as_given.validation, tuned.validation))
    assert scale.status == ("evaluated" if as_given.validation >= tuned.validation else "complete")


def test_a_hopeless_scale_is_stopped_with_its_reason_and_trained_no_further(tmp_path: Path) -> None:
    models = {name: sizewise.untrained(mlp(width), epochs=6, lr=2e-2) for name, width in (("m", 32), ("l", 64), ("xl", 96))}
    models["constant"] = sizewise.untrained(Constant, epochs=2)
    record = run(toy(models=models), tmp_path / "out")
    hopeless = record.scale("constant")
    assert hopeless.status == "stopped"
    assert hopeless.reason is not None
    assert "stopped at" in hopeless.reason
    assert max(p.examples for p in hopeless.points) < 256
    assert hopeless.behind is None
    assert record.recommended != "constant"
    assert "constant" not in record.undecided
    assert from_json(AdviceRecord, to_json(record)) == record


def test_when_time_runs_out_what_is_known_is_judged_and_said(tmp_path: Path) -> None:
    record = run(toy(), tmp_path / "out", time_limit=1e-6)
    assert {p.examples for s in record.scales for p in s.points} == {32}, "the first size is always trained"
    assert any("time limit" in warning and "32 of 256" in warning for warning in record.warnings)
    assert record.best is not None
    assert all(s.validation is not None and s.curve is None for s in record.scales)


def test_a_scale_out_of_the_budgets_reach_is_not_recommended(tmp_path: Path) -> None:
    models = {"useless": sizewise.untrained(Constant, epochs=1), "large": sizewise.untrained(mlp(256), epochs=10, lr=2e-2)}
    record = run(toy(models=models), tmp_path / "out", Budget(size="600 B"))
    large = record.scale("large")
    assert [v.limit for v in large.breaks] == ["size"]
    assert large.shrunk is not None
    assert [v.limit for v in large.shrunk.breaks] == ["size"]
    assert record.best == "large"
    assert record.recommended is None
    assert record.safe is None
    assert "useless" in record.decision, "the nearest one that keeps the limits"
    none = run(toy(models=models), tmp_path / "none", Budget(size="10 B"))
    assert "no scale keeps the budget" in none.decision


class Broken(nn.Module):
    """Fails while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("out of luck")
        logits: Tensor = self.only(x)
        return logits


def test_a_model_that_fails_is_named(tmp_path: Path) -> None:
    models = {"fine": sizewise.untrained(mlp(8)), "broken": sizewise.untrained(Broken)}
    with pytest.raises(PreconditionError, match="out of luck") as caught:
        run(toy(128, models=models), tmp_path / "out")
    assert "broken" in str(caught.value)


def test_a_loss_is_judged_the_other_way_round(tmp_path: Path) -> None:
    models = {"constant": sizewise.untrained(Constant, epochs=1), "large": sizewise.untrained(mlp(64), epochs=8, lr=2e-2)}
    record = run(toy(metric="loss", models=models), tmp_path / "out", tolerance=0.05, seeds=2)
    assert record.best == "large"
    assert not record.higher_is_better
    behind = record.scale("constant").behind
    assert behind is not None
    assert behind.value > 0
    large = record.scale("large")
    assert large.validation is not None
    assert large.train is not None
    assert large.gap is not None
    assert large.gap.value == pytest.approx(large.validation.value - large.train.value)


class Rolled(nn.Module):
    """Good as given (a large weight gives the class), but every step of tuning teaches it the next class."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(FEATURES, CLASSES, bias=False)
        with torch.no_grad():
            self.only.weight.zero_()
            for label in range(CLASSES):
                self.only.weight[label, 0] = 1e-5 if label % 2 else -1e-5
                self.only.weight[label, 1] = 1e-5 if label >= 2 else -1e-5

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.only(x)
        return logits.roll(1, dims=1) if self.training else logits


def test_a_given_model_that_tuning_spoils_still_counts_as_it_is(tmp_path: Path) -> None:
    models: dict[str, Any] = {name: sizewise.untrained(mlp(width), epochs=4, lr=2e-2) for name, width in (("m", 32), ("l", 64))}
    record = run(toy(models={**models, "given": Rolled()}), tmp_path / "out")
    given = record.scale("given")
    assert next(p.validation for p in given.points if p.examples == 0) == 1.0
    assert record.best == "given"
    assert given.status == "evaluated"


def test_training_in_processes_gives_the_same_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inline = run(toy(128), tmp_path / "inline", seeds=2)

    def two(jobs: Any, job: Any, on_done: Any, *, workers: int) -> None:
        run_jobs(jobs, job, on_done, workers=2)

    monkeypatch.setattr("sizewise.pipeline.climb.run_jobs", two)
    assert without_times(run(toy(128), tmp_path / "forked", seeds=2)) == without_times(inline)


def test_as_many_trainings_run_side_by_side_as_this_machine_has_cores_for_whatever_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = Device(name="server", title="server", how="predicted", threads=1000, rates=rates())
    asked: list[int] = []

    def counting(jobs: Any, job: Any, on_done: Any, *, workers: int) -> None:
        asked.append(workers)
        run_jobs(jobs, job, on_done, workers=1)

    monkeypatch.setattr("sizewise.pipeline.select.calibrated", lambda *_, **__: device)
    monkeypatch.setattr("sizewise.pipeline.climb.run_jobs", counting)
    run(toy(128), tmp_path / "out", seeds=2)
    assert max(asked) <= (os.cpu_count() or 1)


class Branching(nn.Module):
    """Cannot be exported: which way it goes depends on the numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = mlp(width)()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x) if float(x.sum()) > -1e9 else self.inner(-x)
        return logits


def test_models_that_cannot_be_exported_are_compared_all_the_same(tmp_path: Path) -> None:
    models = {str(width): sizewise.untrained(lambda width=width: Branching(width), epochs=4, lr=2e-2) for width in (8, 64)}  # type: ignore[misc]
    record = run(toy(128, models=models), tmp_path / "out", seeds=2, tolerance=1.0)
    assert record.recommended == "8"
    assert record.scale("8").profile.latency_s is None


def test_a_negative_tolerance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        run(toy(128), tmp_path / "out", tolerance=-0.01)


SCENARIO = Scenario(
    name="tiny",
    title="Tiny models",
    domain="speech",
    device="raspberry_pi_4",
    latency="1 s",
    size="1 MB",
    candidates=("gru_small:hidden=8,size=10", "gru_small:hidden=16,size=10"),
)


def test_the_scenarios_limits_count_where_the_budget_has_none(tmp_path: Path) -> None:
    record = run(toy(128), tmp_path / "out", Budget(latency="2 s"), scenario=SCENARIO, seeds=2)
    assert (record.budget.latency_s, record.budget.size_bytes) == (2.0, 1_000_000)
    assert record.scenario == SCENARIO


def test_a_survey_costs_candidates_without_a_word_on_quality(tmp_path: Path) -> None:
    record = survey(SCENARIO, runtime=NullRuntime(), out=tmp_path / "out")
    assert {s.name for s in record.scales} == set(SCENARIO.candidates)
    assert [s.status for s in record.scales] == ["costed", "costed"]
    assert record.scales[0].profile.params < record.scales[1].profile.params
    assert all(s.validation is None and not s.points for s in record.scales)
    assert (record.best, record.recommended, record.safe) == (None, None, None)
    assert "gru_small" in record.decision
    assert record.strategy
    assert from_json(AdviceRecord, (tmp_path / "out" / "select.json").read_bytes()) == record
    assert (tmp_path / "out" / "report.html").exists()


def test_a_survey_says_when_nothing_fits(tmp_path: Path) -> None:
    record = survey(SCENARIO, Budget(size="100 B"), NullRuntime(), out=tmp_path / "out")
    assert "no candidate can" in record.decision
    assert all(s.breaks for s in record.scales)


def test_a_survey_without_candidates_or_with_unknown_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no candidates"):
        survey(replace(SCENARIO, candidates=()), runtime=NullRuntime(), out=tmp_path / "out")
    with pytest.raises(SizewiseError, match="gru_smal"):
        survey(replace(SCENARIO, candidates=("gru_smal",)), runtime=NullRuntime(), out=tmp_path / "other")
