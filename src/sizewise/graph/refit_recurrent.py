"""Fit a recurrent layer of a pruned model to the states that the whole model's has, gate by gate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from sizewise.arith.recurrence import Kind, Strand, previous, strands, unroll
from sizewise.arith.repair import HeldOut
from sizewise.graph.flow import arguments, operator
from sizewise.graph.lockstep import Lockstep

__all__ = ["fit_recurrent", "is_recurrent"]

_KINDS = ("gru", "lstm", "rnn_tanh", "rnn_relu")


def is_recurrent(node: Node) -> bool:
    """Whether a node runs a recurrent layer on whole sequences, with weights that have names."""
    if operator(node) not in _KINDS or "params" not in arguments(node):
        return False
    return all(isinstance(w, Node) and w.op == "get_attr" for w in arguments(node)["params"])


def fit_recurrent(lockstep: Lockstep, node: Node, kept: Mapping[str, Sequence[int]]) -> None:
    """Replace the twin's weights.

    What a gate sums up is linear in the inputs and in the state before, so both matrices are fitted by least squares to what
    the whole layer sums up: from the pruned model's inputs, and from the kept units of the whole layer's states. Constants go
    into the biases. States begin at zero.

    Args:
        lockstep: at the node, which the twin has not run yet.
        node: the recurrent layer's.
        kept: indices of its axes that stay, "out" for the hidden size and "in"; what is absent stays whole.
    """
    args = arguments(node)
    whole, twin = (_time_first(lockstep_values(args["input"]), args) for lockstep_values in (lockstep.whole, lockstep.twin))
    if not whole or (not kept and all(torch.equal(a, b) for a, b in zip(whole, twin, strict=True))):
        return
    layer = _Layer(lockstep, args, cast(Kind, operator(node)), kept)
    found: dict[int, tuple[list[list[Tensor]], list[list[Tensor]]]] = {}
    for strand in strands(args["num_layers"], bidirectional=args["bidirectional"], bias=args["has_biases"]):
        if strand.layer:
            whole, twin = ([torch.cat(parts, -1) for parts in zip(*found[strand.layer - 1][side], strict=True)] for side in (0, 1))
        states = layer.fit(strand, whole, twin)
        sides = found.setdefault(strand.layer, ([], []))
        sides[0].append(states[0])
        sides[1].append(states[1])


def _time_first(values: Sequence[Tensor], args: Mapping[str, Any]) -> list[Tensor]:
    return [x.unsqueeze(1) if x.ndim == 2 else x.transpose(0, 1) if args["batch_first"] else x for x in values]


@dataclass
class _Layer:
    lockstep: Lockstep
    args: Mapping[str, Any]
    kind: Kind
    kept: Mapping[str, Sequence[int]]

    def fit(self, strand: Strand, whole: Sequence[Tensor], twin: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Fit one strand; the states of the whole layer and of the fitted one."""
        names = self._names(strand)
        before = [self.lockstep.whole_tensor(name) for name in names]
        states = [unroll(self.kind, x, before, reverse=strand.reverse) for x in whole]
        begins = [previous(s, reverse=strand.reverse) for s in states]
        units = list(self.kept.get("out", range(before[1].shape[1])))
        rows = [gate * before[1].shape[1] + unit for gate in range(before[1].shape[0] // before[1].shape[1]) for unit in units]
        reads = list(self.kept.get("in", range(before[0].shape[1]))) if not strand.layer else self._reads(before[0].shape[1], units)
        self._matrix(names[0], names[2:3], rows, reads, [x @ before[0][rows].T for x in whole], twin)
        if "out" in self.kept:
            self._matrix(names[1], names[3:4], rows, units, [h @ before[1][rows].T for h in begins], begins)
        after = [self.lockstep.weights[name] for name in names]
        return states, [unroll(self.kind, x, after, reverse=strand.reverse) for x in twin]

    def _names(self, strand: Strand) -> list[str]:
        each = len(strand.names)
        place = each * (strand.layer * (2 if self.args["bidirectional"] else 1) + strand.reverse)
        return [self.lockstep.name(node) for node in self.args["params"][place : place + each]]

    def _reads(self, width: int, units: Collection[int]) -> list[int]:
        """Columns of a further layer: the kept units of every direction before."""
        directions = 2 if self.args["bidirectional"] else 1
        return [block * (width // directions) + unit for block in range(directions) for unit in units]

    def _matrix(
        self, name: str, bias: Sequence[str], rows: list[int], columns: list[int], wanted: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        weight = self.lockstep.weights[name].clone()
        regression = HeldOut.empty(1, len(rows), len(columns))
        for x, y in zip(inputs, wanted, strict=True):
            x, y = x.transpose(0, 1)[..., columns], y.transpose(0, 1)  # example by example
            regression.add(x.reshape(1, -1, len(columns)), y.reshape(1, -1, len(rows)))
        chosen = torch.tensor(rows)[:, None], torch.tensor(columns)
        found, constant = regression.solve(weight[chosen].unsqueeze(0), intercept=bool(bias))
        weight[chosen] = found[0].to(weight)
        self.lockstep.weights[name] = weight
        if bias:
            values = self.lockstep.weights[bias[0]].clone()
            values[rows] += constant[0].to(values)
            self.lockstep.weights[bias[0]] = values
