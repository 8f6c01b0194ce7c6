"""Which channels go together: groups of layer axes that must lose the same channels.

The dependency tracing is Torch-Pruning's (Fang et al., DepGraph, CVPR 2023); only this file knows it, and what leaves
this file is plain data, checked by `graph/groups.py`. The slicing itself is `graph/surgery.py`.
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from sizewise.errors import UnsupportedModel
from sizewise.graph.groups import Axis, Group, Member, sound_groups
from sizewise.graph.surgery import axis_size, supports
from sizewise.graph.trace import quiet
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["channel_groups"]


def channel_groups(model: nn.Module, example: Inputs, frozen: Collection[str] = ()) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    """Groups whose channels can be removed, and those that cannot, with the reason.

    Args:
        model: in eval mode, parameters requiring gradients (tracing follows autograd).
        example: inputs of one call.
        frozen: module paths whose outputs must stay whole, such as the layers that make the model's output.

    Raises:
        UnsupportedModel: the model cannot be traced.
    """
    import torch_pruning

    tracer = torch_pruning.DependencyGraph()
    try:
        with quiet():
            tracer.build_dependency(model, dict(example.kwargs) if example.kwargs else example.args, _forward, verbose=False)
            found = list(tracer.get_all_groups(root_module_types=[nn.modules.conv._ConvNd, nn.Linear]))
    except Exception as error:  # foreign tracer: any failure means this model's channels cannot be followed
        raise UnsupportedModel("the channels that go together could not be traced", got=f"{type(error).__name__}: {error}") from error
    paths = {id(module): path for path, module in model.named_modules()}
    groups: list[Group] = []
    skipped: list[Skip] = []
    for raw in found:
        group = _plain(tracer, raw, paths)
        reason = _why_not(model, group, set(frozen))
        if reason is None:
            groups.append(group)
        else:
            skipped.append(Skip(what=group.name, reason=reason))
    sound, unsound = sound_groups(model, example, groups)
    return sound, (*skipped, *unsound)


def _forward(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _plain(tracer: Any, raw: Any, paths: dict[int, str]) -> Group:
    members: dict[tuple[str, Axis], Member] = {}
    for item in raw:
        module = item.dep.target.module
        if _is_operator(module):
            continue
        path = paths.get(id(module), "?")  # "?": a bare parameter, which cannot be addressed as a layer
        axis: Axis = "out" if tracer.is_out_channel_pruning_fn(item.dep.handler) else "in"
        known = dict(enumerate(members[path, axis].channel_of)) if (path, axis) in members else {}
        known.update(zip(item.idxs, item.root_idxs, strict=True))
        size = max(known) + 1
        members[path, axis] = Member(path, axis, tuple(known.get(i, -1) for i in range(size)))
    channels = len(raw[0][1])
    return Group(channels, tuple(members.values()))


def _is_operator(module: Any) -> bool:
    return type(module).__module__.startswith("torch_pruning")


def _why_not(model: nn.Module, group: Group, frozen: set[str]) -> str | None:
    for member in group.members:
        if member.path == "?":
            return "couples with a parameter outside any known layer"
        layer = model.get_submodule(member.path)
        if not supports(layer):
            return f"couples with {member.path}, a {type(layer).__name__}, whose shape cannot be changed"
        if member.axis == "out" and member.path in frozen:
            return "makes the model's output"
        size = axis_size(layer, member.axis)
        if len(member.channel_of) != size or -1 in member.channel_of:
            return f"only part of the {member.axis}puts of {member.path} belongs to the group"
    if len({axis_size(model.get_submodule(m.path), m.axis) for m in group.members if m.axis == "out"}) > 1:
        return "layers of different widths share the group"
    return None
