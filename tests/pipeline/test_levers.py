"""Which levers a scale has: by what it computes, the runtime, the data and the budget."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import sizewise
from sizewise.devices.loader import load_device
from sizewise.pipeline import levers
from sizewise.pipeline.levers import make_space
from sizewise.pipeline.scales import Prepared, prepare_scales
from sizewise.pipeline.setup import Setup, make_setup, read_data
from sizewise.pipeline.store import Store
from sizewise.pipeline.trial import attempt, make_bench
from sizewise.protocols import Silent
from sizewise.search.space import Space
from sizewise.testing import NullRuntime, TinyConv, tiny_task
from sizewise.training.distill import FEATURES
from sizewise.types import Budget, Plan, Scheme, Step

RECOVERY = Step(technique="recovery", settings={"epochs": 1})


class Wide(nn.Module):
    """A transformer's work: linear layers, wide enough to be factorized."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(36, 512), nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.first(x.flatten(1))))
        return logits


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(6, 128, batch_first=True), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(x.squeeze(1))[0][:, -1])
        return logits


class Plain(NullRuntime):
    scheme: ClassVar[Scheme | None] = None


def space(
    tmp_path: Path,
    budget: Budget,
    *,
    runtime: Any = None,
    recovery: Step | None = None,
    train: Any = None,
    metric: str = "accuracy",
    **models: nn.Module,
) -> Space:
    base = tiny_task(32)
    train = base.calibration if train is None else train
    data = {"train": train, "calibration": base.calibration, "validation": base.validation}
    task = sizewise.Task(models or base.models, base.example, metric=metric, **data)
    setup: Setup = make_setup(task, budget, runtime or NullRuntime(), load_device("local"), Store(tmp_path, resume=True), 0, Silent(), None)
    prepared: dict[str, Prepared] = prepare_scales(setup)
    return make_space(setup, prepared, next(iter(prepared)), recovery)


def steps(found: Space, scale: str) -> list[Step]:
    every = [step for point in found.points if point.scale == scale for step in found.plan(point).steps]
    return [step for number, step in enumerate(every) if step not in every[:number]]


def kinds(found: Space, scale: str) -> set[str]:
    return {step.technique for step in steps(found, scale)}


def test_convolutions_get_static_int8_and_linear_layers_dynamic(tmp_path: Path) -> None:
    found = space(tmp_path, Budget(max_drop="1 %"), conv=TinyConv(), wide=Wide(), gru=Recurrent())
    assert kinds(found, "conv") == {"channel_pruning", "int8_static"}
    assert kinds(found, "wide") == {"channel_pruning", "low_rank", "int8_dynamic"}
    assert "low_rank" not in kinds(found, "gru"), "what is recurrent is not factorized"


def test_without_integer_kernels_nothing_is_quantized(tmp_path: Path) -> None:
    assert kinds(space(tmp_path, Budget(size="1 kB"), runtime=Plain()), "large") == {"channel_pruning"}


@pytest.mark.parametrize(
    ("budget", "settings"),
    [
        (Budget(max_drop="1 %"), [{}, {"max_drop": 0.005}]),
        (Budget(latency="2 ms"), [{}, {"max_seconds": pytest.approx(0.0019)}]),
        (Budget(size="1 kB"), [{}, {"weight_bits": 4}]),
        (Budget(memory="1 MB"), [{}]),
    ],
)
def test_mixed_and_four_bits_are_there_where_a_limit_asks_for_them(budget: Budget, settings: list[dict[str, Any]], tmp_path: Path) -> None:
    found = [step.settings for step in steps(space(tmp_path, budget), "large") if step.technique == "int8_static"]
    assert sorted(found, key=str) == sorted(settings, key=str) or found == settings


def test_rates_count_latency_where_it_is_long_enough_to_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = []
    for least, runtime in ((levers.TIMED_MACS, NullRuntime()), (1000, NullRuntime()), (1000, Plain())):
        monkeypatch.setattr(levers, "TIMED_MACS", least)
        found = steps(space(tmp_path, Budget(), runtime=runtime), "large")
        targets.append({step.settings.get("target", "macs") for step in found if step.technique == "channel_pruning"})
    assert targets == [{"macs"}, {"int8_latency"}, {"latency"}], "of what will ship"


def test_low_rank_is_offered_for_latency_only_where_layers_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "TIMED_MACS", 1000)
    offered = []
    for least, budget in ((levers.HEAVY_MACS, Budget(size="1 MB")), (1000, Budget(size="1 MB")), (1000, Budget())):
        monkeypatch.setattr(levers, "HEAVY_MACS", least)
        found = steps(space(tmp_path, budget, wide=Wide()), "wide")
        offered.append({step.settings["target"] for step in found if step.technique == "low_rank"})
    assert offered == [set(), {"latency"}, set()], "in dynamic integers factors make files smaller only"


