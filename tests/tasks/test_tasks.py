"""Tasks: what they accept, what they refuse, the built-in one, loading by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sizewise
from sizewise.tasks.digits import make_task
from sizewise.tasks.loading import load_task

X, Y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)


def task(**changes: Any) -> sizewise.Task:
    arguments: dict[str, Any] = {"models": {"m": nn.Linear(3, 2)}, "example_inputs": X[:1], "validation": [(X, Y)]}
    return sizewise.Task(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": {}}, "at least one model"),
        ({"models": {"m": 3}}, r"models\['m'\]"),
        ({"models": {1: nn.Linear(3, 2)}}, "names are texts"),
        ({"validation": None}, "needs validation"),
        ({"validation": iter([(X, Y)])}, "only once"),
        ({"test": X}, "test: not a loader"),
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"reference": "n"}, "unknown model 'n'"),
        ({"example_inputs": "x"}, "example_inputs"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(sizewise.SizewiseError, match=says):
        task(**changes)


def test_calibration_comes_from_train_unless_given() -> None:
    train, own = [(X, Y)], [X]
    assert task(train=train).calibration is train
    assert task(train=train, calibration=own).calibration is own
    assert task().calibration is None


def test_building_is_repeatable_and_leaves_the_global_seed_alone() -> None:
    made = task(models={"m": lambda: nn.Linear(3, 2), "u": sizewise.untrained(lambda: nn.Linear(3, 2))})
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (made.build("m", seed).weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, second)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]
    assert (made.is_untrained("m"), made.is_untrained("u")) == (False, True)


@pytest.mark.parametrize(("factory", "says"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: "model", "did not return a module")])
def test_a_factory_that_fails_names_its_model(factory: Any, says: str) -> None:
    with pytest.raises(sizewise.PreconditionError, match=r"models\['m'\]") as caught:
        task(models={"m": factory}).build("m")
    assert says in str(caught.value)


def test_untrained_wants_a_function_and_positive_settings() -> None:
    with pytest.raises(sizewise.UsageError, match="function"):
        sizewise.untrained(nn.Linear(3, 2))
    with pytest.raises(sizewise.UsageError, match="positive"):
        sizewise.untrained(lambda: nn.Linear(3, 2), epochs=0)


def test_digits_is_split_without_overlap() -> None:
    digits = make_task()
    parts = {"validation": list(digits.validation), "test": list(digits.test or []), "calibration": list(digits.calibration or [])}
    counts = {name: sum(len(y) for _, y in part) for name, part in parts.items()}
    assert counts == {"validation": 400, "test": 500, "calibration": 256}
    train = digits.train.pictures  # type: ignore[union-attr]
    rows = [x.flatten(1) for part in ("validation", "test") for x, _ in parts[part]] + [train.flatten(1)]
    everything = torch.cat(rows)
    assert len(everything) == 1797
    assert len(digits.models) == 6
    assert all(digits.is_untrained(name) for name in digits.models)


def test_training_batches_repeat_under_a_seed() -> None:
    digits = make_task()

    def first() -> torch.Tensor:
        torch.manual_seed(3)
        return next(iter(digits.train))[0]  # type: ignore[arg-type,no-any-return]

    assert torch.equal(first(), first())
    assert first().shape == (64, 1, 8, 8)


def test_loading_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_mine.py").write_text("NAME = 'mine'\n")
    (tmp_path / "job_of_mine.py").write_text(
        "import sizewise, torch, helper_of_mine\n"
        "other = sizewise.Task({'m': torch.nn.Linear(3, 2)}, torch.zeros(1, 3), validation=[torch.zeros(1, 3)], name=helper_of_mine.NAME)\n"
        "task = other\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_task(str(tmp_path / "job_of_mine.py")).name == "mine"
    assert load_task("job_of_mine:other").name == "mine"
    with pytest.raises(sizewise.UsageError, match="not a task"):
        load_task("job_of_mine:number")
    with pytest.raises(sizewise.UsageError, match="it defines other, task"):
        load_task("job_of_mine:missing")
    with pytest.raises(sizewise.PreconditionError, match="ModuleNotFoundError"):
        load_task("no_such_module_at_all:task")
    with pytest.raises(sizewise.UnknownName, match="did you mean 'digits'"):
        load_task("digit")


def test_a_mistake_in_a_task_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("import sizewise\n\ntask = sizewise.Task({}, None, validation=[])\n")
    with pytest.raises(sizewise.UsageError, match=r"wrong\.py, line 3, models: a task needs at least one model"):
        load_task(str(path))
