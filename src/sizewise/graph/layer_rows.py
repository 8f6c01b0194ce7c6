"""A convolution or linear layer of a graph as a product of matrices: what it multiplies, and what it gives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from sizewise.arith.unfolding import input_rows, output_rows
from sizewise.graph.flow import operator

__all__ = ["FEWEST_ROWS", "argument", "groups_of", "layer_inputs", "layer_outputs", "picked"]

MOST_ROWS = 2**17  # positions that one layer is fitted to,
MOST_VALUES = 2**26  # or as many as give so many inputs in all,
FEWEST_ROWS = 20  # but not less than so many times the columns


def argument(node: Node, place: int, name: str, default: Any) -> Any:
    """An argument of a node by place or name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def groups_of(node: Node) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return 1 if operator(node) == "linear" else int(argument(node, 6, "groups", 1))


def layer_outputs(node: Node, y: Tensor) -> Tensor:
    """The layer's output as [groups, rows, outputs]."""
    return y.reshape(1, -1, y.shape[-1]) if operator(node) == "linear" else output_rows(y, groups_of(node))


def layer_inputs(node: Node, x: Tensor, kernel: Sequence[int], chosen: Tensor | None = None) -> Tensor:
    """The layer's input as [groups, rows, columns], columns in the order of `weight.flatten(1)`.

    Args:
        node: the layer.
        x: its input.
        kernel: sizes behind the first two of its weight; none for a linear layer.
        chosen: numbers of the rows that are wanted; all by default.
    """
    if operator(node) == "linear":
        rows = x.reshape(1, -1, x.shape[-1])
        return rows if chosen is None else rows[:, chosen]
    plain = [1] * len(kernel)
    stride, dilation = argument(node, 3, "stride", plain), argument(node, 5, "dilation", plain)
    padding = argument(node, 4, "padding", [0] * len(kernel))
    return input_rows(x.float(), kernel, stride, padding, dilation, groups_of(node), chosen)


def picked(rows: int, columns: int, groups: int, batches: int, generator: torch.Generator) -> Tensor | None:
    """Which rows of one batch a fit looks at: all (None) unless there are more than enough."""
    most = min(MOST_ROWS, max(MOST_VALUES // (columns * groups), FEWEST_ROWS * columns)) // max(1, batches)
    if rows <= max(1, most):
        return None
    return torch.randperm(rows, generator=generator)[: max(1, most)].sort().values
