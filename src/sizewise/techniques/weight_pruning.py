"""Set single weights to zero, or N of every M, or small blocks of them; shapes stay as they are.

What it does: chooses weights of linear layers and convolutions by their magnitude, by what they add to their outputs, or by
what removing them costs when the others make up for them, leaves plain zeros, and re-estimates normalization statistics. Helps:
the file after compression, and kernels that skip zeros in the chosen pattern. Hurts: accuracy, beyond half of the weights
without training; and dense runtimes run the zeros as fast as any number. Needs: calibration inputs (magnitude does without).
Cost: with data one pass over the calibration inputs per layer and one for the statistics, and the cube of a layer's inputs.

Source: Han et al., Learning both Weights and Connections, NeurIPS 2015 (magnitude); Sun et al., Wanda, ICLR 2024; Frantar and
Alistarh, SparseGPT, ICML 2023, and for the last step Meng et al., ALPS, NeurIPS 2024 (surgeon).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from sizewise.arith.moments import Gram
from sizewise.arith.sparsity import Pattern, joint_masks, parse_pattern, prune_mask, refit_kept, surgeon_prune, wanda
from sizewise.data.gram import input_grams
from sizewise.data.outputs import OutputChange, reestimate_if_nearer
from sizewise.data.statistics import normalizations
from sizewise.errors import PreconditionError, UnknownName, UnsupportedModel, UsageError
from sizewise.evaluate.stored import coded_bytes
from sizewise.graph.checks import check_skip
from sizewise.graph.hooks import hooked
from sizewise.protocols import Context, Inputs, Trait
from sizewise.types import Change, Skip
from sizewise.units import format_bytes

__all__ = ["TECHNIQUE", "WeightPruning"]

Kind = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
METHODS = ("auto", "magnitude", "global", "wanda", "surgeon")
WITH_DATA = ("wanda", "surgeon")
WIDEST = 8192  # a layer with more inputs per output is pruned by magnitude: its second moments would not fit


@dataclass(frozen=True)
class WeightPruning:
    """Set a share of the weights of linear layers and convolutions to zero.

    Args:
        rate: share of the weights removed, in [0, 1); N:M patterns ignore it, since they fix the share at 1 - N/M.
        pattern: "weight" for single weights; N:M such as "2:4" for N of every M consecutive input channels kept; RxC such as
            "4x1" for blocks of R consecutive outputs by C consecutive input channels. At every kernel tap by itself.
        method: "magnitude" within each layer; "global" by magnitude across layers (not for N:M); "wanda" by magnitude times
            the input's norm; "surgeon" by the loss of output, with the other weights changed to make up for it; "auto" is surgeon
            with calibration data and magnitude without.
        skip: paths of layers, or of modules with all that they hold, that are left alone.

    Raises:
        UsageError: a rate or pattern that cannot be read, or a pattern that the method does not know.
        UnknownName: no such method.
    """

    rate: float = 0.5
    pattern: str = "weight"
    method: str = "auto"
    skip: tuple[str, ...] = ()

    needs: ClassVar[Trait] = Trait.FLOAT | Trait.MODULE
    removes: ClassVar[Trait] = Trait.NONE
    gives: ClassVar[Trait] = Trait.NONE

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError("rate must be more than 0 and less than 1", where="weight_pruning", got=str(self.rate))
        pattern = parse_pattern(self.pattern, self.rate)
        if self.method not in METHODS:
            raise UnknownName("method", self.method, METHODS, where="weight_pruning")
        if self.method == "global" and pattern.kept is not None:
            raise UsageError(
                "N:M removes the same share everywhere and cannot be chosen across layers",
                where="weight_pruning",
                got=self.pattern,
                hint='take method="magnitude"',
            )

    def requires(self, model: nn.Module, context: Context) -> None:
        """Finite weights, and calibration data for the methods that look at it.

        Raises:
            PreconditionError: either is missing.
            UnknownName: `skip` names what the model does not have.
        """
        if self.method in WITH_DATA and context.calibration is None:
            raise PreconditionError(
                f"{self.method} needs calibration data",
                where="weight_pruning",
                hint="give the task calibration=... or train=..., or take magnitude",
            )
        check_skip(model, self.skip, "weight_pruning")
        layers, _ = _survey(model, parse_pattern(self.pattern, self.rate), self.skip)
        for layer in layers:
            if not bool(layer.module.weight.isfinite().all()):
                raise PreconditionError("weights are not finite", where=f"weight_pruning, {layer.path}")

    def apply(self, model: nn.Module, context: Context) -> tuple[nn.Module, Change]:
        """Zero the weights, in place, and re-estimate normalization statistics.

        Raises:
            UnsupportedModel: no layer can be pruned.
        """
        model.eval()
        before = coded_bytes(model)
        data = list(context.calibration or ()) if normalizations(model) else []
        change = OutputChange(model, data) if data else None
        pattern = parse_pattern(self.pattern, self.rate)
        method = ("magnitude" if context.calibration is None else "surgeon") if self.method == "auto" else self.method
        layers, skipped = _survey(model, pattern, self.skip)
        if method in WITH_DATA:
            layers, unseen = _prune_by_data(model, layers, pattern, method, context)
            skipped += unseen
        else:
            _prune_by_magnitude(layers, pattern, across=method == "global")
        if not layers:
            raise UnsupportedModel(
                "no layer can be pruned", where="weight_pruning", got="; ".join(f"{s.what}: {s.reason}" for s in skipped[:3]) or None
            )
        zeros = {layer.path: int((layer.module.weight == 0).sum()) for layer in layers}
        notes = [f"chosen by {method}", _share(model, layers, sum(zeros.values()))]
        if context.calibration is None:
            notes.append("no calibration data: normalization statistics are those of the unpruned model")
        if change is not None:
            reestimate_if_nearer(model, data, change)
        notes.append(f"about {format_bytes(coded_bytes(model))} stored where zeros are coded, {format_bytes(before)} before")
        return model, Change(touched=tuple(sorted(zeros)), skipped=tuple(skipped), notes=tuple(notes), record={"zeros": zeros})

    def rebuild(self, model: nn.Module, record: Mapping[str, Any], context: Context) -> nn.Module:
        """The same module: zeros are values, and values are loaded afterwards.

        Raises:
            PreconditionError: the record names layers that the model does not have.
        """
        missing = set(record["zeros"]) - {path for path, _ in model.named_modules()}
        if missing:
            raise PreconditionError(
                "the recorded layers do not fit this model",
                where="weight_pruning",
                got=", ".join(sorted(missing)[:3]),
                hint="is it the model the plan was made for?",
            )
        return model


@dataclass(frozen=True)
class _Layer:
    """A weight and the paths of the modules that use it, the model's first one first.

    As a matrix per group, [groups, outputs, inputs], a convolution's input channels at one tap are neighbours, which is the
    order in which kernels for N:M and blocks read them.
    """

    paths: tuple[str, ...]
    module: Kind

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def groups(self) -> int:
        return 1 if isinstance(self.module, nn.Linear) else self.module.groups

    def matrix(self) -> Tensor:
        weight = self.module.weight.detach().double()
        return weight.movedim(1, -1).reshape(self.groups, len(weight) // self.groups, -1)

    def write(self, matrix: Tensor) -> None:
        weight = self.module.weight
        with torch.no_grad():
            weight.copy_(matrix.reshape(weight.movedim(1, -1).shape).movedim(-1, 1))

    def columns(self) -> Tensor:
        """For every column of the matrix, its place in the order of `weight.flatten(1)`."""
        weight = self.module.weight
        return torch.arange(weight[0].numel(), device=weight.device).reshape(weight.shape[1], -1).T.flatten()

    def bias(self) -> Tensor | None:
        """The layer's own bias, where there is one that no other layer depends on."""
        return self.module._parameters.get("bias") if len(self.paths) == 1 else None


