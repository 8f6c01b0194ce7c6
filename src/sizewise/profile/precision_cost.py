"""Which layers of a quantized graph stay float under a limit of its latency: those whose integers change the outputs most per second.

What a layer costs in float is the difference of its parts of two files, the float one and the one in integers. These are timed at
different moments, so only the split within each counts; how the two compare is measured side by side. Where the values change form,
between float layers and integers, costs too, and differently with every choice: no price has it, and the choice itself is timed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sizewise.data.layer_choice import affordable
from sizewise.data.static_int8 import Calibration, Tried, Wish, effects, respared
from sizewise.errors import PreconditionError
from sizewise.graph.annotate import LAYERS, layer_path
from sizewise.graph.flow import operator, scope
from sizewise.profile.latency_target import HIGHEST, WITHIN, aim
from sizewise.protocols import Timer
from sizewise.types import Cost
from sizewise.units import format_seconds

__all__ = ["FloatLayers", "LatencyLimit", "float_prices"]

LEAST = 0.002  # of the float latency: smaller differences between two timings of a layer are noise
WHERE = "int8_static"


@dataclass(frozen=True)
class LatencyLimit:
    """Of one call: a share of the float model's latency, or seconds; the other is None."""

    share: float | None = None
    seconds: float | None = None

    def of(self, whole: float, runtime: str) -> float:
        """As a share.

        Args:
            whole: seconds of the float model.
            runtime: that they were measured on.

        Raises:
            PreconditionError: the float model is that fast.
        """
        if self.seconds is None:
            assert self.share is not None
            return self.share
        if self.seconds >= whole:
            raise PreconditionError(
                "the float model is as fast as that",
                where=WHERE,
                got=f"{format_seconds(whole)} measured on {runtime}",
                wanted=f"a limit below, not {format_seconds(self.seconds)}",
                hint="nothing need be quantized for the latency's sake",
            )
        return self.seconds / whole


