"""Remove whole channels so that a stated share of the work goes, each group losing what it can best spare.

What it does: groups layers whose channels go together; orders every group's channels by optimal brain surgery on
calibration inputs, which also tells the loss at every count; scales these losses by what the model's outputs lose when one
group is cut; chooses all counts together; then fits every layer, in the order of running, to what the whole model computes.
Helps: every runtime, since the layers are really smaller. Hurts: accuracy, beyond about half of the work without training.
Needs: calibration inputs (it works without, much worse). Cost: one pass per group, and one that runs the model twice.

Source: Fang et al., DepGraph, CVPR 2023, for the groups; Kurtic et al., ZipLM, NeurIPS 2023, for order and losses; He et al.,
Channel Pruning, ICCV 2017, for the fit; Li et al., EagleEye, ECCV 2020, for the statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from sizewise.arith.allocation import allocate
from sizewise.data.batches import examples_in, first_batches
from sizewise.data.channel_losses import GroupLoss, group_losses
from sizewise.data.statistics import normalizations, reestimate_normalization
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.evaluate.metrics import primary_output
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group
from sizewise.graph.refit import refit
from sizewise.graph.surgery import is_depthwise, keep_indices
from sizewise.graph.trace import batch_size, output_layers, trace
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs, Trait
from sizewise.types import Change, Cost, Skip

__all__ = ["TECHNIQUE", "ChannelPruning"]

Target = Literal["macs", "params"]
_WORDS = {"macs": "MACs", "params": "parameters"}
EXAMPLES = 512  # of the calibration data that are used
SHORT = 0.02  # of the rate that may be missed
HELD_BYTES = 2e9  # of activations while layers are fitted


@dataclass(frozen=True)
class ChannelPruning:
    """Remove channels until a share of the work is gone.

    Args:
        rate: share of the target that goes, in (0, 1).
        target: "macs" or "params": what is counted, over the whole model.
        multiple: channel counts are multiples of this, where a group has at least twice as many; 0 for what the runtime likes.
        skip: module paths whose channels stay.

    Raises:
        UsageError: a rate outside (0, 1), a negative multiple or an unknown target.
    """

    rate: float = 0.5
    target: Target = "macs"
    multiple: int = 0
    skip: tuple[str, ...] = ()

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError("rate must be more than 0 and less than 1", where="channel_pruning", got=str(self.rate))
        if self.multiple < 0:
            raise UsageError("channels come in multiples of at least 1", where="channel_pruning", got=str(self.multiple))
        if self.target not in get_args(Target):
            raise UsageError("unknown target", where="channel_pruning", got=repr(self.target), wanted=" or ".join(get_args(Target)))

    def requires(self, model: nn.Module, context: Context) -> None:
        """Parameters that can be traced through autograd.

        Raises:
            PreconditionError: the model has no parameters.
        """
        if not any(True for _ in model.parameters()):
            raise PreconditionError("the model has no parameters", where="channel_pruning")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose, fit and cut, in place.

        Raises:
            UnsupportedModel: the model cannot be traced, no group can be cut, or the cut model does not run.
            PreconditionError: the rate cannot be reached, or activations are not finite.
        """
        model.eval().requires_grad_(True)
        traced = trace(model, context.example)
        groups, skipped = channel_groups(model, context.example, output_layers(traced.program))
        groups, left = _without(groups, self.skip)
        if not groups:
            reasons = "; ".join(f"{s.what}: {s.reason}" for s in (*skipped, *left)[:3])
            raise UnsupportedModel("no group of channels can be cut", where="channel_pruning", got=reasons)
        batches = list(first_batches(context.calibration or (), EXAMPLES))
        losses = group_losses(model, groups, batches, _output)
        profile = static_cost(model, context.example)
        counts, reached = self._counts(model, groups, losses, profile, context.channel_multiple)
        kept = _kept(groups, losses, counts)
        notes = [f"{100 * reached:.1f} % of the {_WORDS[self.target]} removed"]
        wanted = _outputs(model, batches)
        usable = batches if traced.batch == "dynamic" else [b for b in batches if batch_size(b) == traced.batch]
        fitting = list(first_batches(usable, _examples_held(profile)))
        if fitting:
            _load(model, refit(traced.program, fitting, kept, context.seed))
            notes.append(f"fitted on {sum(map(examples_in, fitting))} examples")
        else:
            notes.append("no calibration data" if not batches else f"no calibration batch of {traced.batch}, which the model fixes")
            notes[-1] += ": what is left does not make up for what is gone"
        _cut(model, kept)
        _check_runs(model, context)
        _reestimate(model, batches, wanted)
        spared = [Skip(what=g.name, reason="spared: others lose less") for g, n in zip(groups, counts, strict=True) if not n]
        record = {"kept": kept, "reached": reached}
        return model, Change(touched=tuple(sorted(kept)), skipped=(*skipped, *left, *spared), notes=tuple(notes), record=record)

    def _counts(
        self, model: nn.Module, groups: Sequence[Group], losses: Sequence[GroupLoss], profile: Cost, liked: int
    ) -> tuple[list[int], float]:
        """Channels to remove from every group, and the share of the target that goes with them."""
        cost = _cost_of(model, groups, profile, self.target)
        whole = cost([0] * len(groups))
        multiple = self.multiple or liked
        counts = allocate(
            [loss.losses for loss in losses], cost, (1 - self.rate) * whole, [_levels(group.channels, multiple) for group in groups]
        )
        reached = 1 - cost(counts) / whole
        if reached < self.rate - SHORT:
            raise PreconditionError(
                f"so many {_WORDS[self.target]} cannot be removed",
                where="channel_pruning",
                got=f"{100 * reached:.1f} % with as few channels as are possible",
                wanted=f"{100 * self.rate:.1f} %",
                hint="the rest belongs to layers that cannot be cut; a lower rate, or multiple=1",
            )
        return counts, reached

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


