"""What a network costs with so many channels removed from every group of axes.

Every layer costs its present amount times a share that depends on what its output and its input axis keep. Several groups may share
an axis, which loses the rows of all of them. A module that is left out costs nothing any more, with all that is in it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sizewise.graph.groups import Group, Member
from sizewise.graph.surgery import WHOLE, is_grouped
from sizewise.types import Cost

__all__ = ["ChannelCost", "Share", "counted_cost", "paying", "removable", "shared_axes"]

Share = Callable[[float, float], float]  # of a layer's amount, from the shares that its output and input axis keep
PAYS = 0.3  # of what a removed channel saves on average, so that a count is worth trying

_STACKS = (nn.GRU, nn.LSTM, nn.RNN)
_CELLS = (nn.GRUCell, nn.LSTMCell, nn.RNNCell)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class _Axis:
    """Of a layer: the share of it that goes with each channel of each group, by the group's number."""

    lost: tuple[tuple[int, float], ...] = ()

    def kept(self, removed: Sequence[int]) -> float:
        return max(0.0, 1 - sum(removed[group] * share for group, share in self.lost))


class ChannelCost:
    """A function of the counts removed from every group, in order, that gives the cost of what is left.

    Args:
        groups: whose channels go.
        whole: the network's cost.
        amounts: of it by layer; what no layer has stays.
        shares: how each layer's amount falls; by default with the axis that loses most.
    """

    def __init__(self, groups: Sequence[Group], whole: float, amounts: Mapping[str, float], shares: Mapping[str, Share]) -> None:
        self.whole = whole
        self._amounts, self._channels = dict(amounts), [group.channels for group in groups]
        self._axes = _axes(groups)
        self._shares = {path: shares.get(path, min) for path in self._axes}
        self._known: dict[str, dict[tuple[float, float], float]] = {path: {} for path in self._axes}
        self._paths = [{member.path for member in group.members} & set(self._axes) for group in groups]
        self._blocks: dict[str, list[int]] = {}
        for index, group in enumerate(groups):
            self._paths[index] |= _within(amounts, _left_out(group))
            for path in sorted(_within(amounts, _left_out(group))):
                self._blocks.setdefault(path, []).append(index)
        self._every = list(dict.fromkeys([*self._axes, *self._blocks]))

    def __call__(self, removed: Sequence[int]) -> float:
        """The cost with so many channels removed from every group."""
        return self.whole - sum(self._saved(path, removed) for path in self._every)

    def saving(self, removed: Sequence[int], index: int, count: int) -> float:
        """What is saved if so many channels go from one group instead of as many as in `removed`."""
        after = [*removed[:index], count, *removed[index + 1 :]]
        return sum(self._saved(path, after) - self._saved(path, removed) for path in sorted(self._paths[index]))

    def neighbours(self, index: int) -> set[int]:
        """Groups, itself included, whose savings depend on how many channels a group has."""
        return {other for other, paths in enumerate(self._paths) if other == index or paths & self._paths[index]}

    def _saved(self, path: str, removed: Sequence[int]) -> float:
        amount = self._amounts.get(path, 0.0)
        if any(removed[block] == self._channels[block] for block in self._blocks.get(path, ())):
            return amount
        if path not in self._axes:
            return 0.0
        out, into = self._axes[path]
        kept = (out.kept(removed), into.kept(removed))
        if kept == (1.0, 1.0):
            return 0.0
        known = self._known[path]
        if kept not in known:
            known[kept] = amount * (1 - self._shares[path](*kept))
        return known[kept]


def counted_cost(model: nn.Module, groups: Sequence[Group], profile: Cost, target: Literal["macs", "params"]) -> ChannelCost:
    """MACs or parameters with so many channels removed from every group.

    Args:
        model: that the groups belong to.
        groups: whose channels go.
        profile: what the whole model costs.
        target: what counts.
    """
    amounts = {layer.path: float(getattr(layer, target)) for layer in profile.layers}
    shares = {path: _share(model.get_submodule(path), target) for path in shared_axes(groups)}
    return ChannelCost(groups, float(getattr(profile, target)), amounts, shares)


