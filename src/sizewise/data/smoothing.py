"""Whether moving the spread of activations into weights makes a quantized model more like the float one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from sizewise.data.outputs import OutputChange
from sizewise.graph.equalization import Link, links, smooth
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.trace import eval_copy
from sizewise.protocols import Inputs

__all__ = ["smoothed"]

STRENGTH = 0.5  # of the authors, for most transformers


def smoothed(graph: GraphModule, batches: Sequence[Inputs], quantize: Callable[[GraphModule], None]) -> tuple[GraphModule, str | None]:
    """The quantized graph, after SmoothQuant where that changes the outputs less; `graph` itself is left alone.

    Args:
        graph: exported, in float.
        batches: calibration inputs, a few; all activations of one place are held at a time.
        quantize: makes a graph integers, in place; it replaces parameters and writes to none.

    Returns:
        the graph, and what to say about it; nothing where no normalization writes what only linear layers read.

    Source: Xiao et al., SmoothQuant, ICML 2023. Deviation: it is tried, not assumed.
    """
    found = [link for link in links(graph) if link.normalized]
    plain = eval_copy(graph, shared=True)
    quantize(plain)
    if not found or not batches:
        return plain, None
    even = eval_copy(graph, shared=True)
    smooth(even, links(even), _ranges(graph, found, batches), STRENGTH)
    quantize(even)
    change = OutputChange(graph, batches)
    errors = change(plain), change(even)
    places = f"behind {len(found)} normalizations"
    if errors[1] >= errors[0]:
        return plain, f"smoothing {places} does not help"
    return even, f"smoothed {places}: the outputs change by {errors[1]:.2g} of their variance, {errors[0]:.2g} without"


def _ranges(graph: GraphModule, found: Sequence[Link], batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """Largest absolute value per channel of what every link's node gives."""
    wanted, ranges = {link.node.name for link in found}, {}
    lockstep = Lockstep(graph, batches)
    for node in lockstep.walk():
        if node.name in wanted:
            ranges[node.name] = torch.stack([y.abs().flatten(0, -2).amax(0) for y in lockstep.whole(node)]).amax(0)
    return ranges
