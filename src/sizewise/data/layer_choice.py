"""Which layers of a quantized graph stay float, and which get fewer bits, by what each does to the outputs."""

from collections.abc import Callable, Mapping

from sizewise.data.outputs import OutputChange
from sizewise.graph.annotate import layer_path
from sizewise.graph.observers import ActivationObserver, WeightObserver, mode
from sizewise.graph.prepared import Prepared
from sizewise.graph.round_layers import weight_observer

__all__ = ["affordable", "fewest", "layer_errors", "narrowest"]


def layer_errors(prepared: Prepared, change: OutputChange) -> dict[str, float]:
    """Change of the outputs when one layer alone has integers for its weight and its input, by the layer's path.

    Costs one pass over the examples of `change` per layer.

    Args:
        prepared: with ranges; its weights are those of the float model, not rounded ones.
        change: that says how far outputs are from the float model's.
    """
    graph = prepared.graph
    errors: dict[str, float] = {}
    with mode(graph, "pass"):
        for node in graph.graph.nodes:
            weight = weight_observer(graph, node)
            if weight is None:
                continue
            source = node.args[0]
            found = graph.get_submodule(str(source.target)) if source.op == "call_module" else None
            pair: list[WeightObserver | ActivationObserver] = [weight, *([found] if isinstance(found, ActivationObserver) else [])]
            for observer in pair:
                observer.mode = "simulate"
            path = layer_path(node)
            errors[path] = max(change(graph), errors.get(path, 0.0))
            for observer in pair:
                observer.mode = "pass"
    return errors


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The least k from 0 to `most` for which something holds that goes on to hold for all larger ones; None where it never does.

    Asks for 0, 1, 3, 7, ... and then halves, so that few questions are asked where k is small, and 2 log2(most) at most.
    """
    low, high = -1, 0
    while not holds(high):
        if high == most:
            return None
        low, high = high, min(2 * high + 1, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def narrowest(errors: Mapping[str, float], saved: Mapping[str, int], wanted: int) -> frozenset[str]:
    """Layers that together save so many bytes, those first that cost least error per byte; those that turn out not to be needed stay.

    Args:
        errors: of every layer, when it alone gets fewer bits.
        saved: bytes by it.
        wanted: bytes to save.

    Returns:
        the layers; all of them where that is not enough.
    """
    chosen: list[str] = []
    left = wanted
    for path in sorted(errors, key=lambda path: (errors[path] / max(saved[path], 1), path)):
        if left <= 0:
            break
        chosen.append(path)
        left -= saved[path]
    for path in sorted(chosen, key=lambda path: -errors[path]):
        if left + saved[path] <= 0:
            chosen.remove(path)
            left += saved[path]
    return frozenset(chosen)


def affordable(errors: Mapping[str, float], prices: Mapping[str, float], allowance: float) -> frozenset[str]:
    """Layers that together cost no more than is allowed, those first that take most error away per price; what does not fit is passed over.

    Layers that cost nothing or less are all taken, and what they save may be spent, even where nothing else is allowed.

    Args:
        errors: that go when a layer is taken.
        prices: of the same layers.
        allowance: in the unit of the prices.

    Source: Dantzig, Discrete-Variable Extremum Problems, Operations Research 1957: the better of this and of the worst single layer that
    can be paid takes away at least half of what any choice could.
    """
    free = {path for path in errors if prices[path] <= 0}
    left = room = allowance - sum(prices[path] for path in free)
    chosen: set[str] = set()
    paid = sorted(errors.keys() - free, key=lambda path: (-errors[path] / prices[path], path))
    for path in paid:
        if prices[path] <= left:
            chosen.add(path)
            left -= prices[path]
    worst = max((path for path in paid if prices[path] <= room), key=lambda path: errors[path], default=None)
    if worst is not None and errors[worst] > sum(errors[path] for path in chosen):
        chosen = {worst}
    return frozenset(free | chosen)
