"""Static int8 quantization after training, in the scheme that the target runtime executes as integer kernels.

What it does: weights become int8 (or 4 bits that run in the same kernels), one scale per output channel; activations 8-bit, one
scale per tensor, from their values on calibration data; batch normalization is folded first. How ranges are chosen, and whether
they are evened out between layers first, is tried, and what changes the outputs least on examples held back is taken. Helps:
convolutions and linear layers on runtimes with integer kernels, about 4 times smaller. Hurts: activations with rare large values
that matter. Needs: calibration inputs (128 to 512 examples suffice). Cost: a few passes over them. What stays float is named.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR
2018; graph passes by torchao's PT2E. Ranges, equalization, rounding: `arith/ranges.py`, `equalization.py`, `rounding.py`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from sizewise.arith.grids import Grid, Steps, find_steps, quantize
from sizewise.arith.ranges import METHODS, Method
from sizewise.data.batches import examples_in, first_batches, rebatched
from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.graph.coded import Coding, Weight, check_model, choose, encode_weights, find_weights
from sizewise.graph.trace import Traced, quiet, trace
from sizewise.protocols import Context, Inputs, Trait
from sizewise.types import Change, Scheme

__all__ = ["TECHNIQUE", "Int8Static"]

Ranges = Literal["auto"] | Method
Rounding = Literal["auto", "nearest"]
EXAMPLES = 512
FEWEST = 4  # batches
HELD_BYTES = 2e9  # of activations while layers are rounded


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
        skip: paths of modules that stay float, with all that they hold.

    Raises:
        UsageError: a setting that cannot be meant.
    """

    ranges: Ranges = "auto"
    rounding: Rounding = "auto"
    equalize: bool = True
    weight_bits: int = 8
    weight_bytes: int | None = None
    max_drop: float | None = None
    skip: tuple[str, ...] = ()

    needs: ClassVar[Trait] = Trait.FLOAT
    removes: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    gives: ClassVar[Trait] = Trait.QUANTIZED

    def __post_init__(self) -> None:
        for name, allowed in (("ranges", ("auto", *METHODS)), ("rounding", get_args(Rounding)), ("weight_bits", (8, 4))):
            if getattr(self, name) not in allowed:
                wanted = " or ".join(str(value) for value in allowed)
                raise UsageError(f"unknown {name}", where="int8_static", got=repr(getattr(self, name)), wanted=wanted)

    def requires(self, model: nn.Module, context: Context) -> None:
        """Calibration data and a runtime with integer kernels.

        Raises:
            PreconditionError: either is missing, or weights are not finite.
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
        check_model(model, self.skip, "int8_static")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose ranges and roundings on the calibration inputs, then convert.

        Raises:
            UnsupportedModel: torch cannot export the model, or nothing in it can be quantized.
            PreconditionError: activations that are not finite.
        """
        with quiet():  # torchao talks while it is imported
            from sizewise.data.static_int8 import Calibration, Wish, narrowed, spared, stay
            from sizewise.graph.prepared import convert, folded
        traced = trace(model, context.example)
        calibration = Calibration(folded(traced), _batches(traced, context), _scheme(context), context, _examples_held(traced))
        methods = METHODS if self.ranges == "auto" else (self.ranges,)
        wish, notes = Wish(methods, self.equalize, self.rounding == "nearest", self.skip, self.weight_bits), []
        if self.weight_bytes is not None:
            wish, note = narrowed(calibration, wish, self.weight_bytes)
            notes.append(note)
        best = calibration.run(wish)
        if not best.prepared.touched:
            raise UnsupportedModel(
                "nothing in this model runs as integers", where="int8_static", hint="weight_only makes any model smaller"
            )
        if self.max_drop is not None and context.judge is not None:
            best, note = spared(calibration, best, self.max_drop, context.judge, context.judge(model))
            notes.append(note)
        ranges = best.prepared.ranges
        record = {"ranges": ranges, "skip": list(best.wish.skip), "bits": best.wish.bits}
        graph = convert(best.prepared)
        rest = _code_rest(graph, best.wish.skip)
        notes = [best.describe(), *notes, *_constant(ranges)]
        touched = (*best.prepared.touched, *rest)
        return graph, Change(touched=touched, skipped=stay(best, self.skip), notes=tuple(notes), record={**record, "coded": rest})

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
    batches = list(first_batches(context.calibration or (), EXAMPLES))
    usable = batches if traced.batch == "dynamic" else list(rebatched(batches, traced.batch))
    if not usable:
        got = f"{sum(map(examples_in, batches))} calibration examples"
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
