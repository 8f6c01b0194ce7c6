"""The error tree. Every error says what, where, got, wanted and what to do, and owns the exit code of the command line."""

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "BudgetInfeasible",
    "InternalError",
    "MissingExtra",
    "ParityError",
    "PreconditionError",
    "SizeUnreachable",
    "SizewiseError",
    "UnknownName",
    "UnsupportedModel",
    "UsageError",
    "blaming",
]


class SizewiseError(Exception):
    """Base of every error that Sizewise raises on purpose.

    Args:
        what: one sentence naming the mistake.
        where: module path, file or option it concerns.
        got: what was there.
        wanted: what was expected.
        hint: what to do next.
        reach: the highest rate that can be reached, where one was asked for that cannot; None else.

    Attributes:
        step: place of the step of a plan that raised it; None where it was none.
    """

    exit_code = 70
    step: int | None = None

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: str | None = None,
        wanted: str | None = None,
        hint: str | None = None,
        reach: float | None = None,
    ) -> None:
        self.what, self.where, self.got, self.wanted, self.hint, self.reach = what, where, got, wanted, hint, reach
        super().__init__(what)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        parts += [f"{name}: {text}" for name, text in (("got", self.got), ("wanted", self.wanted), ("hint", self.hint)) if text]
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        # keyword-only arguments do not survive the default protocol, which re-calls with self.args
        return (_rebuild, (type(self), dict(self.__dict__)))


def _rebuild(cls: type[SizewiseError], state: dict[str, Any]) -> SizewiseError:
    error = cls.__new__(cls)
    Exception.__init__(error, state.get("what", ""))
    error.__dict__.update(state)
    return error


class UsageError(SizewiseError, ValueError):
    """The caller asked for something that cannot be meant."""

    exit_code = 2


class UnknownName(SizewiseError, LookupError):
    """A name that is not in a list; says the nearest one that is."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, 1, 0.5)
        super().__init__(
            f"unknown {kind} {name!r}",
            where=where,
            wanted=f"one of {', '.join(known)}" if known else None,
            hint=f"did you mean {near[0]!r}?" if near else None,
        )


class MissingExtra(SizewiseError, ImportError):
    """A package is not installed; says the pip line that installs it."""

    exit_code = 3

    def __init__(self, package: str, extra: str, *, where: str | None = None) -> None:
        super().__init__(f"{package} is not installed", where=where, hint=f'install it with: pip install "sizewise[{extra}]"')


class UnsupportedModel(SizewiseError):
    """The model holds something that the tool or the runtime cannot treat."""

    exit_code = 4


class PreconditionError(SizewiseError, ValueError):
    """A technique's or a task's precondition does not hold."""

    exit_code = 4


class SizeUnreachable(PreconditionError):
    """A model cannot be stored in so few bytes; says in how many it can.

    Args:
        least: bytes that it takes at least, about.
        whole: of it in float32.
        got: bytes that were asked for.
        where: what was to be done.
    """

    def __init__(self, least: int, whole: int, *, got: int, where: str) -> None:
        self.least = least
        super().__init__(
            "the model cannot be stored in so few bytes",
            where=where,
            got=f"{got} bytes",
            wanted=f"at least {least} bytes, a rate of about {math.ceil(1000 * least / whole) / 1000:.3f}",
        )


@contextmanager
def blaming(what: str, where: str | None = None) -> Iterator[None]:
    """Code of the user's (a model, a loader, a metric, a task file) may raise anything: say that it is theirs, and where.

    Raises:
        PreconditionError: the block raised; errors of ours pass through.
    """
    try:
        yield
    except SizewiseError:
        raise
    except Exception as error:  # foreign code
        first = str(error).strip().partition("\n")[0]
        raise PreconditionError(what, where=where, got=f"{type(error).__name__}: {first}") from error


class BudgetInfeasible(SizewiseError):
    """Nothing that was tried fits the budget; `result` carries the nearest candidate, bundled and marked."""

    exit_code = 5

    def __init__(self, what: str, *, result: Any = None, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.result = result


class ParityError(SizewiseError):
    """The file on disk does not compute what the module computes."""

    exit_code = 6


class InternalError(SizewiseError):
    """A mistake in Sizewise itself."""

    exit_code = 70
