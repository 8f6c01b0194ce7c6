"""Smaller versions of a task's inputs: pictures of fewer pixels, sequences of fewer steps, or what a function makes of them.

What inputs are is told by the first tensor that fits: [n, c, h, w] are pictures, floating-point [n, time, features] are
frames, integer [n, length] are tokens. Every input of that rank is made smaller; what is already that small stays.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sizewise.data.batches import examples_in
from sizewise.errors import PreconditionError, UsageError, blaming
from sizewise.graph.trace import tensors_in
from sizewise.protocols import Inputs

__all__ = ["Level", "Resize", "Resized", "named_alike", "read_levels"]

Resize = Sequence[int] | Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]]
Kind = Literal["pictures", "frames", "tokens"]

_WANTED = "a sequence of sizes, a function of inputs, or {label: function}"
_OWN = "give a function that makes the inputs smaller: resize={label: function}"
_WHAT = {"pictures": "the shorter side of its pictures", "frames": "its frames", "tokens": "its tokens"}


@dataclass(frozen=True)
class Level:
    """One smaller version of the inputs.

    Attributes:
        label: what follows the @ in a candidate's name.
        change: makes the inputs smaller.
        size: what it brings them to; None where a function of the user's own does.
    """

    label: str
    change: Callable[[Inputs], Inputs]
    size: int | None = None


class Resized(nn.Module):
    """A model that first makes its inputs smaller, so that its file takes the same inputs as the model's own.

    Args:
        model: any module but an exported graph; it is held, not copied.
        change: a level's.
    """

    def __init__(self, model: nn.Module, change: Callable[[Inputs], Inputs]) -> None:
        super().__init__()
        self.model, self.change = model, change
        self._signature = inspect.signature(model.forward)

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """Call the model on the smaller inputs."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.change(Inputs(args, kwargs)).call(self.model)

        # exporters take the names of a file's inputs, and which of them have a free batch, from here
        forward.__signature__ = self._signature  # type: ignore[attr-defined]
        return forward


def named_alike(reference: nn.Module, model: nn.Module) -> nn.Module:
    """The reference with layers of the same names as the model's, where that is one behind a step that makes inputs smaller."""
    return Resized(reference, _same) if isinstance(model, Resized) and not isinstance(reference, Resized) else reference


def _same(inputs: Inputs) -> Inputs:
    return inputs


def read_levels(resize: Resize | None, example: Inputs) -> tuple[Level, ...]:
    """The levels that `Task(resize=...)` declares; the example's own size, which needs none, is left out.

    Raises:
        UsageError: not a declaration, a size that is none or larger than the example, or inputs without a size.
        PreconditionError: a function that fails on the example, or changes how many examples there are.
    """
    if resize is None:
        return ()
    if isinstance(resize, Mapping):
        return tuple(_by_function(label, function, f"resize[{label!r}]", example) for label, function in resize.items())
    if callable(resize):
        return (_by_function(_name_of(resize), resize, "resize", example),)
    if isinstance(resize, Sequence) and not isinstance(resize, str | bytes):
        return _by_sizes(resize, example)
    raise _not_a_way(resize)


def _not_a_way(resize: Any) -> UsageError:
    hint = f"resize=({resize},)" if isinstance(resize, int) else None
    return UsageError("not a way to resize", where="resize", got=repr(resize)[:100], wanted=_WANTED, hint=hint)


# ---- sizes


@dataclass(frozen=True)
class _ToSize:
    """Brings every input of the kind's rank to a size."""

    kind: Kind
    size: int

    def __call__(self, inputs: Inputs) -> Inputs:
        rank, shrink = _KINDS[self.kind]

        def smaller(leaf: Any) -> Any:
            return shrink(leaf, self.size) if isinstance(leaf, Tensor) and leaf.ndim == rank else leaf

        args, kwargs = pytree.tree_map(smaller, (inputs.args, dict(inputs.kwargs or {})))
        return Inputs(args, kwargs)


def _by_sizes(sizes: Sequence[Any], example: Inputs) -> tuple[Level, ...]:
    if not sizes:
        return ()
    kind, native = _kind_of(example)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise UsageError("a size is a whole number", where="resize", got=repr(size), wanted=f"1 to {native}", hint=_OWN)
        if int(size) < 1:
            raise UsageError("a size must be at least 1", where="resize", got=str(size), wanted=f"1 to {native}")
        if int(size) > native:
            raise UsageError(
                f"a size is larger than {_WHAT[kind]} in example_inputs",
                where="resize",
                got=str(size),
                wanted=f"1 to {native}",
                hint="inputs are only made smaller: give example_inputs at the largest size",
            )
    return tuple(Level(str(size), _ToSize(kind, size), size) for size in dict.fromkeys(map(int, sizes)) if size != native)


