"""Fit every layer of a pruned model to what the whole model computes at the same place, in the order of running."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from sizewise.arith.repair import HeldOut
from sizewise.graph.behind import Behind
from sizewise.graph.flow import arguments, shape_of
from sizewise.graph.layer_rows import groups_of, layer_inputs, layer_outputs, picked
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.refit_recurrent import fit_recurrent, is_recurrent
from sizewise.graph.surgery import WHOLE, axes, axis_size, zero_indices
from sizewise.protocols import Inputs, Progress, Silent

__all__ = ["FittedLayer", "Kept", "refit", "weight_of"]

Kept = Mapping[str, Mapping[str, Sequence[int]]]  # module path, "out" or "in", the indices that stay
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


def refit(
    model: nn.Module,
    program: ExportedProgram,
    batches: Sequence[Inputs],
    kept: Kept,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """New values of parameters and buffers, in the whole model's shapes, with zeros where channels go.

    Convolutions (grouped ones too) and linear layers are fitted by least squares: inputs are the
    pruned model's, with everything before already refitted; the wanted outputs are the whole model's. Where the output is
    added to a residual stream, the wanted output also makes up for what that stream has lost so far. What is constant goes
    into a bias or the mean of the normalization behind.

    Args:
        model: whole.
        program: of it, exported.
        batches: calibration inputs; all activations of one place are held at a time.
        kept: what stays of every layer that loses something.
        seed: of the choice of positions where there are more than enough.
        progress: told which layer is being fitted.

    Source: He et al., Channel Pruning, ICCV 2017, for the fit; the asymmetric reconstruction of Zhang et al., Accelerating
    very deep convolutional networks, TPAMI 2016, for pruned inputs against whole outputs. The residual correction is ours.
    """
    lockstep = Lockstep(program.module(check_guards=False), batches)
    lockstep.weights.update({lockstep.name(name): tensor for name, tensor in _emptied(model, kept).items()})
    uses = Counter(lockstep.name(w) for node in lockstep.graph.nodes for w in node.all_input_nodes if w.op == "get_attr")
    generator = torch.Generator().manual_seed(seed)
    left_out = tuple(f"{path}." for path, by_axis in kept.items() if by_axis.get(WHOLE) == [])
    for node in lockstep.walk():
        name = weight_of(node)
        if name is None or name.startswith(left_out):
            continue
        own = kept.get(name.rpartition(".")[0], {})
        (progress or Silent()).working(f"fitting {name.rpartition('.')[0]}")
        if is_recurrent(node):
            fit_recurrent(lockstep, node, own)
        elif uses[lockstep.name(name)] == 1:  # weights that are used several times would be torn between several fits
            layer = FittedLayer(lockstep, node, lockstep.name(name), own)
            if layer.changed():
                layer.fit_inputs() if _kind(node) in _TRANSPOSED else layer.fit(generator)
    return lockstep.weights


def _emptied(model: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Tensors with zeros in place of what goes."""
    twin = copy.deepcopy(model)
    for path, by_axis in kept.items():
        layer = twin.get_submodule(path)
        for axis, rows in by_axis.items():
            if axis in axes(layer):
                zero_indices(layer, axis, sorted(set(range(axis_size(layer, axis))) - set(rows)))
            elif axis == WHOLE and not rows:
                for parameter in layer.parameters():
                    parameter.data.zero_()
    return {f"{path}.{name}": p.detach() for path in kept for name, p in twin.get_submodule(path).named_parameters()}


def _kind(node: Node) -> str:
    return getattr(node.target, "_opname", "") if node.op == "call_function" else ""


def _layer(node: Node) -> bool:
    kinds = (*_CONVOLUTIONS, *_TRANSPOSED, "linear")
    return _kind(node) in kinds and isinstance(node.args[1], Node) and node.args[1].op == "get_attr"


def weight_of(node: Node) -> str | None:
    """Name of the first weight of a node that can be fitted."""
    if _layer(node):
        return str(node.args[1].target)  # type: ignore[union-attr]
    return str(arguments(node)["params"][0].target) if is_recurrent(node) else None


