"""Groups of layer axes that lose the same channels, and the functional proof that cutting one does what it says."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.graph.surgery import keep_indices
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["Axis", "Group", "Member", "sound_groups"]

Axis = Literal["out", "in"]
_TOLERANCE = 1e-3  # of the outputs' scale; single precision is good for about 1e-5, wrong cuts for 1e-1


@dataclass(frozen=True)
class Member:
    """One axis of one layer in a group.

    Attributes:
        path: module path of the layer.
        axis: "out" (for normalization: its features) or "in".
        channel_of: for every index of this axis, the group channel it belongs to.
    """

    path: str
    axis: Axis
    channel_of: tuple[int, ...]

    def rows(self, channels: Collection[int]) -> list[int]:
        """The indices of this axis that belong to some channels, in rising order."""
        return [row for row, channel in enumerate(self.channel_of) if channel in channels]


@dataclass(frozen=True)
class Group:
    """Axes that lose the same channels together; channels are numbered by the first member's output."""

    channels: int
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """The path of the layer that numbers the channels."""
        return self.members[0].path


def sound_groups(model: nn.Module, example: Inputs, groups: Sequence[Group]) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    """Keep the groups whose cut is a removal of channels, and name the others.

    A tracer can misread reshapes, splits and heads. Cutting a third of a group's channels must give what the whole model
    gives when those channels carry zeros, or when nobody reads them, on random inputs. All groups are tried at once; only
    when that fails, each alone. Costs a few copies of the model and forward passes.
    """
    noise = _noise(example)
    if not groups or _is_sound(model, noise, groups):
        return tuple(groups), ()
    kept = tuple(group for group in groups if _is_sound(model, noise, [group]))
    reason = "cutting it changes more than its channels: the code around it depends on their order or number"
    return kept, tuple(Skip(what=group.name, reason=reason) for group in groups if group not in kept)


def _is_sound(model: nn.Module, example: Inputs, groups: Sequence[Group]) -> bool:
    got = _outputs(model, example, groups, _cut)
    return got is not None and any(_close(got, _outputs(model, example, groups, change)) for change in (_empty, _ignore))


def _outputs(
    model: nn.Module, example: Inputs, groups: Sequence[Group], change: Callable[[nn.Module, Group, set[int]], None]
) -> list[Tensor] | None:
    """All output tensors of a changed copy, or None when it does not run."""
    twin = copy.deepcopy(model)
    try:
        with torch.no_grad():
            for group in groups:
                change(twin, group, set(range(0, group.channels, 3)) if group.channels > 1 else {0})
            found = example.call(twin)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def _cut(model: nn.Module, group: Group, gone: set[int]) -> None:
    kept = set(range(group.channels)) - gone
    for member in group.members:
        if not kept:
            raise ValueError("nothing would be left")
        keep_indices(model.get_submodule(member.path), member.axis, member.rows(kept))


def _empty(model: nn.Module, group: Group, gone: set[int]) -> None:
    """Whoever writes the channels writes zeros."""
    for member in group.members:
        for values in model.get_submodule(member.path).parameters(recurse=False) if member.axis == "out" else ():
            values[member.rows(gone)] = 0


def _ignore(model: nn.Module, group: Group, gone: set[int]) -> None:
    """Whoever reads the channels has zero weights for them."""
    for member in group.members:
        if member.axis == "in":
            model.get_submodule(member.path).get_parameter("weight")[:, member.rows(gone)] = 0


def _close(got: list[Tensor], want: list[Tensor] | None) -> bool:
    if want is None or [t.shape for t in got] != [t.shape for t in want]:
        return False
    pairs = [(g.double(), w.double()) for g, w in zip(got, want, strict=True) if g.is_floating_point()]
    return all(float((g - w).abs().max()) <= _TOLERANCE * (float(w.abs().mean()) + 1e-6) for g, w in pairs if g.numel())


def _noise(example: Inputs) -> Inputs:
    """Random numbers in place of floating-point inputs: an example of zeros would prove nothing."""
    generator = torch.Generator().manual_seed(0)

    def random(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf

    args, kwargs = pytree.tree_map(random, (example.args, dict(example.kwargs or {})))
    return Inputs(args, kwargs)
