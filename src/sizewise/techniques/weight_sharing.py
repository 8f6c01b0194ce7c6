"""Weights as few shared values, entropy coded, so that the model is stored in a stated size; it stays an ordinary float module.

What it does: multiplies batch normalizations into the layers before them; chooses a step (or a number of values) for every weight so that
all fit the size with the least change of the outputs; then, layer by layer in the order of running, fits weights to the whole model's
outputs from inputs that are rounded already, and rounds them by what they do to outputs and by the bits that their codes take. Helps: the
stored file, about 10 times smaller before accuracy goes. Hurts: nothing runs faster. Needs: calibration inputs (it works without, worse).
Cost: two passes that run the model twice, and one evaluation per layer.

Source: Choi, El-Khamy and Lee, Towards the Limit of Network Quantization, ICLR 2017; Frantar et al., OPTQ (GPTQ), ICLR 2023; Wiedemann et
al., DeepCABAC, IEEE JSTSP 2020. See `arith/rate_rounding.py`, `data/shared_size.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from sizewise.arith.shared_codes import Shared, Values
from sizewise.data.batches import examples_in, first_batches, rebatched
from sizewise.data.model_size import float_bytes
from sizewise.data.shared_forms import contributions, exact_forms, model_bytes, shared_form, vector_form
from sizewise.data.shared_product import plain_factor, product_finenesses, share_product, shared_product
from sizewise.data.shared_size import Budget, Fineness, Judge, Kind, finenesses, fixed_bits, share
from sizewise.errors import SizeUnreachable, UnknownName, UnsupportedModel, UsageError
from sizewise.graph.absorb import absorb, merge_biases
from sizewise.graph.coded import Weight, check_model, find_weights
from sizewise.graph.share_layers import Aim, SharedWalk
from sizewise.graph.trace import Traced, trace
from sizewise.profile.held import examples_held
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Inputs, Trait
from sizewise.storage.forms import Constant, Form, Product, attach_forms, attached_forms, holds, shortest, stored_bytes
from sizewise.types import Change, Skip
from sizewise.units import format_bytes

__all__ = ["TECHNIQUE", "WeightSharing"]

DEFAULT_RATE = 0.125
EXAMPLES = 1024  # of the calibration data that are used,
TABLED = 256  # of these for what finenesses cost,
PROBE = 64  # and others on which outputs are compared
PASSES = 3
SHORT = 0.985  # of the size, below which it is worth another pass, which aims at
AIMED = 0.997
MARGIN = 1.01  # of what the coarsest values should take by some of their rows
SMALLEST = 64  # weights in a matrix that is shared
WHERE = "weight_sharing"


@dataclass(frozen=True)
class WeightSharing:
    """Few values for many weights.

    Args:
        rate: share of the float32 bytes of the model that the plan began with which the stored model may take; an eighth where neither a
            rate, a size nor bits are given. Where lossless coding keeps it, as often at 1, values stay as they are.
        size: the same in bytes.
        bits: of every weight, 2 to 8, instead of a size: at most 2^bits different values.
        values: "uniform" has multiples of one step per weight tensor; "codebook" values that lie anywhere; "auto" takes uniform steps, and
            single values where there are few and it is worth it.
        skip: paths of layers, or of modules with all that they hold, whose weights stay as they are.

    Raises:
        UsageError: more than one of rate, size and bits, or one that cannot be meant.
        UnknownName: no such values.
    """

    rate: float | None = None
    size: int | None = None
    bits: int | None = None
    values: Values = "auto"
    skip: tuple[str, ...] = ()

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.rate, self.size, self.bits)) > 1:
            raise UsageError("one of rate, size and bits is enough", where=WHERE)
        if self.rate is not None and not 0 < self.rate <= 1:
            raise UsageError("rate must be more than 0 and at most 1", where=WHERE, got=str(self.rate))
        if self.size is not None and self.size < 1:
            raise UsageError("the size must be at least one byte", where=WHERE, got=str(self.size))
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise UsageError("not a number of bits", where=WHERE, got=str(self.bits), wanted="2 to 8")
        if self.values not in get_args(Values):
            raise UnknownName("values", str(self.values), get_args(Values), where=WHERE)

    def requires(self, model: nn.Module, context: Context) -> None:
        """A model of modules with finite weights.

        Raises:
            PreconditionError: something of this is missing.
            UnknownName: `skip` names what the model does not have.
        """
        check_model(model, self.skip, WHERE)

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose values, in place.

        Raises:
            UnsupportedModel: torch cannot export the model, or it has no weights to share.
            PreconditionError: the size cannot be reached (`SizeUnreachable`), or activations are not finite.
        """
        model.eval()
        limit, exact = self._limit(model, context), exact_forms(model)
        before = model_bytes(model, exact)
        if limit is not None and before <= limit:
            return _unchanged(model, exact, before)
        traced = trace(model, context.example)
        graph = traced.program.module(check_guards=False)
        _simplify(model, graph)
        chosen, skipped = self._chosen(graph)
        run = _Run(model, graph, chosen, _ranks(model, chosen), _data(model, traced, context), context, self)
        return _finished(run, run.to_size(limit) if limit is not None else run.to_bits(self.bits or 8), skipped, before)

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The model itself; values are loaded afterwards."""
        return model

    def _limit(self, model: nn.Module, context: Context) -> int | None:
        """Bytes that the stored model may take; None where bits are given."""
        if self.size is not None or self.bits is not None:
            return self.size
        whole = context.teacher if context.teacher is not None else model
        return int((self.rate or DEFAULT_RATE) * float_bytes(whole))

    def _chosen(self, graph: GraphModule) -> tuple[list[Weight], list[Skip]]:
        weights, skipped = find_weights(graph)
        chosen = []
        for weight in weights:
            if weight.within(self.skip):
                skipped.append(Skip(what=weight.name, reason="named in skip"))
            elif weight.value.numel() < SMALLEST:
                skipped.append(Skip(what=weight.name, reason="too small to gain"))
            else:
                chosen.append(weight)
        if not chosen:
            why = "; ".join(f"{skip.what}: {skip.reason}" for skip in skipped[:3])
            raise UnsupportedModel("there are no weights to share", where=WHERE, got=why or "no matrices")
        return chosen, skipped


def _simplify(model: nn.Module, graph: GraphModule) -> None:
    """Fewer numbers that compute the same, in the model and its graph."""
    absorb(model, graph)
    merge_biases(model)
    graph.load_state_dict(model.state_dict(), strict=False)  # mostly the same tensors already


@dataclass(frozen=True)
class _Data:
    """Calibration inputs.

    Attributes:
        fitting: as many as can be held.
        tabled: some of them.
        probe: others than the tabled ones, on which outputs are compared.
    """

    fitting: Sequence[Inputs]
    tabled: Sequence[Inputs]
    probe: Sequence[Inputs]


def _data(model: nn.Module, traced: Traced, context: Context) -> _Data:
    held = examples_held(static_cost(model, context.example))
    batches = list(first_batches(context.calibration or (), min(EXAMPLES, held)))
    batches = batches if traced.batch == "dynamic" else list(rebatched(batches, traced.batch))
    count = sum(map(examples_in, batches))
    probe: list[Inputs] = []
    while len(probe) + 1 < len(batches) and sum(map(examples_in, probe)) < min(PROBE, count // 3):
        probe.append(batches[-1 - len(probe)])
    rest = batches[: len(batches) - len(probe)]
    return _Data(batches, list(first_batches(rest, TABLED)), probe or batches)


@dataclass(frozen=True)
class _Outcome:
    """What a pass gave: how every tensor of the state is stored, by name, and bytes of the file."""

    forms: dict[str, Form]
    taken: int


@dataclass
class _Run:
    """One application to one model."""

    model: nn.Module
    graph: GraphModule
    weights: Sequence[Weight]
    ranks: Mapping[str, int]
    data: _Data
    context: Context
    settings: WeightSharing

    @property
    def kind(self) -> Kind:
        """Of values at stated finenesses."""
        return "codebook" if self.settings.values == "codebook" else "grid"

    def to_bits(self, bits: int) -> _Outcome:
        """Every weight with so many bits."""

        def fixed(aim: Aim) -> Shared:
            return fixed_bits(aim, bits, self.settings.values, self.context.seed)

        def choose(aim: Aim) -> tuple[Form, float]:
            rank = self.ranks.get(aim.slot.weight.name)
            return (
                _formed(aim, fixed(aim)) if rank is None else shared_product(aim, rank, fixed, lambda own, _: plain_factor(fixed(own), own))
            )

        return self._settled(self._walk(self.data.fitting), choose, _unheard)

    def to_size(self, limit: int) -> _Outcome:
        """The finenesses that together fit, and a pass with them; again with less or more where it misses.

        Raises:
            SizeUnreachable: even the coarsest values take more.
        """
        rest = self._rest()
        options = self._options(limit, rest)
        codes = float(limit - rest)
        best: _Outcome | None = None
        smallest = math.inf
        for _ in range(PASSES):
            found = self._pass(options, codes)
            smallest = min(smallest, found.taken)
            if found.taken <= limit and (best is None or found.taken > best.taken):
                best = found
            if SHORT * limit <= found.taken <= limit:
                break
            codes += AIMED * limit - found.taken
        if best is None:
            raise self._too_small(limit, smallest)
        return best

    def _options(self, limit: int, rest: int) -> list[Fineness]:
        count = sum(map(self.numbers, self.weights))
        judge = Judge(self.model, self.data.probe)
        bits = min(8.0, max(0.5, 8 * (limit - rest) / count))
        walk = self._walk(self.data.tabled)
        options = [self._finenesses(aim, bits, judge) for aim in walk.aims(fit=False)]
        least = sum(option.bytes[-1] for option in options) + rest
        if least > limit:
            raise self._too_small(limit, least)
        return options

    def _finenesses(self, aim: Aim, bits: float, judge: Judge) -> Fineness:
        rank = self.ranks.get(aim.slot.weight.name)
        if rank is not None:
            return product_finenesses(aim, rank, self.kind, bits, judge, self.context.seed)
        return finenesses(aim, self.kind, bits, judge, self.context.seed)

    def numbers(self, weight: Weight) -> int:
        """That are stored of a weight: those of both factors where it is a product."""
        rank = self.ranks.get(weight.name)
        return weight.value.numel() if rank is None else rank * sum(weight.shape)

    def _too_small(self, limit: int, least: float) -> SizeUnreachable:
        whole = self.context.teacher if self.context.teacher is not None else self.model
        return SizeUnreachable(math.ceil(MARGIN * least), float_bytes(whole), got=limit, where=WHERE)

    def _pass(self, options: Sequence[Fineness], size: float) -> _Outcome:
        budget = Budget(options, size)
        single = self.settings.values == "auto"

        def choose(aim: Aim) -> tuple[Form, float]:
            step, rank = budget.size(aim.slot.name, self.kind), self.ranks.get(aim.slot.weight.name)
            if rank is not None:
                return share_product(aim, rank, self.kind, step, single=single)
            return _formed(aim, share(aim, self.kind, step, single=single))

        return self._settled(self._walk(self.data.fitting), choose, lambda aim, form: budget.settled(aim.slot.name, stored_bytes(form)))

    def _settled(self, walk: SharedWalk, choose: Callable[[Aim], tuple[Form, float]], told: Callable[[Aim, Form], None]) -> _Outcome:
        """One pass: every weight, then the vectors, whose steps change outputs no more than those of the weights do."""
        forms: dict[str, Form] = {}
        steps: dict[str, float] = {}
        for aim in walk.aims(fit=True):
            form, density = choose(aim)
            aim.settle(form.decode())
            told(aim, form)
            forms |= dict.fromkeys(aim.slot.weight.names, form)
            for name, step in aim.vector_steps(density).items():
                steps[name] = min(step, steps.get(name, math.inf))
        forms = self._rest_forms(forms, walk.tensors, steps)
        return _Outcome(forms, model_bytes(self.model, forms))

    def _walk(self, batches: Sequence[Inputs]) -> SharedWalk:
        return SharedWalk(self.graph, self.weights, batches, self.context.seed, self.context.progress)

    def _rest(self) -> int:
        """Bytes of what is not shared, about, and of the file."""
        blank = {name: Constant(torch.zeros(()), tuple(weight.value.shape)) for weight in self.weights for name in weight.names}
        return model_bytes(self.model, self._rest_forms(dict(blank), {}, {}))

    def _rest_forms(self, forms: dict[str, Form], tensors: Mapping[str, Tensor], steps: Mapping[str, float]) -> dict[str, Form]:
        """Forms of all tensors, with those of the weights given."""
        found = dict(forms)
        for name, value in self.model.state_dict().items():
            if name in found:
                continue
            if any(name.startswith(f"{path}.") for path in self.settings.skip):
                found[name] = shortest(tensors.get(name, value))
            else:
                found[name] = vector_form(tensors.get(name, value), steps.get(name))
        return found


def _ranks(model: nn.Module, weights: Sequence[Weight]) -> dict[str, int]:
    """Of weights that an earlier step made products, by name: their factors are coded, not what they make."""
    attached = attached_forms(model)
    return {
        weight.name: form.left.shape[1]
        for weight in weights
        if isinstance(form := attached.get(weight.name), Product) and holds(form, weight.value.detach())
    }


def _formed(aim: Aim, found: Shared) -> tuple[Form, float]:
    return shared_form(found, aim.slot.weight), found.density


def _unheard(aim: Aim, form: Form) -> None:
    """Nobody wants to know what a weight has taken."""


def _unchanged(model: nn.Module, forms: Mapping[str, Form], taken: int) -> tuple[nn.Module, Change]:
    """Coded without loss, which is small enough."""
    attach_forms(model, forms)
    touched = tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in forms))
    notes = (_stored_note(model, taken), "coded without loss: no value had to change")
    return model, Change(touched=touched, notes=notes, record={"bytes": taken}, contributions=contributions(model, forms, taken, None))


def _stored_note(model: nn.Module, taken: int) -> str:
    return f"stored in {format_bytes(taken)}, {taken / float_bytes(model):.4f} of what float32 takes"


def _finished(run: _Run, found: _Outcome, skipped: Sequence[Skip], before: int) -> tuple[nn.Module, Change]:
    state = run.model.state_dict()
    with torch.no_grad():
        for name, form in found.forms.items():
            state[name].copy_(form.decode())
    attach_forms(run.model, found.forms)
    touched = tuple(dict.fromkeys(weight.label for weight in run.weights))
    count = sum(map(run.numbers, run.weights))
    taken = sum(stored_bytes(found.forms[weight.name]) for weight in run.weights)
    notes = (
        _stored_note(run.model, found.taken),
        f"{8 * taken / count:.2f} bits for each of {count} weights in {len(run.weights)} tensors",
        f"fitted on {sum(map(examples_in, run.data.fitting))} examples"
        if run.data.fitting
        else "no calibration data: weights were not fitted",
    )
    saved = contributions(run.model, found.forms, found.taken, before)
    return run.model, Change(touched=touched, skipped=tuple(skipped), notes=notes, record={"bytes": found.taken}, contributions=saved)


TECHNIQUE = WeightSharing
