"""Fit the factors of a model's layers, one after the other, to what the whole model computes at the same place.

A low-rank layer that is fitted alone takes its inputs for those of the whole model, which they are not once layers before it have been
factorized. Here the whole model and its twin run in lockstep, and every factorized layer is solved anew for the inputs that it really gets
and the outputs that the whole model gives there: first whole weights by least squares, then their best factors in the metric of these
inputs. For the closed form that is exactly the best layer of that rank (reduced rank regression: the error is that of the whole weights
plus that between them and the factors). Layers that stay whole are fitted as after pruning.

Source: Izenman, Reduced-rank regression, 1975; Zhang et al., Accelerating very deep convolutional networks, TPAMI 2016, section 3.4, for
inputs of the factorized model against outputs of the whole one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from sizewise.arith.low_rank import damped
from sizewise.arith.repair import HeldOut
from sizewise.graph.factorize import Factoring, factorize, fill
from sizewise.graph.flow import operator
from sizewise.graph.layer_rows import argument
from sizewise.graph.lockstep import Lockstep
from sizewise.graph.refit import FittedLayer, weight_of
from sizewise.graph.refit_recurrent import fit_recurrent, is_recurrent
from sizewise.protocols import Inputs, Progress, Silent

__all__ = ["Factored", "absorbing", "refit_factored"]


@dataclass(frozen=True)
class Factored:
    """A model's layers as stacks.

    Attributes:
        plan: what becomes of every factorized layer, by path.
        factors: weights of the new layers, by path.
        weights: of everything else, and biases of factorized layers, by the names that they had.
    """

    plan: Mapping[str, Factoring]
    factors: Mapping[str, Sequence[Tensor]]
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def install(self, model: nn.Module) -> None:
        """Change the model, in place, into the factorized one."""
        old = dict(model.state_dict(keep_vars=True))
        with torch.no_grad():
            for name, value in self.weights.items():
                if name in old:
                    old[name].copy_(value)
        for path, factoring in self.plan.items():
            bias = model.get_submodule(path)._parameters.get("bias")
            factorize(model, path, factoring)
            fill(model, path, self.factors[path], bias)


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
    """
    lockstep = Lockstep(program.module(check_guards=False), batches)
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
    return Factored(plan, factors, lockstep.weights)


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
