"""Static int8 quantization after training, in the scheme that the target runtime executes as integer kernels.

What it does: weights become int8 (or 4 bits that run in the same kernels), one scale per output channel; activations 8-bit, one
scale per tensor, from their values on calibration data; batch normalization is folded first. How ranges are chosen, and whether
they are evened out between layers first, is tried, and what changes the outputs least on examples held back is taken. Helps:
convolutions and linear layers on runtimes with integer kernels, about 4 times smaller. Hurts: activations with rare large values
that matter. Needs: calibration inputs (128 to 512 examples suffice). Cost: a few passes over them. What stays float is named.
With train data, scales and biases, or weights too, may be trained with all integers simulated. That helps where calibration data are
few or rounding is coarse, and little elsewhere; it costs per example more than training the float model does.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR
2018; graph passes by torchao's PT2E. Ranges, equalization, rounding: `arith/ranges.py`, `equalization.py`, `rounding.py`.
Training: `training/integers.py`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from sizewise.arith.grids import Grid, Steps, find_steps, quantize
from sizewise.arith.ranges import METHODS, Method
from sizewise.data.batches import batches, examples_in, first_batches, rebatched
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.graph.coded import Coding, Weight, check_model, choose, encode_weights, find_weights
from sizewise.graph.trace import Traced, part_from, quiet, trace
from sizewise.profile.held import HELD_BYTES
from sizewise.protocols import Context, Inputs, Trait
from sizewise.training.account import figures, notes
from sizewise.training.schedule import Length
from sizewise.types import Change, Scheme
from sizewise.units import parse_training

__all__ = ["TECHNIQUE", "Int8Static"]

Ranges = Literal["auto"] | Method
Rounding = Literal["auto", "nearest"]
Learned = Literal["scales", "codes"]
EXAMPLES = 512
FEWEST = 4  # batches


@dataclass(frozen=True)
class Int8Static:
    """Quantize weights and activations.

    Args:
        ranges: of activations: "minmax" clips nothing, "percentile" one value in ten thousand at each end, "mse" what makes the squared
            error least; "auto" tries all.
        rounding: of weights: "nearest"; "auto" also fits them to the float model's outputs, and rounds 4-bit weights by their effect.
        equalize: whether ranges may be evened out between layers.
        weight_bits: 8, or 4, which run in the same kernels and take half the room.
        weight_bytes: the weights of layers may take so many bytes: those whose rounding changes the outputs least get 4 bits.
        max_drop: layers that change the outputs most stay float until the quality on validation data has dropped by no more.
        max_latency: as many layers stay float, of those that change the outputs most per second, as this share of the float model's latency
            allows; it is measured.
        max_seconds: the same as a time per call.
        skip: paths of modules that stay float, with all that they hold.
        recovery: how long the model is trained, with integers simulated, to do what the float model does, such as "1epoch" or "10m".
        learn: what is trained: "scales", of weights and activations, and biases; "codes" are weights too.
        checkpoint: file that an interrupted training goes on from.

    Raises:
        UsageError: a setting that cannot be meant.
    """

    ranges: Ranges = "auto"
    rounding: Rounding = "auto"
    equalize: bool = True
    weight_bits: int = 8
    weight_bytes: int | None = None
    max_drop: float | None = None
    max_latency: float | None = None
    max_seconds: float | None = None
    skip: tuple[str, ...] = ()
    recovery: str | None = None
    learn: Learned = "scales"
    checkpoint: str | None = None

    needs: ClassVar[Trait] = Trait.FLOAT
    removes: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    gives: ClassVar[Trait] = Trait.QUANTIZED

    def __post_init__(self) -> None:
        settings = (("ranges", ("auto", *METHODS)), ("rounding", get_args(Rounding)), ("weight_bits", (8, 4)), ("learn", get_args(Learned)))
        for name, allowed in settings:
            if getattr(self, name) not in allowed:
                wanted = " or ".join(str(value) for value in allowed)
                raise UsageError(f"unknown {name}", where="int8_static", got=repr(getattr(self, name)), wanted=wanted)
        self._check_latency()
        if self.recovery is not None:
            parse_training(self.recovery, "recovery")
        elif self.checkpoint is not None:
            raise UsageError("a checkpoint is of a training", where="int8_static", got="no recovery", wanted="recovery=...")

    def _check_latency(self) -> None:
        """Refuse limits of the latency that nothing can keep, or that another limit speaks against."""
        if self.max_latency is not None and not 0 < self.max_latency < 1:
            got = f"{self.max_latency:g}"
            raise UsageError(
                "the latency is limited to a share of the float model's", where="max_latency", got=got, wanted="between 0 and 1"
            )
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise UsageError("a call takes some time", where="max_seconds", got=f"{self.max_seconds:g}", wanted="more than 0")
        if not self._timed:
            return
        others = {"max_latency": self.max_latency if self.max_seconds is not None else None, "weight_bytes": self.weight_bytes}
        for name, value in {**others, "max_drop": self.max_drop}.items():
            if value is not None:
                raise UsageError(
                    "a limit of the latency lets as many layers stay float as it can, whatever else is limited",
                    where="int8_static",
                    got=f"{name}={value:g} beside it",
                    wanted="one of them",
                )

    @property
    def _timed(self) -> bool:
        return self.max_latency is not None or self.max_seconds is not None

    def requires(self, model: nn.Module, context: Context) -> None:
        """Calibration data, a runtime with integer kernels, and what limits and trainings need: validation data, a timer, train data.

        Raises:
            PreconditionError: one is missing, or weights are not finite.
            UnknownName: `skip` names what the model does not have.
        """
        if context.scheme is None:
            raise PreconditionError("this runtime has no integer kernels to quantize for", where="int8_static")
        if context.calibration is None:
            raise PreconditionError(
                "static quantization needs calibration data",
                where="int8_static",
                hint="give the task calibration=... or train=...; targets are ignored. Dynamic and weight-only quantization do without",
            )
        if self.max_drop is not None and context.judge is None:
            raise PreconditionError("a limit of the drop needs validation data", where="int8_static", wanted="validation=...")
        if self._timed and context.timer is None:
            raise PreconditionError(
                "a limit of the latency needs a runtime to measure it with, on the device itself",
                where="int8_static",
                hint="run this on the device, with device local; max_drop and weight_bytes need no clock",
            )
        if self.recovery is not None and context.train is None:
            raise PreconditionError(
                "training with quantization needs train data", where="int8_static", hint="give the task train=...; it need not have targets"
            )
        check_model(model, self.skip, "int8_static")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose ranges and roundings on the calibration inputs, train if asked to, then convert.

        Raises:
            UnsupportedModel: torch cannot export the model, or nothing in it can be quantized.
            PreconditionError: activations that are not finite, a limit that cannot be kept, or a training that fails.
            UsageError: train data that cannot be read, or a checkpoint of another training.
        """
        with quiet():  # torchao talks while it is imported
            from sizewise.data.static_int8 import Calibration, stay
            from sizewise.graph.prepared import collect_graphs, convert, folded
        traced = trace(model, context.example)
        if self.recovery is not None:
            _check_batches(traced, context)
        calibration = Calibration(folded(traced), _batches(traced, context), _scheme(context), context, _examples_held(traced))
        other = self._other_teacher(model, context)
        best, said = self._chosen(calibration, model, context, even=self.equalize and other is None)
        trained: dict[str, Any] = {}
        if self.recovery is not None:
            guide = None if other is None else folded(trace(other, context.example))
            trained, told = self._train(calibration, best, best.source if guide is None else guide, model, context)
            said += told
        prepared, wish = best.prepared, best.wish
        ranges = prepared.ranges
        record = {"ranges": ranges, "skip": list(wish.skip), "bits": wish.bits, **trained}
        said = [best.describe(), *said, *_constant(ranges)]
        skipped = stay(best, self.skip, "latency" if self._timed else "drop")
        del calibration, best
        collect_graphs(prepared.graph)  # conversion needs room for weights, and float ones are done with
        graph = convert(prepared)
        rest = _code_rest(graph, wish.skip)
        touched = (*prepared.touched, *rest)
        return graph, Change(touched=touched, skipped=skipped, notes=tuple(said), record={**record, "coded": rest})

    def _chosen(self, calibration: Any, model: nn.Module, context: Context, *, even: bool) -> tuple[Any, list[str]]:
        """The preparation that keeps the limits and changes the outputs least, and what limits cost."""
        from sizewise.data.static_int8 import Wish, narrowed, respared, spared

        methods, said = METHODS if self.ranges == "auto" else (self.ranges,), []
        wish = Wish(methods, even, self.rounding == "nearest", self.skip, self.weight_bits)
        if self.weight_bytes is not None:
            wish, note = narrowed(calibration, wish, self.weight_bytes)
            said.append(note)
        floats = self._float_layers(calibration, wish, model, context) if context.chosen is None else None
        best = calibration.run(wish, last=not self._timed and self.max_drop is None)
        if not best.prepared.touched:
            raise UnsupportedModel(
                "nothing in this model runs as integers", where="int8_static", hint="weight_only makes any model smaller"
            )
        if self.max_drop is not None and context.judge is not None:
            best, note = spared(calibration, best, self.max_drop, context.judge, context.judge(model))
            said.append(note)
        if floats is not None:
            best, note = floats.spend(best)
            said.append(note)
        if context.chosen is not None and self._timed and (spare := [path for path in context.chosen["skip"] if path not in self.skip]):
            best = respared(calibration, best, spare)
        return best, said

    def _float_layers(self, calibration: Any, wish: Any, model: nn.Module, context: Context) -> Any:
        """What a limit of the latency leaves for layers in float; None where there is no limit, or nothing would be integers anyway."""
        if not self._timed or context.timer is None:
            return None
        from sizewise.graph.prepared import prepare
        from sizewise.profile.precision_cost import FloatLayers, LatencyLimit

        if not prepare(calibration.graph, calibration.scheme, wish.skip).touched:
            return None
        return FloatLayers(calibration, wish, model, LatencyLimit(self.max_latency, self.max_seconds), context.timer)

    def _other_teacher(self, model: nn.Module, context: Context) -> nn.Module | None:
        """The model that the plan began with, where something is to be learned from it and it is not the one that is quantized.

        Ranges then are not evened out between layers, since that moves features away from those of any other model.
        """
        teacher = context.teacher if self.recovery is not None else None
        return None if teacher is None or _same_values(teacher, model) else teacher

    def _train(self, calibration: Any, best: Any, teacher: Any, model: nn.Module, context: Context) -> tuple[dict[str, Any], list[str]]:
        """Train the preparation itself; figures for the record, and notes."""
        from sizewise.data.outputs import OutputChange
        from sizewise.training.integers import frozen_names, train_integers

        change = OutputChange(teacher, calibration.judged)
        part_from(best.prepared.graph, best.source)  # training writes to parameters
        outcome = train_integers(
            best.prepared,
            teacher,
            context.train or (),
            Length(*parse_training(self.recovery or "", "recovery")),
            learn=self.learn,
            pruned=best.source,
            frozen=frozen_names(model),
            judge=context.judge or (lambda module: -change(module)),
            seed=context.seed,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            progress=context.progress,
        )
        judged = "minus the change of the outputs" if context.judge is None else "validation"
        return {"recovery": figures(outcome)}, notes(outcome, judged)

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The same graph with the recorded ranges; weights are loaded afterwards.

        Raises:
            PreconditionError: the record does not fit the model.
        """
        with quiet():
            from sizewise.graph.prepared import convert, folded, prepare
        graph = folded(trace(model, context.example))
        prepared = prepare(graph, _scheme(context), record["skip"], record["bits"])
        prepared.load_ranges(record["ranges"])
        done = convert(prepared)
        encode_weights(done, {name: Coding("int8") for name in record["coded"]})  # type: ignore[arg-type]
        return done


def _check_batches(traced: Traced, context: Context) -> None:
    """Refuse train data in batches that the model does not take."""
    if traced.batch == "dynamic" or context.train is None:
        return
    found = examples_in(next(batches(context.train, "train"))[0])
    if found != traced.batch:
        raise PreconditionError(
            "the model fixes how many examples a batch has",
            where="train",
            got=f"batches of {found}",
            wanted=f"batches of {traced.batch}, all of them",
            hint=f"batch_size={traced.batch}, drop_last=True",
        )


def _same_values(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same tensors under the same names."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def _code_rest(graph: Any, skip: tuple[str, ...]) -> list[str]:
    """Store what no integer kernel reads, of recurrent layers and embeddings, as int8 too; names of the weights."""
    weights = [weight for weight in find_weights(graph)[0] if weight.roles & {"recurrent", "embedding"}]
    codings, _ = choose(weights, lambda _: Coding("int8"), skip)
    encode_weights(graph, codings, _nearest)
    return list(codings)


def _nearest(_: Weight, matrix: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Steps]:
    steps = find_steps(matrix, grid, "mse")
    return quantize(matrix, steps, grid), steps


def _scheme(context: Context) -> Scheme:
    if context.scheme is None:
        raise PreconditionError("this runtime has no integer kernels to quantize for", where="int8_static")
    return context.scheme


def _batches(traced: Traced, context: Context) -> list[Inputs]:
    given = list(first_batches(context.calibration or (), EXAMPLES))
    usable = given if traced.batch == "dynamic" else list(rebatched(given, traced.batch))
    if not usable:
        got = f"{sum(map(examples_in, given))} calibration examples"
        raise PreconditionError("too few calibration examples for the batch that the model fixes", where="int8_static", got=got)
    examples = sum(map(examples_in, usable))
    if len(usable) >= FEWEST or traced.batch != "dynamic":
        return usable
    return list(rebatched(usable, max(1, examples // FEWEST)))  # part of them is held back


def _examples_held(traced: Traced) -> int:
    """Examples whose activations of two models at one place fit the memory meant for them."""
    largest = max((_bytes(node.meta.get("val")) for node in traced.program.graph.nodes), default=0)
    return max(1, int(HELD_BYTES / max(4 * largest, 1)))


def _bytes(value: Any) -> int:
    """Of one example's activation."""
    if not isinstance(value, torch.Tensor) or not value.ndim:
        return 0
    return value.element_size() * math.prod(int(size) for size in value.shape[1:])


def _constant(ranges: Mapping[str, list[float]]) -> Iterator[str]:
    flat = [name for name, (low, high) in ranges.items() if low == high]
    if flat:
        yield f"{len(flat)} activations are constant on the calibration data: {', '.join(flat[:5])}"


TECHNIQUE = Int8Static
