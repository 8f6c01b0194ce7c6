"""What a model loses with every channel of every group, told from calibration inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sizewise.arith.channels import group_magnitude
from sizewise.arith.moments import Gram
from sizewise.arith.surgeon import Reader, removal_order
from sizewise.arith.unfolding import input_rows
from sizewise.data.batches import first_batches
from sizewise.data.gram import input_grams
from sizewise.errors import PreconditionError
from sizewise.graph.groups import Group, Member
from sizewise.graph.surgery import is_depthwise
from sizewise.protocols import Inputs

__all__ = ["GroupLoss", "group_losses"]

WIDEST = 2304  # columns of a reader whose taps are told apart; wider convolutions are judged channel by channel
WIDEST_LINEAR = 4096
CHUNK_BYTES = 500_000_000  # of statistics held at a time
PROBE = 128  # examples on which outputs are compared

Outputs = Callable[[nn.Module, Inputs], Tensor]


@dataclass(frozen=True)
class GroupLoss:
    """Channels in the order of their removal, and the loss with 0, 1, 2, ... of them gone (all but one)."""

    order: tuple[int, ...]
    losses: tuple[float, ...]


def group_losses(model: nn.Module, groups: Sequence[Group], batches: Sequence[Inputs], outputs: Outputs) -> list[GroupLoss]:
    """Order and losses of every group.

    Within a group, losses are those of the layers that read it, by optimal brain surgery (`arith/surgeon.py`). To make groups
    comparable they are scaled so that with half of the channels gone (and the surgeon's update in place) the loss is that of
    the model's outputs: their mean squared change as a share of their variance. Without data, or readers whose inputs can be
    told, the order is by magnitude and the loss the share of the squared weights.

    Args:
        model: in inference mode; as it was afterwards.
        groups: of the model.
        batches: calibration inputs, or none.
        outputs: the model's outputs that count, one row per example.

    Raises:
        PreconditionError: activations are not finite; says where.
    """
    probe = list(first_batches(batches, PROBE))
    with torch.no_grad():
        wanted = [outputs(model, batch) for batch in probe]
    found: dict[str, GroupLoss] = {}
    for chunk in _chunks(model, groups):
        statistics = _statistics(model, [m for group in chunk for m in _readers(model, group)], batches) if batches else {}
        for group in chunk:
            readers = [member for member in _readers(model, group) if member.path in statistics]
            if readers:
                found[group.name] = _by_surgery(model, group, readers, statistics, lambda: _change(model, probe, wanted, outputs))
            else:
                found[group.name] = _by_magnitude(model, group)
    return [found[group.name] for group in groups]


def _readers(model: nn.Module, group: Group) -> list[Member]:
    """Layers that read the channels and can be told from their inputs."""
    return [m for m in group.members if m.axis == "in" and _size(model.get_submodule(m.path)) is not None]


def _size(layer: nn.Module) -> int | None:
    """Columns of a reader's statistics, or None where it is none."""
    if isinstance(layer, nn.Linear):
        return layer.in_features if layer.in_features <= WIDEST_LINEAR else None
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1 and not is_depthwise(layer):
        return layer.in_channels * (_taps(layer) if _unfolds(layer) else 1)
    return None


def _taps(layer: nn.Module) -> int:
    return _weight(layer)[0, 0].numel()


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def _unfolds(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Linear) and int(layer.in_channels) * _taps(layer) <= WIDEST  # type: ignore[arg-type]


def _chunks(model: nn.Module, groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups whose statistics fit the memory together."""
    chunk: list[Group] = []
    held = 0
    for group in groups:
        size = sum(8 * (_size(model.get_submodule(m.path)) or 0) ** 2 for m in _readers(model, group))
        if chunk and held + size > CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(group)
        held += size
    if chunk:
        yield chunk


def _statistics(model: nn.Module, readers: Sequence[Member], batches: Sequence[Inputs]) -> dict[str, Gram]:
    found = input_grams(model, {member.path for member in readers}, batches, _rows)
    for path, gram in found.items():
        if not bool(torch.isfinite(gram.squares).all()):
            raise PreconditionError("what flows into this layer is not finite", where=path, hint="look at the data and the weights")
    return found


def _rows(layer: nn.Module, x: Tensor) -> Iterator[Float[Tensor, "1 n in"]]:
    """Columns in the order of the weight's: inputs of a linear layer, channels and taps, or channels alone; single precision."""
    x = x.float()
    if isinstance(layer, nn.Linear):
        yield x.reshape(1, -1, x.shape[-1])
    elif _unfolds(layer):
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        yield input_rows(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    else:
        yield x.movedim(1, -1).reshape(1, -1, x.shape[1])


def _matrix(layer: nn.Module) -> Tensor:
    """Weights whose columns are those of `_rows`."""
    weight = _weight(layer).detach().cpu()
    if isinstance(layer, nn.Linear) or _unfolds(layer):
        return weight.flatten(1)
    return weight.flatten(2).permute(0, 2, 1).reshape(-1, weight.shape[1])


def _like(layer: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of `_matrix`."""
    weight = _weight(layer)
    if isinstance(layer, nn.Linear) or _unfolds(layer):
        return matrix.reshape(weight.shape)
    return matrix.reshape(weight.shape[0], -1, weight.shape[1]).permute(0, 2, 1).reshape(weight.shape)


def _columns(layer: nn.Module, member: Member, channels: int) -> list[list[int]]:
    taps = _taps(layer) if _unfolds(layer) else 1
    columns: list[list[int]] = [[] for _ in range(channels)]
    for row, channel in enumerate(member.channel_of):
        columns[channel] += [row * taps + tap for tap in range(taps)]
    return columns


def _by_surgery(
    model: nn.Module, group: Group, readers: Sequence[Member], statistics: Mapping[str, Gram], change: Callable[[], float]
) -> GroupLoss:
    layers = [model.get_submodule(member.path) for member in readers]
    problem = [
        Reader(_matrix(layer), statistics[member.path].covariance[0], _columns(layer, member, group.channels))
        for layer, member in zip(layers, readers, strict=True)
    ]
    removal = removal_order(problem, keep=(group.channels - group.channels // 2))
    losses = (0.0, *removal.losses)
    half = losses[group.channels // 2]
    if half <= 0:
        return GroupLoss(removal.order, losses)
    with ExitStack() as stack:
        for layer, member, before, after in zip(layers, readers, problem, removal.weights, strict=True):
            _try(stack, layer, _like(layer, after), (before.weight.double() - after) @ statistics[member.path].mean[0].cpu())
        factor = change() / half
    return GroupLoss(removal.order, tuple(factor * loss for loss in losses))


def _try(stack: ExitStack, layer: nn.Module, weight: Tensor, constant: Tensor) -> None:
    """Other weights, and a constant on the outputs, until the stack is left."""
    parameter: nn.Parameter = layer.weight  # type: ignore[assignment]
    old = parameter.data
    stack.callback(partial(setattr, parameter, "data", old))
    parameter.data = weight.to(old)
    outputs = len(old)
    shift = constant.reshape(outputs, -1).sum(1).to(old)

    def add(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out + (shift if isinstance(layer, nn.Linear) else shift.reshape(-1, *[1] * (out.ndim - 2)))

    stack.callback(layer.register_forward_hook(add).remove)


def _change(model: nn.Module, probe: Sequence[Inputs], wanted: Sequence[Tensor], outputs: Outputs) -> float:
    """Mean squared change of the outputs as a share of their variance."""
    with torch.no_grad():
        got = torch.cat([outputs(model, batch) for batch in probe]).double()
    target = torch.cat(list(wanted)).double()
    variance = float(target.var(0, correction=0).mean()) if len(target) > 1 else float(target.var())
    return float((got - target).square().mean()) / max(variance, 1e-12)


def _by_magnitude(model: nn.Module, group: Group) -> GroupLoss:
    members = [m for m in group.members if getattr(getattr(model.get_submodule(m.path), "weight", None), "ndim", 0) >= 2]
    weights = []
    for member in members:
        weight = _weight(model.get_submodule(member.path)).detach()
        weights.append((weight if member.axis == "out" else weight.transpose(0, 1)).flatten(1))
    squares = group_magnitude(weights, [member.channel_of for member in members], group.channels).square()
    order = torch.sort(squares, stable=True).indices
    losses = torch.cumsum(squares[order] / squares.sum().clamp_min(1e-12), 0)
    return GroupLoss(tuple(order.tolist()), (0.0, *losses[:-1].tolist()))