def _survey(model: nn.Module, pattern: Pattern, skip: Collection[str]) -> tuple[list[_Layer], list[Skip]]:
    """The layers to treat, in the model's order, and what is left alone."""
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in _matrices(module):
            users.setdefault(id(parameter), []).append(path)
    layers, skips = [], []
    for path, module in model.named_modules():
        if not isinstance(module, get_args(Kind)):
            if _matrices(module):
                skips.append(Skip(what=path, reason=f"weights of {type(module).__name__} are not pruned"))
            continue
        if module._parameters.get("weight") is None:
            skips.append(Skip(what=path, reason="its weight is computed from other parameters"))
            continue
        layer = _Layer(tuple(users[id(module.weight)]), module)
        reason = _reason(model, layer, path, pattern, skip)
        if reason:
            skips.append(Skip(what=path, reason=reason))
        else:
            layers.append(layer)
    return layers, skips


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module._parameters.values() if p is not None and p.ndim >= 2]


def _reason(model: nn.Module, layer: _Layer, path: str, pattern: Pattern, skip: Collection[str]) -> str | None:
    """Why a layer is left alone, or None."""
    for user in layer.paths:
        if any(user == name or user.startswith(f"{name}.") for name in skip):
            return "asked to be left alone" if user == path else f"shares its weight with {user}, which is asked to be left alone"
        other = model.get_submodule(user)
        if type(other) is not type(layer.module) or getattr(other, "groups", 1) != layer.groups:
            return f"shares its weight with {user}, a layer of another kind"
    if path != layer.path:
        return f"shares its weight with {layer.path} and is treated there"
    outputs, inputs = layer.module.weight.shape[:2]
    units = layer.module.weight.numel() // (pattern.rows * pattern.columns)
    return pattern.misfit(outputs // layer.groups, inputs) or ("has a single block of weights" if units < 2 else None)


def _prune_by_magnitude(layers: Sequence[_Layer], pattern: Pattern, *, across: bool) -> None:
    matrices = [layer.matrix() for layer in layers]
    scores = [matrix.flatten(0, 1).abs() for matrix in matrices]
    masks = (joint_masks(scores, pattern) if scores else []) if across else [prune_mask(s, pattern) for s in scores]
    for layer, matrix, mask in zip(layers, matrices, masks, strict=True):
        layer.write(matrix.masked_fill(~mask.reshape(matrix.shape), 0))


def _prune_by_data(
    model: nn.Module, layers: Sequence[_Layer], pattern: Pattern, method: str, context: Context
) -> tuple[list[_Layer], list[Skip]]:
    """Layer by layer in the order of running, each on what the ones before, already pruned, pass on."""
    treated, skips = [], []
    for layer in _in_order(model, layers, context.example):
        inputs = layer.module.weight[0].numel()
        if inputs > WIDEST:
            _prune_by_magnitude([layer], pattern, across=False)
            treated.append(layer)
            skips.append(Skip(what=layer.path, reason=f"not treated by {method} but by magnitude: {inputs} inputs are more than {WIDEST}"))
            continue
        gram = _gram(model, layer, context.calibration or ())
        if gram is None:
            skips.append(Skip(what=layer.path, reason="is never called as a layer on the calibration data"))
        elif not bool(gram.squares.isfinite().all()):
            skips.append(Skip(what=layer.path, reason="its inputs on the calibration data are not finite"))
        else:
            _prune_layer(layer, gram, pattern, method)
            treated.append(layer)
    return treated, skips


def _in_order(model: nn.Module, layers: Sequence[_Layer], example: Inputs) -> list[_Layer]:
    """By first call; what the example does not reach comes last."""
    called: dict[str, None] = {}

    def hook(path: str, *_: Any) -> None:
        called.setdefault(path)

    handles = [layer.module.register_forward_pre_hook(partial(hook, layer.path)) for layer in layers]
    with hooked(handles), torch.no_grad():
        example.call(model)
    place = {path: i for i, path in enumerate(called)}
    return sorted(layers, key=lambda layer: place.get(layer.path, len(place)))


def _gram(model: nn.Module, layer: _Layer, calibration: Iterable[Inputs]) -> Gram | None:
    found = list(input_grams(model, layer.paths, calibration).values())
    for other in found[1:]:
        found[0].merge(other)
    return found[0] if found else None


def _prune_layer(layer: _Layer, gram: Gram, pattern: Pattern, method: str) -> None:
    columns, matrix, bias = layer.columns(), layer.matrix(), layer.bias()
    if method == "wanda":
        norms = gram.products.diagonal(dim1=1, dim2=2).sqrt()[:, columns].repeat_interleave(matrix.shape[1], 0)
        mask = prune_mask(wanda(matrix.flatten(0, 1), norms), pattern, by_row=True)
        layer.write(matrix.masked_fill(~mask.reshape(matrix.shape), 0))
        return
    moments = gram.products if bias is None else gram.covariance  # a bias takes up what the outputs' means lose
    moments = moments[:, columns][:, :, columns]
    pruned, mask = surgeon_prune(matrix, moments, pattern)
    pruned = refit_kept(matrix, pruned, mask, moments)
    layer.write(pruned)
    if bias is not None:
        with torch.no_grad():
            bias += ((matrix - pruned) @ gram.mean[:, columns, None]).flatten().to(bias.dtype)


def _share(model: nn.Module, layers: Sequence[_Layer], zeros: int) -> str:
    weights = sum(layer.module.weight.numel() for layer in layers)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{zeros / weights:.1%} of the weights of {len(layers)} treated layers are zero, {zeros / whole:.1%} of all parameters; "
        "runtimes with dense kernels do not run it faster"
    )


TECHNIQUE = WeightPruning
