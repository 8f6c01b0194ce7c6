"""What techniques look at before they touch a model."""

from collections.abc import Iterable

from torch import nn

from sizewise.errors import PreconditionError, UnknownName

__all__ = ["check_finite", "check_skip"]


def check_skip(model: nn.Module, skip: Iterable[str], where: str) -> None:
    """Whether the model has the modules that are to be left alone.

    Raises:
        UnknownName: no module of a path in `skip`.
    """
    known = [path for path, _ in model.named_modules() if path]
    for name in skip:
        if name not in known:
            raise UnknownName("layer to skip", name, known, where=where)


def check_finite(model: nn.Module, where: str) -> None:
    """Whether all parameters are numbers.

    Raises:
        PreconditionError: one is not; says which.
    """
    for name, value in model.named_parameters():
        if not bool(value.isfinite().all()):
            raise PreconditionError("weights are not finite", where=f"{where}, {name}")