@dataclass
class FittedLayer:
    """One convolution or linear layer of a graph that is being walked."""

    lockstep: Lockstep
    node: Node
    name: str
    kept: Mapping[str, Sequence[int]]
    behind: Behind = field(init=False)

    def __post_init__(self) -> None:
        self.behind = Behind.of(self.lockstep, self.node)

    def changed(self) -> bool:
        """Whether anything is lost here or was before, so that a fit can gain something."""
        sources = [self.node.args[0], *([self.behind.stream] if self.behind.stream is not None else [])]
        return "in" in self.kept or any(self._differs(source) for source in sources)  # type: ignore[arg-type]

    def _differs(self, node: Node) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(self.lockstep.whole(node), self.lockstep.twin(node), strict=True))

    def fit(self, generator: torch.Generator) -> None:
        """Replace the twin's weight, and where there is room for a constant, its bias or mean."""
        weight = self.lockstep.weights[self.name]
        groups = self._groups()
        rows, columns = self._rows(weight), self._columns(weight)
        start = weight.flatten(1).reshape(groups, -1, weight[0].numel())[:, rows][:, :, columns]
        regression = HeldOut.empty(groups, len(rows), len(columns))
        for x, y in self._data(generator, groups):
            regression.add(x[:, :, columns], y[:, :, rows])
        if not regression.n:
            return
        found, constant = regression.solve(start, intercept=self.behind.sink is not None)
        flat = weight.flatten(1).reshape(groups, -1, weight[0].numel()).clone()
        flat[:, torch.tensor(rows)[:, None], torch.tensor(columns)] = found.to(weight)
        self.lockstep.weights[self.name] = flat.reshape(weight.shape)
        if self.behind.sink is not None:
            self._add(rows, groups, constant.to(weight))

    def fit_inputs(self) -> None:
        """For a transposed convolution: rebuild its inputs from those that are left, by least squares, and merge that into the weight.

        Its outputs overlap, so that the weight itself has no rows of its own to be fitted to.
        """
        weight = self.lockstep.weights[self.name]
        source: Node = self.node.args[0]  # type: ignore[assignment]
        if self._groups() > 1 or weight.ndim != len(shape_of(source)):
            return
        columns = list(self.kept.get("in", range(weight.shape[0])))
        regression = HeldOut.empty(1, weight.shape[0], len(columns))
        for x, y in zip(self.lockstep.twin(source), self.lockstep.whole(source), strict=True):
            regression.add(x.movedim(1, -1)[..., columns].reshape(1, -1, len(columns)), y.movedim(1, -1).reshape(1, -1, y.shape[1]))
        if not regression.n:
            return
        start = torch.eye(weight.shape[0])[:, columns].unsqueeze(0)
        found = regression.solve(start, intercept=False)[0][0].to(weight)
        whole = self.lockstep.whole_tensor(self.name)
        new = torch.zeros_like(weight)
        new[columns] = torch.einsum("ik,i...->k...", found, whole)
        if "out" in self.kept:
            new[:, sorted(set(range(weight.shape[1])) - set(self.kept["out"]))] = 0
        self.lockstep.weights[self.name] = new

    def _add(self, rows: Sequence[int], groups: int, constant: Tensor) -> None:
        """The constant is that of outputs before the bias: a bias becomes it, a normalization's mean loses it."""
        assert self.behind.sink is not None
        name, is_bias = self.behind.sink
        values = self.lockstep.weights[name].clone().reshape(groups, -1)
        values[:, rows] = constant if is_bias else values[:, rows] - constant
        self.lockstep.weights[name] = values.reshape(-1)

    def _groups(self) -> int:
        return groups_of(self.node)

    def _rows(self, weight: Tensor) -> list[int]:
        """Outputs within a group that stay; groups that lose some are fitted whole, their zeros cut later."""
        if self._groups() > 1 or "out" not in self.kept:
            return list(range(weight.shape[0] // self._groups()))
        return list(self.kept["out"])

    def _columns(self, weight: Tensor) -> list[int]:
        taps = weight[0, 0].numel()
        inputs = self.kept["in"] if self._groups() == 1 and "in" in self.kept else range(weight.shape[1])
        return [channel * taps + tap for channel in inputs for tap in range(taps)]

    def _data(self, generator: torch.Generator, groups: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Per batch, rows of the pruned model's inputs and of the wanted outputs."""
        source: Node = self.node.args[0]  # type: ignore[assignment]
        whole, twins = self.lockstep.whole(self.node), self.lockstep.twin(source)
        weight = self.lockstep.weights[self.name]
        for batch, (x, y) in enumerate(zip(twins, whole, strict=True)):
            outputs = layer_outputs(self.node, y + self.behind.missing(self.lockstep, batch, y))
            chosen = picked(outputs.shape[1], weight[0].numel(), groups, len(twins), generator)
            inputs = layer_inputs(self.node, x, weight.shape[2:], chosen)
            yield inputs, outputs if chosen is None else outputs[:, chosen]
