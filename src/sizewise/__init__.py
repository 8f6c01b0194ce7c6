"""Choose how large a neural network a job needs, shrink it under a budget, ship one measured file.

Importing this package is cheap: torch is imported when something that needs it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sizewise.errors import (
        BudgetInfeasible,
        InternalError,
        MissingExtra,
        ParityError,
        PreconditionError,
        SizewiseError,
        UnknownName,
        UnsupportedModel,
        UsageError,
    )
    from sizewise.evaluate.metrics import Metric
    from sizewise.pipeline.bundle import load
    from sizewise.pipeline.export import export_model
    from sizewise.pipeline.fit import Result, fit
    from sizewise.protocols import Inputs
    from sizewise.tasks.task import Task, untrained
    from sizewise.types import Budget, RunRecord

_HOME = {
    "Budget": "types",
    "BudgetInfeasible": "errors",
    "Inputs": "protocols",
    "InternalError": "errors",
    "Metric": "evaluate.metrics",
    "MissingExtra": "errors",
    "ParityError": "errors",
    "PreconditionError": "errors",
    "Result": "pipeline.fit",
    "RunRecord": "types",
    "SizewiseError": "errors",
    "Task": "tasks.task",
    "UnknownName": "errors",
    "UnsupportedModel": "errors",
    "UsageError": "errors",
    "export_model": "pipeline.export",
    "fit": "pipeline.fit",
    "load": "pipeline.bundle",
    "untrained": "tasks.task",
}

__all__ = [
    "Budget",
    "BudgetInfeasible",
    "Inputs",
    "InternalError",
    "Metric",
    "MissingExtra",
    "ParityError",
    "PreconditionError",
    "Result",
    "RunRecord",
    "SizewiseError",
    "Task",
    "UnknownName",
    "UnsupportedModel",
    "UsageError",
    "export_model",
    "fit",
    "load",
    "untrained",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("sizewise")
    if name not in _HOME:
        raise AttributeError(f"module 'sizewise' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sizewise.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
