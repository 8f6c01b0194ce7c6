"""The error tree: what a caller catches, what a person reads, what the shell sees."""

import copy
import pickle

import pytest

from sizewise import errors
from sizewise.errors import (
    BudgetInfeasible,
    InternalError,
    MissingExtra,
    ParityError,
    PreconditionError,
    SizeUnreachable,
    SizewiseError,
    UnknownName,
    UnsupportedModel,
    UsageError,
)

EXAMPLES: tuple[SizewiseError, ...] = (
    SizewiseError("what", where="here", got="a", wanted="b", hint="c"),
    UsageError("what", got="a"),
    UnknownName("metric", "acuracy", ["accuracy", "loss"], where="task"),
    MissingExtra("scikit-learn", "demo", where="task 'digits'"),
    UnsupportedModel("what", where="layer1.0"),
    PreconditionError("what", wanted="b"),
    SizeUnreachable(1001, 4000, got=900, where="here"),
    BudgetInfeasible("nothing fits", result={"nearest": "x"}, hint="relax the size"),
    ParityError("what"),
    InternalError("what"),
)


def test_the_message_says_what_where_got_wanted_and_hint_each_on_its_line() -> None:
    error = SizewiseError("the mistake", where="model.layer", got="1", wanted="2", hint="do this")
    assert str(error) == "model.layer: the mistake\n  got: 1\n  wanted: 2\n  hint: do this"


def test_the_rate_of_a_size_that_can_be_reached_is_rounded_up() -> None:
    error = SizeUnreachable(1001, 4000, got=900, where="here")
    assert error.wanted == "at least 1001 bytes, a rate of about 0.251"
    assert error.least == 1001


def test_what_is_not_known_takes_no_line() -> None:
    assert str(SizewiseError("the mistake")) == "the mistake"
    assert str(SizewiseError("the mistake", hint="do this")) == "the mistake\n  hint: do this"


@pytest.mark.parametrize(
    ("kind", "code", "builtin"),
    [
        (UsageError, 2, ValueError),
        (UnknownName, 2, LookupError),
        (MissingExtra, 3, ImportError),
        (UnsupportedModel, 4, Exception),
        (PreconditionError, 4, ValueError),
        (BudgetInfeasible, 5, Exception),
        (ParityError, 6, Exception),
        (InternalError, 70, Exception),
    ],
)
def test_every_error_has_the_documented_exit_code_and_builtin_parent(
    kind: type[SizewiseError], code: int, builtin: type[Exception]
) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, SizewiseError)
    assert issubclass(kind, builtin)


def test_every_public_error_is_an_example_here() -> None:
    assert {type(error).__name__ for error in EXAMPLES} == {name for name in errors.__all__ if name[0].isupper()}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_errors_survive_pickling_and_copying(error: SizewiseError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)
        assert twin.args == error.args


def test_an_unknown_name_says_the_kind_the_choices_and_the_nearest() -> None:
    error = UnknownName("metric", "acuracy", ["loss", "accuracy"], where="task.metric")
    assert str(error) == "task.metric: unknown metric 'acuracy'\n  wanted: one of accuracy, loss\n  hint: did you mean 'accuracy'?"


def test_an_unknown_name_far_from_all_gives_no_hint() -> None:
    error = UnknownName("metric", "zzzzzz", iter(["accuracy", "loss"]))
    assert error.hint is None
    assert error.wanted == "one of accuracy, loss"


def test_an_unknown_name_among_none_promises_no_choice() -> None:
    assert str(UnknownName("device", "phone", [])) == "unknown device 'phone'"


def test_a_missing_extra_gives_the_pip_line() -> None:
    assert 'pip install "sizewise[demo]"' in str(MissingExtra("scikit-learn", "demo"))
    assert "scikit-learn is not installed" in str(MissingExtra("scikit-learn", "demo"))


def test_an_infeasible_budget_carries_the_nearest_candidate() -> None:
    nearest = object()
    assert BudgetInfeasible("nothing fits", result=nearest).result is nearest
    assert BudgetInfeasible("nothing fits").result is None
