"""Small networks for tests of tracing, and what a cut must be equal to."""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group, kept_rows
from sizewise.graph.surgery import cut, zero_indices
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["Loud", "Net", "assert_cut_is_emptied", "emptied", "found_in", "free_outputs", "inputs", "outputs", "reasons", "settled"]

Gone = Sequence[tuple[Group, Collection[int]]]


class Net(nn.Module):
    """Layers and numbers by name, and the code that runs them."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


class Loud(nn.Module):
    """Weights of one sign and about one size, which add up to the most there can be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.grouped, self.head = nn.Conv2d(16, 12, 3, groups=4), nn.Linear(12, 6)
        for layer in (self.stem, self.depthwise, self.grouped, self.head):
            nn.init.uniform_(layer.weight, 0.09, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision and inference mode, with no parameter or statistic that is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                value.copy_(
                    torch.rand(value.shape, generator=generator) + 0.5
                    if name.endswith("_var")
                    else 0.7 * torch.randn(value.shape, generator=generator)
                )
    return model


def inputs(*shapes: tuple[int, ...] | Tensor) -> Inputs:
    """Random numbers in double precision; tensors as they are."""
    generator = torch.Generator().manual_seed(1)
    return Inputs(tuple(s if isinstance(s, Tensor) else torch.randn(s, generator=generator).double() for s in shapes))


def outputs(model: nn.Module, example: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(example.call(model)) if isinstance(leaf, Tensor)]


def emptied(model: nn.Module, gone: Gone, axis: str) -> nn.Module:
    """The whole model, whose layers write zeros to the channels ("out"), or have zero weights for reading them ("in")."""
    twin = copy.deepcopy(model)
    for group, channels in gone:
        for member in group.members:
            if member.axis == axis:
                zero_indices(twin.get_submodule(member.path), axis, member.rows(channels))
    return twin


def assert_cut_is_emptied(model: nn.Module, example: Inputs, groups: Sequence[Group]) -> None:
    """Each group alone and all together: the cut model gives what the emptied whole one gives, in double precision."""
    removals: list[tuple[Group, Collection[int]]] = [(group, set(range(max(1, group.channels // 3)))) for group in groups]
    for gone in ([removals] if len(removals) > 1 else []) + [[removal] for removal in removals[:6]]:
        small = copy.deepcopy(model)
        cut(small, kept_rows(gone))
        got = outputs(small, example)
        wanted = [outputs(emptied(model, gone, axis), example) for axis in ("out", "in")]
        names = [group.name for group, _ in gone]
        assert any(_same(got, want) for want in wanted), names
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()), names


def _same(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    if [t.shape for t in got] != [t.shape for t in want]:
        return False
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(got, want, strict=True))


def found_in(model: nn.Module, example: Inputs) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    """Groups that are proved here too, and what is skipped."""
    groups, skips = channel_groups(model, example)
    assert_cut_is_emptied(model, example, groups)
    return groups, skips


def free_outputs(groups: Sequence[Group]) -> dict[str, int]:
    """How many outputs of every layer can go."""
    found: dict[str, int] = {}
    for group in groups:
        for member in group.members:
            if member.axis == "out":
                found[member.path] = found.get(member.path, 0) + sum(channel >= 0 for channel in member.channel_of)
    return found


def reasons(skips: Sequence[Skip]) -> dict[str, str]:
    """Why layers are left alone."""
    return {skip.what: skip.reason for skip in skips}
