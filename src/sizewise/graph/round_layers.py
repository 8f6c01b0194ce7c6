"""Fit and round the weights of a prepared graph, layer by layer in the order of running, each on what those before pass on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sizewise.arith.grids import Grid, dequantize, find_steps, quantize
from sizewise.arith.pairs import least_scale
from sizewise.arith.repair import HeldOut
from sizewise.arith.rounding import best_damping, compensated, matched
from sizewise.graph.annotate import LAYERS, layer_path
from sizewise.graph.flow import operator
from sizewise.graph.folding import set_tensor, tensor_of, tensor_uses
from sizewise.graph.layer_rows import FEWEST_ROWS, argument, groups_of, layer_inputs, layer_outputs, picked
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.observers import WeightObserver, observers
from sizewise.protocols import Inputs, Progress

__all__ = ["pack_weights", "round_layers", "weight_observer", "weight_sizes"]

WIDEST = 8192  # inputs: moments of more would take gigabytes
FITTED = 1024  # inputs up to which wide weights are fitted
DAMPING = 0.01  # of the moments, as a share of their mean diagonal
_NARROW = 4  # bits up to which rounding to nearest costs too much


def round_layers(prepared: GraphModule, batches: Sequence[Inputs], seed: int, progress: Progress) -> None:
    """Replace weights by rounded ones, and correct biases so that every layer's mean output is the float model's; in place.

    Before weights are rounded they are fitted, by least squares, to give on the inputs as they are by now, rounded, what the float
    layer gives on float ones; on EfficientNet-Lite0 that halves what corrected biases leave of the change of the outputs, and these
    leave two fifths. Weights of 8 bits are then rounded to nearest, narrow ones so that the others of a row make up for each one's error.

    Args:
        prepared: by PT2E, with a range for every activation; its weight observers get the scales that the roundings are for.
        batches: calibration inputs; all activations of one place are held at a time, twice.
        seed: of the choice of positions where there are more than enough.
        progress: told which layer is being rounded.

    Source: Nagel et al., Data-Free Quantization, ICCV 2019, for biases, here of what all layers before did too; the fit is that of
    repair after pruning (`arith/repair.py`).
    """
    simulate = {name: _simulated(observer) for name, observer in observers(prepared).items()}
    lockstep = Lockstep(prepared, batches, simulate)
    generator = torch.Generator().manual_seed(seed)
    names = {str(node.target) for node in prepared.graph.nodes if node.op == "get_attr"}
    for node in lockstep.walk():
        observer = weight_observer(prepared, node)
        if observer is None:
            continue
        progress.working(f"rounding {layer_path(node)}")
        _Rounding(lockstep, node, observer).run(generator)
    for name, tensor in lockstep.weights.items():
        if name in names:
            set_tensor(prepared, name, tensor)


def weight_observer(prepared: GraphModule, node: Node) -> WeightObserver | None:
    """The observer of a layer's weight; None where the node is no layer, or one that stays float."""
    source = node.args[1] if node.op == "call_function" and operator(node) in LAYERS else None
    if not isinstance(source, Node) or source.op != "call_module":
        return None
    found = prepared.get_submodule(str(source.target))
    return found if isinstance(found, WeightObserver) else None


def pack_weights(prepared: GraphModule) -> Callable[[], None]:
    """Hold rounded weights as codes, a quarter of their room; the graph is of no use until what comes back has put them back.

    Args:
        prepared: as `round_layers` left it. Weights that several layers share stay as they are.
    """
    held: dict[str, tuple[WeightObserver, Tensor, torch.dtype]] = {}
    uses = tensor_uses(prepared)
    for node in prepared.graph.nodes:
        observer = weight_observer(prepared, node)
        if observer is None:
            continue
        source = node.args[1].all_input_nodes[0]
        name, weight = str(source.target), tensor_of(prepared, source)
        codes = observer.codes(weight) if weight is not None and uses[name] == 1 else None
        if weight is not None and codes is not None:
            held[name] = (observer, codes, weight.dtype)
            set_tensor(prepared, name, weight.new_empty(0))

    def unpack() -> None:
        for name, (observer, codes, dtype) in held.items():
            set_tensor(prepared, name, observer.values(codes, dtype))

    return unpack


def weight_sizes(prepared: GraphModule) -> dict[str, int]:
    """Weights of every layer that will be integers, by its path."""
    sizes = {}
    for node in prepared.graph.nodes:
        if weight_observer(prepared, node) is not None:
            held = tensor_of(prepared, node.args[1].all_input_nodes[0])
            assert held is not None
            sizes[layer_path(node)] = held.numel()
    return sizes


def _simulated(observer: Any) -> Any:
    scale, zero = observer.calculate_qparams()
    scale, zero = float(scale), int(zero)
    return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, observer.quant_min, observer.quant_max)


