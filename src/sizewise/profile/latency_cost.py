"""The latency of a network with so many channels removed from every group, from measured times of its layers."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from sizewise.graph.groups import Group
from sizewise.profile.channel_cost import ChannelCost, Share, shared_axes
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.layer_times import Grid, Wanted, layer_times
from sizewise.protocols import Inputs, Progress, Timer
from sizewise.types import Cost

__all__ = ["amounts_within", "latency_cost"]

SURPLUS = 1.3  # times what a lone layer takes, for what is folded into it


def latency_cost(
    model: nn.Module,
    groups: Sequence[Group],
    example: Inputs,
    timer: Timer,
    multiple: int,
    progress: Progress | None = None,
) -> ChannelCost:
    """Seconds of a call with so many channels removed from every group.

    Layers that lose channels are timed alone, at a grid of counts, and those in blocks that may be left out as they are. Each counts for
    what it takes within the whole model, and falls as the lone layer does; what runs around the layers stays.

    Args:
        model: in inference mode.
        groups: whose channels go.
        example: inputs of one call.
        timer: of the runtime that counts.
        multiple: channel counts that the runtime likes are multiples of this.
        progress: told when layers are measured.

    Raises:
        UnsupportedModel: the runtime cannot run the model or one of its layers.
    """
    profile = timer.profile(model, example)
    every = layer_shapes(model, example)
    axes: dict[str, set[str]] = {path: set() for path in _in_blocks(groups, every)} | shared_axes(groups)
    shapes = {path: found for path, found in every.items() if path in axes}
    wanted = [Wanted(shape=s, out="out" in axes[path], into="in" in axes[path]) for path, found in shapes.items() for s in found]
    grids = layer_times(timer, wanted, multiple, progress)
    lone = {path: sum(grids[shape].whole for shape in found) for path, found in shapes.items()}
    assert profile.latency_s is not None
    whole = profile.latency_s.value
    amounts = amounts_within(profile, lone, whole)
    return ChannelCost(groups, whole, amounts, {path: _share([grids[shape] for shape in found]) for path, found in shapes.items()})


def _in_blocks(groups: Sequence[Group], paths: Iterable[str]) -> list[str]:
    """The layers that go with a block."""
    blocks = tuple(f"{group.name}." for group in groups if group.is_block)
    return [path for path in paths if path.startswith(blocks)]


def amounts_within(profile: Cost, lone: Mapping[str, float], whole: float) -> dict[str, float]:
    """Seconds within the whole model by layer, together at most those of the whole.

    By the runtime's own split, where it tells; a profiler overstates small kernels, and other work may be counted with a layer, so
    none counts for much more than it takes alone.
    """
    inside = {layer.path: layer.latency_s.value for layer in profile.layers if layer.latency_s is not None}
    timed = [path for path in lone if inside.get(path)]
    if not timed:
        scale = min(1.0, whole / max(sum(lone.values()), 1e-12))
        return {path: scale * seconds for path, seconds in lone.items()}
    drift = sum(inside[path] for path in timed) / sum(lone[path] for path in timed)
    return {path: min(seconds, SURPLUS * drift * lone[path]) if path in lone else seconds for path, seconds in inside.items()}


def _share(grids: Sequence[Grid]) -> Share:
    whole = sum(grid.whole for grid in grids)

    def share(out: float, into: float) -> float:
        total = 0.0
        for grid in grids:
            kept = min(out, into) if grid.shape.groups > 1 else out
            total += grid.at(kept * grid.shape.out_channels, into * grid.shape.in_channels)
        return total / whole

    return share