def _without(groups: Sequence[Group], skip: Sequence[str]) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    named = [group for group in groups if any(member.path in skip for member in group.members)]
    return tuple(g for g in groups if g not in named), tuple(Skip(what=g.name, reason="skipped on request") for g in named)


def _levels(channels: int, multiple: int) -> list[int]:
    """Counts that may be removed, rising; one channel stays at least."""
    step = multiple if channels >= 2 * multiple else 1
    kept = range(channels - channels % step, 0, -step)
    return sorted({0, *(channels - count for count in kept)})


def _examples_held(profile: Cost) -> int:
    """Examples whose activations of two models at one place fit the memory meant for them."""
    return max(1, int(HELD_BYTES / max(2 * (profile.peak_bytes or 0) / profile.batch, 1)))


def _cost_of(model: nn.Module, groups: Sequence[Group], profile: Cost, target: Target) -> Callable[[Sequence[int]], float]:
    """The target's amount with so many channels removed from every group.

    A layer costs the product of the shares that its input and its output keep; a depthwise one, and a normalization, the share
    of its channels.
    """
    axes: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            if member.axis == "out" or not is_depthwise(model.get_submodule(member.path)):
                axes.setdefault(member.path, []).append(index)
    amounts = {layer.path: float(getattr(layer, target)) for layer in profile.layers}
    fixed = sum(amount for path, amount in amounts.items() if path not in axes)

    def cost(removed: Sequence[int]) -> float:
        shares = [1 - count / group.channels for count, group in zip(removed, groups, strict=True)]
        total = fixed
        for path, owners in axes.items():
            amount = amounts.get(path, 0.0)
            for owner in owners:
                amount *= shares[owner]
            total += amount
        return total

    return cost


def _kept(groups: Sequence[Group], losses: Sequence[GroupLoss], counts: Sequence[int]) -> dict[str, dict[str, list[int]]]:
    kept: dict[str, dict[str, list[int]]] = {}
    for group, loss, count in zip(groups, losses, counts, strict=True):
        if count:
            channels = set(loss.order[count:])
            for member in group.members:
                kept.setdefault(member.path, {})[member.axis] = member.rows(channels)
    return kept


def _load(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in weights.items():
            if name in tensors:
                tensors[name].copy_(value)


def _cut(model: nn.Module, kept: Mapping[str, Mapping[str, list[int]]]) -> None:
    for path, axes in kept.items():
        for axis, rows in axes.items():
            keep_indices(model.get_submodule(path), "out" if axis == "out" else "in", rows)


def _reestimate(model: nn.Module, batches: Sequence[Inputs], wanted: Sequence[torch.Tensor]) -> None:
    """Re-estimate normalization where that brings the outputs nearer to the wanted ones, which are the whole model's."""
    if not batches or not normalizations(model):
        return
    before, old = _distance(model, batches, wanted), {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_normalization(model, batches)
    if _distance(model, batches, wanted) > before:
        model.load_state_dict(old)


def _distance(model: nn.Module, batches: Sequence[Inputs], wanted: Sequence[torch.Tensor]) -> float:
    return float((torch.cat(_outputs(model, batches)) - torch.cat(list(wanted))).square().mean())


def _outputs(model: nn.Module, batches: Sequence[Inputs]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [_output(model, batch) for batch in batches]


def _output(model: nn.Module, batch: Inputs) -> torch.Tensor:
    return primary_output(batch.call(model)).flatten(1)


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
