"""Conformance kits, tiny models and a null runtime, shipped for third parties."""

from sizewise.testing.clock import FakeClock
from sizewise.testing.kits import check_runtime, check_technique
from sizewise.testing.models import DictInput, FixedBatch, TinyConv, TwoInputs, tiny_task
from sizewise.testing.null_runtime import NullRuntime

__all__ = [
    "DictInput",
    "FakeClock",
    "FixedBatch",
    "NullRuntime",
    "TinyConv",
    "TwoInputs",
    "check_runtime",
    "check_technique",
    "tiny_task",
]
