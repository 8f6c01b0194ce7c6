"""Latency figures put into a cost: a layer's share of a measured pass, or its own prediction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sizewise.profile.graph_cost import Operator
from sizewise.profile.roofline import Prediction
from sizewise.types import Cost, Interval

__all__ = ["ELSEWHERE", "with_measured", "with_predicted"]

ELSEWHERE = "(runtime)"
_VANISHING = frozenset(("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias"))


def with_predicted(cost: Cost, prediction: Prediction) -> Cost:
    """The cost with predicted latencies."""
    layers = tuple(replace(layer, latency_s=prediction.layers.get(layer.path)) for layer in cost.layers)
    return replace(cost, latency_s=prediction.total, layers=layers)


def with_measured(cost: Cost, operators: Sequence[Operator], whole: Interval, kernels: Mapping[tuple[str, int], float]) -> Cost:
    """The cost with a measured latency, split over layers by the runtime's own times per operator.

    Args:
        cost: without latencies.
        operators: that the cost was counted on.
        whole: latency of one pass, measured without a profiler.
        kernels: seconds per module path and how-manieth operator of that module; a runtime times a folded group of
            operators as one kernel, which counts for the group's first layer.
    """
    seconds = _per_layer(operators, kernels)
    total = sum(seconds.values())
    if not total:  # a pass shorter than the profiler's clock can tell
        return replace(cost, latency_s=whole)
    layers = tuple(replace(layer, latency_s=_scaled(whole, seconds.get(layer.path, 0.0) / total)) for layer in cost.layers)
    left = 1 - sum(seconds.get(layer.path, 0.0) for layer in cost.layers) / total
    notes = (f"{100 * left:.0f} % of the time belongs to no layer (changes of memory layout)",) if left >= 0.005 else ()
    return replace(cost, latency_s=whole, layers=layers, notes=(*cost.notes, *notes))


def _per_layer(operators: Sequence[Operator], kernels: Mapping[tuple[str, int], float]) -> dict[str, float]:
    mine: dict[str, list[Operator]] = {}
    for op in operators:
        if not _vanishes(op):
            mine.setdefault(op.path, []).append(op)
    turns = Counter(path for path, _ in kernels)
    seconds: dict[str, float] = {}
    for (path, turn), value in kernels.items():
        ops = mine.get(path, [])
        hosts = {op.host for op in ops}
        if len(hosts) == 1:
            host = next(iter(hosts))
        elif turn < len(ops) and turns[path] <= len(ops):
            host = ops[turn].host
        else:
            host = None
        place = path if host is None else host
        seconds[place] = seconds.get(place, 0.0) + value
    return seconds


def _vanishes(op: Operator) -> bool:
    """Whether runtimes' files have nothing for it, so that they do not count it among its module's operators."""
    return op.kind.rstrip("_") in _VANISHING or (op.kind == "to" and not op.write_bytes)


def _scaled(whole: Interval, share: float) -> Interval:
    return replace(whole, value=whole.value * share, low=whole.low * share, high=whole.high * share)
