"""Groups of layer axes that lose the same channels, and the functional proof that cutting one does what it says."""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.graph.surgery import WHOLE, cut, zero_indices
from sizewise.graph.trace import noise
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["Group", "Member", "kept_rows", "sound_groups"]

_TOLERANCE = 1e-3  # of the outputs' scale; single precision is good for about 1e-5, wrong cuts for 1e-1


@dataclass(frozen=True)
class Member:
    """One axis of one layer in a group.

    Attributes:
        path: module path of the layer.
        axis: "out" (for normalization: its features; for recurrent layers: the hidden size), "in", or a dot and the name of
            a number in the module, such as ".num_heads".
        channel_of: for every index of this axis, the group channel it belongs to, -1 where it belongs to none.
    """

    path: str
    axis: str
    channel_of: tuple[int, ...]

    def rows(self, channels: Collection[int]) -> list[int]:
        """The indices of this axis that belong to some channels, in rising order."""
        return [row for row, channel in enumerate(self.channel_of) if channel in channels]


@dataclass(frozen=True)
class Group:
    """Axes that lose the same channels together; an axis may hold channels of several groups."""

    channels: int
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The path of the first layer that makes the channels."""
        return self.members[0].path

    @property
    def is_block(self) -> bool:
        """Whether it is a module that stays or goes as a whole."""
        return self.members[0].axis == WHOLE


def kept_rows(gone: Iterable[tuple[Group, Collection[int]]]) -> dict[str, dict[str, list[int]]]:
    """What stays of every axis, by module path, when groups lose channels: what `graph/surgery.cut` wants.

    Of what lies within a block that goes as a whole, nothing is said.
    """
    sizes: dict[tuple[str, str], int] = {}
    lost: dict[tuple[str, str], set[int]] = {}
    for group, channels in gone:
        for member in group.members if channels else ():
            sizes[member.path, member.axis] = len(member.channel_of)
            lost.setdefault((member.path, member.axis), set()).update(member.rows(channels))
    gone_blocks = [path for path, axis in lost if axis == WHOLE]
    kept: dict[str, dict[str, list[int]]] = {}
    for (path, axis), rows in lost.items():
        if any(path.startswith(block + ".") for block in gone_blocks):
            continue
        kept.setdefault(path, {})[axis] = [row for row in range(sizes[path, axis]) if row not in rows]
    return kept


def sound_groups(model: nn.Module, example: Inputs, groups: Sequence[Group]) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    """Keep the groups whose cut is a removal of channels, and name the others.

    Code can depend on the order or number of channels in ways that a graph does not show. Cutting a third of a group's
    channels must give what the whole model gives when those channels carry zeros, or when nobody reads them, on random
    inputs. All groups are tried at once; where that fails, halves of them are, down to each alone, and those that pass alone
    must pass together. Costs a few copies of the model and forward passes.
    """
    model, probe = _without_constants(model), noise(example)
    kept = _sound(model, probe, groups)
    while len(kept) > 1 and not _is_sound(model, probe, kept):  # pairs that harm each other: the last goes
        kept = kept[:-1]
    reason = "cutting it changes more than its channels: the code around it depends on their order or number"
    return tuple(kept), tuple(Skip(what=group.name, reason=reason) for group in groups if group not in kept)


def _sound(model: nn.Module, probe: Inputs, groups: Sequence[Group]) -> list[Group]:
    if not groups or _is_sound(model, probe, groups):
        return list(groups)
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    return _sound(model, probe, groups[:half]) + _sound(model, probe, groups[half:])


def _is_sound(model: nn.Module, example: Inputs, groups: Sequence[Group]) -> bool:
    gone = [(group, set(range(0, group.channels - 1, 3))) for group in groups]
    got = _outputs(model, example, lambda twin: cut(twin, kept_rows(gone)))
    if got is None:
        return False
    return any(_close(got, _outputs(model, example, partial(_zero, gone=gone, axis=axis))) for axis in ("out", "in"))


def _outputs(model: nn.Module, example: Inputs, change: Callable[[nn.Module], None]) -> list[Tensor] | None:
    """All output tensors of a changed copy, or None when it does not run."""
    twin = copy.deepcopy(model)
    try:
        with torch.no_grad():
            change(twin)
            found = example.call(twin)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return None
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def _zero(model: nn.Module, gone: Iterable[tuple[Group, Collection[int]]], axis: str) -> None:
    """Whoever writes the channels writes zeros ("out"), or whoever reads them has zero weights for them ("in")."""
    for group, channels in gone:
        for member in group.members:
            if member.axis == axis:
                zero_indices(model.get_submodule(member.path), axis, member.rows(channels))


def _close(got: list[Tensor], want: list[Tensor] | None) -> bool:
    if want is None or [t.shape for t in got] != [t.shape for t in want]:
        return False
    pairs = [(g.double(), w.double()) for g, w in zip(got, want, strict=True) if g.is_floating_point()]
    return all(float((g - w).abs().max()) <= _TOLERANCE * (float(w.abs().mean()) + 1e-6) for g, w in pairs if g.numel())


def _without_constants(model: nn.Module) -> nn.Module:
    """The model, or a copy in which no parameter is all zeros or ones, as fresh last layers are: behind them every cut would look right."""
    if not any(_is_constant(parameter) for parameter in model.parameters()):
        return model
    generator, twin = torch.Generator().manual_seed(0), copy.deepcopy(model)
    for parameter in twin.parameters():
        if _is_constant(parameter):
            parameter.data += (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    return twin


def _is_constant(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
