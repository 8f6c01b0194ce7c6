"""The places where a walked graph multiplies by a weight: as matrices, with the data that tell what the weight has to do there."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from sizewise.arith.recurrence import Kind, Strand, previous, strands, unroll
from sizewise.arith.repair import HeldOut
from sizewise.graph.behind import Behind
from sizewise.graph.coded import Weight
from sizewise.graph.flow import arguments, operator
from sizewise.graph.layer_rows import argument, groups_of, layer_inputs, layer_outputs, picked
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.refit_recurrent import is_recurrent

__all__ = ["Slot", "Slots"]

WIDEST = 8192  # inputs: moments of more would take gigabytes
_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_PRODUCTS = {"matmul": 1, "mm": 1, "addmm": 2}  # which argument is the weight; the input is the one before


@dataclass
class Slot:
    """A weight where it is used first.

    Attributes:
        weight: of the graph.
        name: in the lockstep.
        matrix: the whole model's values [groups, out, in].
        fitted: whether the wanted outputs are known, so that a fit can aim at them.
        sinks: vectors that take up constants of the outputs, and which rows each of them does; none where nothing does.
        gain: that outputs are multiplied by before they meet the vector; 1 by default.
    """

    lockstep: Lockstep
    weight: Weight
    name: str
    matrix: Tensor
    fitted: bool = False
    sinks: tuple[tuple[str, slice], ...] = ()
    gain: Tensor | None = None

    def data(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Per batch, the twin's inputs [groups, rows, in] and the wanted outputs [groups, rows, out], without a bias."""
        yield from ()

    def regression(self, generator: torch.Generator) -> HeldOut:
        """Sums over the data; of no row where there are none, or inputs are too many."""
        found = HeldOut.empty(len(self.matrix), self.matrix.shape[1], self.matrix.shape[2] if self.matrix.shape[2] <= WIDEST else 0)
        if self.matrix.shape[2] <= WIDEST:
            for x, y in self.data(generator):
                found.add(x, y)
        return found

    def put(self, matrix: Tensor) -> None:
        """Give the twin other values."""
        self.lockstep.weights[self.name] = self.shaped(matrix)

    def shaped(self, matrix: Tensor) -> Tensor:
        """Values of the matrix as the weight has them."""
        moved = self.weight.value.movedim(self.weight.axis, 0).shape
        return matrix.reshape(moved).movedim(0, self.weight.axis).to(self.weight.value).contiguous()

    def lift(self, constant: Tensor) -> None:
        """Add a constant [groups * out] to the twin's outputs, where something takes it up."""
        self.lockstep.weights.update(self.lifted(constant))

    def lifted(self, constant: Tensor) -> dict[str, Tensor]:
        """The twin's vectors with such a constant in them, by name."""
        change = constant if self.gain is None else constant * self.gain.to(constant)
        found: dict[str, Tensor] = {}
        for name, rows in self.sinks:
            found[name] = self.lockstep.weights[name].clone()
            found[name][rows] += change[rows].to(found[name])
        return found


