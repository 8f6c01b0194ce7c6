"""One layer in a model as a stack of smaller ones: which layers can be, which shapes that gives, and putting the stack in its place."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sizewise.arith.low_rank import SWEEPS, Form, composed, factored, full_ranks
from sizewise.errors import UnsupportedModel
from sizewise.graph.hooks import hooked
from sizewise.graph.trace import eval_copy, tensors_in
from sizewise.protocols import Inputs
from sizewise.types import LayerShape, Skip

__all__ = [
    "Convolution",
    "Factoring",
    "Layer",
    "calls_of",
    "factor_shapes",
    "factorizable",
    "factorize",
    "fill",
    "forms",
    "out_sides",
    "owners_of",
    "used_besides",
]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | Convolution
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Factoring:
    """What becomes of a layer: "svd", "spatial" or "tucker" (`arith/low_rank.py`), and the channels between the new layers, in order."""

    form: Form
    ranks: tuple[int, ...]

    def solved(self, weight: Tensor, moments: Tensor | None, sweeps: int = SWEEPS) -> tuple[Tensor, ...]:
        """Weights of the new layers (`arith/low_rank.factored`)."""
        return factored(weight, moments, self.form, self.ranks, sweeps)

    def composed(self, factors: Sequence[Tensor]) -> Tensor:
        """The one weight that the new layers make."""
        return composed(self.form, factors)


def forms(kernel: Sequence[int]) -> tuple[Form, ...]:
    """The forms that make sense for a kernel; a linear layer has none, `()`."""
    wide = sum(size > 1 for size in kernel)
    if not wide:
        return ("svd",)
    return ("svd", "spatial", "tucker") if len(kernel) == wide == 2 else ("svd", "tucker")


def _channels(outputs: int, inputs: int, kernel: Sequence[int], factoring: Factoring) -> list[tuple[int, int, tuple[int, ...]]]:
    """Outputs, inputs and the kernel's dimensions of every new layer.

    Raises:
        UnsupportedModel: the form or its ranks do not fit the layer.
    """
    form, ranks = factoring.form, factoring.ranks
    fits = form in forms(kernel) and len(ranks) == len(full := full_ranks((outputs, inputs, *kernel), form))
    if not fits or not all(1 <= rank <= most for rank, most in zip(ranks, full, strict=True)):
        raise UnsupportedModel("a layer cannot be factorized so", got=f"{form}, ranks {ranks}, a layer of {outputs} x {inputs}")
    every = tuple(range(len(kernel)))
    if form == "tucker":
        return [(ranks[0], inputs, ()), (ranks[1], ranks[0], every), (outputs, ranks[1], ())]
    if form == "spatial":
        return [(ranks[0], inputs, (0,)), (outputs, ranks[0], (1,))]
    return [(ranks[0], inputs, every), (outputs, ranks[0], ())]


def factor_shapes(shape: LayerShape, factoring: Factoring) -> tuple[LayerShape, ...]:
    """What the new layers work on.

    Args:
        shape: what the whole layer works on: "linear" or "conv".
        factoring: of it.

    Raises:
        UnsupportedModel: the form or its ranks do not fit the layer.
    """
    found, sides = [], shape.sides
    for outputs, inputs, dims in _channels(shape.out_channels, shape.in_channels, shape.kernel, factoring):
        one = replace(shape, out_channels=outputs, in_channels=inputs, sides=sides)
        if shape.kind == "conv":
            ends = len(sides)
            one = replace(
                one,
                kernel=_along(shape.kernel, dims, 1),
                stride=_along(shape.stride, dims, 1),
                dilation=_along(shape.dilation, dims, 1),
                padding=_along(shape.padding[:ends], dims, 0) + _along(shape.padding[ends:], dims, 0),
            )
            sides = out_sides(one)
        found.append(one)
    return tuple(found)


def _along(values: Sequence[int], dims: Collection[int], other: int) -> tuple[int, ...]:
    """Values in some dimensions, and a neutral one in the others."""
    return tuple(value if dim in dims else other for dim, value in enumerate(values))


def out_sides(shape: LayerShape) -> tuple[int, ...]:
    """Sides of a convolution's output."""
    begin, end = shape.padding[: len(shape.sides)], shape.padding[len(shape.sides) :]
    every = zip(shape.sides, shape.kernel, shape.stride, shape.dilation, begin, end, strict=True)
    return tuple((side + before + after - stretch * (size - 1) - 1) // step + 1 for side, size, step, stretch, before, after in every)


def factorize(model: nn.Module, path: str, factoring: Factoring) -> None:
    """Put the new layers into the model, in place of one; their weights are zeros, and the last has a bias where the one had.

    Args:
        model: changed in place.
        path: of a linear layer or convolution.
        factoring: of it.

    Raises:
        UnsupportedModel: it is no such layer, or the form or its ranks do not fit it.
        AttributeError: the model has no such path.
    """
    layer = model.get_submodule(path)
    if not isinstance(layer, get_args(Layer)):
        raise UnsupportedModel("only linear layers and convolutions are factorized", where=path, got=type(layer).__name__)
    _put(model, path, nn.Sequential(*_stack(layer, factoring)).train(layer.training))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    model.set_submodule(path, module)
    around = model.get_submodule(path.rpartition(".")[0])
    if isinstance(around, nn.TransformerEncoderLayer):
        around.activation_relu_or_gelu = 0  # its fused kernel reads weights of its layers; this is how torch itself goes without it


def _stack(layer: Any, factoring: Factoring) -> Iterator[nn.Module]:
    kernel = () if isinstance(layer, nn.Linear) else layer.kernel_size
    channels = _channels(layer.weight.shape[0], layer.weight.shape[1], kernel, factoring)
    for place, (outputs, inputs, dims) in enumerate(channels):
        bias = layer.bias is not None and place == len(channels) - 1
        made = _convolution(layer, outputs, inputs, dims, bias) if kernel else _linear(layer, outputs, inputs, bias)
        for parameter in made.parameters():
            nn.init.zeros_(parameter).requires_grad_(layer.weight.requires_grad)
        yield made


def _linear(layer: nn.Linear, outputs: int, inputs: int, bias: bool) -> nn.Module:
    made = nn.Linear(inputs, outputs, bias=bias, device="meta", dtype=layer.weight.dtype)  # nothing random is drawn for it
    return made.to_empty(device=layer.weight.device)


def _convolution(layer: Any, outputs: int, inputs: int, dims: Collection[int], bias: bool) -> nn.Module:
    """A convolution of the same class that has the layer's kernel in some dimensions, with stride and padding."""
    made: nn.Module = type(layer)(
        inputs,
        outputs,
        _along(layer.kernel_size, dims, 1),
        stride=_along(layer.stride, dims, 1),
        padding=layer.padding if isinstance(layer.padding, str) else _along(layer.padding, dims, 0),
        dilation=_along(layer.dilation, dims, 1),
        bias=bias,
        padding_mode=layer.padding_mode,
        device="meta",
        dtype=layer.weight.dtype,
    )
    return made.to_empty(device=layer.weight.device)


def fill(model: nn.Module, path: str, factors: Sequence[Tensor], bias: Tensor | None) -> None:
    """Set the weights of layers that `factorize` made, and the last one's bias.

    Args:
        model: changed in place.
        path: of the factorized layer.
        factors: a weight per new layer.
        bias: of the last; None where it has none.
    """
    layers: Any = model.get_submodule(path)
    with torch.no_grad():
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight.copy_(factor)
        if bias is not None:
            layers[-1].bias.copy_(bias)


def factorizable(model: nn.Module, example: Inputs) -> tuple[tuple[str, ...], tuple[Skip, ...]]:
    """Layers that can be replaced by a stack, in the model's order, and all others that hold weights, each with its reason.

    What the model's code does with a layer besides calling it cannot be seen, so that is tried: on a copy whose layers are wrapped as
    the new ones will be.

    Args:
        model: in inference mode; not changed.
        example: inputs of one call.
    """
    calls, owners = calls_of(model, get_args(Layer), example), owners_of(model)
    paths, skips = [], []
    for path, module in model.named_modules():
        reason = _reason(path, module, calls, owners)
        if reason is None:
            paths.append(path)
        elif _weights(module):
            skips.append(Skip(what=path or type(module).__name__, reason=reason))
    bad = [] if _runs(model, paths, example) else [path for path in paths if not _runs(model, [path], example)]
    skips += [Skip(what=path, reason="the model's code does more with it than call it") for path in bad]
    return tuple(path for path in paths if path not in bad), tuple(skips)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module._parameters.values() if p is not None and p.ndim >= 2]


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Paths of the modules that hold every parameter, by its identity."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(path)
    return found


