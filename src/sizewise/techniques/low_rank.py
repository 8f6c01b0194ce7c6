"""Replace layers by stacks of smaller ones, of ranks so chosen that a stated share of the work goes with the least loss.

What it does: a linear layer becomes two, a convolution two or three (fewer channels and a 1x1; k x 1 and 1 x k; or 1x1, k x k, 1x1),
all of them ordinary layers; ranks are chosen together by what the model's outputs lose; then every stack is solved for the inputs it
really gets and the outputs that the whole model gives. Helps: every runtime, where layers are wide: parameters, MACs, and latency
where kernels are not too small. Hurts: accuracy, beyond about a third of the work without training; small convolutions, whose weights
have little to share. Needs: calibration inputs (it works without, much worse). Cost: two evaluations on few examples and some
decompositions per layer, and one pass that runs the model twice.

Source: Zhang et al., TPAMI 2016, for fitting to outputs and to the inputs of the factorized model; Jaderberg et al., BMVC 2014, and Kim
et al., ICLR 2016, for the forms of convolutions; Wang et al., SVD-LLM, ICLR 2025, for linear layers in the metric of their inputs.
Deviation: forms and ranks are chosen over all layers by measured losses, and factors solved by reduced rank regression.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from sizewise.arith.allocation import SeparateCost, allocate
from sizewise.data.batches import examples_in, first_batches, rebatched
from sizewise.data.outputs import OutputChange, reestimate_if_nearer
from sizewise.data.rank_losses import FactorOption, layer_moments, rank_losses
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.graph.checks import check_finite, check_skip
from sizewise.graph.factorize import Factoring, factorizable, factorize
from sizewise.graph.refit_factors import Factored, absorbing, refit_factored
from sizewise.graph.trace import Traced, eval_copy, trace
from sizewise.profile.factor_cost import Ladder, counted_savings, ladder, latency_savings
from sizewise.profile.held import examples_held
from sizewise.profile.latency_target import aim, not_timed
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs, Trait
from sizewise.types import Change, Cost, LayerShape, Skip

__all__ = ["TECHNIQUE", "LowRank"]

Target = Literal["params", "macs", "latency"]
Plan = dict[str, Factoring]
_WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
EXAMPLES = 512  # of the calibration data that are used
SHORT = 0.02  # of the rate that may be missed
WORTH = 0.003  # of the latency that a layer must be able to save


@dataclass(frozen=True)
class LowRank:
    """Factorize layers until a share of the work is gone.

    Args:
        rate: share of the target that goes, in (0, 1).
        target: what is counted over the whole model: "params" or "macs"; or "latency", measured on the target runtime.
        skip: paths of layers, or of modules with all that they hold, that stay whole.
        multiple: ranks are multiples of this, or of its half, quarter, ... in layers too small for eight of them; 0 for what the
            runtime likes.

    Raises:
        UsageError: a rate outside (0, 1), a negative multiple, an unknown target.
    """

    rate: float = 0.3
    target: Target = "params"
    skip: tuple[str, ...] = ()
    multiple: int = 0

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError("rate must be more than 0 and less than 1", where="low_rank", got=str(self.rate))
        if self.multiple < 0:
            raise UsageError("ranks come in multiples of at least 1", where="low_rank", got=str(self.multiple))
        if self.target not in get_args(Target):
            raise UsageError("unknown target", where="low_rank", got=repr(self.target), wanted=" or ".join(get_args(Target)))

    def requires(self, model: nn.Module, context: Context) -> None:
        """Finite weights, and a timer where the latency counts.

        Raises:
            PreconditionError: weights are not finite.
            UsageError: latency cannot be measured here.
            UnknownName: `skip` names what the model does not have.
        """
        check_skip(model, self.skip, "low_rank")
        if self.target == "latency" and context.timer is None:
            raise not_timed("low_rank", "params")
        check_finite(model, "low_rank")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose, solve and replace, in place.

        Raises:
            UnsupportedModel: no layer can be factorized, or the factorized model does not run.
            PreconditionError: the rate cannot be reached, or outputs are not finite.
        """
        model.eval()
        batches = list(first_batches(context.calibration or (), EXAMPLES))
        change = OutputChange(model, batches) if batches else None  # first, since it sees whether the data can be used
        shapes, skipped = self._layers(model, context)
        traced = _traced(model, context)
        takes = _absorbing(model, shapes, traced)
        multiple = self.multiple or context.channel_multiple
        options, unseen = rank_losses(model, shapes, batches, takes, multiple, context.progress)
        profile = static_cost(model, context.example)
        plan, reached, left = self._plan(model, shapes, options, profile, context)
        held = examples_held(profile)
        found, fitted = _solved(model, traced, batches, plan, held, {path: shapes[path] for path in plan}, takes, context)
        found.install(model)
        _check_runs(model, context)
        if change is not None:
            reestimate_if_nearer(model, batches, change)
        if self.target != "latency":
            reached = 1 - float(getattr(static_cost(model, context.example), self.target)) / float(getattr(profile, self.target))
        more = f": ranks go in steps, and a step less would miss {100 * self.rate:g} %" if reached > self.rate + SHORT else ""
        notes = (f"{100 * reached:.1f} % of the {_WORDS[self.target]} removed{more}", fitted)
        record = {"factors": {path: {"form": f.form, "ranks": list(f.ranks)} for path, f in plan.items()}, "reached": reached}
        return model, Change(touched=tuple(sorted(plan)), skipped=(*skipped, *unseen, *left), notes=notes, record=record)

    def _layers(self, model: nn.Module, context: Context) -> tuple[dict[str, LayerShape], tuple[Skip, ...]]:
        """What the layers that may be factorized work on, and what may not with the reasons.

        Raises:
            UnsupportedModel: there is none.
        """
        context.progress.working("looking for layers")
        paths, left = factorizable(model, context.example)
        every, shapes = layer_shapes(model, context.example), {}
        for path in paths:
            if any(f"{path}.".startswith(f"{name}.") for name in self.skip):
                left += (Skip(what=path, reason="skipped on request"),)
            elif path not in every:
                left += (Skip(what=path, reason="is not called with one tensor, so that its costs cannot be told"),)
            else:
                shapes[path] = every[path][0]
        if not shapes:
            raise UnsupportedModel("no layer can be factorized", where="low_rank", got=_reasons(left))
        return shapes, left

    def _plan(
        self,
        model: nn.Module,
        shapes: Mapping[str, LayerShape],
        options: Mapping[str, Sequence[FactorOption]],
        profile: Cost,
        context: Context,
    ) -> tuple[Plan, float, tuple[Skip, ...]]:
        """What becomes of which layers, the share that goes with it, and the layers that stay whole.

        Raises:
            UnsupportedModel: no layer gets cheaper.
            PreconditionError: the rate cannot be reached; says what can.
        """
        known = {path: shapes[path] for path in options}
        if self.target == "latency":
            assert context.timer is not None
            measured = context.timer.profile(model, context.example)
            assert measured.latency_s is not None
            whole, least = measured.latency_s.value, WORTH * measured.latency_s.value
            amounts, saving = latency_savings(
                measured, known, options, context.timer, self.multiple or context.channel_multiple, context.progress
            )
        else:
            whole, least = float(getattr(profile, self.target)), 0.0
            amounts, saving = counted_savings(model, known, self.target)
        found = {path: ladder(own, partial(saving, path), amounts.get(path, 0.0), least) for path, own in options.items()}
        ladders = {path: own for path, own in found.items() if own.options}
        why = "would not get faster" if self.target == "latency" else f"no rank lowers its {_WORDS[self.target]}"
        left = [Skip(what=path, reason=why) for path in found if path not in ladders]
        if not ladders:
            raise UnsupportedModel("no layer gets cheaper by being factorized", where="low_rank", got=_reasons(left))
        levels, reached = self._levels(model, ladders, SeparateCost([own.costs for own in ladders.values()], whole), context)
        plan = {path: own.options[level].factoring for (path, own), level in zip(ladders.items(), levels, strict=True) if level}
        spared = [Skip(what=path, reason="spared: others lose less") for path in ladders if path not in plan]
        return plan, reached, (*left, *spared)

    def _levels(self, model: nn.Module, ladders: Mapping[str, Ladder], cost: SeparateCost, context: Context) -> tuple[list[int], float]:
        """A level of every ladder, and the share of the target that goes with them."""
        own = list(ladders.values())

        def chosen(goal: float) -> list[int]:
            return allocate([one.losses for one in own], cost, (1 - goal) * cost.base, [one.levels for one in own])

        if self.target == "latency":
            levels, reached = aim(chosen, self._measure(model, ladders, context), self.rate)
        else:
            levels = chosen(self.rate)
            reached = 1 - cost(levels) / cost.base
        if reached < self.rate - SHORT:
            lowest = 1 - cost([one.levels[-1] for one in own]) / cost.base
            raise PreconditionError(
                f"so much of the {_WORDS[self.target]} cannot be removed",
                where="low_rank",
                got=f"{100 * reached:.1f} %, and {100 * max(reached, lowest):.1f} % with the lowest ranks everywhere",
                wanted=f"{100 * self.rate:.1f} %",
                hint="the rest belongs to what cannot be factorized; a lower rate",
            )
        return levels, reached

    def _measure(self, model: nn.Module, ladders: Mapping[str, Ladder], context: Context) -> Any:
        """A function that tells the share of the latency that goes at some levels."""
        assert context.timer is not None
        timer = context.timer
        share = timer.beside(model, context.example)

        def measured(levels: Sequence[int]) -> float:
            context.progress.working(f"timing the factorized model on {timer.name}")
            twin = eval_copy(model)
            for (path, own), level in zip(ladders.items(), levels, strict=True):
                if level:
                    factorize(twin, path, own.options[level].factoring)
            return 1 - share(twin)

        return measured

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """Put the same layers in; weights and statistics are loaded afterwards.

        Raises:
            PreconditionError: the record names layers that the model does not have, or ranks that do not fit them.
        """
        try:
            for path, own in record["factors"].items():
                factorize(model, path, Factoring(own["form"], tuple(own["ranks"])))
        except (AttributeError, UnsupportedModel) as error:
            raise PreconditionError(
                "the recorded layers do not fit this model",
                where="low_rank",
                got=str(error),
                hint="is it the model the plan was made for?",
            ) from error
        return model


