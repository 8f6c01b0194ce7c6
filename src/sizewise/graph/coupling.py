"""Which channels go together: groups of layer axes that must lose the same channels.

Labels are followed through the exported graph (`graph/flow.py`); channels whose labels lie on the same axes form a group.
Where code takes channels apart, as into heads, it decides which part may go: the outermost is tried first, then the others.
What is found is proved by running (`graph/groups.py`). The idea of dependency groups is that of Fang et al., DepGraph, CVPR
2023; following every index instead of whole layers is ours, and lets parts of an axis go, as in dense nets.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.export import ExportedProgram

from sizewise.errors import UnsupportedModel
from sizewise.graph.flow import Flow, Split
from sizewise.graph.flow_rules import RULES
from sizewise.graph.groups import Group, Member, sound_groups
from sizewise.graph.labels import Indices
from sizewise.graph.surgery import ATTRIBUTE, axes
from sizewise.graph.trace import export_static
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["channel_groups"]

TRIES = 4  # ways to read the code's reshapes
_LINEAR = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Embedding)


def channel_groups(model: nn.Module, example: Inputs) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    """Groups whose channels can be removed, and the layers whose outputs cannot, with the reason.

    Args:
        model: in inference mode.
        example: inputs of one call.

    Raises:
        UnsupportedModel: torch cannot export the model.
    """
    program = _exported(model, example)
    parts: dict[str, int] = {}
    best: tuple[tuple[Group, ...], tuple[Skip, ...]] = ((), ())
    most = (-1, -1)
    for _ in range(TRIES):
        flow = Flow(model, program, RULES, parts)
        found, frozen = _groups(flow)
        sound, unsound = sound_groups(model, example, [group for group, _ in found])
        counted = _channels(sound), _channels(group for group, _ in found)
        if counted > most:
            best, most = (sound, (*_by_layer(flow, frozen, sound), *unsound)), counted
        failed = [roots for group, roots in found if group not in sound] + [roots for _, roots, _ in frozen]
        again = _other_parts(flow, failed)
        if not again:
            break
        parts = {**parts, **again}
    return best


def _exported(model: nn.Module, example: Inputs) -> ExportedProgram:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention layers show nothing of what is inside
    try:
        return export_static(model, example)
    except UnsupportedModel as error:
        raise UnsupportedModel("the channels that go together could not be traced", got=str(error.got)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _channels(groups: Iterable[Group]) -> int:
    return sum(group.channels * len(group.members) for group in groups)


_Frozen = tuple[str, frozenset[int], str]  # path of the layer whose outputs stay, their labels, the reason


def _groups(flow: Flow) -> tuple[list[tuple[Group, frozenset[int]]], list[_Frozen]]:
    """Every set of channels with the same axes: as a group, or as what must stay."""
    rows = _rows(flow)
    places: dict[int, Counter[tuple[str, str]]] = {}
    for axis, of_axis in rows.items():
        for root in of_axis.tolist():
            places.setdefault(root, Counter())[axis] += 1
    by_axes: dict[frozenset[tuple[tuple[str, str], int]], list[int]] = {}
    frozen: list[_Frozen] = []
    for root, counted in places.items():
        reason = flow.labels.reason(root)
        if reason is None:
            by_axes.setdefault(frozenset(counted.items()), []).append(root)
        else:
            frozen += [(path, frozenset([root]), reason) for path, axis in counted if axis == "out"]
    groups = []
    for signature, roots in by_axes.items():
        names = {axis for axis, _ in signature}
        if len(roots) > 1 and any(axis == "in" for _, axis in names) | any(_reads_itself(flow.model, path) for path, _ in names):
            groups.append((_group(flow, rows, names, roots), frozenset(roots)))
        else:
            frozen += [(path, frozenset(roots), _why_alone(roots)) for path, axis in names if axis == "out"]
    return groups, frozen


def _reads_itself(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path), nn.RNNBase | nn.RNNCellBase)


def _why_alone(roots: list[int]) -> str:
    return "a single channel" if len(roots) == 1 else "read by no layer whose inputs can be cut"


def _rows(flow: Flow) -> dict[tuple[str, str], Indices]:
    """For every axis of every layer that ran, which set each index belongs to."""
    found = {}
    for path, module in flow.model.named_modules():
        for axis in axes(module):
            labels = flow.known_axis(module, axis)
            if labels is not None:
                found[path, axis] = flow.labels.roots(labels)
    return found


def _group(flow: Flow, rows: Mapping[tuple[str, str], Indices], names: set[tuple[str, str]], roots: list[int]) -> Group:
    number = {root: channel for channel, root in enumerate(roots)}
    members = [
        Member(path, axis, tuple(number.get(root, -1) for root in roots_.tolist()))
        for (path, axis), roots_ in rows.items()
        if (path, axis) in names
    ]
    members.sort(key=lambda member: not (member.axis == "out" and isinstance(flow.model.get_submodule(member.path), _LINEAR)))
    attributes = [m for split in flow.splits for m in _attributes(flow, split, number)]
    return Group(len(roots), (*members, *{(m.path, m.axis): m for m in attributes}.values()))


def _attributes(flow: Flow, split: Split, number: Mapping[int, int]) -> list[Member]:
    """Numbers in the code's module that count the heads, and that must shrink with them.

    Whether one is what it seems is proved by running the cut model.
    """
    roots = flow.labels.roots(split.flat).tolist()
    if (split.part != len(split.sizes) - 2 and split.part != 0) or not all(root in number for root in roots):
        return []
    heads = split.sizes[split.part]
    flat = tuple(number[root] for root in roots)
    each = tuple(dict.fromkeys(flat))
    found = []
    for name, value in vars(flow.model.get_submodule(split.path)).items():
        lower = name.lower()
        if type(value) is not int or "head" not in lower or len(each) != heads:
            continue
        if value == heads and not any(word in lower for word in ("dim", "size")):
            found.append(Member(split.path, ATTRIBUTE + name, each))
        elif value == len(flat) and any(word in lower for word in ("all", "inner", "total")):
            found.append(Member(split.path, ATTRIBUTE + name, flat))
    return found


def _other_parts(flow: Flow, failed: Iterable[frozenset[int]]) -> dict[str, int]:
    """For the splits that what failed went through, the next part; none once every part was tried."""
    roots = frozenset[int]().union(*failed)
    found = {}
    for split in flow.splits:
        if split.other is not None and roots & set(flow.labels.roots(split.flat).tolist()):
            found[split.node] = split.other
    return found


def _by_layer(flow: Flow, frozen: Iterable[_Frozen], groups: Iterable[Group]) -> list[Skip]:
    """One line per layer that makes channels which must stay: how many where only a part must, and why; strange layers too."""
    found: dict[str, Counter[str]] = {}
    for path, roots, reason in frozen:
        if isinstance(flow.model.get_submodule(path), _LINEAR):
            found.setdefault(path, Counter())[reason] += len(roots)
    free = {member.path for group in groups for member in group.members if member.axis == "out"}
    skips = []
    for path, reasons in found.items():
        reason, count = reasons.most_common(1)[0]
        skips.append(Skip(what=path, reason=f"{count} of its channels: {reason}" if path in free else reason))
    return [*skips, *(Skip(what=path, reason=reason) for path, reason in flow.unknown.items())]
