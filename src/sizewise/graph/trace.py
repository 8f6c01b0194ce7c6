"""From a module to a `torch.export` graph, and what can be read off that graph."""

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sizewise.errors import UnsupportedModel
from sizewise.graph.recurrent import recurrent_shapes
from sizewise.protocols import Inputs

__all__ = ["Traced", "eval_copy", "export_static", "is_graph", "noise", "part_from", "quiet", "tensors_in", "trace"]

Model = TypeVar("Model", bound=nn.Module)

_NOISY = (
    "torch.onnx",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "torchao",
    "torch.utils._pytree",
    "onnxscript",
    "onnx_ir",
    "torch._subclasses.fake_tensor",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters' warnings and log lines, which concern their own code and not the user's, from the user."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class Traced:
    """An exported program, and whether the first dimension of every input may vary ("dynamic") or is fixed."""

    program: ExportedProgram
    batch: int | Literal["dynamic"]


def is_graph(model: nn.Module) -> bool:
    """Whether the module already is an exported graph (such as a quantized one)."""
    return isinstance(model, torch.fx.GraphModule)


def eval_copy(model: Model, *, shared: bool = False) -> Model:
    """A copy in inference mode; an exported graph already is.

    Args:
        model: any module.
        shared: whether the copy has the model's own parameters, which is for those who replace parameters but never write to them.

    Raises:
        UnsupportedModel: the model cannot be copied.
    """
    try:
        with quiet():
            twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()} if shared else None)
    except (RuntimeError, TypeError) as error:  # of weights computed once and kept, and of what cannot be pickled
        raise UnsupportedModel(
            "this model cannot be copied",
            got=_first_line(error),
            hint="copy.deepcopy(model) must work; remove masks, parametrizations and weight normalizations first",
        ) from error
    return twin if is_graph(twin) else twin.eval()


def part_from(twin: nn.Module, model: nn.Module) -> None:
    """Give a module copies of its own of the parameters that it has in common with a model; tied ones stay tied.

    Args:
        twin: a shared copy, or what was made of one; changed in place.
        model: that stays as it is.
    """
    held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    values: dict[object, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for module in twin.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.untyped_storage().data_ptr() in held:
                    if id(tensor) not in copies:
                        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
                        value = values.setdefault(place, tensor.detach().clone())
                        kept = isinstance(tensor, nn.Parameter)
                        copies[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if kept else value
                    tensors[name] = copies[id(tensor)]  # type: ignore[assignment]  # of the kind that was there


def trace(model: nn.Module, example: Inputs) -> Traced:
    """Export `model`, with a free batch dimension where the model allows one.

    The batch is the first dimension of every input tensor. A model that fixes it (or whose inputs differ in it) is
    exported with the example's shapes instead.

    Raises:
        UnsupportedModel: torch cannot export the model; the message is torch's first line.
    """
    if not is_graph(model) and any(module.training for module in model.modules()):
        model = eval_copy(model)
    wide = widen(example)
    dimension = torch.export.Dim("batch", min=1)
    shapes = pytree.tree_map(lambda leaf: {0: dimension} if _batched(leaf) else None, (wide.args, dict(wide.kwargs or {})))
    try:
        with quiet(), recurrent_shapes(), torch.no_grad():
            program = torch.export.export(model, wide.args, dict(wide.kwargs or {}), dynamic_shapes=_by_parameter(model, shapes))
        return Traced(program, "dynamic")
    except Exception as dynamic_error:  # noqa: BLE001  # torch raises many types here; what counts is whether the static export works
        try:
            program = export_static(model, example)
        except UnsupportedModel as error:
            raise error from dynamic_error
    return Traced(program, batch_size(example))


def export_static(model: nn.Module, example: Inputs) -> ExportedProgram:
    """Export `model` with the example's very shapes; the model must be in inference mode.

    Raises:
        UnsupportedModel: torch cannot export the model; `got` is torch's first line.
    """
    try:
        with quiet(), recurrent_shapes(), torch.no_grad():
            return torch.export.export(model, example.args, dict(example.kwargs or {}))
    except Exception as error:  # torch raises many types here
        raise UnsupportedModel(
            "torch cannot export this model",
            got=_first_line(error),
            hint="torch.export.export(model, inputs) shows the whole reason; remove data-dependent control flow",
        ) from error


def widen(example: Inputs) -> Inputs:
    """The example with at least two examples per batch: torch treats a batch of one as a constant."""
    if batch_size(example) != 1:
        return example
    args, kwargs = pytree.tree_map(
        lambda leaf: torch.cat([leaf, leaf]) if _batched(leaf) else leaf, (example.args, dict(example.kwargs or {}))
    )
    return Inputs(args, kwargs)


def batch_size(inputs: Inputs) -> int:
    """Examples in one call: the first dimension of the first tensor (1 when there is none)."""
    return next((int(tensor.shape[0]) for tensor in tensors_in(inputs) if tensor.ndim), 1)


def tensors_in(inputs: Inputs) -> list[torch.Tensor]:
    """Every tensor among the inputs, positional ones first."""
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs or {})))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _batched(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0


def _by_parameter(model: nn.Module, shapes: tuple[Any, Any]) -> Any:
    # torch wants one entry per input, positional ones first, or a dict when keywords are used
    args, kwargs = shapes
    if not kwargs:
        return tuple(args)

    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def noise(example: Inputs) -> Inputs:
    """Random numbers in place of floating-point inputs: an example of zeros would prove nothing, and tell no ranges."""
    generator = torch.Generator().manual_seed(0)

    def random(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf

    args, kwargs = pytree.tree_map(random, (example.args, dict(example.kwargs or {})))
    return Inputs(args, kwargs)
