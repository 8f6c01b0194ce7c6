"""Tasks: what is kept of what people give, and what is refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.evaluate.metrics import METRICS
from sizewise.protocols import Inputs
from sizewise.tasks.task import Task, Untrained, untrained

X, Y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)


def _task(**changes: Any) -> Task:
    arguments: dict[str, Any] = {"models": {"m": nn.Linear(3, 2)}, "example_inputs": X[:1], "validation": [(X, Y)]}
    return Task(**{**arguments, **changes})


def test_defaults_are_accuracy_no_reference_and_nothing_more() -> None:
    task = _task()
    assert (task.metric, task.reference, task.name) == (METRICS["accuracy"], None, "task")
    assert (task.train, task.calibration, task.test) == (None, None, None)
    assert (task.scales, task.levels) == (("m",), ())


def test_examples_are_read_in_every_form() -> None:
    for given, args in ((X, (X,)), ((X, Y), (X, Y)), ([X], (X,))):
        assert _task(example_inputs=given).example == Inputs(args)
    assert _task(example_inputs={"ids": X}).example == Inputs((), {"ids": X})


def test_the_callers_dictionary_is_not_shared() -> None:
    models: dict[str, Any] = {"m": nn.Linear(3, 2)}
    task = _task(models=models)
    models["late"] = nn.Linear(3, 2)
    assert list(task.models) == ["m"]


def test_a_module_is_built_as_itself_and_a_function_is_called_at_every_building() -> None:
    module = nn.Linear(3, 2)
    task = _task(models={"module": module, "function": lambda: nn.Linear(3, 2), "raw": untrained(lambda: nn.Linear(3, 2))})
    assert task.build("module") is module
    for name in ("function", "raw"):
        assert task.build(name) is not task.build(name)
    assert [task.is_untrained(name) for name in task.models] == [False, False, True]


def test_building_depends_on_the_seed_alone() -> None:
    task = _task(models={"m": untrained(lambda: nn.Linear(3, 2))})

    def weight(seed: int, mess: int) -> Tensor:
        torch.manual_seed(mess)
        return task.build("m", seed).get_parameter("weight").detach()

    assert torch.equal(weight(1, mess=5), weight(1, mess=6))
    assert not torch.equal(weight(1, mess=5), weight(2, mess=5))


def test_a_failing_function_gives_its_random_state_back() -> None:
    def fails() -> nn.Module:
        torch.rand(3)
        raise OSError("no such checkpoint")

    task = _task(models={"m": fails})
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(PreconditionError, match=r"models\['m'\]: the function that makes this model failed") as caught:
        task.build("m")
    assert caught.value.got == "OSError: no such checkpoint"
    assert isinstance(caught.value.__cause__, OSError)
    assert torch.equal(torch.rand(1), expected)


def test_a_function_that_returns_no_module_is_named_with_what_it_returned() -> None:
    with pytest.raises(PreconditionError, match=r"models\['m'\]: the function did not return a module") as caught:
        _task(models={"m": lambda: [nn.Linear(3, 2)]}).build("m")
    assert caught.value.got == "list"


def test_a_recipe_is_given_for_untrained_candidates_only() -> None:
    def loss(outputs: Any, targets: Any) -> Tensor:
        return outputs.sum()  # type: ignore[no-any-return]

    def make() -> nn.Module:
        return nn.Linear(3, 2)

    task = _task(models={"raw": untrained(make, epochs=3, lr=0.1, loss=loss), "done": nn.Linear(3, 2)})
    assert task.recipe("raw") == Untrained(make, 3, 0.1, loss)
    with pytest.raises(PreconditionError, match=r"models\['done'\]: this candidate is given as trained"):
        task.recipe("done")


@pytest.mark.parametrize("ask", ["build", "recipe", "is_untrained", "level"])
def test_an_unknown_candidate_says_the_nearest(ask: str) -> None:
    task = _task(models={"resnet-l": nn.Linear(3, 2), "other": nn.Linear(3, 2)})
    with pytest.raises(UnknownName, match="unknown model 'resnet_l'") as caught:
        getattr(task, ask)("resnet_l")
    assert caught.value.hint == "did you mean 'resnet-l'?"


def test_an_unknown_reference_says_the_nearest() -> None:
    with pytest.raises(UnknownName, match="reference: unknown model 'resnet_l'") as caught:
        _task(models={"resnet-l": nn.Linear(3, 2)}, reference="resnet_l")
    assert caught.value.hint == "did you mean 'resnet-l'?"


@pytest.mark.parametrize(("models", "got"), [({"m": 3}, "int"), ({"m": None}, "NoneType"), ({"m": "resnet"}, "str")])
def test_what_is_no_model_is_refused_with_its_name_and_type(models: Any, got: str) -> None:
    with pytest.raises(UsageError, match=r"models\['m'\]: not a model") as caught:
        _task(models=models)
    assert caught.value.got == got


@pytest.mark.parametrize("key", [1, "", None])
def test_a_name_that_is_no_text_is_shown(key: Any) -> None:
    with pytest.raises(UsageError, match="models: model names are texts") as caught:
        _task(models={key: nn.Linear(3, 2)})
    assert caught.value.got == repr(key)


@pytest.mark.parametrize("split", ["train", "calibration", "validation", "test"])
def test_every_split_must_be_readable_again(split: str) -> None:
    with pytest.raises(UsageError, match=f"{split}: the loader can be read only once"):
        _task(**{split: iter([(X, Y)])})
    with pytest.raises(UsageError, match=f"{split}: not a loader"):
        _task(**{split: X})


@pytest.mark.parametrize("factory", [nn.Linear(3, 2), "resnet", None])
def test_untrained_wants_a_function_and_says_what_it_got(factory: Any) -> None:
    with pytest.raises(UsageError, match="wants a function") as caught:
        untrained(factory)
    assert caught.value.got == type(factory).__name__


@pytest.mark.parametrize(("epochs", "lr"), [(0, 1e-3), (-1, 1e-3), (1, 0.0), (1, -1.0), (1, float("nan"))])
def test_untrained_wants_positive_settings_and_shows_them(epochs: int, lr: float) -> None:
    with pytest.raises(UsageError, match="epochs and lr must be positive") as caught:
        untrained(lambda: nn.Linear(3, 2), epochs=epochs, lr=lr)
    assert caught.value.got == f"epochs={epochs}, lr={lr}"