def shared_axes(groups: Sequence[Group]) -> dict[str, set[str]]:
    """Which axes of which layers can get smaller."""
    found: dict[str, set[str]] = {}
    for member in (member for group in groups for member in group.members):
        if member.axis in ("out", "in"):
            found.setdefault(member.path, set()).add(member.axis)
    return found


def removable(group: Group, multiple: int) -> list[int]:
    """Counts that may be removed, rising; one channel stays at least, unless the group is a module that can be left out."""
    channels = group.channels
    if _left_out(group):
        return [0, channels]
    step = multiple if channels >= 2 * multiple else 1
    kept = range(channels - channels % step, 0, -step)
    return sorted({0, *(channels - count for count in kept)})


def paying(index: int, levels: Sequence[int], cost: Callable[[Sequence[int]], float], groups: int) -> list[int]:
    """The counts of one group that are worth trying, where kernels work on blocks and a channel more or less may change nothing.

    A count stays if what it saves beyond the last that stayed is a fair part of what so many channels save on average.

    Args:
        index: of the group.
        levels: counts that may be removed from it, rising from 0.
        cost: of the network.
        groups: how many there are.
    """

    def costs(level: int) -> float:
        return cost([level if place == index else 0 for place in range(groups)])

    kept, before, average = [levels[0]], costs(levels[0]), 0.0
    if levels[-1]:
        average = (before - costs(levels[-1])) / levels[-1]
    for level in levels[1:]:
        now = costs(level)
        if before - now >= PAYS * average * (level - kept[-1]) and before > now:
            kept.append(level)
            before = now
    return kept


def _axes(groups: Sequence[Group]) -> dict[str, tuple[_Axis, _Axis]]:
    """Output and input axis of every layer that loses channels."""
    lost: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            if member.axis in ("out", "in"):
                part = (index, _owned(member) / (len(member.channel_of) * group.channels))
                lost.setdefault(member.path, {}).setdefault(member.axis, []).append(part)
    return {path: (_Axis(tuple(axes.get("out", ()))), _Axis(tuple(axes.get("in", ())))) for path, axes in lost.items()}


def _owned(member: Member) -> int:
    """Rows that belong to the group."""
    return sum(channel >= 0 for channel in member.channel_of)


def _left_out(group: Group) -> set[str]:
    """Modules that are left out when the group's channel goes."""
    return {member.path for member in group.members if member.axis == WHOLE}


def _within(paths: Iterable[str], modules: Collection[str]) -> set[str]:
    """Of some paths, those of the modules and of what is in them."""
    return {path for path in paths if any(path == around or path.startswith(f"{around}.") for around in modules)}


def _share(layer: nn.Module, target: str) -> Share:
    """How a layer's MACs or parameters fall with its axes."""
    if isinstance(layer, _STACKS + _CELLS):
        return _recurrent_share(layer, target)
    if not isinstance(layer, _PRODUCTS) or is_grouped(layer):
        return min
    weight = layer.weight.numel()
    bias = layer.bias.numel() if layer.bias is not None and target == "params" else 0
    return lambda out, into: (weight * out * into + bias * out) / (weight + bias)


def _recurrent_share(layer: Any, target: str) -> Share:
    """Every gate of every stacked layer multiplies with its input and with its own state; further layers read the hidden state."""
    hidden, features = int(layer.hidden_size), int(layer.input_size)
    stacked = getattr(layer, "num_layers", 1)
    ways = 2 if getattr(layer, "bidirectional", False) else 1
    biases = 2.0 if layer.bias and target == "params" else 0.0

    def amount(out: float, into: float) -> float:
        units = hidden * out
        first = units * (features * into + units + biases)
        further: float = units * (ways * units + units + biases)
        return first + (stacked - 1) * further

    whole = amount(1.0, 1.0)
    return lambda out, into: amount(out, into) / whole
