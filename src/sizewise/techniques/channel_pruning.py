"""Remove whole channels so that a stated share of the work goes, each group losing what it can best spare.

What it does: groups layers whose channels go together; orders every group's channels by optimal brain surgery on
calibration inputs, which also tells the loss at every count; scales these losses by what the model's outputs lose when one
group is cut; chooses all counts together; then fits every layer, in the order of running, to what the whole model computes.
Helps: every runtime, since the layers are really smaller. Hurts: accuracy, beyond about half of the work without training.
Needs: calibration inputs (it works without, much worse). Cost: one pass per group, and one that runs the model twice.

Source: Fang et al., DepGraph, CVPR 2023, for the groups; Kurtic et al., ZipLM, NeurIPS 2023, for order and losses; He et al.,
Channel Pruning, ICCV 2017, for the fit; Li et al., EagleEye, ECCV 2020, for the statistics.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from sizewise.arith.allocation import allocate
from sizewise.data.batches import examples_in, first_batches, rebatched
from sizewise.data.channel_losses import GroupLoss, group_squares
from sizewise.data.fisher import channel_fisher
from sizewise.data.loss_tables import known_losses
from sizewise.data.outputs import OutputChange, reestimate_if_nearer
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.graph.blocks import residual_blocks
from sizewise.graph.checks import check_skip
from sizewise.graph.coupling import channel_groups
from sizewise.graph.groups import Group, kept_rows
from sizewise.graph.refit import refit
from sizewise.graph.surgery import WHOLE, cut
from sizewise.graph.trace import Traced, trace
from sizewise.profile.channel_cost import counted_cost, removable
from sizewise.profile.held import examples_held
from sizewise.profile.integer_timer import IntegerTimer
from sizewise.profile.latency_target import Choice, counts_for_latency, not_timed
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs, Timer, Trait
from sizewise.types import TIMED_TARGETS, Change, Cost, Skip

__all__ = ["TECHNIQUE", "ChannelPruning"]

Target = Literal["macs", "params", "latency", "int8_latency"]
Method = Literal["auto", "surgeon", "magnitude", "fisher"]
Parts = Literal["all", "blocks", "channels"]
_WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency", "int8_latency": "latency in integers"}
EXAMPLES = 512  # of the calibration data that are used
FIT_BYTES = 4e9  # of activations while layers are fitted: those of 200 photos in EfficientNet-Lite0
SHORT = 0.02  # of the rate that may be missed


@dataclass(frozen=True)
class ChannelPruning:
    """Remove channels until a share of the work is gone.

    Args:
        rate: share of the target that goes, in (0, 1).
        target: what is counted over the whole model: "macs" or "params"; or "latency", measured on the target runtime; or
            "int8_latency", the same with every layer in integers, for models that are quantized afterwards.
        multiple: channel counts are multiples of this, where a group has at least twice as many; 0 for what the runtime
            likes, or less where that would take more than two points too much.
        skip: paths of layers, or of modules with all that they hold, whose channels stay.
        method: of ordering the channels of a group: "surgeon" by what the layers that read them lose when the others take
            over; "fisher" by squared gradients (of the loss where calibration data have class labels, else of the outputs);
            "magnitude" by weights; "auto" is the surgeon, and magnitude without data.
        parts: what goes: "channels", whole residual "blocks", or "all", whichever loses least.

    Raises:
        UsageError: a rate outside (0, 1), a negative multiple, an unknown target, method or part.
    """

    rate: float = 0.5
    target: Target = "macs"
    multiple: int = 0
    skip: tuple[str, ...] = ()
    method: Method = "auto"
    parts: Parts = "all"

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError("rate must be more than 0 and less than 1", where="channel_pruning", got=str(self.rate))
        if self.multiple < 0:
            raise UsageError("channels come in multiples of at least 1", where="channel_pruning", got=str(self.multiple))
        for name, kinds in (("target", Target), ("method", Method), ("parts", Parts)):
            if getattr(self, name) not in get_args(kinds):
                got, wanted = repr(getattr(self, name)), " or ".join(get_args(kinds))
                raise UsageError(f"unknown {name}", where="channel_pruning", got=got, wanted=wanted)

    def requires(self, model: nn.Module, context: Context) -> None:
        """Parameters, a timer where the latency counts, and data where the method looks at them.

        Raises:
            PreconditionError: the model has no parameters, or data are missing.
            UsageError: latency cannot be measured here, or the runtime has no integers.
            UnknownName: `skip` names what the model does not have.
        """
        check_skip(model, self.skip, "channel_pruning")
        if self.target in TIMED_TARGETS and context.timer is None:
            raise not_timed("channel_pruning", "macs")
        if self.target == "int8_latency" and context.scheme is None:
            got = "a runtime without integer kernels"
            raise UsageError("nothing runs in integers there", where="channel_pruning", got=got, hint='target "latency"')
        if not any(True for _ in model.parameters()):
            raise PreconditionError("the model has no parameters", where="channel_pruning")
        if self.method in ("surgeon", "fisher") and context.calibration is None:
            raise PreconditionError(
                f"the method {self.method} looks at data",
                where="channel_pruning",
                wanted="calibration data",
                hint='give some, or method "magnitude"',
            )

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose, fit and cut, in place.

        Raises:
            UnsupportedModel: the model cannot be traced, no group can be cut, or the cut model does not run.
            PreconditionError: the rate cannot be reached, or activations are not finite.
        """
        model.eval().requires_grad_(True)
        traced = trace(model, context.example)
        groups, skipped = self._groups(model, traced, context)
        batches = list(first_batches(context.calibration or (), EXAMPLES))
        change = OutputChange(model, batches) if batches else None  # first, since it sees whether the data can be used
        profile = static_cost(model, context.example)
        if context.chosen is None:
            losses = known_losses(context.tables, model, groups, batches, self._scores(model, groups, context), context.progress)
            choice = self._choice(model, groups, losses, profile, context)
            kept = _kept(groups, losses, choice.counts)
        else:
            choice, kept = Choice([0] * len(groups), context.chosen["reached"]), context.chosen["kept"]
        fitted = _fit(model, traced, batches, kept, examples_held(profile, FIT_BYTES), context)
        cut(model, kept)
        _check_runs(model, context)
        if change is not None:
            reestimate_if_nearer(model, batches, change)
        left = _left(groups, choice)
        reached = choice.reached if self.target in TIMED_TARGETS else self._removed(profile, static_cost(model, context.example))
        more = f": channels go in steps, the one below takes less than {100 * self.rate:g} %" if reached > self.rate + SHORT else ""
        notes = (f"{100 * reached:.1f} % of the {_WORDS[self.target]} removed{more}", *_blocks_note(kept), fitted)
        record = {"kept": kept, "reached": reached}
        return model, Change(touched=tuple(sorted(kept)), skipped=(*skipped, *left), notes=notes, record=record)

    def _groups(self, model: nn.Module, traced: Traced, context: Context) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
        """What may go, and what may not with the reasons."""
        context.progress.working("following channels")
        groups, skipped = channel_groups(model, context.example) if self.parts != "blocks" else ((), ())
        blocks = residual_blocks(model, traced.program, context.example) if self.parts != "channels" else ()
        found, left = _without((*groups, *blocks), self.skip)
        if not found:
            what = "no residual block can be left out" if self.parts == "blocks" else "no group of channels can be cut"
            reasons = "; ".join(f"{s.what}: {s.reason}" for s in (*skipped, *left)[:3]) or None
            raise UnsupportedModel(what, where="channel_pruning", got=reasons)
        return found, (*skipped, *left)

    def _scores(self, model: nn.Module, groups: Sequence[Group], context: Context) -> list[torch.Tensor] | None:
        """What every channel counts by itself; None where surgery tells."""
        if self.method == "magnitude":
            return [group_squares(model, group) for group in groups]
        if self.method != "fisher":
            return None
        context.progress.working("gradients of the calibration data")
        pairs = context.labelled if context.labelled is not None else ((inputs, None) for inputs in context.calibration or ())
        return channel_fisher(model, groups, pairs, context.seed)

    def _choice(self, model: nn.Module, groups: Sequence[Group], found: Sequence[GroupLoss], profile: Cost, context: Context) -> Choice:
        """Channels to remove from every group, and the share of the target that goes with them."""
        losses = [loss.losses for loss in found]
        liked = self.multiple or context.channel_multiple
        if self.target in TIMED_TARGETS:
            return counts_for_latency(
                model,
                groups,
                losses,
                [removable(group, liked) for group in groups],
                self.rate,
                example=context.example,
                timer=self._timer(context),
                multiple=liked,
                cut=lambda counts: _cut_copy(model, groups, found, counts),
                progress=context.progress,
            )
        cost = counted_cost(model, groups, profile, "params" if self.target == "params" else "macs")
        choices = []
        for multiple in [liked] if self.multiple else _finer(liked):
            counts = allocate(losses, cost, (1 - self.rate) * cost.whole, [removable(group, multiple) for group in groups])
            choices.append(Choice(counts, 1 - cost(counts) / cost.whole))
            if choices[-1].reached <= self.rate + SHORT:
                break
        nearest = min(choices, key=lambda choice: abs(choice.reached - self.rate))
        if nearest.reached < self.rate - SHORT:
            raise PreconditionError(
                f"so many {_WORDS[self.target]} cannot be removed",
                where="channel_pruning",
                got=f"{100 * nearest.reached:.1f} % with as few channels as are possible",
                wanted=f"{100 * self.rate:.1f} %",
                hint="the rest belongs to layers that cannot be cut; a lower rate, or multiple=1",
                reach=nearest.reached,
            )
        return nearest

    def _timer(self, context: Context) -> Timer:
        assert context.timer is not None
        if self.target == "latency":
            return context.timer
        assert context.scheme is not None
        return IntegerTimer(context.timer, context.scheme)

    def _removed(self, before: Cost, after: Cost) -> float:
        """The share that really is gone: what no layer has, such as products of attention, gets smaller too."""
        return 1 - float(getattr(after, self.target)) / float(getattr(before, self.target))

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """Cut the same channels; weights and statistics are loaded afterwards.

        Raises:
            PreconditionError: the record names layers or channels that the model does not have.
        """
        try:
            cut(model, record["kept"])
        except (AttributeError, IndexError, UnsupportedModel) as error:
            raise PreconditionError(
                "the recorded channels do not fit this model",
                where="channel_pruning",
                got=str(error),
                hint="is it the model the plan was made for?",
            ) from error
        return model


