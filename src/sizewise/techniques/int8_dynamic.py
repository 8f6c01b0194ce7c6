"""Linear layers in integers, with the range of their inputs taken at every call; all other weights are stored as int8.

What it does: weights become int8 codes with one scale per output channel; the input of a linear layer (or of a product with a matrix
of weights) becomes uint8 with one scale and zero point for the whole tensor, from its least and largest value in that call. Helps:
transformers on runtimes with integer kernels: a BERT of six layers ran 2.3 times as fast, from a file almost 4 times smaller. Hurts: inputs
with rare large values, since their range is not clipped; and models of microseconds. Convolutions, recurrent layers and embeddings
compute in float. An example's outputs depend a little on the others in its batch. Needs: nothing; with
calibration inputs, spread is moved from normalized inputs into weights where that helps (SmoothQuant). Cost: seconds.

Source: ONNX's DynamicQuantizeLinear, opset 11; the scheme is that of Zafrir et al., Q8BERT, 2019, without training. Deviations:
inputs are asymmetric, and weights have a scale per output channel.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from sizewise.arith.grids import Grid, Steps, find_steps, quantize
from sizewise.arith.pairs import least_scale
from sizewise.data.batches import first_batches
from sizewise.data.smoothing import smoothed
from sizewise.errors import PreconditionError, UnsupportedModel
from sizewise.graph.coded import Coding, Weight, check_model, choose, coded_again, encode_weights, find_weights, sizes
from sizewise.graph.trace import trace
from sizewise.protocols import Context, Trait
from sizewise.types import Change
from sizewise.units import format_bytes

__all__ = ["TECHNIQUE", "Int8Dynamic"]

SMOOTHED = 64  # calibration examples that smoothing is tried on


@dataclass(frozen=True)
class Int8Dynamic:
    """Weights in 8 bits, and linear layers that compute in 8 bits.

    Args:
        skip: paths of layers, or of modules with all that they hold, that stay float.
    """

    skip: tuple[str, ...] = ()

    needs: ClassVar[Trait] = Trait.FLOAT
    removes: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    gives: ClassVar[Trait] = Trait.QUANTIZED

    def requires(self, model: nn.Module, context: Context) -> None:
        """A model of modules with finite weights, and a runtime with integer kernels.

        Raises:
            PreconditionError: something of this is missing.
            UnknownName: `skip` names what the model does not have.
        """
        check_model(model, self.skip, "int8_dynamic")
        if context.scheme is None:
            raise PreconditionError("this runtime has no integer kernels to quantize for", where="int8_dynamic", hint="take weight_only")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose codes for every weight that gains by it.

        Raises:
            UnsupportedModel: torch cannot export the model, or it has no linear layer that gains.
        """
        graph = trace(model, context.example).program.module(check_guards=False)
        weights, others = find_weights(graph)
        codings, left = choose(weights, _coding, self.skip)
        chosen = [weight for weight in weights if weight.name in codings]
        integer = [weight for weight in chosen if codings[weight.name].dynamic]
        if not integer:
            why = "; ".join(f"{skip.what}: {skip.reason}" for skip in (*left, *others)[:3])
            raise UnsupportedModel("no linear layer gains", where="int8_dynamic", got=why or None, hint="take int8_static or weight_only")
        before, after = sizes(weights, codings)
        batches = list(first_batches(context.calibration or (), SMOOTHED))
        limit = context.scheme.pair_limit if context.scheme is not None else None
        encode = partial(_encode, pair_limit=limit)
        graph, note = smoothed(graph, batches, lambda own: encode_weights(own, codings, encode))
        notes = [
            f"{format_bytes(after)} of weights, {format_bytes(before)} before",
            f"weights of linear layers, which compute in integers: {len(integer)}; others, decoded to float: {len(chosen) - len(integer)}",
        ]
        notes += [note] if note is not None else []
        record = {"weights": {name: asdict(coding) for name, coding in codings.items()}}
        touched = tuple(dict.fromkeys(weight.label for weight in chosen))
        return graph, Change(touched=touched, skipped=(*left, *others), notes=tuple(notes), record=record)

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The same graph with codes of 0; values are loaded afterwards.

        Raises:
            PreconditionError: the record does not fit the model.
        """
        return coded_again(model, context.example, record["weights"])


def _coding(weight: Weight) -> Coding:
    return Coding("int8", dynamic=bool(weight.roles & {"linear", "product"}))


def _encode(weight: Weight, matrix: Tensor, grid: Grid, pair_limit: int | None) -> tuple[Tensor, Steps]:
    steps = find_steps(matrix, grid, least=least_scale(matrix, pair_limit if _coding(weight).dynamic else None))
    return quantize(matrix, steps, grid), steps


TECHNIQUE = Int8Dynamic
