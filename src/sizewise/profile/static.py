"""Static cost of a module, in total and per layer, counted on its exported graph; nothing is measured here."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from sizewise.data.batches import examples_in
from sizewise.errors import UnsupportedModel, blaming
from sizewise.graph.trace import export_static, is_graph
from sizewise.profile.graph_cost import FAMILIES, Operator, module_path, operators_of, total_uncounted
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
            operators = operators_of(program)
        except UnsupportedModel as error:
            return Analysis(_counted_while_running(model, example, str(error.got)), ())
        return Analysis(_cost(model, example, operators, _readers(program)), operators)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Every module in inference mode, and back; buffers that the model changes while it runs are put back too."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer) for module in modes for name, buffer in module._buffers.items() if buffer is not None and not is_lazy(buffer)
    ]
    before = [(buffer.detach().clone(), _version(buffer)) for _, _, buffer in buffers]
    if not is_graph(model):
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for (module, name, buffer), (values, version) in zip(buffers, before, strict=True):
                module._buffers[name] = buffer if version == _version(buffer) else buffer.copy_(values)


def _version(buffer: Tensor) -> int:
    """Grows with every writing into the buffer; tensors of torch's inference mode, which count nothing, cannot be written."""
    return 0 if buffer.is_inference() else buffer._version


def _cost(model: nn.Module, example: Inputs, operators: Sequence[Operator], readers: Mapping[str, str]) -> Cost:
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
        layers=_layers(model, operators, readers),
    )


def _counted_while_running(model: nn.Module, example: Inputs, why: str) -> Cost:
    counter = WorkCounter()
    with torch.no_grad(), unfused(), counter:
        example.call(model)
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.macs,
        weight_bytes=_bytes_of([*model.parameters(), *model.buffers()]),
        batch=examples_in(example),
        uncounted=dict(sorted(counter.uncounted.items())),
        elementwise=counter.elementwise,
        notes=(f"no layers, activation bytes or peak memory: torch cannot export this model ({why})",),
    )


def _layers(model: nn.Module, operators: Sequence[Operator], readers: Mapping[str, str]) -> tuple[LayerCost, ...]:
    """One row per module that runs operators, in the order of its first; then those that hold tensors which nobody reads."""
    groups: dict[str, list[Operator]] = {}
    for op in operators:
        groups.setdefault(op.path, []).append(op)
    owned = _owned(model, groups, readers)
    rows = [_layer(path, _class_of(model, path, ops), ops, owned.pop(path, [])) for path, ops in groups.items()]
    return (*rows, *(_layer(path, _class_of(model, path, ()), (), own) for path, own in owned.items()))


def _class_of(model: nn.Module, path: str, operators: Sequence[Operator]) -> str:
    return operators[0].module if operators else type(model.get_submodule(path)).__name__


def _readers(program: ExportedProgram) -> dict[str, str]:
    """Path of the module that first reads each parameter and buffer, by name; those that nobody reads are absent."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = [node for node in program.graph.nodes if node.name in names and node.users]
    return {names[node.name]: module_path(next(iter(node.users)))[0] for node in nodes}


def _owned(model: nn.Module, paths: Container[str], readers: Mapping[str, str]) -> dict[str, list[Tensor]]:
    """Every parameter and buffer at one path: of the module that holds it, else (attention holds its projection in a module
    that it never calls) of the one that reads it, else of its holder although that runs nothing. Shared ones count at the first.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    tensors: dict[int, Tensor] = {}
    places: dict[int, list[str]] = {}
    for name, tensor in named:
        tensors[id(tensor)] = tensor
        places.setdefault(id(tensor), []).append(name.rpartition(".")[0])
    for name, tensor in named:
        places[id(tensor)] += [readers[name]] if name in readers else []
    owned: dict[str, list[Tensor]] = {}
    for key, tensor in tensors.items():
        place = next((path for path in places[key] if path in paths), places[key][0])
        owned.setdefault(place, []).append(tensor)
    return owned


def _layer(path: str, kind: str, operators: Sequence[Operator], own: Sequence[Tensor]) -> LayerCost:
    macs = sum(op.macs for op in operators)
    return LayerCost(
        path=path,
        kind=kind,
        family=max(FAMILIES, key=lambda family: sum(op.macs for op in operators if op.family == family)) if macs else "memory",
        calls=len(operators),
        params=sum(t.numel() for t in own if isinstance(t, nn.Parameter)),
        macs=macs,
        weight_bytes=_bytes_of(own),
        activation_bytes=sum(op.write_bytes for op in operators),
        peak_bytes=max((op.live_bytes for op in operators), default=0),
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