class _Rounding:
    """One layer of a graph that is being walked."""

    def __init__(self, lockstep: Lockstep, node: Node, observer: WeightObserver) -> None:
        self.lockstep, self.node, self.observer = lockstep, node, observer
        held: Node = node.args[1].all_input_nodes[0]  # type: ignore[union-attr]
        self.name = lockstep.name(held)
        self.weight = lockstep.whole_tensor(self.name)
        self.grid = Grid(bits=observer.quant_max.bit_length() + 1)

    def run(self, generator: torch.Generator) -> None:
        """Set the twin's weight, the observer's scale and the twin's bias."""
        groups = groups_of(self.node)
        matrix = self.weight.flatten(1).reshape(groups, -1, self.weight[0].numel())
        if self.grid.bits > _NARROW or matrix.shape[2] > WIDEST:
            if matrix.shape[2] <= FITTED:
                matrix = self._fitted(matrix, generator)
            least = least_scale(matrix.reshape(self.weight.shape), self.observer.pair_limit)
            steps = find_steps(matrix, self.grid, least=least.reshape(groups, -1))
            codes = quantize(matrix, steps, self.grid)
        else:
            halves, cross, rows = self._moments(generator, groups)
            moments = (halves[0] + halves[1]) / 2
            aim = matched(matrix, moments, cross)
            steps = find_steps(aim, self.grid, "mse", moments.diagonal(dim1=1, dim2=2))
            # with many rows little damping is best, and searching for it would take most of the time
            damping = best_damping(aim, halves, steps, self.grid) if rows < FEWEST_ROWS * matrix.shape[2] else DAMPING
            codes, steps = compensated(aim, moments, steps, self.grid, damping)
        self.observer.scale = steps.scale.flatten()
        self.lockstep.weights[self.name] = dequantize(codes, steps, self.grid).reshape(self.weight.shape).to(self.weight)
        self._correct_bias()

    def _fitted(self, matrix: Tensor, generator: torch.Generator) -> Tensor:
        """The weights that make of inputs as they are now what the float layer makes of float ones, as nearly as weights can."""
        source: Node = self.node.args[0]  # type: ignore[assignment]
        twin = self.lockstep.twin(source)
        regression = HeldOut.empty(*matrix.shape)
        for x, y in zip(twin, self.lockstep.whole(self.node), strict=True):
            outputs = layer_outputs(self.node, y)
            chosen = picked(outputs.shape[1], matrix.shape[2], len(matrix), len(twin), generator)
            inputs = layer_inputs(self.node, x, self.weight.shape[2:], chosen)
            regression.add(inputs, outputs if chosen is None else outputs[:, chosen])
        intercept = argument(self.node, 2, "bias", None) is not None
        return regression.solve(matrix, intercept=intercept)[0].to(matrix)

    def _moments(self, generator: torch.Generator, groups: int) -> tuple[tuple[Tensor, Tensor], Tensor, int]:
        """Of the quantized inputs, by two halves of the batches (twice the same where there is one); of float with quantized ones; rows."""
        source: Node = self.node.args[0]  # type: ignore[assignment]
        whole, twin = self.lockstep.whole(source), self.lockstep.twin(source)
        columns = self.weight[0].numel()
        sums = [torch.zeros(groups, columns, columns, dtype=torch.float64) for _ in range(3)]
        rows = [0, 0]
        for batch, (x, x_q, y) in enumerate(zip(whole, twin, self.lockstep.whole(self.node), strict=True)):
            chosen = picked(y.numel() // self.weight.shape[0], columns, groups, len(twin), generator)
            plain, rounded = (layer_inputs(self.node, part, self.weight.shape[2:], chosen) for part in (x, x_q))
            sums[batch % 2] += (rounded.mT @ rounded).double()
            sums[2] += (plain.mT @ rounded).double()
            rows[batch % 2] += rounded.shape[1]
        first = sums[0] / max(rows[0], 1)
        return (first, sums[1] / rows[1] if rows[1] else first), sums[2] / max(sum(rows), 1), sum(rows)

    def _correct_bias(self) -> None:
        """Add to the bias what the outputs lack on average."""
        bias = argument(self.node, 2, "bias", None)
        if not isinstance(bias, Node) or bias.op != "get_attr":
            return
        name = self.lockstep.name(bias)
        axis = -1 if operator(self.node) == "linear" else 1
        lacking, count = torch.zeros(len(self.weight), dtype=torch.float64), 0
        for batch, wanted in enumerate(self.lockstep.whole(self.node)):
            lost = (wanted - self.lockstep.twin_of(self.node, batch)).movedim(axis, 0).flatten(1)
            lacking += lost.double().sum(1)
            count += lost.shape[1]
        self.lockstep.weights[name] = self.lockstep.weights[name] + (lacking / max(count, 1)).to(self.weight)
