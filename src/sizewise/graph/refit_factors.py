"""Fit the factors of a model's layers, one after the other, to what the whole model computes at the same place.

A low-rank layer that is fitted alone takes its inputs for those of the whole model, which they are not once layers before it have been
factorized. Here the whole model and its twin run in lockstep, and every factorized layer is solved anew for the inputs that it really gets
and the outputs that the whole model gives there: first whole weights by least squares, then their best factors in the metric of these
inputs. For the closed form that is exactly the best layer of that rank (reduced rank regression: the error is that of the whole weights
plus that between them and the factors). So are the matrices of recurrent layers that become products, with gates' sums for outputs. Layers
that stay whole are fitted as after pruning.

Source: Izenman, Reduced-rank regression, 1975; Zhang et al., Accelerating very deep convolutional networks, TPAMI 2016, section 3.4, for
inputs of the factorized model against outputs of the whole one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from sizewise.arith.low_rank import damped, truncated
from sizewise.arith.repair import HeldOut
from sizewise.graph.coded import find_weights
from sizewise.graph.factorize import Factoring, factorize, fill
from sizewise.graph.flow import operator
from sizewise.graph.layer_rows import argument
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.refit import FittedLayer, weight_of
from sizewise.graph.refit_recurrent import fit_recurrent, is_recurrent
from sizewise.graph.share_layers import Aim
from sizewise.graph.weight_slots import Slot, Slots
from sizewise.protocols import Inputs, Progress, Silent
from sizewise.storage.forms import Product, Raw, attach_forms, attached_forms

__all__ = ["Factored", "absorbing", "product_form", "refit_factored"]


@dataclass(frozen=True)
class Factored:
    """A model's layers as stacks.

    Attributes:
        plan: what becomes of every factorized layer, by path.
        factors: weights of the new layers, by path.
        products: matrices of recurrent layers, by name.
        weights: of everything else, and biases of factorized layers, by the names that they had.
    """

    plan: Mapping[str, Factoring]
    factors: Mapping[str, Sequence[Tensor]]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    products: Mapping[str, Product] = field(default_factory=dict)

    def install(self, model: nn.Module) -> None:
        """Change the model, in place, into the factorized one; matrices stay whole, and know the products that they are stored as."""
        old = dict(model.state_dict(keep_vars=True))
        with torch.no_grad():
            for name, value in self.weights.items():
                if name in old:
                    old[name].copy_(value)
        for path, factoring in self.plan.items():
            bias = model.get_submodule(path)._parameters.get("bias")
            factorize(model, path, factoring)
            fill(model, path, self.factors[path], bias)
        with torch.no_grad():
            for name, form in self.products.items():
                old[name].copy_(form.decode())
        if self.products:
            attach_forms(model, {**attached_forms(model), **self.products})


def absorbing(program: ExportedProgram) -> set[str]:
    """Paths of convolutions and linear layers that can add a constant: by a bias, or by the mean of the normalization behind."""
    found = set()
    for node in program.module(check_guards=False).graph.nodes:
        name = None if is_recurrent(node) else weight_of(node)
        if name is not None and (_has_bias(node) or _is_normalized(node)):
            found.add(name.rpartition(".")[0])
    return found


def _has_bias(node: Node) -> bool:
    return isinstance(argument(node, 2, "bias", None), Node)


def _is_normalized(node: Node) -> bool:
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user is not None and operator(user) == "batch_norm" and not user.args[5]


def refit_factored(
    model: nn.Module,
    program: ExportedProgram,
    batches: Sequence[Inputs],
    plan: Mapping[str, Factoring],
    seed: int = 0,
    progress: Progress | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Factored:
    """Factors of the named layers, and weights of the others that make up for what came before them.

    The residual stream and constants are treated as after pruning (`graph/refit.py`).

    Args:
        model: whole; not changed.
        program: of it, exported.
        batches: calibration inputs; all activations of one place are held at a time.
        plan: what becomes of which layers.
        seed: of the choice of positions where there are more than enough.
        progress: told which layer is being fitted.
        ranks: of the matrices of recurrent layers that become products, by name.
    """
    graph = program.module(check_guards=False)
    lockstep = Lockstep(graph, batches)
    recurrent = _Products(lockstep, graph, ranks or {})
    uses = Counter(lockstep.name(w) for node in lockstep.graph.nodes for w in node.all_input_nodes if w.op == "get_attr")
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, tuple[Tensor, ...]] = {}
    for node in lockstep.walk():
        name = weight_of(node)
        if name is None:
            continue
        path = name.rpartition(".")[0]
        (progress or Silent()).working(f"fitting {path}")
        if is_recurrent(node):
            if not recurrent.fit(node, generator):
                fit_recurrent(lockstep, node, {})
        elif path in plan:
            factors[path] = _FactoredLayer(lockstep, node, lockstep.name(name), {}).factors(plan[path], generator)
        elif uses[lockstep.name(name)] == 1:
            layer = FittedLayer(lockstep, node, lockstep.name(name), {})
            if layer.changed():
                layer.fit_inputs() if operator(node).startswith("conv_transpose") else layer.fit(generator)
    for path in set(plan) - set(factors):  # the graph calls it by another name, or not at all: nothing to be fitted to
        layer_weight = model.get_submodule(path).get_parameter("weight").detach()
        factors[path] = plan[path].solved(layer_weight, None)
    for name in set(ranks or {}) - set(recurrent.found):
        recurrent.found[name] = product_form(model.get_parameter(name).detach(), None, (ranks or {})[name])
    return Factored(plan, factors, lockstep.weights, recurrent.found)


def product_form(weight: Tensor, moments: Tensor | None, rank: int) -> Product:
    """A matrix as the nearest product of a rank, in single precision.

    Args:
        weight: [out, in].
        moments: of what it multiplies; None for the identity.
        rank: of the product.
    """
    left, right = (Raw(factor.float().contiguous()) for factor in truncated(weight, moments, rank))
    return Product(left, right, tuple(weight.shape))


class _Products:
    """Matrices of recurrent layers that become products.

    Args:
        lockstep: that walks the graph.
        graph: its graph.
        ranks: of the matrices, by name.
    """

    def __init__(self, lockstep: Lockstep, graph: GraphModule, ranks: Mapping[str, int]) -> None:
        self._ranks = ranks
        self._slots = Slots(lockstep, [weight for weight in find_weights(graph)[0] if weight.roles == {"recurrent"}] if ranks else [])
        self._names = {lockstep.name(name) for name in ranks}
        self._lockstep = lockstep
        self.found: dict[str, Product] = {}

    def fit(self, node: Node, generator: torch.Generator) -> bool:
        """Fit a layer that has such matrices, all of its matrices one after the other; says whether it has."""
        if not any(used.op == "get_attr" and self._lockstep.name(used) in self._names for used in node.all_input_nodes):
            return False
        for slot in self._slots.at(node):
            self._settle(slot, slot.regression(generator))
        return True

    def _settle(self, slot: Slot, regression: HeldOut) -> None:
        if not regression.n:
            return
        sums = regression.parts[0].merge(regression.parts[1])
        moments = sums.inputs.covariance if slot.sinks else sums.inputs.products
        weight, _ = regression.solve(slot.matrix, intercept=bool(slot.sinks))
        aim = Aim(slot, weight, moments, sums.inputs, sums.outputs / sums.inputs.n)
        name = next((name for name in slot.weight.names if name in self._ranks), None)
        if name is None:
            aim.settle(weight)
            return
        self.found[name] = product_form(weight[0], damped(moments[0], sums.inputs.n), self._ranks[name])
        aim.settle(self.found[name].decode())


class _FactoredLayer(FittedLayer):
    """A layer of the graph that becomes a stack; in the twin it stays one, with the stack's weight."""

    def factors(self, factoring: Factoring, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Solve for the stack, and set the twin's weight and constant to what it makes."""
        weight = self.lockstep.weights[self.name]
        regression = HeldOut.empty(1, len(weight), weight[0].numel())
        for x, y in self._data(generator, 1):
            regression.add(x, y)
        intercept = self.behind.sink is not None
        found, _ = regression.solve(weight.flatten(1).unsqueeze(0), intercept=intercept)
        both = regression.parts[0].merge(regression.parts[1])
        moments = damped((both.inputs.covariance if intercept else both.inputs.products)[0], both.inputs.n)
        factors = factoring.solved(found.reshape(weight.shape), moments)
        whole = factoring.composed(factors)
        self.lockstep.weights[self.name] = whole.to(weight)
        if intercept:
            constant = both.outputs / both.inputs.n - torch.einsum("oi,gi->go", whole.flatten(1), both.inputs.mean)
            self._add(range(len(weight)), 1, constant.to(weight))
        return factors
