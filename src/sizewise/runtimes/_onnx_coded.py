"""Coded weights (`graph/coded_ops.py`) in ONNX files: small on disk, and as fast as ONNX Runtime can run them.

torch's exporter folds what it can compute, so that codes would come out as floats. Each operator is therefore exported as one node
that ONNX does not know, and `expand` writes it out in the finished file. Forms, found by experiment with ONNX Runtime 1.32:

- decoding is Cast, Sub and Mul (and shifts for 4 bits) on constants, which the runtime folds at load: the file is small, and the latency
  that of floats. Folding takes memory: a BERT of 14 million weights peaked at 165 MB with int8 and 133 MB with float16, where the float
  file took 100 MB. DequantizeLinear on a convolution's weight is not folded and runs at every call;
- a linear layer of 4 bits is MatMulNBits at accuracy level 4, which quantizes inputs to int8 in blocks and computes in integers. Against
  float on two shapes, one thread with AVX-512 VNNI, best of 15 to 60 calls on a busy machine: 1.1 to 1.9 times as fast at 128 rows, 1.7
  to 7.5 times at 1; the same BERT peaked at 31 MB. At level 0, which multiplies by floats, it was slower than float at 16 and 128
  rows. It differs from float inputs by about half a percent of the outputs;
- an embedding gathers codes and decodes these rows: Gather, or GatherBlockQuantized for 4 bits;
- a dynamic linear layer is DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add, in the order that the runtime fuses to
  DynamicQuantizeMatMul, or to MatMulIntegerToFloat where several layers share their quantized input.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sizewise.errors import InternalError
from sizewise.graph.coded_ops import OFFSET, OPERATORS

__all__ = ["expand", "translations"]

_DOMAIN = "sizewise"
_CONTRIB = "com.microsoft"
_ACCURACY = 4
_ARGUMENTS = {  # of every operator in order; "=" marks what is an attribute and no tensor
    "decode": ("codes", "scales", "zeros", "shape=", "axis="),
    "grouped_linear": ("x", "codes", "scales", "zeros", "bias", "columns="),
    "coded_embedding": ("codes", "scales", "zeros", "ids", "columns="),
    "dynamic_linear": ("x", "codes", "scales", "bias"),
}


def translations() -> dict[Any, Callable[..., Any]]:
    """For the exporter's `custom_translation_table`: every operator becomes one node of the domain "sizewise"."""
    return {operator: _translation(name) for name, operator in OPERATORS.items()}


def _translation(name: str) -> Callable[..., Any]:
    from onnxscript import values

    write = values.Op(values.Opset(_DOMAIN, 1), name, _schema(name))
    arguments = _ARGUMENTS[name]

    def translate(*args: Any) -> Any:
        given = list(zip(arguments, args, strict=True))
        tensors = [value for argument, value in given if not argument.endswith("=")]
        return write(*tensors, **{argument[:-1]: value for argument, value in given if argument.endswith("=")})

    return translate


def _schema(name: str) -> Any:
    """A schema that is registered nowhere: without one, onnxscript cannot call an operator."""
    from onnx.defs import OpSchema

    kinds = {"shape=": OpSchema.AttrType.INTS, "axis=": OpSchema.AttrType.INT, "columns=": OpSchema.AttrType.INT}
    types = [f"tensor({kind})" for kind in ("float", "float16", "bfloat16", "int8", "uint8", "int32", "int64")]
    tensors = [argument for argument in _ARGUMENTS[name] if argument not in kinds]
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        name,
        _DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(tensor, f"T{index}", param_option=optional) for index, tensor in enumerate(tensors)],
        outputs=[OpSchema.FormalParameter("out", "T")],
        type_constraints=[(kind, types, "") for kind in ("T", *(f"T{index}" for index in range(len(tensors))))],
        attributes=[OpSchema.Attribute(argument[:-1], kinds[argument]) for argument in _ARGUMENTS[name] if argument in kinds],
    )