class Slots:
    """Finds the slots of a graph that is being walked; every weight has one, at its first use.

    Args:
        lockstep: that walks it.
        weights: of the graph.
    """

    def __init__(self, lockstep: Lockstep, weights: Sequence[Weight]) -> None:
        self.lockstep = lockstep
        self._weights = {lockstep.name(weight.name): weight for weight in weights}
        self._uses = Counter(lockstep.name(used) for node in lockstep.graph.nodes for used in node.all_input_nodes if used.op == "get_attr")
        self._seen: set[str] = set()

    def at(self, node: Node) -> Iterator[Slot]:
        """Slots of a node that the twin has not run yet; each is to be put before the next is asked for."""
        held = [self.lockstep.name(used) for used in node.all_input_nodes if used.op == "get_attr"]
        new = [name for name in held if name in self._weights and name not in self._seen]
        self._seen.update(new)
        if not new:
            return
        if is_recurrent(node) and self._plain_strands(node) and len(set(held)) == len(held):
            yield from _Recurrent(self, node).slots()
            return
        for name in new:
            yield self._slot(node, name)

    def single(self, name: str) -> bool:
        """Whether only one operator uses a tensor."""
        return self._uses[name] == 1

    def of(self, name: str) -> Weight:
        """The weight of a name in the lockstep."""
        return self._weights[name]

    def _slot(self, node: Node, name: str) -> Slot:
        weight = self._weights[name]
        kind = operator(node)
        if kind in _LAYERS and self._is(node.args[1], name):
            return _Layer.of(self, node, name)
        if kind in _PRODUCTS and self._is(node.args[_PRODUCTS[kind]], name):
            bias = node.args[0] if kind == "addmm" else None
            sinks = _vector(self, bias)
            return _Product(self.lockstep, weight, name, self._matrix(name), self.single(name), sinks, node=node, bias=_held(self, bias))
        return Slot(self.lockstep, weight, name, self._matrix(name))

    def _matrix(self, name: str) -> Tensor:
        return self.lockstep.whole_tensor(name).movedim(self._weights[name].axis, 0).flatten(1).unsqueeze(0)

    def _is(self, node: Any, name: str) -> bool:
        return isinstance(node, Node) and node.op == "get_attr" and self.lockstep.name(node) == name

    def _plain_strands(self, node: Node) -> bool:
        """Whether it has the weights of every strand and no projections."""
        args = arguments(node)
        every = list(strands(args["num_layers"], bidirectional=args["bidirectional"], bias=args["has_biases"]))
        return len(args["params"]) == sum(len(strand.names) for strand in every)


