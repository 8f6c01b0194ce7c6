"""torch's ONNX exporter reads its table of operators anew at every export, which takes half a second; here it is kept.

The table holds the operators that were loaded when it was read (those of quantization come late), so it is read anew when
there are more. It is not public: where a version of torch has none at this place, every export builds its own, as without
this file.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["kept_registry"]

_PLACE = "torch.onnx._internal.exporter._registration"
_kept: dict[Any, Any] = {}


@contextmanager
def kept_registry() -> Iterator[None]:
    """Within it, the exporter gets copies of one table of operators per opset."""
    try:
        kind = importlib.import_module(_PLACE).ONNXRegistry
        build = kind.__dict__["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def copied(cls: Any, /, **options: Any) -> Any:
        key = (len(torch._C._dispatch_get_all_op_names()), *sorted(options.items()))
        if key not in _kept:
            _kept[key] = build.__func__(cls, **options)
        copy = cls()
        vars(copy).update(vars(_kept[key]))
        copy.functions = {target: list(functions) for target, functions in _kept[key].functions.items()}
        return copy

    kind.from_torchlib = classmethod(copied)
    try:
        yield
    finally:
        kind.from_torchlib = build
