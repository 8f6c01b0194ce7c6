"""Weights of an exported graph, and the same graph with these weights stored in few bits (`graph/coded_ops.py`).

A weight is a float32 parameter that layers multiply by: linear layers and products with a matrix, convolutions, recurrent
layers, and tables of embeddings. As a matrix it has one row per output channel (token), whatever the parameter's shape. A weight
that several layers share stays one tensor. Codes and scales are buffers named after the parameter, `<name>_codes`, `<name>_scales`
and `<name>_zeros`, so that the same codings without data make the same state dict, into which values can be loaded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from sizewise.arith.grids import Grid, Steps, pack_int4
from sizewise.errors import PreconditionError, UsageError
from sizewise.graph.checks import check_finite, check_skip
from sizewise.graph.coded_ops import OFFSET, OPERATORS
from sizewise.graph.trace import is_graph, trace
from sizewise.protocols import Inputs
from sizewise.types import Skip

__all__ = ["Coding", "Encoder", "Weight", "check_model", "choose", "coded_again", "encode_weights", "find_weights", "sizes"]

Role = Literal["linear", "product", "conv", "transposed", "recurrent", "embedding"]
Encoder = Callable[["Weight", Tensor, Grid], tuple[Tensor, Steps]]
Form = Literal["int8", "int4", "float16", "bfloat16"]

_A = torch.ops.aten
_CONVS = (_A.conv1d.default, _A.conv2d.default, _A.conv3d.default, _A.conv1d.padding, _A.conv2d.padding, _A.conv3d.padding)
_TRANSPOSED = (_A.conv_transpose1d.default, _A.conv_transpose2d.input, _A.conv_transpose3d.input)
_CELLS = (_A.gru, _A.lstm, _A.rnn_tanh, _A.rnn_relu)
_ROLES: dict[Any, tuple[Role, int]] = {  # what an operator does with a weight, and which argument that is
    _A.linear.default: ("linear", 1),
    _A.matmul.default: ("product", 1),
    _A.mm.default: ("product", 1),
    _A.addmm.default: ("product", 2),
    _A.embedding.default: ("embedding", 0),
    **dict.fromkeys(_CONVS, ("conv", 1)),
    **dict.fromkeys(_TRANSPOSED, ("transposed", 1)),
    **dict.fromkeys((cell.input for cell in _CELLS), ("recurrent", 2)),
    **dict.fromkeys((cell.data for cell in _CELLS), ("recurrent", 3)),
}
_AXIS: dict[Role, int] = {"linear": 0, "product": 1, "conv": 0, "transposed": 1, "recurrent": 0, "embedding": 0}
_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_OVERHEAD = {"int4": 768, "dynamic": 160}  # bytes that the operators which decode take in a file, at most,
_OVERHEAD_ELSE = 320  # with other forms
_SMALLEST_GROUP = 16  # of ONNX Runtime's kernels, which want powers of two


@dataclass(frozen=True)
class Coding:
    """How a weight is stored.

    Attributes:
        form: "int8" with one scale per row, "int4" with one per group of columns, or a shorter float.
        group: columns that share a scale, a power of two from 16; of int4 only. Rows that it does not divide get a smaller one
            where that takes fewer bytes than filling up the last group.
        symmetric: without zero points.
        dynamic: linear layers compute in integers, with inputs quantized while they run; of int8 only. Other layers that share
            the weight read it as float.

    Raises:
        UsageError: settings that do not go together.
    """

    form: Form
    group: int | None = None
    symmetric: bool = True
    dynamic: bool = False

    def __post_init__(self) -> None:
        sizes = self.group is not None and self.group >= _SMALLEST_GROUP and self.group & (self.group - 1) == 0
        if (self.form == "int4") != (self.group is not None) or (self.group is not None and not sizes):
            wanted = "a power of two from 16 for int4, none otherwise"
            raise UsageError("no such group of weights", where=self.form, got=str(self.group), wanted=wanted)
        if self.dynamic and (self.form != "int8" or not self.symmetric):
            raise UsageError("only symmetric int8 weights are multiplied as integers", where=self.form)

    def grid(self, columns: int) -> Grid | None:
        """The grid for rows of so many columns; None for floats."""
        if self.form in _FLOATS:
            return None
        if self.group is None:
            return Grid(bits=8, symmetric=self.symmetric)
        return Grid(bits=4, symmetric=self.symmetric, block=min(self._blocks(), key=lambda size: self._bytes(columns, size)), narrow=False)

    def _blocks(self) -> list[int]:
        """The group and all smaller powers of two, largest first."""
        assert self.group is not None
        return [self.group >> shift for shift in range(self.group.bit_length()) if self.group >> shift >= _SMALLEST_GROUP]

    def _bytes(self, columns: int, size: int) -> int:
        """Of a row in groups of that size, the last one filled up."""
        return -(-columns // size) * (size // 2 + (4 if self.symmetric else 5))


@dataclass(frozen=True)
class Weight:
    """A parameter that layers multiply by.

    Attributes:
        name: in the state dict; the first where it has several.
        names: all of them.
        value: the parameter.
        axis: of `value`, of its output channels (tokens).
        uses: operators that read it and what they do with it, in the graph's order.
    """

    name: str
    names: tuple[str, ...]
    value: Tensor
    axis: int
    uses: tuple[tuple[Node, Role], ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the modules that hold it."""
        return tuple(name.rpartition(".")[0] for name in self.names)

    @property
    def label(self) -> str:
        """For people: the first module that holds it, or its own name where that is the model."""
        return self.paths[0] or self.name

    @property
    def roles(self) -> set[Role]:
        """What is done with it."""
        return {role for _, role in self.uses}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of its matrix."""
        rows = self.value.shape[self.axis]
        return rows, self.value.numel() // max(1, rows)

    def matrix(self) -> Tensor:
        """One row per output channel [rows, columns]."""
        return self.value.detach().movedim(self.axis, 0).flatten(1)

    def within(self, paths: Iterable[str]) -> bool:
        """Whether one of these modules holds it, itself or further down."""
        return any(own == path or own.startswith(f"{path}.") for own in self.paths for path in paths)


def check_model(model: nn.Module, skip: Iterable[str], where: str) -> None:
    """Whether a model's weights can be coded, and it has the modules that are to be skipped.

    Raises:
        PreconditionError: it is a graph already, or a weight is not finite.
        UnknownName: no module of a path in `skip`.
    """
    if is_graph(model):
        raise PreconditionError("the model is an exported graph already", where=where, hint="give it the float model; it quantizes once")
    check_skip(model, skip, where)
    check_finite(model, where)


def find_weights(graph: GraphModule) -> tuple[list[Weight], list[Skip]]:
    """Every weight in the order of use, and float matrices that are none, with the reason.

    Biases and other vectors are neither. Weights that an earlier step has made integers are not found.
    """
    weights, skipped = [], []
    for names, value, nodes in _matrices(graph):
        readers = list(dict.fromkeys(user for node in nodes for user in node.users))
        roles = [(reader, _role(reader, nodes)) for reader in readers]
        reason = _strange(value, roles)
        if reason is not None:
            skipped.append(Skip(what=names[0], reason=reason))
            continue
        uses = tuple((reader, role) for reader, role in roles if role is not None)
        weights.append(Weight(names[0], names, value, _AXIS[uses[0][1]], uses))
    return weights, skipped


def choose(weights: Iterable[Weight], coding: Callable[[Weight], Coding], skip: Sequence[str] = ()) -> tuple[dict[str, Coding], list[Skip]]:
    """Codings of the weights that gain by them, and the others with the reason.

    Args:
        weights: of a graph.
        coding: wanted for a weight.
        skip: paths of modules whose weights stay as they are.
    """
    chosen: dict[str, Coding] = {}
    left = []
    for weight in weights:
        wanted = coding(weight)
        if weight.within(skip):
            left.append(Skip(what=weight.name, reason="named in skip"))
        elif _saved(weight, wanted) < _OVERHEAD.get("dynamic" if wanted.dynamic else wanted.form, _OVERHEAD_ELSE):
            left.append(Skip(what=weight.name, reason="too small to gain"))
        elif wanted.form == "float16" and float(weight.value.detach().abs().max()) > torch.finfo(torch.float16).max:
            left.append(Skip(what=weight.name, reason="holds values too large for float16"))
        else:
            chosen[weight.name] = wanted
    return chosen, left


def encode_weights(graph: GraphModule, codings: Mapping[str, Coding], encode: Encoder | None = None) -> None:
    """Store weights as codes; `graph` itself is changed.

    Args:
        graph: an exported graph; weights that are integers already do not matter.
        codings: by name of the weight.
        encode: gives codes and steps of a weight's matrix on a grid; without it all codes are 0, to be loaded afterwards.

    Raises:
        PreconditionError: the graph has no such weights.
    """
    known = {weight.name: weight for weight in find_weights(graph)[0]}
    missing = sorted(set(codings) - set(known))
    if missing:
        raise PreconditionError(
            "the recorded weights do not fit this model", got=", ".join(missing[:3]), hint="is it the model the plan was made for?"
        )
    for name, coding in codings.items():
        _encode(graph, known[name], coding, encode or _blank)
    for node in [node for node in graph.graph.nodes if node.op == "get_attr" and not node.users]:
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def coded_again(model: nn.Module, example: Inputs, stored: Mapping[str, Mapping[str, Any]]) -> GraphModule:
    """The graph of a model with weights coded as recorded, and codes of 0; values are loaded afterwards.

    Args:
        model: that the codings were made for.
        example: inputs of one call.
        stored: fields of the coding, by name of the weight.

    Raises:
        PreconditionError: the graph has no such weights.
    """
    graph: GraphModule = trace(model, example).program.module(check_guards=False)
    encode_weights(graph, {name: Coding(**fields) for name, fields in stored.items()})
    return graph


def sizes(weights: Iterable[Weight], codings: Mapping[str, Coding]) -> tuple[int, int]:
    """Bytes of the coded ones among the weights, before and after."""
    coded = [weight for weight in weights if weight.name in codings]
    before = sum(4 * weight.value.numel() for weight in coded)
    return before, before - sum(_saved(weight, codings[weight.name]) for weight in coded)


def _saved(weight: Weight, coding: Coding) -> int:
    """Bytes that coding takes off a weight in float32."""
    rows, columns = weight.shape
    grid = coding.grid(columns)
    if grid is None:
        return 2 * rows * columns
    groups = grid.blocks(columns)
    codes = rows * columns if grid.block is None else rows * groups * grid.block // 2
    return 4 * rows * columns - codes - rows * groups * (4 if coding.symmetric else 5)


# ---- which parameters are weights


def _matrices(graph: GraphModule) -> list[tuple[tuple[str, ...], Tensor, list[Node]]]:
    """Float tensors of two axes or more that the graph reads, each once: all its names, itself, the nodes that stand for it."""
    names: dict[Any, list[str]] = {}
    for name, value in graph.state_dict(keep_vars=True).items():
        names.setdefault(_identity(value), []).append(name)
    nodes: dict[Any, list[Node]] = {}
    for node in graph.graph.nodes:
        value = _tensor(graph, node) if node.op == "get_attr" and node.users else None
        if value is not None and value.is_floating_point() and value.ndim > 1 and _identity(value) in names:
            nodes.setdefault(_identity(value), []).append(node)
    return [(tuple(names[key]), _tensor(graph, found[0]), found) for key, found in nodes.items()]  # type: ignore[misc]


def _identity(value: Tensor) -> tuple[object, ...]:
    return (value.data_ptr(), value.dtype, tuple(value.shape), tuple(value.stride()))


def _tensor(graph: GraphModule, node: Node) -> Tensor | None:
    found: Any = graph
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else None


def _role(reader: Node, weights: Sequence[Node]) -> Role | None:
    """What an operator does with a weight; None where it is not a layer's, or the weight is its input too."""
    role, place = _ROLES.get(reader.target, (None, 0))
    if role is None or len(reader.args) <= place:
        return None
    held = reader.args[place]
    found = list(held) if isinstance(held, list | tuple) else [held]
    others = [arg for index, arg in enumerate(reader.args) if index != place]
    if not any(node in found for node in weights) or any(node in others for node in weights):
        return None
    return role if role != "product" or _is_linear(reader, found[0]) else None