def test_smaller_scales_of_the_same_outputs_may_learn_from_the_reference(tmp_path: Path) -> None:
    base = tiny_task(32)
    models = {"large": base.models["large"], "small": base.models["small"], "other": Wide(classes=5)}
    found = space(tmp_path, Budget(max_drop="1 %"), recovery=RECOVERY, **models)  # type: ignore[arg-type]
    taught = replace(RECOVERY, settings={"epochs": 1, "teacher": "reference"})
    assert taught in steps(found, "small")
    assert taught not in steps(found, "large")
    assert taught not in steps(found, "other"), "its outputs have another shape"


class Rows:
    """Batches, of which a loader tells the number."""

    def __init__(self, labels: Any, count: int = 4) -> None:
        self.labels, self.count = labels, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        inputs = tiny_task(32).example.args[0]
        yield from [inputs if self.labels is None else (inputs, self.labels)] * self.count


def recoveries(found: Space, scale: str) -> list[dict[str, Any]]:
    return [dict(step.settings) for step in steps(found, scale) if step.technique == "recovery"]


def test_targets_are_learned_where_they_are_labels_of_which_something_is_left_to_learn(tmp_path: Path) -> None:
    whole = tiny_task(32).models["large"]
    assert isinstance(whole, nn.Module)
    with torch.no_grad():
        right = whole(tiny_task(32).example.args[0]).argmax(1)
    told, alone = {"epochs": 1, "labels": 10.0, "features": 0.0}, {"epochs": 1}
    for labels, wanted in ((None, [alone]), (torch.tensor([0.5]), [alone]), (right, [alone]), ((right + 1) % 4, [told, alone])):
        found = space(tmp_path, Budget(max_drop="1 %"), recovery=RECOVERY, train=Rows(labels))
        assert recoveries(found, "large") == wanted
    found = space(tmp_path, Budget(max_drop="1 %"), recovery=RECOVERY, train=Rows((right + 1) % 4), metric="cosine")
    assert recoveries(found, "large") == [alone], "what the reference says is the measure"


def test_long_trainings_are_tried_for_a_part_of_their_time_first(tmp_path: Path) -> None:
    budget = Budget(max_drop="1 %")
    found = space(tmp_path, budget, recovery=RECOVERY, train=Rows(None, count=4 * levers.BRIEF_STEPS))
    assert recoveries(found, "large") == [{"epochs": 0.25}, {"epochs": 1}]
    (lever,) = [lever for lever in found.levers("large") if lever.heals]
    assert [level.repairs for level in lever.levels] == [None, None, "source"], "only where the short one was too little"
    timed = replace(RECOVERY, settings={"seconds": 4 * levers.BRIEF_S})
    found = space(tmp_path, budget, recovery=timed, train=Rows(None))
    assert recoveries(found, "large") == [{"seconds": levers.BRIEF_S}, {"seconds": 4 * levers.BRIEF_S}]


def test_a_trial_lets_the_reference_teach(tmp_path: Path) -> None:
    base = tiny_task(32)
    train = [x for x, _ in base.calibration or ()]
    task = sizewise.Task(base.models, base.example, train=train, validation=base.validation, reference="large")
    setup = make_setup(task, Budget(max_drop="99 %"), NullRuntime(), load_device("local"), Store(tmp_path, resume=True), 0, Silent(), None)
    read_data(setup)
    prepared = prepare_scales(setup)
    taught = Step(technique="recovery", settings={"epochs": 20, "teacher": "reference"})
    losses = []
    bench = make_bench(setup, prepared["large"])
    for steps in ((), (taught,)):
        module, _, _ = bench.applier.apply(prepared["small"].module, Plan(scale="small", steps=steps), bench.context)
        with torch.no_grad():
            losses.append(float((module(train[0]) - prepared["large"].module(train[0])).square().mean()))
    assert losses[1] < 0.9 * losses[0]


def test_smaller_inputs_learn_the_features_of_the_reference(tmp_path: Path) -> None:
    base = tiny_task(32)
    train = [x for x, _ in base.calibration or ()]
    task = sizewise.Task(base.models, base.example, train=train, validation=base.validation, reference="large", resize=(4,))
    setup = make_setup(task, Budget(max_drop="99 %"), NullRuntime(), load_device("local"), Store(tmp_path, resume=True), 0, Silent(), None)
    read_data(setup)
    prepared = prepare_scales(setup)
    found = make_space(setup, prepared, "large", RECOVERY)
    taught = {"epochs": 1, "teacher": "reference"}
    assert {**taught, "features": FEATURES} in recoveries(found, "large@4")
    assert taught in recoveries(found, "small@4")
    assert {**taught, "features": FEATURES} not in recoveries(found, "small@4"), "its layers do something else"
    plan = Plan(scale="large@4", steps=(Step(technique="recovery", settings={**taught, "features": FEATURES}),))
    candidate = attempt(prepared["large@4"].module, plan, tmp_path / "trial", make_bench(setup, prepared["large"]))
    assert any("features compared" in note for change in candidate.changes for note in change.notes)