def _kind_of(example: Inputs) -> tuple[Kind, int]:
    """What the inputs are, and their own size."""
    tensors = tensors_in(example)
    for tensor in tensors:
        if tensor.ndim == 4:
            return "pictures", min(tensor.shape[2:])
        if tensor.ndim == 3 and tensor.is_floating_point():
            return "frames", _checked_frames(tensor.shape[1], tensors)
        if tensor.ndim == 2 and not tensor.is_floating_point():
            return "tokens", tensor.shape[1]
    shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors)
    wanted = "pictures [n, c, h, w], frames [n, time, features] or integer tokens [n, length]"
    raise UsageError("these inputs have no size that is known", where="resize", got=shapes, wanted=wanted, hint=_OWN)


def _checked_frames(time: int, tensors: Sequence[Tensor]) -> int:
    """Averaging frames says nothing about a mask or labels beside them."""
    for tensor in tensors:
        if tensor.ndim == 2 and tensor.shape[1] == time:
            raise UsageError("an input goes with the frames, one number per frame", where="resize", got=str(list(tensor.shape)), hint=_OWN)
    return time


def _picture(x: Tensor, size: int) -> Tensor:
    height, width = x.shape[2:]
    short = min(height, width)
    return x if short <= size else _average(x, round(height * size / short), round(width * size / short))


def _frames(x: Tensor, size: int) -> Tensor:
    return x if x.shape[1] <= size else _average(x.unsqueeze(1), size, x.shape[2]).squeeze(1)


def _tokens(x: Tensor, size: int) -> Tensor:
    return x[:, :size]


_KINDS: dict[Kind, tuple[int, Callable[[Tensor, int], Tensor]]] = {
    "pictures": (4, _picture),
    "frames": (3, _frames),
    "tokens": (2, _tokens),
}


def _average(x: Tensor, height: int, width: int) -> Tensor:
    """[n, c, h, w] to [n, c, height, width]: means over whole windows, and bilinear interpolation for the rest of the ratio.

    Interpolation alone would skip what lies between its points from a ratio of 2 on.
    """
    if not x.is_floating_point():
        return _average(x.float(), height, width).round().to(x.dtype)
    window = (x.shape[2] // height, x.shape[3] // width)
    if x.shape[2] % window[0] or x.shape[3] % window[1]:  # windows must leave no edge out
        x = _interpolate(x, window[0] * height, window[1] * width)
    if window != (1, 1):
        x = F.avg_pool2d(x, window)
    return x if x.shape[2:] == (height, width) else _interpolate(x, height, width)


def _interpolate(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


# ---- functions


@dataclass(frozen=True)
class _ByFunction:
    """A function of one tensor where that is all there is, else of `Inputs`."""

    function: Callable[[Any], Any]

    def __call__(self, inputs: Inputs) -> Inputs:
        if _is_alone(inputs):
            return Inputs((self.function(inputs.args[0]),))
        found: Inputs = self.function(inputs)
        return found


def _is_alone(inputs: Inputs) -> bool:
    return len(inputs.args) == 1 and not inputs.kwargs and isinstance(inputs.args[0], Tensor)


def _name_of(function: Callable[[Any], Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    if not str(name).isidentifier():
        raise UsageError(
            "the function has no name to call the candidates by", where="resize", got=str(name), hint="resize={label: function}"
        )
    return str(name)


def _by_function(label: Any, function: Any, where: str, example: Inputs) -> Level:
    if not isinstance(label, str) or not label:
        raise UsageError("labels are texts", where="resize", got=repr(label), wanted=_WANTED)
    if not callable(function):
        raise UsageError("not a function", where=where, got=type(function).__name__, wanted=_WANTED)
    level, alone = Level(label, _ByFunction(function)), _is_alone(example)
    with blaming("the function failed on the example inputs", where), torch.no_grad():
        found = level.change(example)
    returned = found.args[0] if alone else found
    if not isinstance(returned, Tensor if alone else Inputs):
        wanted = "a tensor, as it is given" if alone else "sizewise.protocols.Inputs, as it is given"
        raise PreconditionError("the function did not return inputs", where=where, got=type(returned).__name__, wanted=wanted)
    if examples_in(found) != examples_in(example):
        raise PreconditionError(
            "the function changed how many examples there are",
            where=where,
            got=str(examples_in(found)),
            wanted=str(examples_in(example)),
            hint="the first dimension is the batch",
        )
    return level
