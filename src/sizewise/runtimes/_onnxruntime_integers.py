"""What ONNX Runtime really executes as integers, whatever the file says.

A file with quantize/dequantize pairs, or with int8 weights, is a wish: the optimizer fuses it into integer kernels where its patterns
match, and the rest runs in floating point between conversions. So the optimized graph is saved, every node of it gets a name of its
own, and one profiled call tells which of them ran, on which shapes. Only the blocked layout of float convolutions is switched off for
this, since it pads channels; it changes no type. Times are the whole optimizer's.
"""

import json
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from sizewise.errors import UnsupportedModel
from sizewise.runtimes._onnxruntime_layers import with_inner
from sizewise.runtimes._onnxruntime_macs import UNKNOWN, Call, is_depthwise, macs
from sizewise.types import Executed

__all__ = ["executed"]

PROFILE_S = 0.3
_BLOCKED = "NchwcTransformer"
_KERNEL = "_kernel_time"
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_HOLDERS = ("If", "Loop", "Scan", "SequenceMap")  # their time is that of the nodes inside
_MOVE_NAMES = """
Cast Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape Slice SpaceToDepth Split Squeeze Tile
Transpose Unsqueeze
"""
_MOVES = frozenset(_MOVE_NAMES.split())
_FLOATS = ("float", "float16", "bfloat16", "double")

Shape = tuple[int, ...]
Step = tuple[str, Sequence[str], Sequence[str]]  # name of a node, values that it reads, values that it writes
Event = Mapping[str, Any]


def executed(ort: Any, path: Path, feed_for: Callable[[list[str]], Mapping[str, Any]], *, threads: int) -> Executed | None:
    """Which part of a file's arithmetic runs as integers on this machine.

    Args:
        ort: the module onnxruntime.
        path: of an `.onnx` file.
        feed_for: arrays of one call, by the names of the file's inputs.
        threads: per call.

    Returns:
        Figures of one call; None where the optimized graph cannot be saved and loaded again.

    Raises:
        UnsupportedModel: onnxruntime cannot load the file.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        session = _load(ort, path, _options(ort, folder, threads))
        feed = feed_for([i.name for i in session.get_inputs()])
        seconds, kernels = _timed(session, feed)
        try:
            graph, named = _named(ort, path, folder, threads)
        except UnsupportedModel:
            return None
        found = _summed(graph, _events(named, feed, 1), feed)
        return replace(found, seconds=seconds, kernels=kernels, signed_activations=_signed(path))


# ---- sessions


def _options(ort: Any, folder: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # saving warns that the graph fits this machine only, as it shall
    return options


def _load(ort: Any, path: Path, options: Any, **more: Any) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], **more)
    except Exception as error:  # onnxruntime's errors share no base class but Exception
        raise UnsupportedModel("onnxruntime cannot load the file", where=str(path), got=str(error)[:300]) from error


def _named(ort: Any, path: Path, folder: Path, threads: int) -> tuple[Any, Any]:
    """The optimized graph with a name for every node, and a session that runs it as it is."""
    import onnx

    target = folder / "optimized.onnx"
    options = _options(ort, folder, threads)
    options.enable_profiling = False
    options.optimized_model_filepath = str(target)
    # large weights lie beside the graph, so that they need not be read and written once more
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
    _load(ort, path, options, disabled_optimizers=[_BLOCKED])
    proto = onnx.load(target, load_external_data=False)
    for index, node in enumerate(node for part in with_inner(proto.graph) for node in part.node):
        node.name = str(index)
    target.write_bytes(proto.SerializeToString())
    options = _options(ort, folder, threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # without this, conversions that the optimizer has shared are copied even at this level
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return proto.graph, _load(ort, target, options)


def _events(session: Any, feed: Mapping[str, Any], runs: int) -> list[Event]:
    """The profiler's events of that many calls, in the order of time."""
    for _ in range(runs):
        session.run(None, feed)
    path = Path(session.end_profiling())
    events = json.loads(path.read_text(encoding="utf-8"))
    return sorted(events, key=lambda event: event["ts"])


