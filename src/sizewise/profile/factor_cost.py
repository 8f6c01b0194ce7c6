"""What a network costs with some of its layers factorized, each in one of several ways, and which ways are worth having."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sizewise.arith.low_rank import full_ranks
from sizewise.data.rank_losses import FactorOption, layer_macs
from sizewise.graph.factorize import Factoring, factor_shapes
from sizewise.profile.latency_cost import amounts_within
from sizewise.profile.layer_times import Wanted, layer_times
from sizewise.protocols import Progress, Timer
from sizewise.types import Cost, LayerShape

__all__ = ["Ladder", "counted_savings", "ladder", "latency_savings"]

STEPS = 2000  # levels of a ladder: shares of a layer's cost, so that losses are compared per cost saved

Saving = Callable[[str, FactorOption], float]


@dataclass(frozen=True)
class Ladder:
    """The options of one layer that no other betters in cost and loss both, by how much they save.

    Attributes:
        levels: rising from 0, where the layer stays whole; in proportion to what is saved.
        losses: one per level from 0 to the last; those between levels repeat the one below.
        options: by level.
        saved: by level.
    """

    levels: tuple[int, ...]
    losses: tuple[float, ...]
    options: Mapping[int, FactorOption]
    saved: Mapping[int, float]

    @property
    def costs(self) -> dict[int, float]:
        """What the network costs more at every level than with the whole layer: nothing, or less."""
        return {level: -saved for level, saved in self.saved.items()}


def ladder(options: Sequence[FactorOption], saving: Callable[[FactorOption], float], amount: float, least: float = 0.0) -> Ladder:
    """Order a layer's options.

    Args:
        options: of one layer.
        saving: of the network's cost, by option.
        amount: what the layer costs.
        least: saving that is worth while.
    """
    best: dict[int, FactorOption] = {}
    for option in sorted(options, key=lambda option: (option.loss, -saving(option))):
        level = round(STEPS * saving(option) / amount) if amount > 0 else 0
        if level > 0 and saving(option) > least and not any(other >= level for other in best):
            best[level] = option
    levels = (0, *sorted(best))
    losses = [0.0]
    for level in range(1, levels[-1] + 1):
        losses.append(best[level].loss if level in best else losses[-1])
    return Ladder(levels, tuple(losses), best, {0: 0.0, **{level: saving(option) for level, option in best.items()}})


def counted_savings(
    model: nn.Module, shapes: Mapping[str, LayerShape], target: Literal["params", "macs"], matrices: Collection[str] = ()
) -> tuple[dict[str, float], Saving]:
    """What every layer has of parameters or MACs, and a function that tells what an option of it saves.

    Args:
        model: not changed.
        shapes: what its layers work on, by path.
        target: what counts.
        matrices: names of parameters of which only themselves count, where parameters do.
    """
    amounts = {
        path: float(layer_macs(shape) if target == "macs" else sum(p.numel() for p in model.get_submodule(path).parameters()))
        for path, shape in shapes.items()
    }
    amounts |= {name: float(model.get_parameter(name).numel()) for name in matrices}
    return amounts, lambda path, option: amounts[path] - getattr(option, target)


def latency_savings(
    profile: Cost,
    shapes: Mapping[str, LayerShape],
    options: Mapping[str, Sequence[FactorOption]],
    timer: Timer,
    multiple: int,
    progress: Progress | None = None,
) -> tuple[dict[str, float], Saving]:
    """Seconds of every layer within the model, and a function that tells what an option of it saves.

    New layers are timed alone, at a grid of ranks (`profile/layer_times.py`), against the lone layer whose place they take.

    Args:
        profile: of the whole model, with its measured latency.
        shapes: what the layers work on, by path.
        options: of the layers.
        timer: of the runtime that counts.
        multiple: channel counts that the runtime likes are multiples of this.
        progress: told when layers are measured.
    """
    widest = {(path, form): _widest(shapes[path], form, own) for path, own in options.items() for form in _forms(own)}
    wanted = [Wanted(shape=shapes[path], out=False, into=False) for path in options]
    for parts in widest.values():
        wanted += [Wanted(shape=part, out=place < len(parts) - 1, into=place > 0) for place, part in enumerate(parts)]
    grids = layer_times(timer, wanted, multiple, progress)
    lone = {path: grids[shapes[path]].whole for path in options}
    assert profile.latency_s is not None
    amounts = {path: seconds for path, seconds in amounts_within(profile, lone, profile.latency_s.value).items() if path in options}

    def saving(path: str, option: FactorOption) -> float:
        found = factor_shapes(shapes[path], option.factoring)
        parts = zip(widest[path, option.factoring.form], found, strict=True)
        seconds = sum(grids[part].at(own.out_channels, own.in_channels) for part, own in parts)
        return amounts.get(path, 0.0) * (1 - seconds / lone[path])

    return amounts, saving


def _forms(options: Sequence[FactorOption]) -> set[str]:
    return {option.factoring.form for option in options}


def _widest(shape: LayerShape, form: str, options: Sequence[FactorOption]) -> tuple[LayerShape, ...]:
    """The new layers at the largest ranks among the options."""
    ranks = [option.factoring.ranks for option in options if option.factoring.form == form]
    most = tuple(max(places) for places in zip(*ranks, strict=True))
    factoring = next(option.factoring for option in options if option.factoring.form == form)
    assert len(most) == len(full_ranks((shape.out_channels, shape.in_channels, *shape.kernel), factoring.form))
    return factor_shapes(shape, Factoring(factoring.form, most))