def calls_of(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], example: Inputs, counts: Callable[[tuple[Any, ...]], bool] = lambda _: True
) -> Counter[str]:
    """How often every layer of these kinds runs per call.

    Args:
        model: in inference mode.
        kinds: of layers.
        example: inputs of one call.
        counts: whether a run with these positional arguments counts.
    """
    found: Counter[str] = Counter()

    def note(path: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        found[path] += counts(args)

    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, kinds)]
    with hooked([module.register_forward_pre_hook(partial(note, path)) for path, module in layers]), torch.no_grad():
        example.call(model)
    return found


def used_besides(path: str, module: nn.Module, calls: Counter[str], owners: Mapping[int, Sequence[str]], never: str) -> str | None:
    """Why a module's weights do more than one layer's work, or none, or None where they do just that.

    Args:
        path: of the module.
        module: any.
        calls: by `calls_of`.
        owners: by `owners_of`.
        never: what to say where it never runs.
    """
    others = [owner for p in module._parameters.values() if p is not None for owner in owners[id(p)] if owner != path]
    if others:
        return f"shares its weights with {others[0]}"
    if calls[path] != 1:
        return f"runs {calls[path]} times per call" if calls[path] else never
    return None


def _reason(path: str, module: Any, calls: Counter[str], owners: dict[int, list[str]]) -> str | None:
    """Why a module cannot be replaced, or None."""
    if type(module) not in get_args(Layer):
        return _other(module)
    if module._parameters.get("weight") is None:
        return "its weight is computed from other parameters"
    if not path:
        return "is the model itself"
    if getattr(module, "groups", 1) > 1:
        return "is a grouped convolution: its groups share no weights that could be factorized"
    return used_besides(path, module, calls, owners, "is never called as a layer")


def _other(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.RNNBase):
        return f"{kind} multiplies whole matrices: factors would make only its file smaller"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "belongs to attention, which reads its weight itself"
    return "transposed convolutions are not factorized" if isinstance(module, _TRANSPOSED) else f"weights of {kind} are not factorized"


def _runs(model: nn.Module, paths: Sequence[str], example: Inputs) -> bool:
    """Whether the model computes the same with these layers wrapped."""
    twin = eval_copy(model)
    for path in paths:
        _put(twin, path, nn.Sequential(twin.get_submodule(path)))
    try:
        with torch.no_grad():
            want, got = _outputs(example.call(model)), _outputs(example.call(twin))
    except Exception:  # noqa: BLE001  # code of the user's may raise anything
        return False
    return len(want) == len(got) and all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(want, got, strict=True))


def _outputs(found: Any) -> list[Tensor]:
    return [tensor.double() for tensor in tensors_in(Inputs((found,)))]
