"""Replace layers by stacks of smaller ones, of ranks so chosen that a stated share of the work goes with the least loss.

What it does: a linear layer becomes two, a convolution two or three (fewer channels and a 1x1; k x 1 and 1 x k; or 1x1, k x k, 1x1),
all of them ordinary layers; ranks are chosen together by what the model's outputs lose; then every stack is solved for the inputs it
really gets and the outputs that the whole model gives. Where parameters are the target, matrices of recurrent layers become products of
two in the stored weights: their file gets smaller, but kernels multiply whole matrices, so that nothing runs faster. Helps: every runtime,
where layers are wide: parameters, MACs, and latency where kernels are not too small. Hurts: accuracy, beyond about a third of the work
without training; small convolutions, whose weights have little to share. Needs: calibration inputs (it works without, much worse). Cost:
two evaluations on few examples and some decompositions per layer, and one pass that runs the model twice.

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
from sizewise.data.batches import first_batches
from sizewise.data.outputs import OutputChange, reestimate_if_nearer
from sizewise.data.rank_losses import FactorOption, rank_losses
from sizewise.data.recurrent_ranks import matrix_losses
from sizewise.data.solved_factors import Chosen, solved
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.graph.checks import check_finite, check_skip
from sizewise.graph.factorize import Factoring, factorizable, factorize
from sizewise.graph.recurrent_matrices import Matrix, recurrent_matrices
from sizewise.graph.refit_factors import absorbing
from sizewise.graph.trace import Traced, eval_copy, trace
from sizewise.profile.factor_cost import Ladder, counted_savings, ladder, latency_savings
from sizewise.profile.held import examples_held
from sizewise.profile.latency_target import aim, not_timed
from sizewise.profile.layer_shapes import layer_shapes
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Trait
from sizewise.types import Change, Cost, LayerShape, Skip

__all__ = ["TECHNIQUE", "LowRank"]

Target = Literal["params", "macs", "latency"]
Plan = dict[str, Factoring]
_WORDS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
EXAMPLES = 512  # of the calibration data that are used
SHORT = 0.02  # of the rate that may be missed
_ON_REQUEST = "skipped on request"
WORTH = 0.003  # of the latency that a layer must be able to save


@dataclass(frozen=True)
class LowRank:
    """Factorize layers until a share of the work is gone.

    Args:
        rate: share of the target that goes, in (0, 1).
        target: what is counted over the whole model: "params", as they are stored; "macs"; or "latency", measured on the target runtime.
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
        shapes, matrices, skipped = self._layers(model, context)
        traced = _traced(model, context)
        takes = _absorbing(model, shapes, traced)
        options, unseen = rank_losses(model, shapes, batches, takes, self.multiple or context.channel_multiple, context.progress)
        stored, unheard = matrix_losses(model, matrices, batches, context.progress)
        profile = static_cost(model, context.example)
        left: tuple[Skip, ...] = ()
        if self.target == "latency" and context.chosen is not None:
            plan, reached = _recorded(context.chosen), float(context.chosen["reached"])
        else:
            plan, reached, left = self._plan(model, shapes, {**options, **stored}, profile, context)
        layers, ranks = _apart(plan, shapes)
        chosen = Chosen(layers, {path: shapes[path] for path in layers}, takes, matrices, ranks)
        found, fitted = solved(model, traced, batches, chosen, examples_held(profile), context.seed, context.progress)
        found.install(model)
        _check_runs(model, context)
        if change is not None:
            reestimate_if_nearer(model, batches, change)
        spared = chosen.spared(model)
        if self.target != "latency":
            left_over = getattr(static_cost(model, context.example), self.target) - spared
            reached = 1 - float(left_over) / float(getattr(profile, self.target))
        more = f": ranks go in steps, and a step less would miss {100 * self.rate:g} %" if reached > self.rate + SHORT else ""
        notes = (f"{100 * reached:.1f} % of the {_WORDS[self.target]} removed{more}", fitted, *_products_note(ranks, spared))
        record = {"factors": {path: {"form": f.form, "ranks": list(f.ranks)} for path, f in layers.items()}, "reached": reached}
        return model, Change(touched=tuple(chosen.names), skipped=(*skipped, *unseen, *unheard, *left), notes=notes, record=record)

    def _layers(self, model: nn.Module, context: Context) -> tuple[dict[str, LayerShape], tuple[Matrix, ...], tuple[Skip, ...]]:
        """What the layers that may be factorized work on, recurrent matrices that may, and what may not with the reasons.

        Raises:
            UnsupportedModel: there is none.
        """
        context.progress.working("looking for layers")
        paths, left = factorizable(model, context.example)
        every, shapes = layer_shapes(model, context.example), {}
        for path in paths:
            if self._skipped(path):
                left += (Skip(what=path, reason=_ON_REQUEST),)
            elif path not in every:
                left += (Skip(what=path, reason="is not called with one tensor, so that its costs cannot be told"),)
            else:
                shapes[path] = every[path][0]
        matrices: tuple[Matrix, ...] = ()
        if self.target == "params":
            every_matrix, alone = recurrent_matrices(model, context.example)
            matrices = tuple(matrix for matrix in every_matrix if not self._skipped(matrix.name))
            whole = {path or type(module).__name__ for path, module in model.named_modules() if isinstance(module, nn.RNNBase)}
            requested = [Skip(what=matrix.name, reason=_ON_REQUEST) for matrix in every_matrix if matrix not in matrices]
            left = (*(skip for skip in left if skip.what not in whole), *alone, *requested)
        if not shapes and not matrices:
            raise UnsupportedModel("no layer can be factorized", where="low_rank", got=_reasons(left))
        return shapes, matrices, left

    def _skipped(self, path: str) -> bool:
        return any(f"{path}.".startswith(f"{name}.") for name in self.skip)

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
        known = {path: shapes[path] for path in options if path in shapes}
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
            amounts, saving = counted_savings(model, known, self.target, [name for name in options if name not in shapes])
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
            most = max(reached, 1 - cost([one.levels[-1] for one in own]) / cost.base)
            raise PreconditionError(
                f"so much of the {_WORDS[self.target]} cannot be removed",
                where="low_rank",
                got=f"{100 * reached:.1f} %, and {100 * most:.1f} % with the lowest ranks everywhere",
                wanted=f"{100 * self.rate:.1f} %",
                hint="the rest belongs to what cannot be factorized; a lower rate",
                reach=most,
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


def _apart(plan: Plan, shapes: Mapping[str, LayerShape]) -> tuple[Plan, dict[str, int]]:
    """Layers that become stacks, and ranks of matrices that become products."""
    layers = {path: factoring for path, factoring in plan.items() if path in shapes}
    return layers, {name: factoring.ranks[0] for name, factoring in plan.items() if name not in layers}


def _products_note(ranks: Mapping[str, int], spared: int) -> tuple[str, ...]:
    if not ranks:
        return ()
    many = "1 matrix of a recurrent layer is a product" if len(ranks) == 1 else f"{len(ranks)} matrices of recurrent layers are products"
    return (f"{many} in weights.swz only, which saves {spared} of its numbers; what a runtime reads and its speed stay as they are",)


def _recorded(record: Mapping[str, Any]) -> Plan:
    """What became of which layers when the plan was made."""
    return {path: Factoring(own["form"], tuple(own["ranks"])) for path, own in record["factors"].items()}


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