@dataclass
class _Layer(Slot):
    """A convolution or linear layer."""

    node: Node = field(kw_only=True)
    behind: Behind = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)

    @staticmethod
    def of(slots: Slots, node: Node, name: str) -> "_Layer":
        lockstep, groups = slots.lockstep, groups_of(node)
        weight = lockstep.whole_tensor(name)
        behind = Behind.of(lockstep, node)
        sinks, gain = _sink(slots, node, behind)
        matrix = weight.flatten(1).reshape(groups, -1, weight[0].numel())
        bias = _held(slots, argument(node, 2, "bias", None))
        return _Layer(lockstep, slots.of(name), name, matrix, slots.single(name), sinks, gain, node=node, behind=behind, bias=bias)

    def data(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        source: Node = self.node.args[0]  # type: ignore[assignment]
        twins, groups = self.lockstep.twin(source), len(self.matrix)
        kernel = self.weight.value.shape[2:]
        for batch, (x, y) in enumerate(zip(twins, self.lockstep.whole(self.node), strict=True)):
            outputs = _without(layer_outputs(self.node, y + self.behind.missing(self.lockstep, batch, y)), self.bias)
            chosen = picked(outputs.shape[1], self.matrix.shape[2], groups, len(twins), generator)
            yield layer_inputs(self.node, x, kernel, chosen), outputs if chosen is None else outputs[:, chosen]


def _sink(slots: Slots, node: Node, behind: Behind) -> tuple[tuple[tuple[str, slice], ...], Tensor | None]:
    """The vector that takes up a constant: the bias of the normalization behind, or the layer's own; and the gain before it."""
    if behind.gain is not None:
        found = _vector(slots, next(iter(node.users)).args[2])
        if found:
            return found, behind.gain
    return _vector(slots, argument(node, 2, "bias", None)), None


def _vector(slots: Slots, node: Any) -> tuple[tuple[str, slice], ...]:
    """A vector that only one operator uses."""
    if not isinstance(node, Node) or node.op != "get_attr" or not slots.single(slots.lockstep.name(node)):
        return ()
    return ((slots.lockstep.name(node), slice(None)),)


def _held(slots: Slots, node: Any) -> Tensor | None:
    return slots.lockstep.whole_tensor(slots.lockstep.name(node)) if isinstance(node, Node) and node.op == "get_attr" else None


def _without(outputs: Tensor, bias: Tensor | None) -> Tensor:
    """Outputs [groups, rows, out] without the bias of the layer."""
    return outputs if bias is None else outputs - bias.reshape(len(outputs), 1, -1)


@dataclass
class _Product(Slot):
    """A product with a matrix [in, out]."""

    node: Node = field(kw_only=True)
    bias: Tensor | None = field(kw_only=True)

    def data(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        source: Node = self.node.args[_PRODUCTS[operator(self.node)] - 1]  # type: ignore[assignment]
        for x, y in zip(self.lockstep.twin(source), self.lockstep.whole(self.node), strict=True):
            yield x.reshape(1, -1, x.shape[-1]), _without(y.reshape(1, -1, y.shape[-1]), self.bias)


@dataclass
class _Gates(Slot):
    """One matrix of a recurrent layer."""

    inputs: list[Tensor] = field(kw_only=True)  # [time, batch, in] per batch, as are the wanted sums
    wanted: list[Tensor] = field(kw_only=True)

    def data(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.inputs, self.wanted, strict=True):
            yield x.transpose(0, 1).reshape(1, -1, x.shape[-1]), y.transpose(0, 1).reshape(1, -1, y.shape[-1])


class _Recurrent:
    """The strands of a recurrent layer, one after the other."""

    def __init__(self, slots: Slots, node: Node) -> None:
        self.own, self.lockstep, self.args, self.kind = slots, slots.lockstep, arguments(node), cast(Kind, operator(node))
        self.found: dict[int, tuple[list[list[Tensor]], list[list[Tensor]]]] = {}

    def slots(self) -> Iterator[Slot]:
        """Inputs to hidden, then hidden to hidden, strand by strand."""
        args = self.args
        first = [[_time_first(x, args) for x in values(args["input"])] for values in (self.lockstep.whole, self.lockstep.twin)]
        for strand in strands(args["num_layers"], bidirectional=args["bidirectional"], bias=args["has_biases"]):
            sides = self.found.get(strand.layer - 1)
            whole, twin = first if sides is None else ([torch.cat(parts, -1) for parts in zip(*side, strict=True)] for side in sides)
            yield from self._strand(strand, list(whole), list(twin))

    def _strand(self, strand: Strand, whole: list[Tensor], twin: list[Tensor]) -> Iterator[Slot]:
        names = self._names(strand)
        plain = [self.lockstep.whole_tensor(name) for name in names]
        states = [unroll(self.kind, x, plain, reverse=strand.reverse) for x in whole]
        yield self._gates(names[0], [(name, slice(None)) for name in names[2:3]], twin, [x @ plain[0].T for x in whole])
        summed = self._summed(plain[1])
        lost = [_only(x @ plain[0].T - y @ self.lockstep.weights[names[0]].T, summed) for x, y in zip(whole, twin, strict=True)]
        begins = [previous(s, reverse=strand.reverse) for s in self._run(names, twin, strand)]
        wanted = [previous(s, reverse=strand.reverse) @ plain[1].T + gone for s, gone in zip(states, lost, strict=True)]
        rest = [(name, slice(summed.stop, None)) for name in names[3:4] if summed.stop is not None]
        yield self._gates(names[1], [*((name, summed) for name in names[2:3]), *rest], begins, wanted)
        sides = self.found.setdefault(strand.layer, ([], []))
        sides[0].append(states)
        sides[1].append(self._run(names, twin, strand))

    def _run(self, names: Sequence[str], inputs: Sequence[Tensor], strand: Strand) -> list[Tensor]:
        weights = [self.lockstep.weights[name] for name in names]
        return [unroll(self.kind, x, weights, reverse=strand.reverse) for x in inputs]

    def _gates(self, name: str, sinks: Sequence[tuple[str, slice]], inputs: list[Tensor], wanted: list[Tensor]) -> Slot:
        matrix, weight = self.lockstep.whole_tensor(name).unsqueeze(0), self.own.of(name)
        return _Gates(self.lockstep, weight, name, matrix, True, tuple(sinks), inputs=inputs, wanted=wanted)

    def _summed(self, recurrent: Tensor) -> slice:
        """Gates that add up what comes from inputs and from the state: all, but for a GRU's last."""
        return slice(0, 2 * recurrent.shape[1]) if self.kind == "gru" else slice(None)

    def _names(self, strand: Strand) -> list[str]:
        each = len(strand.names)
        place = each * (strand.layer * (2 if self.args["bidirectional"] else 1) + strand.reverse)
        return [self.lockstep.name(node) for node in self.args["params"][place : place + each]]


def _time_first(x: Tensor, args: Mapping[str, Any]) -> Tensor:
    return x.unsqueeze(1) if x.ndim == 2 else x.transpose(0, 1) if args["batch_first"] else x


def _only(values: Tensor, rows: slice) -> Tensor:
    kept = torch.zeros_like(values)
    kept[..., rows] = values[..., rows]
    return kept
