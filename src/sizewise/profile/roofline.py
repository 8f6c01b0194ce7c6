"""Latency predicted from counts: every operator computes or moves data, whichever takes longer, after a fixed overhead.

Source: Williams, Waterman, Patterson, Roofline: an insightful visual performance model, CACM 2009. Deviations: the compute
roof depends on the family of operator, since kernels of different families reach different shares of the peak; there is a
second bandwidth for what fits the cache; every operator adds an overhead, and every step of a recurrent layer another,
because steps wait for one another. Operators that runtimes fold into the one before add only the bytes that they read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.profile.graph_cost import Operator
from sizewise.types import Interval, Rates

__all__ = ["Prediction", "operator_seconds", "predict"]


@dataclass(frozen=True)
class Prediction:
    """Seconds of one pass, and of each layer by its path."""

    total: Interval
    layers: dict[str, Interval]


def predict(operators: Sequence[Operator], rates: Rates, dtype: str = "float32") -> Prediction:
    """Predict one pass, operators one after the other.

    Args:
        operators: of the exported graph; their bytes are those of the dtype it was exported in.
        rates: of the device.
        dtype: whose compute roof counts.
    """
    streamed = sum(op.weight_bytes for op in operators) > rates.cache_bytes
    seconds: dict[str, float] = {}
    for op in operators:
        path = op.path if op.host is None else op.host
        seconds[op.path] = seconds.get(op.path, 0.0)
        seconds[path] = seconds.get(path, 0.0) + operator_seconds(op, rates, dtype, streamed=streamed)
    return Prediction(_around(sum(seconds.values()), rates), {path: _around(s, rates) for path, s in seconds.items()})


def operator_seconds(op: Operator, rates: Rates, dtype: str = "float32", *, streamed: bool = False) -> float:
    """Seconds of one operator; `streamed` says that the model's weights do not fit the cache and come from memory every pass."""
    touched = op.read_bytes + op.write_bytes
    near = touched <= rates.cache_bytes
    moving = touched / (rates.cache_bandwidth_bytes_per_s if near else rates.bandwidth_bytes_per_s)
    moving += op.weight_bytes / (rates.bandwidth_bytes_per_s if streamed else rates.cache_bandwidth_bytes_per_s)
    if op.host is not None:
        return moving
    if not (touched or op.macs):
        return 0.0  # a view
    computing = op.macs / (_peak(rates, dtype) * rates.efficiency[op.family]) if op.macs else 0.0
    waiting = (op.steps - 1) * rates.step_overhead_s
    return max(computing, moving) + rates.operator_overhead_s + waiting


def _peak(rates: Rates, dtype: str) -> float:
    return rates.peak_macs_per_s.get(dtype, rates.peak_macs_per_s["float32"])


def _around(seconds: float, rates: Rates) -> Interval:
    low, high = seconds / rates.error_factor, seconds * rates.error_factor
    return Interval(value=seconds, low=low, high=high, n=0, how="predicted", confidence=0.9)
