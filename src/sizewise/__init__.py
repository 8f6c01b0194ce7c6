"""Choose how large a neural network a job needs, shrink it under a budget, ship one measured file.

Importing this package is cheap: torch is imported when something that needs it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sizewise.advice import AdviceRecord, Scenario
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
    from sizewise.pipeline.compress import compress_model
    from sizewise.pipeline.compressed import load_compressed, save_compressed
    from sizewise.pipeline.export import export_model
    from sizewise.pipeline.fit import Result, fit
    from sizewise.pipeline.profile import profile_model
    from sizewise.pipeline.prune import prune_model
    from sizewise.pipeline.quantize import quantize_model
    from sizewise.pipeline.recover import recover
    from sizewise.pipeline.replay import replay
    from sizewise.pipeline.saving import load_model, save_model
    from sizewise.pipeline.select import select_scale
    from sizewise.pipeline.survey import survey
    from sizewise.protocols import Inputs
    from sizewise.select.scenario import load_scenario
    from sizewise.tasks.task import Task, untrained
    from sizewise.types import Budget, Cost, RunRecord

_HOME = {
    "AdviceRecord": "advice",
    "Budget": "types",
    "BudgetInfeasible": "errors",
    "Cost": "types",
    "Inputs": "protocols",
    "InternalError": "errors",
    "Metric": "evaluate.metrics",
    "MissingExtra": "errors",
    "ParityError": "errors",
    "PreconditionError": "errors",
    "Result": "pipeline.fit",
    "RunRecord": "types",
    "Scenario": "advice",
    "SizewiseError": "errors",
    "Task": "tasks.task",
    "UnknownName": "errors",
    "UnsupportedModel": "errors",
    "UsageError": "errors",
    "compress_model": "pipeline.compress",
    "export_model": "pipeline.export",
    "fit": "pipeline.fit",
    "load": "pipeline.bundle",
    "load_compressed": "pipeline.compressed",
    "load_model": "pipeline.saving",
    "load_scenario": "select.scenario",
    "profile_model": "pipeline.profile",
    "prune_model": "pipeline.prune",
    "quantize_model": "pipeline.quantize",
    "recover": "pipeline.recover",
    "replay": "pipeline.replay",
    "save_compressed": "pipeline.compressed",
    "save_model": "pipeline.saving",
    "select_scale": "pipeline.select",
    "survey": "pipeline.survey",
    "untrained": "tasks.task",
}

__all__ = [
    "AdviceRecord",
    "Budget",
    "BudgetInfeasible",
    "Cost",
    "Inputs",
    "InternalError",
    "Metric",
    "MissingExtra",
    "ParityError",
    "PreconditionError",
    "Result",
    "RunRecord",
    "Scenario",
    "SizewiseError",
    "Task",
    "UnknownName",
    "UnsupportedModel",
    "UsageError",
    "compress_model",
    "export_model",
    "fit",
    "load",
    "load_compressed",
    "load_model",
    "load_scenario",
    "profile_model",
    "prune_model",
    "quantize_model",
    "recover",
    "replay",
    "save_compressed",
    "save_model",
    "select_scale",
    "survey",
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
