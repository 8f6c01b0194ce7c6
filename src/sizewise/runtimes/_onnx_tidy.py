"""Exported ONNX graphs made smaller without changing what they compute."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.runtimes._onnxruntime_layers import with_inner

__all__ = ["drop_defaults", "drop_unused", "fold_pads", "join_repeated"]

_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_MOVING = ("Expand", "Slice", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Gather")  # what comes out of zeros is zeros
_STATES = {"GRU": (5,), "RNN": (5,), "LSTM": (5, 6)}  # inputs that are zero where they are not given


class _Graph:
    """Who makes and who reads every value."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in graph.output}

    def value(self, name: str) -> NDArray[Any] | None:
        """Of a constant."""
        from onnx import numpy_helper

        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)


def fold_pads(graph: Any) -> None:
    """Let convolutions pad their inputs themselves, also where integers are made in between.

    Padding has no integer kernel of its own, and zero is a whole number of steps of every quantization.
    """
    known = _Graph(graph)
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        sides = _zeros_around(known, pad)
        found = _convolutions_behind(known, pad) if sides is not None else None
        if found is None or sides is None:
            continue
        for first, convolution in found:
            _widen(convolution, sides)
            # integers of the same steps as before the padding need not be made anew
            again = first is not convolution and not _same_steps(known, first, pad)
            (first if again else convolution).input[0] = pad.input[0]
    _drop_dead(graph)


def _zeros_around(known: _Graph, pad: Any) -> NDArray[Any] | None:
    """How many zeros a padding puts around the sides of pictures or signals; None for any other padding."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    sides = known.value(pad.input[1])
    value = known.value(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(())
    if mode != b"constant" or sides is None or value is None or len(pad.input) > 3 or float(value) != 0:
        return None
    begins, ends = np.split(sides, 2)
    return None if (sides < 0).any() or begins[:2].any() or ends[:2].any() else np.concatenate([begins[2:], ends[2:]])


def _convolutions_behind(known: _Graph, pad: Any) -> list[tuple[Any, Any]] | None:
    """The convolutions that alone read a padded value, each with the node that reads it first: itself, or one that makes integers."""
    if pad.output[0] in known.outputs:
        return None
    found: list[tuple[Any, Any]] = []
    for reader in known.readers.get(pad.output[0], []):
        behind = [reader]
        if reader.op_type == "QuantizeLinear":
            back = known.readers.get(reader.output[0], [])
            if {reader.output[0], *(node.output[0] for node in back)} & known.outputs or any(n.op_type != "DequantizeLinear" for n in back):
                return None
            behind = [node for one in back for node in known.readers.get(one.output[0], [])]
        found += [(reader, node) for node in behind]
    plain = all(node.op_type == "Conv" and not any(a.name == "auto_pad" and a.s != b"NOTSET" for a in node.attribute) for _, node in found)
    return found if plain else None


def join_repeated(graph: Any) -> None:
    """Leave out integers that are made anew in the steps that they had just before."""
    known = _Graph(graph)
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] in known.outputs or not _same_steps(known, node, node):
            continue
        for back in known.readers.get(node.output[0], []):
            if back.op_type == "DequantizeLinear" and back.output[0] not in known.outputs and list(back.input[1:]) == list(node.input[1:]):
                for reader in known.readers.get(back.output[0], []):
                    for place, name in enumerate(reader.input):
                        if name == back.output[0]:
                            reader.input[place] = node.input[0]
    _drop_dead(graph)


def _same_steps(known: _Graph, quantizing: Any, behind: Any) -> bool:
    """Whether what flows into a node just had the very scale and zero point that it gets again."""
    source = known.makers.get(behind.input[0])
    if source is None or source.op_type != "DequantizeLinear":
        return False
    pairs = list(zip(source.input[1:], quantizing.input[1:], strict=False))
    return all(a == b or _equal(known.value(a), known.value(b)) for a, b in pairs)


def _equal(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    return a is not None and b is not None and bool(np.array_equal(a, b))


def _widen(convolution: Any, sides: NDArray[Any]) -> None:
    from onnx import helper

    own = next((list(a.ints) for a in convolution.attribute if a.name == "pads"), [0] * len(sides))
    kept = [a for a in convolution.attribute if a.name not in ("pads", "auto_pad")]
    del convolution.attribute[:]
    convolution.attribute.extend([*kept, helper.make_attribute("pads", [int(a + b) for a, b in zip(own, sides, strict=True)])])


def drop_defaults(graph: Any) -> None:
    """Leave out what says what would be so anyway: zero points of 0, axes of single scales, states of zero."""
    known = _Graph(graph)
    for node in graph.node:
        if node.op_type in _QUANTIZING:
            _plain_steps(known, node)
        if node.op_type == "Conv":
            _keep(node, lambda a: a.name not in ("auto_pad", "group", "strides", "dilations", "pads", "kernel_shape") or not _plain(a))
        for place in _STATES.get(node.op_type, ()):
            if len(node.input) > place and node.input[place] and _zero(known, node.input[place]):
                node.input[place] = ""
        while node.op_type in _STATES and node.input and not node.input[-1]:
            del node.input[-1]
    _drop_dead(graph)
    drop_unused(graph)


def _plain_steps(known: _Graph, node: Any) -> None:
    scale = known.value(node.input[1])
    if scale is not None and scale.ndim == 0:
        _keep(node, lambda a: a.name != "axis")
    if node.op_type == "DequantizeLinear" and len(node.input) > 2:
        zero = known.value(node.input[2])
        plain = all(reader.op_type == "Conv" for reader in known.readers.get(node.output[0], []))  # integer products want it written out
        if plain and node.input[0] in known.constants and zero is not None and zero.dtype == np.int8 and not zero.any():
            del node.input[2]


def _plain(attribute: Any) -> bool:
    """Whether an attribute of a convolution says what would be so without it; its weight tells the kernel's shape."""
    if attribute.name == "kernel_shape":
        return True
    value = {"auto_pad": attribute.s, "group": attribute.i}.get(attribute.name, list(attribute.ints))
    return value in (b"NOTSET", 1) or (isinstance(value, list) and set(value) <= {0 if attribute.name == "pads" else 1})


def _keep(node: Any, wanted: Callable[[Any], bool]) -> None:
    kept = [attribute for attribute in node.attribute if wanted(attribute)]
    del node.attribute[:]
    node.attribute.extend(kept)


def _zero(known: _Graph, name: str) -> bool:
    value = known.value(name)
    if value is not None:
        return not value.any()
    made = known.makers.get(name)
    return made is not None and made.op_type in _MOVING and _zero(known, made.input[0])


def _drop_dead(graph: Any) -> None:
    """Remove nodes whose values nothing reads."""
    while True:
        used = _used(graph)
        dead = [node for node in graph.node if not any(name in used for name in node.output)]
        for node in dead:
            graph.node.remove(node)
        if not dead:
            return


def drop_unused(graph: Any) -> None:
    """Remove initializers that nothing reads."""
    used = _used(graph)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _used(graph: Any) -> set[str]:
    parts = list(with_inner(graph))
    read: Iterable[str] = (name for part in parts for node in part.node for name in node.input)
    return {*read, *(output.name for part in parts for output in part.output)}