def _timed(session: Any, feed: Mapping[str, Any]) -> tuple[dict[str, float], int]:
    """Median seconds per call of every operator's kernels together, longest first and without the first call; how many kernels run."""
    begin = perf_counter()
    session.run(None, feed)
    runs = max(3, min(30, round(PROFILE_S / max(perf_counter() - begin, 1e-6))))
    events = _events(session, feed, runs)
    kernels = list(_kernels(events))
    spans = [(run["ts"], run["ts"] + run["dur"]) for run in events if run.get("name") == "model_run"]
    calls = [[kernel for kernel in kernels if begin <= kernel["ts"] < end] for begin, end in spans[1:]]
    totals = [_per_operator(call) for call in calls]
    seconds = {name: median(total.get(name, 0.0) for total in totals) for name in sorted(set().union(*totals))}
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1])), round(median(map(len, calls)))


def _per_operator(call: Sequence[Event]) -> dict[str, float]:
    total: dict[str, float] = {}
    for event in call:
        name = _title(event["args"]["op_name"])
        total[name] = total.get(name, 0.0) + event["dur"] * 1e-6
    return total


def _kernels(events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL) and event["args"]["op_name"] not in _HOLDERS:
            yield event


def _signed(path: Path) -> int:
    """Activations that the file itself quantizes to signed integers."""
    import onnx

    parts = list(with_inner(onnx.load(path, load_external_data=False).graph))
    kinds = {i.name: i.data_type for part in parts for i in part.initializer}
    quantizers = [node for part in parts for node in part.node if node.op_type == "QuantizeLinear" and node.input[0] not in kinds]
    zeros = [kinds.get(node.input[2]) if len(node.input) > 2 else None for node in quantizers]
    return zeros.count(onnx.TensorProto.INT8)


# ---- figures


@dataclass
class _Sums:
    """Figures in the making."""

    integer_macs: int = 0
    float_macs: int = 0
    integer: dict[str, str] = field(default_factory=dict)  # operator by name of the node, as in all that follow
    floating: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    conversions: dict[str, str] = field(default_factory=dict)
    uncounted: dict[str, str] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    signed: set[str] = field(default_factory=set)
    depthwise: set[str] = field(default_factory=set)


def _summed(graph: Any, events: Sequence[Event], feed: Mapping[str, Any]) -> Executed:
    nodes = {node.name: node for part in with_inner(graph) for node in part.node}
    stored = {i.name: tuple(i.dims) for part in with_inner(graph) for i in part.initializer}
    shapes: dict[str, Shape] = {**stored, **{name: tuple(array.shape) for name, array in feed.items()}}
    sums = _Sums()
    for event in _kernels(events):
        node = nodes.get(event["name"].removesuffix(_KERNEL))
        if node is None:
            continue  # a cast or copy that the runtime puts in whenever it loads a graph: nothing is multiplied
        call = _call(node, event, shapes, stored)
        _add(sums, node, event, call, stored)
        shapes.update(zip(node.output, call.outputs, strict=False))
    between = _between(list(_steps(graph)), set(sums.integer)) & set(sums.other)
    return Executed(
        integer_macs=sums.integer_macs,
        float_macs=sums.float_macs,
        integer_ops=_counted(sums.integer.values()),
        float_ops=_counted(sums.floating.values()),
        between=_counted(sums.other[name] for name in between),
        conversions=_counted(sums.conversions.values()),
        weight_conversions=len(sums.weights),
        signed=len(sums.signed),
        depthwise=len(sums.depthwise),
        uncounted=_counted(sums.uncounted.values()),
        machine=platform.machine(),
    )


def _counted(operators: Iterable[str]) -> dict[str, int]:
    """The most frequent first; names decide between equals, so that the order is always the same."""
    return dict(sorted(Counter(map(_title, operators)).items(), key=lambda pair: (-pair[1], pair[0])))