def expand(proto: Any) -> None:
    """Write out every node of the domain "sizewise" in operators that ONNX Runtime has; `proto` itself is changed."""
    graph = proto.graph
    if not any(node.domain == _DOMAIN for node in graph.node):
        return
    writer = _Writer(graph)
    for node in graph.node:
        writer.write(node)
    del graph.node[:]
    graph.node.extend(writer.nodes)
    imports = [item for item in proto.opset_import if item.domain != _DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    if any(node.domain == _CONTRIB for node in graph.node) and not any(item.domain == _CONTRIB for item in imports):
        proto.opset_import.add(domain=_CONTRIB, version=1)


@dataclass
class _Writer:
    """A graph's nodes as they are to be.

    Attributes:
        graph: its initializers gain constants, and take on the shapes that kernels want.
        nodes: so far.
        origin: the node that is being written out.
        quantized: by name of an input, what it is as integers: values, scale and zero point.
        constants: names by what they hold.
    """

    graph: Any
    nodes: list[Any] = field(default_factory=list)
    origin: Any = None
    quantized: dict[str, list[str]] = field(default_factory=dict)
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.readers = Counter(name for node in self.graph.node for name in node.input)

    def write(self, node: Any) -> None:
        """Add one of the old graph's nodes, as it is or written out; the last operator takes over its output's name."""
        from onnx.helper import get_attribute_value

        if node.domain != _DOMAIN:
            self.nodes.append(node)
            return
        self.origin = node
        names = [argument for argument in _ARGUMENTS[node.op_type] if not argument.endswith("=")]
        inputs = dict.fromkeys(names, "") | dict(zip(names, node.input, strict=False))
        if inputs["codes"] not in self.tensors:
            raise InternalError("codes are not constants of the file", where=node.op_type, got=inputs["codes"])
        _EXPANSIONS[node.op_type](self, **inputs, **{item.name: get_attribute_value(item) for item in node.attribute})
        self.nodes[-1].output[0] = node.output[0]

    def add(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One operator with one output, whose name comes back."""
        return self.add_many(kind, inputs, 1, domain, **attributes)[0]

    def add_many(self, kind: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """One operator with several outputs."""
        from onnx.helper import make_node

        names = [f"{self.origin.output[0]}.{len(self.nodes)}.{index}" for index in range(outputs)]
        node = make_node(kind, inputs, names, domain=domain or None, **attributes)
        node.metadata_props.extend(self.origin.metadata_props)
        self.nodes.append(node)
        return names

    def constant(self, value: Any) -> str:
        """A constant; the same one again where it was wanted before."""
        from onnx.numpy_helper import from_array

        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self.constants:
            name = f"{_DOMAIN}.constant.{len(self.constants)}"
            self.graph.initializer.append(from_array(value, name))
            self.constants[key] = name
        return self.constants[key]

    def integers(self, *values: int) -> str:
        """A constant vector of int64, as shapes are."""
        return self.constant(np.array(values, np.int64))

    def array(self, name: str) -> Any:
        """Values of an initializer."""
        from onnx.numpy_helper import to_array

        return to_array(self.tensors[name])

    def dims(self, name: str) -> tuple[int, ...]:
        """Shape of an initializer."""
        return tuple(self.tensors[name].dims)

    def shaped(self, name: str, *shape: int) -> str:
        """The initializer in another shape: in place where nobody else reads it, so that no node is needed."""
        if self.dims(name) == shape:
            return name
        if self.readers[name] > 1:
            return self.add("Reshape", name, self.integers(*shape))
        self.tensors[name].dims[:] = shape
        return name

    def transposed(self, name: str) -> str:
        """The matrix the other way round; in place where nobody else reads it."""
        from onnx.numpy_helper import from_array

        if self.readers[name] > 1:
            return self.add("Transpose", name, perm=[1, 0])
        self.tensors[name].CopyFrom(from_array(np.ascontiguousarray(self.array(name).T), name))
        return name

    def to_float(self, name: str) -> str:
        """The value as float32."""
        from onnx import TensorProto

        return self.add("Cast", name, to=TensorProto.FLOAT)

    def is_packed(self, codes: str) -> bool:
        """Whether two codes share a byte."""
        from onnx import TensorProto

        return bool(self.tensors[codes].data_type == TensorProto.UINT8)

    def packed_zeros(self, zeros: str) -> str:
        """Zero points of groups [rows, groups] as the kernels for 4 bits want them: two to a byte, in every row."""
        if not zeros:
            return ""
        whole = (self.array(zeros).astype(np.int16) + OFFSET).astype(np.uint8)
        whole = np.pad(whole, ((0, 0), (0, whole.shape[1] % 2)))
        return self.constant(whole[:, 0::2] | whole[:, 1::2] << 4)


def _decode(writer: _Writer, codes: str, scales: str, zeros: str, shape: list[int], axis: int) -> None:
    """Folded by the runtime while it loads."""
    front = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    values = _groups(writer, codes, scales, zeros, front) if writer.is_packed(codes) else _rows(writer, codes, scales, zeros, front)
    if axis:
        writer.add("Transpose", values, perm=[*range(1, axis + 1), 0, *range(axis + 1, len(shape))])


def _rows(writer: _Writer, codes: str, scales: str, zeros: str, front: tuple[int, ...]) -> str:
    """Weights of one scale per row, or of none."""
    column = (front[0], *[1] * (len(front) - 1))
    values = writer.to_float(writer.shaped(codes, *front))
    if zeros:
        values = writer.add("Sub", values, writer.to_float(writer.shaped(zeros, *column)))
    return writer.add("Mul", values, writer.shaped(scales, *column)) if scales else values


def _groups(writer: _Writer, codes: str, scales: str, zeros: str, front: tuple[int, ...]) -> str:
    """Weights of 4 bits in groups."""
    rows, width = writer.array(codes).reshape(front[0], -1).shape
    groups, columns = writer.dims(scales)[1], int(np.prod(front[1:]))
    packed = writer.shaped(codes, rows, width, 1)
    low = writer.add("BitwiseAnd", packed, writer.constant(np.array(15, np.uint8)))
    high = writer.add("BitShift", packed, writer.constant(np.array(4, np.uint8)), direction="RIGHT")
    whole = writer.add("Reshape", writer.add("Concat", low, high, axis=-1), writer.integers(rows, groups, -1))
    values = writer.add("Sub", writer.to_float(whole), writer.constant(np.array(OFFSET, np.float32)))
    if zeros:
        values = writer.add("Sub", values, writer.to_float(writer.shaped(zeros, rows, groups, 1)))
    values = writer.add("Mul", values, writer.shaped(scales, rows, groups, 1))
    if columns < 2 * width:
        values = _cut(writer, writer.add("Reshape", values, writer.integers(rows, -1)), columns)
    return writer.add("Reshape", values, writer.integers(*front))


def _grouped_linear(writer: _Writer, x: str, codes: str, scales: str, zeros: str, bias: str, columns: int) -> None:
    rows, groups = writer.dims(scales)[:2]
    size = 2 * writer.array(codes).size // (rows * groups)
    inputs = [x, writer.shaped(codes, rows, groups, size // 2), scales, writer.packed_zeros(zeros), "", bias]
    while not inputs[-1]:
        inputs.pop()
    options = {"K": columns, "N": rows, "bits": 4, "block_size": size, "accuracy_level": _ACCURACY}
    writer.add("MatMulNBits", *inputs, domain=_CONTRIB, **options)


def _coded_embedding(writer: _Writer, codes: str, scales: str, zeros: str, ids: str, columns: int) -> None:
    if writer.is_packed(codes):
        rows, groups = writer.dims(scales)[:2]
        width = writer.array(codes).size // rows
        inputs = [writer.shaped(codes, rows, width), ids, scales, *([writer.packed_zeros(zeros)] if zeros else [])]
        options = {"gather_axis": 0, "quantize_axis": 1, "block_size": 2 * width // groups, "bits": 4}
        values = writer.add("GatherBlockQuantized", *inputs, domain=_CONTRIB, **options)
        if columns < 2 * width:
            _cut(writer, values, columns)
        return
    rows = writer.dims(codes)[0]
    values = writer.to_float(writer.add("Gather", codes, ids, axis=0))
    if zeros:
        values = writer.add("Sub", values, writer.to_float(writer.add("Gather", writer.shaped(zeros, rows, 1), ids, axis=0)))
    if scales:
        writer.add("Mul", values, writer.add("Gather", writer.shaped(scales, rows, 1), ids, axis=0))


def _dynamic_linear(writer: _Writer, x: str, codes: str, scales: str, bias: str) -> None:
    if x not in writer.quantized:
        writer.quantized[x] = writer.add_many("DynamicQuantizeLinear", [x], 3)
    values, scale, zero = writer.quantized[x]
    sums = writer.to_float(writer.add("MatMulInteger", values, writer.transposed(codes), zero))
    out = writer.add("Mul", sums, writer.add("Mul", scale, scales))
    if bias:
        writer.add("Add", out, bias)


def _cut(writer: _Writer, values: str, columns: int) -> str:
    """Without what the last group is filled up with."""
    return writer.add("Slice", values, writer.integers(0), writer.integers(columns), writer.integers(-1))


_EXPANSIONS: dict[str, Callable[..., None]] = {
    "decode": _decode,
    "grouped_linear": _grouped_linear,
    "coded_embedding": _coded_embedding,
    "dynamic_linear": _dynamic_linear,
}