def _without(groups: Sequence[Group], skip: Sequence[str]) -> tuple[tuple[Group, ...], tuple[Skip, ...]]:
    named = [group for group in groups if any(_touches(group, f"{name}.") for name in skip)]
    return tuple(g for g in groups if g not in named), tuple(Skip(what=g.name, reason="skipped on request") for g in named)


def _touches(group: Group, name: str) -> bool:
    """Whether the group changes a module; a block changes all that it holds."""
    paths = [f"{member.path}." for member in group.members]
    return any(path.startswith(name) or (group.is_block and name.startswith(path)) for path in paths)


def _finer(multiple: int) -> list[int]:
    """The multiple that the runtime likes, and smaller ones for where it takes too much at a time."""
    return [multiple // part for part in (1, 2, 4, 8, 16) if multiple % part == 0]


def _left(groups: Sequence[Group], choice: Choice) -> list[Skip]:
    """Groups that lose nothing, and why; of blocks, which mostly stay, nothing is said."""
    why = {skip.what: skip.reason for skip in choice.skipped}
    stay = [group for group, count in zip(groups, choice.counts, strict=True) if not count and not group.is_block]
    return [Skip(what=group.name, reason=why.get(group.name, "spared: others lose less")) for group in stay]


def _blocks_note(kept: Mapping[str, Mapping[str, Sequence[int]]]) -> tuple[str, ...]:
    gone = [path for path, by_axis in kept.items() if WHOLE in by_axis]
    return (f"left out whole: {', '.join(gone)}",) if gone else ()


def _fit(
    model: nn.Module, traced: Traced, batches: Sequence[Inputs], kept: Mapping[str, Mapping[str, list[int]]], most: int, context: Context
) -> str:
    """Fit what stays to the whole model, in place; says on how many examples."""
    usable = batches if traced.batch == "dynamic" else rebatched(batches, traced.batch)
    fitting = list(first_batches(usable, most))
    if fitting:
        _load(model, refit(model, traced.program, fitting, kept, context.seed, context.progress))
        return f"fitted on {sum(map(examples_in, fitting))} examples"
    lacking = "no calibration data" if not batches else f"fewer calibration examples than the batch of {traced.batch} that the model fixes"
    return f"{lacking}: what is left does not make up for what is gone"


def _kept(groups: Sequence[Group], losses: Sequence[GroupLoss], counts: Sequence[int]) -> dict[str, dict[str, list[int]]]:
    return kept_rows((g, set(loss.order[:n])) for g, loss, n in zip(groups, losses, counts, strict=True))


def _cut_copy(model: nn.Module, groups: Sequence[Group], losses: Sequence[GroupLoss], counts: Sequence[int]) -> nn.Module:
    twin = copy.deepcopy(model)
    cut(twin, _kept(groups, losses, counts))
    return twin


def _load(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, value in weights.items():
            if name in tensors:
                tensors[name].copy_(value)


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