def _title(operator: str) -> str:
    """A convolution with its activation is a convolution: the blocked layout has one name for both."""
    return operator.removeprefix("Fused")


def _call(node: Any, event: Event, shapes: Mapping[str, Shape], stored: Mapping[str, Shape]) -> Call:
    """What ran, with the shapes that the profiler saw, or else those that are known of the values."""
    from onnx.helper import get_attribute_value

    listed = _listed(event["args"]["input_type_shape"])
    seen = _aligned([name for name in node.input if name], listed, stored)
    return Call(
        operator=node.op_type,
        domain=node.domain,
        attributes={a.name: get_attribute_value(a) for a in node.attribute},
        inputs=[seen.get(name, shapes.get(name)) if name else None for name in node.input],
        outputs=_listed(event["args"]["output_type_shape"]),
    )


def _listed(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[Shape]:
    return [tuple(shape) for entry in entries for shape in entry.values()]


def _aligned(names: Sequence[str], listed: Sequence[Shape], stored: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes by name; weights that a kernel has packed are not listed, so stored ones of another shape are passed over."""
    found: dict[str, Shape] = {}
    missing, rest = len(names) - len(listed), list(listed)
    for name in names:
        if missing > 0 and name in stored and (not rest or rest[0] != stored[name]):
            missing -= 1
        elif rest:
            found[name] = rest.pop(0)
    return found


def _add(sums: _Sums, node: Any, event: Event, call: Call, stored: Mapping[str, Shape]) -> None:
    if node.op_type in _CONVERSIONS:
        sums.conversions[node.name] = node.op_type
        sums.weights |= {node.name} if node.input[0] in stored else set()
        return
    try:
        found = None if node.op_type in UNKNOWN else macs(call)
    except LookupError:
        sums.uncounted[node.name] = node.op_type
        return
    if found is not None:
        _add_product(sums, node, event, call, found)
    elif node.op_type in UNKNOWN:
        sums.uncounted[node.name] = node.op_type
    elif node.op_type not in _MOVES and _first_type(event["args"]["output_type_shape"]) in _FLOATS:
        sums.other[node.name] = node.op_type


def _add_product(sums: _Sums, node: Any, event: Event, call: Call, found: tuple[int, int]) -> None:
    sums.integer_macs, sums.float_macs = sums.integer_macs + found[0], sums.float_macs + found[1]
    if not found[0]:
        sums.floating[node.name] = node.op_type
        return
    sums.integer[node.name] = node.op_type
    if _first_type(event["args"]["input_type_shape"]) == "int8":
        sums.signed.add(node.name)
    if is_depthwise(call):
        sums.depthwise.add(node.name)


def _first_type(entries: Sequence[Mapping[str, Any]]) -> str:
    return next((kind for entry in entries for kind in entry), "")


# ---- what lies between integer kernels


def _steps(graph: Any) -> Iterator[Step]:
    """Every node with what it reads and writes; a branch or body reads what its node reads, and its node reads what comes out of it."""
    for node in graph.node:
        inner = [g for a in node.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs)]
        yield node.name, [*node.input, *(o.name for g in inner for o in g.output)], list(node.output)
        for part in inner:
            yield "", list(node.input), [i.name for i in part.input]
            yield from _steps(part)


def _between(steps: Sequence[Step], ends: set[str]) -> set[str]:
    """Nodes that depend on one of `ends` and that another one of them depends on."""
    backwards = [(name, writes, reads) for name, reads, writes in reversed(steps)]
    return (_after(steps, ends) & _after(backwards, ends)) - ends


def _after(steps: Sequence[Step], starts: set[str]) -> set[str]:
    values: set[str] = set()
    found: set[str] = set()
    before = -1
    while before < len(values):  # once more than the steps need in their order; loops hand values back
        before = len(values)
        for name, reads, writes in steps:
            touched = not values.isdisjoint(reads)
            if touched:
                found.add(name)
            if touched or name in starts:
                values.update(value for value in writes if value)
    return found
