"""Which ranges and roundings a quantized graph gets, and which layers: what changes the outputs least on examples that chose nothing.

Every fourth batch of the calibration data is held back. Ranges, scales and fitted weights come from the others; the choice between ways
to get them, and between layers, is made by the outputs of the simulated graph on what was held back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn
from torch.fx import GraphModule

from sizewise.arith.ranges import Method
from sizewise.data.batches import first_batches
from sizewise.data.layer_choice import fewest, layer_errors, narrowest
from sizewise.data.outputs import OutputChange
from sizewise.errors import PreconditionError
from sizewise.graph.equalization import equalize, links
from sizewise.graph.observers import mode
from sizewise.graph.prepared import Prepared, collect_graphs, prepare, rough
from sizewise.graph.round_layers import pack_weights, round_layers, weight_sizes
from sizewise.graph.trace import eval_copy
from sizewise.protocols import Context, Inputs
from sizewise.types import Scheme, Skip
from sizewise.units import format_bytes

__all__ = ["Calibration", "Tried", "Wish", "effects", "narrowed", "respared", "spared", "stay"]

JUDGED = 4  # every so-manieth batch is held back
SENSED = 64  # examples that the effect of single layers is looked at on
NARROW = 4  # bits
WHERE = "int8_static"


@dataclass(frozen=True)
class Wish:
    """What is wanted of the integers.

    Attributes:
        methods: of choosing ranges, to try.
        even: whether to try evening ranges out between layers too.
        nearest: round to nearest and leave biases alone.
        skip: paths of modules that stay float.
        bits: of weights, for all or by the path of the layer.
    """

    methods: Sequence[Method]
    even: bool
    nearest: bool
    skip: tuple[str, ...] = ()
    bits: Mapping[str, int] | int = 8


@dataclass(frozen=True)
class Tried:
    """One preparation.

    Attributes:
        prepared: with ranges set.
        error: change of the outputs on what was held back, as a share of their variance.
        wish: that it is for.
        method: that ranges were chosen by.
        even: whether they were evened out between layers first.
        fitted: whether weights and biases were fitted, and narrow weights rounded by their effect.
        source: the float graph that it was prepared from.
    """

    prepared: Prepared
    error: float
    wish: Wish
    method: Method
    even: bool
    fitted: bool = False
    source: Any = None

    def describe(self) -> str:
        """For the report."""
        more = [", evened out between layers" if self.even else "", ", weights fitted" if self.fitted else ""]
        return f"ranges by {self.method}{''.join(more)}; the outputs change by {self.error:.2g} of their variance"


class Calibration:
    """A folded graph, the data, and where it will run.

    Args:
        graph: folded; it stays as it is.
        batches: calibration inputs, which the graph takes.
        scheme: of the runtime.
        context: for seed and progress.
        held: how many examples' activations may be held at a time.
    """

    def __init__(self, graph: GraphModule, batches: Sequence[Inputs], scheme: Scheme, context: Context, held: int) -> None:
        self.graph, self.scheme, self.context, self.held = graph, scheme, context, held
        self.judged = list(batches[JUDGED - 1 :: JUDGED]) or list(batches)
        self.fitting = [batch for index, batch in enumerate(batches) if index % JUDGED != JUDGED - 1]
        self.change = OutputChange(graph, self.judged)

    def run(self, wish: Wish, *, last: bool = False) -> Tried:
        """The preparation of least error.

        Ways to choose ranges are compared before weights are fitted, which takes longest. The best of them is fitted, and so is the one
        that clips nothing, since no fit brings back what is clipped.

        Args:
            wish: what is wanted.
            last: nothing else will be asked for, so that the graph may be let go where another one with ranges evened out is better.
        """
        tried = self._ranged(self.graph, wish, even=False)
        if wish.even and tried[0].prepared.touched and (twin := _equalized(self.graph)) is not None:
            tried += self._ranged(twin, wish, even=True)
        best = min(tried, key=lambda one: one.error)
        if not best.prepared.touched or wish.nearest:
            return best
        wide = [one for one in tried if one.method == "minmax" and one.even == best.even and one is not best]
        self.graph = best.source if last else self.graph
        twin, tried = None, []
        collect_graphs(best.prepared.graph)  # those that were not chosen hold weights
        fitted = self._fitted(best)
        for one in wide:
            unpack = pack_weights(fitted.prepared.graph)  # two sets of fitted weights need not fit into memory
            other = self._fitted(one)
            if other.error < fitted.error:
                fitted = other
                continue
            del other
            collect_graphs(best.prepared.graph)
            unpack()
        return min(fitted, best, key=lambda one: one.error)

    def rough(self, skip: tuple[str, ...]) -> nn.Module:
        """The converted graph with ranges of one batch and nothing fitted; see `graph.prepared.rough`."""
        return rough(self.graph, self.scheme, (self.fitting or self.judged)[:1], skip)

    def error(self, prepared: Prepared) -> float:
        """Of the outputs, with all integers simulated."""
        with mode(prepared.graph, "simulate"):
            return self.change(prepared.graph)

    def _ranged(self, graph: GraphModule, wish: Wish, *, even: bool) -> list[Tried]:
        """One preparation for every way to choose ranges."""
        self.context.progress.working(f"ranges of activations{', evened out' if even else ''}")
        prepared = prepare(graph, self.scheme, wish.skip, wish.bits)
        prepared.watch(self.fitting)
        found = []
        for method in wish.methods:
            prepared.set_ranges(method)
            own = replace(prepared, graph=eval_copy(prepared.graph, shared=True))
            found.append(Tried(own, self.error(own), wish, method, even, source=graph))
        return found

    def _fitted(self, tried: Tried) -> Tried:
        """With weights fitted and rounded."""
        prepared = replace(tried.prepared, graph=eval_copy(tried.prepared.graph, shared=True))
        round_layers(prepared.graph, list(first_batches(self.fitting, self.held)), self.context.seed, self.context.progress)
        return replace(tried, prepared=prepared, error=self.error(prepared), fitted=True)


def narrowed(calibration: Calibration, wish: Wish, limit: int) -> tuple[Wish, str]:
    """The wish with 4 bits for the weights whose rounding changes the outputs least, as many as it takes to keep a limit in bytes.

    Raises:
        PreconditionError: 4 bits for all weights are more than that.
    """
    calibration.context.progress.working("the effect of every layer at 4 bits")
    wide = calibration.run(replace(wish, nearest=True))
    sizes = weight_sizes(wide.prepared.graph)
    narrow = prepare(calibration.graph, calibration.scheme, wish.skip, NARROW)
    narrow.watch(calibration.fitting)
    narrow.set_ranges(wide.method)
    errors = layer_errors(narrow, _sensed(calibration))
    whole = sum(sizes.values())
    chosen = narrowest(errors, {path: size - (size + 1) // 2 for path, size in sizes.items()}, whole - limit)
    reached = sum((size + 1) // 2 if path in chosen else size for path, size in sizes.items())
    if reached > limit:
        raise PreconditionError(
            "the weights cannot be that small",
            where=WHERE,
            got=format_bytes(limit),
            wanted=f"at least {format_bytes(reached)}, which is 4 bits each",
        )
    note = (
        f"4 bits for the weights of {len(chosen)} of {len(sizes)} layers, {format_bytes(reached)} in all: {', '.join(sorted(chosen)[:5])}"
    )
    return replace(wish, bits={path: NARROW if path in chosen else 8 for path in sizes}), note


def spared(calibration: Calibration, first: Tried, max_drop: float, judge: Callable[[nn.Module], float], whole: float) -> tuple[Tried, str]:
    """Let layers stay float, those first that change the outputs most by themselves, until the quality has not dropped by more.

    Args:
        calibration: that `first` comes from.
        first: with all layers in integers.
        max_drop: that is allowed, in the unit of what `judge` says.
        judge: how good a module is; more is better.
        whole: what it says of the float model.

    Raises:
        PreconditionError: the drop is larger with a single layer in integers.
    """
    progress = calibration.context.progress
    progress.working("the quality with all layers in integers")
    order: list[str] = []
    best = first
    drops: dict[int, float] = {}

    def holds(count: int) -> bool:
        nonlocal best
        if count and not order:
            errors = effects(calibration, first)
            order.extend(sorted(errors, key=lambda path: (-errors[path], path)))
        if count:
            progress.working(f"the quality with {count} layers in float")
        tried = respared(calibration, first, order[:count]) if count else first
        with mode(tried.prepared.graph, "simulate"):
            drops[count] = whole - judge(tried.prepared.graph)
        held = drops[count] <= max_drop + 1e-12
        best = tried if held else best  # the last one that holds is the least
        return held

    layers = len(weight_sizes(first.prepared.graph))
    count = fewest(layers - 1, holds)
    if count is None:
        got = f"{drops[layers - 1]:.4g} with one layer in integers"
        raise PreconditionError("the quality drops by more", where=WHERE, got=got, wanted=f"at most {max_drop:.4g}")
    which = f": {', '.join(order[:count])}" if count else ""
    note = f"{count} of {layers} layers stay float, so that the quality on validation drops by {drops[count]:.4g}{which}"
    return best, f"{note} ({len(drops)} evaluations)"


def effects(calibration: Calibration, tried: Tried) -> dict[str, float]:
    """Change of the outputs when one layer alone is integers, without fitted weights, by its path."""
    calibration.context.progress.working("the effect of every layer")
    unrounded = calibration.run(replace(tried.wish, methods=(tried.method,), even=False, nearest=True))
    return layer_errors(unrounded.prepared, _sensed(calibration))


def respared(calibration: Calibration, first: Tried, layers: Sequence[str]) -> Tried:
    """The preparation with these layers in float too, in the way that was found best before."""
    wish = replace(first.wish, methods=(first.method,), even=first.even, skip=(*first.wish.skip, *layers))
    return calibration.run(wish)


def stay(tried: Tried, asked: Sequence[str], limit: Literal["drop", "latency"] = "drop") -> tuple[Skip, ...]:
    """What stays float, with the reason where layers were spared, which `limit` asked for or left room for."""
    why = {"drop": "and the drop is limited", "latency": "and the limit allows it"}[limit]
    own = sorted(set(tried.wish.skip) - set(asked))
    reason = f"spared: its integers change the outputs most, {why}"

    def told(skip: Skip) -> Skip:
        if skip.what in own:
            return replace(skip, reason=reason)
        layer = next((name for name in own if skip.what.startswith(f"{name}.")), None)
        return skip if layer is None else replace(skip, reason=f"part of {layer}, which was spared")

    return tuple(map(told, tried.prepared.left))


def _sensed(calibration: Calibration) -> OutputChange:
    return OutputChange(calibration.graph, list(first_batches(calibration.judged, SENSED)))


def _equalized(graph: GraphModule) -> GraphModule | None:
    """A copy with ranges evened out between layers; None where no two layers allow it."""
    twin = eval_copy(graph, shared=True)
    found = [link for link in links(twin) if not link.normalized]
    equalize(twin, found)
    return twin if found else None