def _is_linear(reader: Node, weight: Any) -> bool:
    """Whether a product is [.., inputs] times [inputs, outputs], plus one number per output."""
    ndims = [_ndim(arg) for arg in reader.args]
    bias = reader.target is not _A.addmm.default or (ndims[0] == 1 and not reader.kwargs)
    return _ndim(weight) == 2 and all((size or 0) > 1 for size in ndims[-2:]) and bias


def _ndim(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.ndim if isinstance(value, Tensor) else None


def _strange(value: Tensor, roles: Sequence[tuple[Node, Role | None]]) -> str | None:
    """Why a tensor is no weight that can be coded; None if it is one."""
    others = sorted({str(reader.target) for reader, role in roles if role is None})
    if others:
        return f"used by {', '.join(others)}, which is no layer"
    if value.dtype != torch.float32:
        return f"is {value.dtype}, not float32, already"
    if len({_AXIS[role] for _, role in roles if role is not None}) > 1:
        return "layers that share it take different axes as their outputs"
    return None if value.numel() else "is empty"


# ---- from parameters to codes


def _encode(graph: GraphModule, weight: Weight, coding: Coding, encode: Encoder) -> None:
    first = next(node for node in graph.graph.nodes if node.op == "get_attr" and node.target in weight.names)
    held = {suffix: _add(graph, first, f"{weight.name}_{suffix}", part) for suffix, part in _parts(weight, coding, encode).items()}
    parts = (held["codes"], held.get("scales"), held.get("zeros"))
    decoded: Node | None = None
    for reader, role in weight.uses:
        if role == "embedding":
            _replace(reader, "coded_embedding", (*parts, reader.args[1], weight.shape[1]))
        elif role in ("linear", "product") and (coding.dynamic or coding.form == "int4"):
            x, bias = _operands(reader)
            if coding.dynamic:
                _replace(reader, "dynamic_linear", (x, *parts[:2], bias))
            else:
                _replace(reader, "grouped_linear", (x, *parts, bias, weight.shape[1]))
        else:
            decoded = decoded or _decode(graph, weight, first, reader, parts)
            for node in [n for n in reader.all_input_nodes if n.op == "get_attr" and n.target in weight.names]:
                reader.replace_input_with(node, decoded)
    for name in weight.names:
        path, _, attribute = name.rpartition(".")
        delattr(graph.get_submodule(path), attribute)


def _parts(weight: Weight, coding: Coding, encode: Encoder) -> dict[str, Tensor]:
    """What is stored: "codes", and of integers "scales" and perhaps "zeros"."""
    matrix = weight.matrix()
    grid = coding.grid(matrix.shape[1])
    if grid is None:
        return {"codes": matrix.to(_FLOATS[coding.form]).contiguous()}
    codes, steps = encode(weight, matrix, grid)
    shape = steps.scale.shape if coding.form == "int4" else steps.scale.shape[:1]
    stored = _packed(codes, grid) if coding.form == "int4" else codes.contiguous()
    zeros = {} if coding.symmetric else {"zeros": steps.zero.to(torch.int8).reshape(shape)}
    return {"codes": stored, "scales": steps.scale.float().reshape(shape).contiguous(), **zeros}


def _packed(codes: Tensor, grid: Grid) -> Tensor:
    """Two codes to a byte, the last group of every row filled up."""
    assert grid.block is not None
    filled = F.pad(codes, (0, grid.blocks(codes.shape[1]) * grid.block - codes.shape[1]))
    return pack_int4(filled + OFFSET).reshape(len(codes), -1)


def _blank(_: Weight, matrix: Tensor, grid: Grid) -> tuple[Tensor, Steps]:
    scale = matrix.new_ones(len(matrix), grid.blocks(matrix.shape[1]))
    return torch.zeros_like(matrix, dtype=torch.int8), Steps(scale, torch.zeros_like(scale))


def _add(graph: GraphModule, before: Node, name: str, value: Tensor) -> Node:
    """A buffer beside the parameter of that name, and a node that reads it."""
    path, _, attribute = name.rpartition(".")
    owner: nn.Module = graph.get_submodule(path)
    owner.register_buffer(attribute, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def _decode(graph: GraphModule, weight: Weight, before: Node, reader: Node, parts: Sequence[Node | None]) -> Node:
    with graph.graph.inserting_before(before):
        node: Node = graph.graph.call_function(OPERATORS["decode"], (*parts, list(weight.value.shape), weight.axis))
    node.meta = {key: reader.meta[key] for key in ("nn_module_stack",) if key in reader.meta}
    node.meta["val"] = before.meta.get("val", weight.value)
    return node


def _operands(reader: Node) -> tuple[Any, Any]:
    """Input and bias of a linear layer or product."""
    if reader.target is _A.addmm.default:
        return reader.args[1], reader.args[0]
    linear = reader.target is _A.linear.default
    return reader.args[0], (reader.args[2] if linear and len(reader.args) > 2 else reader.kwargs.get("bias"))


def _replace(reader: Node, operator: str, args: tuple[Any, ...]) -> None:
    # by hand rather than by a new node: name and meta stay what they are
    reader.target, reader.args, reader.kwargs = OPERATORS[operator], args, {}
