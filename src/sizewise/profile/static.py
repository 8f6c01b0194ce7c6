"""Static cost of a module, in total and per layer, counted on its exported graph; nothing is measured here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sizewise.data.batches import examples_in
from sizewise.errors import UnsupportedModel, blaming
from sizewise.graph.trace import eval_copy, export_static, is_graph
from sizewise.profile.graph_cost import FAMILIES, Operator, operators_of, total_uncounted
from sizewise.profile.operators import WorkCounter, unfused
from sizewise.protocols import Inputs
from sizewise.types import Cost, LayerCost

__all__ = ["Analysis", "analyse", "static_cost"]


@dataclass(frozen=True)
class Analysis:
    """A model's cost and the operators that it was counted on; without operators where the model cannot be exported."""

    cost: Cost
    operators: tuple[Operator, ...]


def static_cost(model: nn.Module, example: Inputs) -> Cost:
    """Count one forward pass on `example`, in inference mode; see `Cost` for the conventions.

    Raises:
        PreconditionError: the model fails on the example inputs.
    """
    return analyse(model, example).cost


def analyse(model: nn.Module, example: Inputs) -> Analysis:
    """Count one forward pass on `example`, in inference mode, operator by operator.

    The model is run once on the example, so that what fails is the user's to see, then exported with the example's shapes.
    A model that torch cannot export is counted while it runs: without layers and without peak memory, which a note says.

    Raises:
        PreconditionError: the model fails on the example inputs.
    """
    with _inference(model):
        with blaming("the model failed on the example inputs"), torch.no_grad():
            example.call(model)
        try:
            program = export_static(model, example)
        except UnsupportedModel as error:
            return Analysis(_counted_while_running(model, example, str(error.got)), ())
    operators = operators_of(program)
    return Analysis(_cost(model, example, operators), operators)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Every module in inference mode, and back."""
    modes = {module: module.training for module in model.modules()}
    if not is_graph(model):
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _cost(model: nn.Module, example: Inputs, operators: Sequence[Operator]) -> Cost:
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=sum(op.macs for op in operators),
        weight_bytes=_bytes_of([*model.parameters(), *model.buffers()]),
        batch=examples_in(example),
        uncounted=total_uncounted(operators),
        activation_bytes=sum(op.write_bytes for op in operators),
        peak_bytes=max((op.live_bytes for op in operators), default=0),
        elementwise=sum(op.elementwise for op in operators),
        intensity=_intensity(operators),
        layers=_layers(model, operators),
    )


def _counted_while_running(model: nn.Module, example: Inputs, why: str) -> Cost:
    counter = WorkCounter()
    twin = eval_copy(model)
    with torch.no_grad(), unfused(), counter:
        example.call(twin)
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.macs,
        weight_bytes=_bytes_of([*model.parameters(), *model.buffers()]),
        batch=examples_in(example),
        uncounted=dict(sorted(counter.uncounted.items())),
        elementwise=counter.elementwise,
        notes=(f"no layers, activation bytes or peak memory: torch cannot export this model ({why})",),
    )


def _layers(model: nn.Module, operators: Sequence[Operator]) -> tuple[LayerCost, ...]:
    """One row per module that runs operators, in the order of its first; parameters go to the first module that holds them."""
    groups: dict[str, list[Operator]] = {}
    for op in operators:
        groups.setdefault(op.path, []).append(op)
    seen: set[int] = set()
    return tuple(_layer(path, ops, _own(model, path, seen)) for path, ops in groups.items())


def _own(model: nn.Module, path: str, seen: set[int]) -> list[Tensor]:
    """Tensors that the module at `path` holds itself and no earlier layer did."""
    try:
        module = model.get_submodule(path)
    except AttributeError:  # an exported graph has lost its modules
        return []
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if isinstance(module, nn.MultiheadAttention):  # calls its output projection as a function
        own += list(module.out_proj.parameters())
    fresh = [t for t in own if id(t) not in seen]
    seen.update(id(t) for t in fresh)
    return fresh


def _layer(path: str, operators: Sequence[Operator], own: Sequence[Tensor]) -> LayerCost:
    macs = sum(op.macs for op in operators)
    return LayerCost(
        path=path,
        kind=operators[0].module,
        family=max(FAMILIES, key=lambda family: sum(op.macs for op in operators if op.family == family)) if macs else "memory",
        calls=len(operators),
        params=sum(t.numel() for t in own if isinstance(t, nn.Parameter)),
        macs=macs,
        weight_bytes=_bytes_of(own),
        activation_bytes=sum(op.write_bytes for op in operators),
        peak_bytes=max(op.live_bytes for op in operators),
        elementwise=sum(op.elementwise for op in operators),
        intensity=_intensity(operators),
        uncounted=total_uncounted(operators),
    )


def _intensity(operators: Sequence[Operator]) -> float:
    """MACs per byte read and written."""
    moved = sum(op.read_bytes + op.weight_bytes + op.write_bytes for op in operators)
    return sum(op.macs for op in operators) / moved if moved else 0.0


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
