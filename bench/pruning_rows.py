"""Rows of a pruning bench: how long a model took to make, and how much smaller and faster it is than the whole one."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.timed_files import time_files
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs
from sizewise.types import Interval

__all__ = ["Row", "speedups", "summary", "timed"]

ROUNDS, BLOCK_S = 21, 0.05


@dataclass(frozen=True)
class Row:
    """A model, and the seconds that making it took."""

    module: nn.Module
    seconds: float = 0.0


def timed(make: Callable[[], nn.Module]) -> Row:
    """Make a model and look at the clock."""
    begin = time.perf_counter()
    module = make()
    return Row(module, time.perf_counter() - begin)


def speedups(modules: Mapping[str, nn.Module], example: Inputs, rounds: int = ROUNDS) -> dict[str, Interval]:
    """How many times faster every model's ONNX file is than that of the first, all timed in the same rounds."""
    models = {name: (module, example) for name, module in modules.items()}
    times = time_files(models, find_runtime("onnxruntime"), torch.get_num_threads(), rounds=rounds, block_s=BLOCK_S)
    first = next(iter(models))
    return {name: times.ratio(first, name) for name in models}


def summary(rows: Mapping[str, Row], example: Inputs) -> dict[str, str]:
    """Per row, MACs of the first over its own, seconds it took, and how many times faster its file is."""
    faster = speedups({name: row.module for name, row in rows.items()}, example)
    macs = {name: static_cost(row.module, example).macs for name, row in rows.items()}
    first = next(iter(macs.values()))
    return {
        name: f"{first / macs[name]:4.2f} x fewer MACs  {faster[name].value:.2f} x "
        f"[{faster[name].low:.2f}, {faster[name].high:.2f}] faster  {row.seconds:5.1f} s"
        for name, row in rows.items()
    }