class FloatLayers:
    """The layers that may stay float, what each costs, and the time that there is for them.

    Everything that needs no fitted weights is timed when it is made, so that a limit that cannot be kept is refused early.

    Args:
        calibration: of the graph.
        wish: what is wanted of the integers otherwise.
        model: whose latency the limit is a share of.
        limit: that the quantized model keeps.
        timer: of the runtime that counts.

    Raises:
        PreconditionError: the limit is below what all layers in integers take, or not below what the float model takes.
        UnsupportedModel: the runtime cannot run the model.
    """

    def __init__(self, calibration: Calibration, wish: Wish, model: nn.Module, limit: LatencyLimit, timer: Timer) -> None:
        self.calibration, self.skip, self.timer = calibration, wish.skip, timer
        example = calibration.context.example
        self._working(f"timing the float model on {timer.name}")
        floats = timer.profile(calibration.graph, example)
        self.limit = limit.of(_seconds(floats), timer.name)
        self._share = timer.beside(model, example)
        integers = calibration.rough(self.skip)
        self._working(f"timing all layers in integers on {timer.name}")
        self.integers = self._share(integers)
        self.prices = float_prices(floats, timer.profile(integers, example), self.integers)
        if self.integers > self.limit and min(self.prices.values(), default=0.0) >= 0:
            raise self._missed(self.integers)

    def spend(self, first: Tried) -> tuple[Tried, str]:
        """The preparation with as many layers in float as the limit allows, and what that is worth, for the report.

        The choice is timed beside the float model and, where it is too slow or much faster than it need be, another is tried, up to four.

        Args:
            first: with all layers in integers.

        Raises:
            PreconditionError: no choice keeps the limit.
        """
        errors = effects(self.calibration, first)
        layers = len(errors)
        may = sorted(errors.keys() & self.prices.keys() & _separable(self.calibration.graph))
        lone = {path: errors[path] for path in may}

        def choose(goal: float) -> list[int]:
            chosen = affordable(lone, self.prices, 1 - goal - self.integers)
            if len(chosen) == layers:  # then nothing would be quantized
                chosen -= {min(chosen, key=lambda path: (lone[path], path))}
            return [int(path in chosen) for path in may]

        # aiming is right within a little above or below what it is told: told so much less, the limit is kept
        counts, saved = aim(choose, lambda counts: 1 - self._timed(_picked(may, counts)), min(HIGHEST, 1 - self.limit + WITHIN))
        return self._settled(first, _picked(may, counts), 1 - saved, layers)

    def _timed(self, spared: Sequence[str]) -> float:
        """The share of the float latency with these layers in float."""
        if not spared:
            return self.integers
        self._working(f"timing {len(spared)} layers in float on {self.timer.name}")
        return self._share(self.calibration.rough((*self.skip, *spared)))

    def _settled(self, first: Tried, spared: Sequence[str], share: float, layers: int) -> tuple[Tried, str]:
        """What is taken: all in integers where nothing else keeps the limit, or nothing else is better."""
        if min(share, self.integers) > self.limit:
            raise self._missed(min(share, self.integers))
        whole = f"all {layers} layers are integers, {self._figures(self.integers)}"
        if not spared or share > self.limit:
            return first, f"{whole}: no layer that may stay float was found to leave it below the limit"
        mixed = respared(self.calibration, first, spared)
        if mixed.error >= first.error and self.integers <= self.limit:
            tried = f"with {', '.join(sorted(spared))} in float, {100 * share:.1f} %"
            return first, f"{whole}: {tried}, the outputs change no less"
        names = ", ".join(sorted(spared))
        why = "so that" if mixed.error < first.error else "so that the limit is kept, and"
        better = f"{why} the outputs change by {mixed.error:.2g} of their variance instead of {first.error:.2g}"
        return mixed, f"{len(spared)} of {layers} layers stay float, {better}: {names}; {self._figures(share)}"

    def _figures(self, share: float) -> str:
        also = "" if share == self.integers else f", {100 * self.integers:.1f} % with all layers in integers"
        return f"{100 * share:.1f} % of the float latency measured on {self.timer.name}, at most {100 * self.limit:.1f} % allowed{also}"

    def _missed(self, reached: float) -> PreconditionError:
        return PreconditionError(
            "integers alone are slower than the limit",
            where=WHERE,
            got=f"{100 * reached:.1f} % of the float latency measured on {self.timer.name}",
            wanted=f"at most {100 * self.limit:.1f} %",
            hint="a higher limit; pruning or another scale makes the model itself faster",
        )

    def _working(self, what: str) -> None:
        self.calibration.context.progress.working(what)


def float_prices(floats: Cost, integers: Cost, share: float) -> dict[str, float]:
    """What every layer in float costs more than in integers, as a share of the float latency, by its path.

    A layer that is faster in float costs less than nothing. Where the runtime does not tell layers apart, their MACs split its time.

    Args:
        floats: of the float graph, with latencies.
        integers: of the converted one.
        share: of the float latency that the converted one takes, measured side by side.
    """
    wide, narrow = _split(floats), _split(integers)
    if wide is None or narrow is None:
        wide = {layer.path: layer.macs / max(floats.macs, 1) for layer in floats.layers if layer.macs}
        narrow = wide
    found = {path: wide[path] - share * narrow[path] for path in wide if path in narrow}
    return {path: price if price < -LEAST else max(price, LEAST) for path, price in found.items()}


def _split(cost: Cost) -> dict[str, float] | None:
    """Shares of the latency by layer; None where the runtime did not split it."""
    whole = _seconds(cost)
    found = {layer.path: layer.latency_s.value / whole for layer in cost.layers if layer.latency_s is not None}
    return found if any(found.values()) else None


def _seconds(cost: Cost) -> float:
    assert cost.latency_s is not None
    return cost.latency_s.value


def _picked(paths: Sequence[str], counts: Sequence[int]) -> list[str]:
    return [path for path, count in zip(paths, counts, strict=True) if count]


def _separable(graph: Any) -> set[str]:
    """Paths of layers that stay float when that path is skipped: weights that several modules use, or that are no module's own, are not."""
    layers = [node for node in graph.graph.nodes if node.op == "call_function" and operator(node) in LAYERS]
    return {layer_path(node) for node in layers} - {layer_path(node) for node in layers if scope(node) != layer_path(node)}
