"""Which module each kernel's time belongs to, by ONNX Runtime's own profiler."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ELSEWHERE", "MARK", "layer_seconds", "name_by_module", "rename", "with_inner"]

ELSEWHERE = "(runtime)"  # kernels of the runtime's own, such as changes of memory layout
_SCOPES = "pkg.torch.onnx.name_scopes"
MARK = "::"
_NAME = re.compile(r"(?:fused )?<(?P<path>.*?)#(?P<turn>\d+)>" + MARK)

Place = tuple[str, int]  # module path, and the how-manieth operator of that module


def name_by_module(graph: Any) -> None:
    """Name every node, and every value that it makes (outputs of the model too), after the module it came from.

    The runtime's optimizer names fused kernels after one of the nodes or outputs they replace, so both carry the path.
    Must run before the exporter's metadata is stripped.
    """
    inputs = {i.name for i in graph.input}
    renamed: dict[str, str] = {}
    turns: dict[str, list[str]] = {}
    for index, node in enumerate(graph.node):
        path, operator = _origin(node)
        seen = turns.setdefault(path, [])
        if operator not in seen:
            seen.append(operator)
        label = f"<{path}#{seen.index(operator)}>{MARK}{index}"
        node.name = label
        for place, name in enumerate(node.output):
            if name and name not in inputs:
                renamed[name] = f"{label}.{place}"
    rename(graph, renamed)


def rename(graph: Any, renamed: Mapping[str, str]) -> None:
    """Give values their new names, inside the branches and bodies of the graph's nodes too."""
    for part in with_inner(graph):
        for node in part.node:
            for field in (node.input, node.output):
                field[:] = [renamed.get(name, name) for name in field]
        for output in part.output:
            output.name = renamed.get(output.name, output.name)
        del part.value_info[:]


def with_inner(graph: Any) -> Iterator[Any]:
    """The graph, and the branches and bodies inside its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from with_inner(inner)


def _origin(node: Any) -> tuple[str, str]:
    """Module path and name of the traced operator that the node was made from."""
    scopes = next((item.value for item in node.metadata_props if item.key == _SCOPES), "[]")
    try:
        names = ast.literal_eval(scopes)
    except (ValueError, SyntaxError):
        names = []
    if len(names) < 2 or names[0] != "":
        return ELSEWHERE, ""
    return str(names[-2]).partition("@")[0], str(names[-1])


def layer_seconds(session: Any, feed: Mapping[str, Any], runs: int, warmup: int, quantile: float = 0.5) -> dict[Place, float]:
    """Median seconds (or another quantile) per call of every operator's kernels; the session must have been made with profiling on.

    Calls that the session has made before count as warm-up too.
    """
    for _ in range(warmup + runs):
        session.run(None, feed)
    path = Path(session.end_profiling())
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    calls = sum(event.get("name") == "model_run" for event in events)
    return _by_module(events, calls, calls - runs, quantile)


def _by_module(events: Sequence[Mapping[str, Any]], calls: int, warmup: int, quantile: float) -> dict[Place, float]:
    kernels: dict[str, list[float]] = {}
    for event in _outermost(events):
        kernels.setdefault(event["name"], []).append(event["dur"] * 1e-6)
    total: dict[Place, float] = {}
    for name, seconds in kernels.items():
        per_call = max(1, round(len(seconds) / calls))
        match = _NAME.match(name)
        place = (match["path"], int(match["turn"])) if match else (ELSEWHERE, 0)
        total[place] = total.get(place, 0.0) + per_call * float(np.quantile(seconds[warmup * per_call :] or seconds, quantile))
    return total


def _outermost(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Kernels in the order of running, without those inside a branch or loop, whose time is in that of the node around them."""
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    kernels.sort(key=lambda event: (event.get("tid", 0), event["ts"], -event["dur"]))
    found: list[Mapping[str, Any]] = []
    for event in kernels:
        around = found[-1] if found else None
        if around is None or around.get("tid", 0) != event.get("tid", 0) or event["ts"] >= around["ts"] + around["dur"]:
            found.append(event)
    return found
