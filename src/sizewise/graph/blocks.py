"""Whole residual blocks: modules that add something to what they are given, and could just hand it on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from sizewise.graph.flow import operator, shape_of
from sizewise.graph.groups import Group, Member
from sizewise.graph.hooks import hooked
from sizewise.graph.surgery import WHOLE
from sizewise.protocols import Inputs

__all__ = ["residual_blocks"]

_ADDS = ("add", "add_")
_PASSES = ("dropout", "clone", "contiguous", "detach", "alias", "to")


def residual_blocks(model: nn.Module, program: ExportedProgram, example: Inputs) -> tuple[Group, ...]:
    """Modules that can be left out, each as a group of one channel.

    A module qualifies when it runs once per call, its output is one tensor of the shape of its first input and of no other, and it adds
    that input to what its layers make of it. Blocks inside of others count, the others do not.

    Args:
        model: in inference mode.
        program: of it, exported.
        example: inputs of one call.
    """
    shaped = _same_shape(model, example)
    found = [path for path in shaped if any(True for _ in model.get_submodule(path).parameters()) and _adds_its_input(program, path)]
    inner = [path for path in found if not any(other.startswith(path + ".") for other in found)]
    return tuple(Group(1, (Member(path, WHOLE, (0,)),)) for path in inner)


def _same_shape(model: nn.Module, example: Inputs) -> list[str]:
    """Modules that run once and give one tensor, as large as the one they get first and as no other that they get.

    Of two that large it would have to be known which of them is added: the dense layer behind a transformer's attention gets what that
    gives first, and adds the other.
    """
    calls: dict[str, list[bool]] = {}

    def hook(path: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            like = {id(value) for value in given if isinstance(out, Tensor) and value.shape == out.shape}
            calls.setdefault(path, []).append(bool(args) and like == {id(args[0])})

        return see

    inner = [(path, module) for path, module in model.named_modules() if path and any(True for _ in module.children())]
    handles = [module.register_forward_hook(hook(path), with_kwargs=True) for path, module in inner]
    with hooked(handles), torch.no_grad():
        example.call(model)
    return [path for path, same in calls.items() if same == [True]]


def _adds_its_input(program: ExportedProgram, path: str) -> bool:
    """Whether the module's own code adds the value that flows into it to something."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and path in _scopes(node)]
    within = set(nodes)
    outside = {source for node in nodes for source in node.all_input_nodes if source not in within and _is_value(program, source)}
    first = next((source for source in program.graph.nodes if source in outside), None)
    for node in nodes:
        if operator(node) in _ADDS and not node.kwargs and _scopes(node)[-1:] == [path] and len(node.all_input_nodes) == 2:
            sources = {_origin(source) for source in node.all_input_nodes}
            if outside & sources and shape_of(node) == shape_of(first or node):
                return True
    return False


def _is_value(program: ExportedProgram, node: Node) -> bool:
    signature = program.graph_signature
    return node.name not in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}


def _origin(node: Node) -> Node:
    while operator(node) in _PASSES and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _scopes(node: Node) -> list[str]:
    """Paths of the modules whose code makes this node, from the outermost."""
    return list(_paths(node))


def _paths(node: Node) -> Iterator[str]:
    for path, _ in node.meta.get("nn_module_stack", {}).values():
        yield str(path).partition("@")[0]