def _reasons(skips: Sequence[Skip]) -> str | None:
    return "; ".join(f"{skip.what}: {skip.reason}" for skip in skips[:3]) or None


def _traced(model: nn.Module, context: Context) -> Traced | None:
    """The exported model, or None where torch cannot export it."""
    try:
        return trace(model, context.example)
    except UnsupportedModel:
        return None


def _absorbing(model: nn.Module, shapes: Mapping[str, LayerShape], traced: Traced | None) -> set[str]:
    """Layers that can add a constant."""
    biased = {path for path in shapes if model.get_submodule(path)._parameters.get("bias") is not None}
    return biased if traced is None else biased | absorbing(traced.program)


def _solved(
    model: nn.Module,
    traced: Traced | None,
    batches: Sequence[Inputs],
    plan: Plan,
    most: int,
    shapes: Mapping[str, LayerShape],
    takes: set[str],
    context: Context,
) -> tuple[Factored, str]:
    """Weights of all new layers and of what they are fitted with, and on what they were fitted."""
    if traced is not None:
        usable = batches if traced.batch == "dynamic" else rebatched(batches, traced.batch)
        fitting = list(first_batches(usable, most))
        if fitting:
            found = refit_factored(model, traced.program, fitting, plan, context.seed, context.progress)
            return found, f"fitted on {sum(map(examples_in, fitting))} examples"
    return _by_themselves(model, batches, plan, shapes, takes), _lacking(traced, batches)


