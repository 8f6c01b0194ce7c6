"""Store weights in few bits, and compute with them as the float model does; activations stay as they are.

What it does: the weights of linear and recurrent layers, convolutions and embeddings become int8 codes with one scale per output
channel, 4-bit codes with a scale and a zero point per group of inputs, or 16-bit floats. A weight that several layers share stays one
tensor. Helps: the file, 2 to 7 times smaller, whatever the layers; linear layers of 4 bits also run faster where a runtime has kernels
for them. Hurts: accuracy at 4 bits; and memory, since the other layers are decoded when the file is loaded: they run as fast as
float ones, but loading peaks higher than with a float file (`runtimes/_onnx_coded.py`). Needs: nothing; with
calibration inputs, codes of 4 bits make up for each other's errors. Cost: seconds; with data one pass over it per half gigabyte of
moments, and the cube of a layer's inputs.

Source: for scales Nagel et al., A White Paper on Neural Network Quantization, 2021; for codes of 4 bits Frantar et al., OPTQ (GPTQ), ICLR
2023, and Behdin et al., QuantEase, 2023 (`arith/rounding.py`); without data also Badri and Shaji, HQQ, 2023.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sizewise.arith.grids import Grid, Steps, find_steps, hqq, quantize
from sizewise.arith.moments import Gram
from sizewise.arith.packing import packed
from sizewise.arith.rounding import compensated
from sizewise.data.gram import Unfold, input_grams, unfolded
from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.graph.coded import Coding, Weight, check_model, choose, coded_again, encode_weights, find_weights, sizes
from sizewise.graph.trace import trace
from sizewise.protocols import Context, Trait
from sizewise.types import Change
from sizewise.units import format_bytes

__all__ = ["TECHNIQUE", "WeightOnly"]

DTYPES = ("int8", "int4", "float16", "bfloat16")
GROUPS = (16, 32, 64, 128, 256)
ROUNDINGS = ("auto", "nearest", "hqq", "compensated")
WIDEST = 8192  # inputs of a layer: moments of more would take gigabytes
FEWEST_ROWS = 4096  # of a batch that moments are taken from, if it has as many
MOMENTS_BYTES = 2**29  # of moments that are held at a time
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class WeightOnly:
    """Weights in 4, 8 or 16 bits.

    Args:
        dtype: "int8", "int4", "float16" or "bfloat16".
        group: inputs that share a scale; of "int4" only. Smaller groups are more exact; a scale and its zero point take 5 bytes
            (in the file 4.5). At 128 rows kernels ran groups of 128 about a fifth faster. Layers with fewer inputs have
            shorter groups.
        rounding: "nearest"; "hqq" with scales that let few large weights be far off; "compensated", where the codes of linear
            layers and convolutions make up for each other's errors on the calibration inputs; "auto" is compensated for "int4"
            with calibration data and nearest otherwise. Floats are rounded to nearest.
        skip: paths of layers, or of modules with all that they hold, that stay float.

    Raises:
        UnknownName: no such dtype or rounding.
        UsageError: a group that kernels do not have.
    """

    dtype: str = "int8"
    group: int = 64
    rounding: str = "auto"
    skip: tuple[str, ...] = ()

    needs: ClassVar[Trait] = Trait.FLOAT
    removes: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    gives: ClassVar[Trait] = Trait.QUANTIZED

    def __post_init__(self) -> None:
        for kind, name, known in (("dtype", self.dtype, DTYPES), ("rounding", self.rounding, ROUNDINGS)):
            if name not in known:
                raise UnknownName(kind, name, known, where="weight_only")
        if self.group not in GROUPS:
            raise UsageError("no such group", where="weight_only", got=str(self.group), wanted=", ".join(map(str, GROUPS)))

    def requires(self, model: nn.Module, context: Context) -> None:
        """A model of modules with finite weights, and calibration data for compensated rounding.

        Raises:
            PreconditionError: something of this is missing.
            UnknownName: `skip` names what the model does not have.
        """
        check_model(model, self.skip, "weight_only")
        if self.rounding == "compensated" and context.calibration is None:
            raise PreconditionError(
                "compensated rounding needs calibration data", where="weight_only", hint="give the task calibration=... or train=..."
            )

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Choose codes for every weight that gains by it.

        Raises:
            UnsupportedModel: torch cannot export the model, or no weight gains.
        """
        graph = trace(model, context.example).program.module(check_guards=False)
        weights, others = find_weights(graph)
        codings, left = choose(weights, lambda _: self._coding(), self.skip)
        skipped = (*left, *others)
        if not codings:
            why = "; ".join(f"{skip.what}: {skip.reason}" for skip in skipped[:3])
            raise UnsupportedModel("no weight gets smaller", where="weight_only", got=why or "no weights")
        chosen = [weight for weight in weights if weight.name in codings]
        before, after = sizes(weights, codings)
        encoder = _Encoder(self._method(context), model, context)
        for part in encoder.parts(chosen):
            encode_weights(graph, {weight.name: codings[weight.name] for weight in part}, encoder)
        notes = [f"{format_bytes(after)} of weights, {format_bytes(before)} before"]
        notes += [encoder.story(len(chosen))] if self.dtype in ("int8", "int4") else []
        record = {"weights": {name: asdict(coding) for name, coding in codings.items()}}
        touched = tuple(dict.fromkeys(weight.label for weight in chosen))
        return graph, Change(touched=touched, skipped=skipped, notes=tuple(notes), record=record)

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The same graph with codes of 0; values are loaded afterwards.

        Raises:
            PreconditionError: the record does not fit the model.
        """
        return coded_again(model, context.example, record["weights"])

    def _coding(self) -> Coding:
        if self.dtype == "int4":  # a zero point takes an eighth of the scale's bytes, and is worth half the group
            return Coding("int4", group=self.group, symmetric=False)
        return Coding(self.dtype)  # type: ignore[arg-type]  # checked when the technique was made

    def _method(self, context: Context) -> str:
        if self.dtype not in ("int8", "int4"):
            return "nearest"
        if self.rounding != "auto":
            return self.rounding
        return "compensated" if self.dtype == "int4" and context.calibration is not None else "nearest"


class _Encoder:
    """Gives codes of weights; those that make up for each other need moments of the inputs, which are taken for some layers at a time."""

    def __init__(self, method: str, model: nn.Module, context: Context) -> None:
        self.method, self.model, self.context = method, model, context
        self.grams: dict[str, Gram] = {}
        self.awaited: Counter[str | None] = Counter()  # weights that moments are still held for, by the path of their layer
        self.compensated = 0

    def __call__(self, weight: Weight, matrix: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
        """Codes and steps of one weight's matrix."""
        self.context.progress.working(f"rounding {weight.label}")
        path = self._layer(weight)
        gram = self._taken(path)
        if gram is None:
            # at 8 bits clipping gained a fiftieth of the error of a random matrix, for many times the work
            steps = hqq(matrix, grid) if self.method == "hqq" else find_steps(matrix, grid, "mse" if grid.bits < 8 else "absmax")
            return quantize(matrix, steps, grid), steps
        self.compensated += 1
        moments = gram.products
        del gram  # its sums take as much as the moments
        split = matrix.reshape(len(moments), -1, matrix.shape[1])
        steps = find_steps(split, grid, "mse", moments.diagonal(dim1=1, dim2=2))
        # random matrices of 384 outputs, 1536 inputs: 0.43 of the error of rounding to nearest; beams and fitted scales: 0.40, far slower
        codes, steps = compensated(split, moments, steps, grid, beams=1, rounds=0)
        return codes.flatten(0, 1), Steps(steps.scale.flatten(0, 1), steps.zero.flatten(0, 1))

    def parts(self, weights: Sequence[Weight]) -> Iterator[list[Weight]]:
        """The weights in parts whose moments fit into memory together, each part when its moments are there."""
        layers = [self._layer(weight) for weight in weights]
        for part in packed((_moment_bytes(self.model, path) for path in layers), MOMENTS_BYTES):
            paths = list(dict.fromkeys(path for index in part if (path := layers[index]) is not None))
            data = self.context.calibration or ()
            self.grams.clear()
            self.awaited = Counter(layers[index] for index in part)
            self.grams = _finite(input_grams(self.model, paths, data, _picked(self.context.seed))) if paths else {}
            yield [weights[index] for index in part]

    def _taken(self, path: str | None) -> Gram | None:
        """The moments of a layer's inputs, which are let go where no other weight waits for them."""
        self.awaited[path] -= 1
        if path is None:
            return None
        return self.grams.get(path) if self.awaited[path] > 0 else self.grams.pop(path, None)

    def story(self, weights: int) -> str:
        """For the report."""
        if self.method != "compensated":
            return f"rounded by {self.method}"
        return f"codes of {self.compensated} of {weights} weights make up for each other's errors; the others are rounded to nearest"

    def _layer(self, weight: Weight) -> str | None:
        """Path of the layer whose inputs tell what an error of this weight does; None where they are not to be asked, or are too many."""
        if self.method != "compensated" or not weight.roles <= {"linear", "conv"} or weight.shape[1] > WIDEST:
            return None
        return next((path for path in weight.paths if isinstance(self.model.get_submodule(path), _LAYERS)), None)


def _picked(seed: int) -> Unfold:
    """Rows as a layer multiplies its weights with, but not more than tell its moments; in single precision."""

    def unfold(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
        for rows in unfolded(module, x):
            most = max(FEWEST_ROWS, 4 * rows.shape[2])
            chosen = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))[:most]
            yield (rows if rows.shape[1] <= most else rows[:, chosen.to(rows.device)]).float()

    return unfold


def _moment_bytes(model: nn.Module, path: str | None) -> int:
    if path is None:
        return 0
    layer: Any = model.get_submodule(path)
    return 8 * getattr(layer, "groups", 1) * int(layer.weight[0].numel()) ** 2


def _finite(grams: dict[str, Gram]) -> dict[str, Gram]:
    for path, gram in grams.items():
        if not bool(gram.squares.isfinite().all()):
            raise PreconditionError("activations on the calibration data are not finite", where=f"weight_only, {path}")
    return grams


TECHNIQUE = WeightOnly
