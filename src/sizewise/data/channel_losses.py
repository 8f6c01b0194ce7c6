"""What a model loses with every channel of every group, told from calibration inputs."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sizewise.arith.channels import group_magnitude
from sizewise.arith.moments import Gram
from sizewise.arith.packing import packed
from sizewise.arith.surgeon import Reader, absorbed, removal_order
from sizewise.data.batches import apart
from sizewise.data.outputs import OutputChange
from sizewise.data.readings import Reading, reading_grams, readings
from sizewise.graph.groups import Group
from sizewise.graph.surgery import PassOn, axes, slices
from sizewise.protocols import Inputs, Progress, Silent

__all__ = ["GroupLoss", "group_losses", "group_squares"]

CHUNK_BYTES = 500_000_000  # of statistics held at a time
PROBE = 128  # examples on which outputs are compared
KNOTS = (0.25, 0.5, 0.75)  # of the channels gone, where they are


@dataclass(frozen=True)
class GroupLoss:
    """Channels in the order of their removal, and the loss with 0, 1, 2, ... of them gone (all but one; of a block, the block)."""

    order: tuple[int, ...]
    losses: tuple[float, ...]


def group_losses(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Inputs],
    scores: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> list[GroupLoss]:
    """Order and losses of every group.

    Within a group, losses are those of the layers that read it, by optimal brain surgery (`arith/surgeon.py`), or sums of given
    scores. To make groups comparable they are scaled so that with a quarter, half and three quarters of the channels gone, and
    taken over by the others, the loss is that of the model's outputs: their mean squared change as a share of their variance.
    The loss without a block is that very change. Without data, or readers whose inputs can be told, losses are not scaled, and
    the order is by magnitude.

    Args:
        model: in inference mode; as it was afterwards.
        groups: of the model.
        batches: calibration inputs, or none.
        scores: per group what every channel counts, instead of surgery. Groups whose scores all are 0 go by surgery.
        progress: told which group is being judged.

    Raises:
        PreconditionError: activations are not finite; says where.
    """
    batches, probe = apart(batches, PROBE)
    judge = _Judge(model, probe)
    found: dict[int, GroupLoss] = {}
    every = [readings(model, group) for group in groups]
    for chunk in packed((sum(8 * reading.size**2 for reading in read) for read in every), CHUNK_BYTES):
        read = {index: every[index] for index in chunk}
        statistics = reading_grams(model, [r for own in read.values() for r in own], batches) if batches else {}
        for index, own in read.items():
            (progress or Silent()).working(f"judging the channels of {groups[index].name}")
            usable = [reading for reading in own if (reading.path, reading.tensor) in statistics]
            found[index] = judge.loss(groups[index], usable, statistics, None if scores is None else scores[index])
    return [found[index] for index in range(len(groups))]


class _Judge:
    """Tells what the model's outputs lose, on some of the calibration data."""

    def __init__(self, model: nn.Module, probe: Sequence[Inputs]) -> None:
        self.model = model
        self._change = OutputChange(model, probe) if probe else None

    def loss(self, group: Group, read: Sequence[Reading], statistics: Mapping[tuple[str, str], Gram], scores: Tensor | None) -> GroupLoss:
        if group.is_block:
            return GroupLoss((0,), (0.0, self._without(group.name)))
        if scores is None or not bool(scores.any()):
            return self._by_surgery(group, read, statistics) if read else _by_scores(group_squares(self.model, group))
        loss = _by_scores(scores)
        return self._scaled(group, loss, read, statistics, self._problem(group, read, statistics)) if read else loss

    def _problem(self, group: Group, read: Sequence[Reading], statistics: Mapping[tuple[str, str], Gram]) -> list[Reader]:
        return [
            Reader(
                reading.matrix(self.model.get_submodule(reading.path)),
                statistics[reading.path, reading.tensor].covariance[0],
                reading.columns(group.channels),
            )
            for reading in read
        ]

    def _by_surgery(self, group: Group, read: Sequence[Reading], statistics: Mapping[tuple[str, str], Gram]) -> GroupLoss:
        problem = self._problem(group, read, statistics)
        removal = removal_order(problem, damping=_damping(read, statistics))
        return self._scaled(group, GroupLoss(removal.order, (0.0, *removal.losses)), read, statistics, problem)

    def _scaled(
        self,
        group: Group,
        loss: GroupLoss,
        read: Sequence[Reading],
        statistics: Mapping[tuple[str, str], Gram],
        problem: Sequence[Reader],
    ) -> GroupLoss:
        """Losses in units of the outputs' change, measured at some counts; between them the curve keeps its own form."""
        if self._change is None or loss.losses[-1] <= 0:
            return loss
        factors: dict[int, float] = {}
        damping = _damping(read, statistics)
        for count in sorted({max(1, round(share * group.channels)) for share in KNOTS} - {group.channels}):
            kept = sorted(loss.order[count:])
            with ExitStack() as stack:
                for reading, reader in zip(read, problem, strict=True):
                    layer, new = self.model.get_submodule(reading.path), absorbed(reader, kept, damping)
                    constant = (reader.weight.double() - new) @ statistics[reading.path, reading.tensor].mean[0].cpu()
                    _try(stack, layer, reading, reading.like(layer, new), constant)
                factors[count] = self._change(self.model) / max(loss.losses[count], 1e-12)
        return GroupLoss(loss.order, tuple(_rescaled(loss.losses, factors)))

    def _without(self, path: str) -> float:
        """What the outputs lose without a block."""
        block = self.model.get_submodule(path)
        self.model.set_submodule(path, PassOn())
        try:
            return self._change(self.model) if self._change else 1.0
        finally:
            self.model.set_submodule(path, block)