def _lacking(traced: Traced | None, batches: Sequence[Inputs]) -> str:
    if not batches:
        return "no calibration data: factors are nearest in weights, not in outputs"
    why = (
        "torch cannot export the model" if traced is None else f"fewer calibration examples than the batch of {traced.batch} that it fixes"
    )
    return f"{why}: every layer was fitted by itself"


def _by_themselves(model: nn.Module, batches: Sequence[Inputs], plan: Plan, shapes: Mapping[str, LayerShape], takes: set[str]) -> Factored:
    """Every layer for the inputs that it has in the whole model; only a bias makes up for means, since nothing behind is known."""
    biased = {path for path in takes if model.get_submodule(path)._parameters.get("bias") is not None}
    factors, biases = {}, {}
    for part, moments in layer_moments(model, shapes, batches, biased):
        for path in part:
            layer, own = model.get_submodule(path), moments.get(path)
            weight = layer.get_parameter("weight").detach()
            factors[path] = plan[path].solved(weight, own.matrix if own else None)
            if path in biased and own is not None and own.mean is not None:
                gone = weight.double() - plan[path].composed(factors[path])
                biases[f"{path}.bias"] = layer.get_parameter("bias").detach() + (gone.flatten(1) @ own.mean).to(weight)
    return Factored(plan, factors, biases)


def _check_runs(model: nn.Module, context: Context) -> None:
    try:
        with torch.no_grad():
            context.example.call(model)
    except Exception as error:  # code of the user's may raise anything
        raise UnsupportedModel(
            "the model does not run with factorized layers",
            where="low_rank",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="its code depends on what a layer is; name the layer in skip",
        ) from error


TECHNIQUE = LowRank
