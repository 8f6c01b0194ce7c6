"""Remove whole channels, the weakest of every group of layers that must lose the same ones.

What it does: groups layers whose channels go together, ranks channels by how much the layers that read them lose (by the
magnitude of their weights where there is no data), cuts the same share from every group, then re-estimates normalization
statistics. Helps: every runtime, since the layers are really smaller. Hurts: accuracy, quickly beyond a quarter without
training. Needs: calibration inputs (it works without, worse). Cost: one trace, two passes over the calibration inputs.

Source: Fang et al., DepGraph, CVPR 2023, for the groups; He et al., Channel Pruning, ICCV 2017, for the ranking; Li et
al., EagleEye, ECCV 2020, for the statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sizewise.arith.channels import contribution, group_magnitude, kept_count, strongest
from sizewise.arith.repair import absorb
from sizewise.data.capture import Moments, input_moments
from sizewise.data.statistics import reestimate_normalization
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group, Member
from sizewise.graph.surgery import axis_size, is_depthwise, keep_indices
from sizewise.graph.trace import output_layers, trace
from sizewise.protocols import Context, Trait
from sizewise.types import Change, Skip

__all__ = ["TECHNIQUE", "ChannelPruning"]

WIDEST = 8192  # a reader with more inputs than this is not repaired: its covariance would not fit


@dataclass(frozen=True)
class ChannelPruning:
    """Remove a share of the channels of every group.

    Args:
        ratio: share of channels removed, in (0, 1); counts are rounded to multiples that the runtime likes.

    Raises:
        UsageError: a ratio outside (0, 1).
    """

    ratio: float = 0.5

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError("ratio must be more than 0 and less than 1", where="channel_pruning", got=str(self.ratio))

    def requires(self, model: nn.Module, context: Context) -> None:
        """Parameters that can be traced through autograd.

        Raises:
            PreconditionError: the model has no parameters.
        """
        if not any(True for _ in model.parameters()):
            raise PreconditionError("the model has no parameters", where="channel_pruning")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Cut every group, in place, and re-estimate normalization statistics.

        Raises:
            UnsupportedModel: the model cannot be traced, no group can be cut, or the cut model does not run.
        """
        model.eval().requires_grad_(True)
        frozen = output_layers(trace(model, context.example).program)
        groups, skips = channel_groups(model, context.example, frozen)
        skipped = list(skips)
        moments = _moments(model, groups, context)
        kept: dict[str, dict[str, list[int]]] = {}
        for group in groups:
            count = kept_count(group.channels, self.ratio, context.channel_multiple)
            if count == group.channels:
                skipped.append(Skip(what=group.name, reason=f"{count} channels cannot lose a share of {self.ratio}"))
                continue
            channels = strongest(_scores(model, group, moments), count)
            for member in group.members:
                kept.setdefault(member.path, {})[member.axis] = member.rows(set(channels))
        if not kept:
            raise UnsupportedModel(
                "no group of channels can be cut", where="channel_pruning", got="; ".join(f"{s.what}: {s.reason}" for s in skipped[:3])
            )
        _repair(model, kept, moments)
        _check_runs(model, context)
        notes: tuple[str, ...] = ()
        if context.calibration is None:
            notes = ("no calibration data: nothing was repaired, normalization statistics are those of the unpruned model",)
        else:
            reestimate_normalization(model, context.calibration)
        return model, Change(touched=tuple(sorted(kept)), skipped=tuple(skipped), notes=notes, record={"kept": kept})

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """Cut the same channels; weights and statistics are loaded afterwards.

        Raises:
            PreconditionError: the record names layers or channels that the model does not have.
        """
        try:
            _cut(model, record["kept"])
        except (AttributeError, IndexError) as error:
            raise PreconditionError(
                "the recorded channels do not fit this model",
                where="channel_pruning",
                got=str(error),
                hint="is it the model the plan was made for?",
            ) from error
        return model


def _moments(model: nn.Module, groups: Sequence[Group], context: Context) -> dict[str, Moments]:
    """Statistics of what flows into every layer that reads a group; none without calibration data."""
    if context.calibration is None:
        return {}
    readers = {m.path for g in groups for m in g.members if m.axis == "in" and not is_depthwise(model.get_submodule(m.path))}
    narrow = {path for path in readers if axis_size(model.get_submodule(path), "in") <= WIDEST}
    return input_moments(model, narrow, context.calibration)


def _repair(model: nn.Module, kept: Mapping[str, Mapping[str, list[int]]], moments: Mapping[str, Moments]) -> None:
    """Cut, and let the kept inputs of every reader stand in for those that go."""
    folded: dict[str, tuple[Tensor, Tensor]] = {}
    for path, axes in kept.items():
        if "in" in axes and path in moments:
            layer = model.get_submodule(path)
            folded[path] = absorb(layer.weight, moments[path].mean, moments[path].covariance, axes["in"])  # type: ignore[arg-type]
    for path, (weight, constant) in folded.items():
        layer = model.get_submodule(path)
        with torch.no_grad():
            layer.weight[:, kept[path]["in"]] = weight  # type: ignore[operator]
            if isinstance(layer.bias, Tensor):  # without a bias, the normalization behind the layer takes the constant
                layer.bias += constant
    _cut(model, kept)


def _scores(model: nn.Module, group: Group, moments: Mapping[str, Moments]) -> Tensor:
    """What the readers of the group lose with each channel; without data or readers, the magnitude of its weights."""
    readers = [member for member in group.members if member.path in moments and member.axis == "in"]
    if readers:
        weights = [_matrix(model, member) for member in readers]
        variances = [moments[member.path].variance for member in readers]
        return contribution(weights, variances, [member.channel_of for member in readers], group.channels)
    layers = [member for member in group.members if _is_layer(model, member)]
    weights = [_matrix(model, member) for member in layers]
    return group_magnitude(weights, [member.channel_of for member in layers], group.channels)


def _is_layer(model: nn.Module, member: Member) -> bool:
    """A convolution or linear layer; a normalization's scale says little about what its channel carries."""
    weight = getattr(model.get_submodule(member.path), "weight", None)
    return weight is not None and weight.ndim >= 2


def _matrix(model: nn.Module, member: Member) -> Tensor:
    weight: Tensor = model.get_submodule(member.path).weight  # type: ignore[assignment]
    matrix = weight if member.axis == "out" else weight.transpose(0, 1)
    return matrix.reshape(matrix.shape[0], -1)


def _cut(model: nn.Module, kept: Mapping[str, Mapping[str, list[int]]]) -> None:
    for path, axes in kept.items():
        for axis, rows in axes.items():
            keep_indices(model.get_submodule(path), "out" if axis == "out" else "in", rows)


def _check_runs(model: nn.Module, context: Context) -> None:
    try:
        with torch.no_grad():
            context.example.call(model)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnsupportedModel(
            "the model does not run with fewer channels",
            where="channel_pruning",
            got=str(error).splitlines()[0],
            hint="its code depends on a channel count",
        ) from error


TECHNIQUE = ChannelPruning