def _damping(read: Sequence[Reading], statistics: Mapping[tuple[str, str], Gram]) -> float:
    """Few rows for many columns want much: the error of an estimated update grows with their ratio."""
    ratio = max(reading.size / statistics[reading.path, reading.tensor].n for reading in read)
    return min(max(ratio, 1e-4), 0.1)


def _rescaled(losses: Sequence[float], factors: Mapping[int, float]) -> list[float]:
    """Losses times factors known at some counts, interpolated between them; never falling."""
    scaled = np.array(losses) * np.interp(range(len(losses)), list(factors), list(factors.values()))
    return [float(value) for value in np.maximum.accumulate(scaled)]


def _try(stack: ExitStack, layer: nn.Module, reading: Reading, weight: Tensor, constant: Tensor) -> None:
    """Other weights, and a constant on the outputs, until the stack is left."""
    _replace(stack, layer.get_parameter(reading.tensor), weight)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        constant = constant / math.prod(layer.stride)  # one tap in so many meets any one position
    bias = getattr(layer, reading.tensor.replace("weight", "bias"), None)
    if isinstance(bias, nn.Parameter):
        # a convolution judged channel by channel has a constant for every tap
        _replace(stack, bias, bias.data + constant.reshape(len(bias), -1).sum(1).to(bias))
        return
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        stack.callback(layer.register_forward_hook(partial(_add, constant.reshape(outputs, -1).sum(1))).remove)


def _add(shift: Tensor, layer: nn.Module, _: Any, out: Tensor) -> Tensor:
    spread = 0 if isinstance(layer, nn.Linear) else layer.get_parameter("weight").ndim - 2
    return out + shift.to(out).reshape(-1, *[1] * spread)


def _replace(stack: ExitStack, parameter: nn.Parameter, value: Tensor) -> None:
    old = parameter.data
    stack.callback(partial(setattr, parameter, "data", old))
    parameter.data = value.to(old)


def group_squares(model: nn.Module, group: Group) -> Tensor:
    """Squares of all weights that go with every channel (`arith/channels.py`)."""
    weights, owners = [], []
    for member in group.members:
        layer = model.get_submodule(member.path)
        for name, dim, blocks in slices(layer, member.axis) if axes(layer) else ():
            weight = getattr(layer, name).detach()
            if weight.ndim > 1:
                weights.append(weight.movedim(dim, 0).flatten(1))
                owners.append(member.channel_of * blocks)
    return group_magnitude(weights, owners, group.channels).square()


def _by_scores(scores: Tensor) -> GroupLoss:
    """The smallest first; the loss is the share of all scores that is gone."""
    order = torch.sort(scores, stable=True).indices
    losses = torch.cumsum(scores[order] / scores.sum().clamp_min(1e-12), 0)
    return GroupLoss(tuple(order.tolist()), (0.0, *losses[:-1].tolist()))
