"""Solve for the factors that were chosen: for the inputs that they really get where the model can be exported, else layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from sizewise.data.batches import examples_in, first_batches, rebatched
from sizewise.data.rank_losses import layer_moments
from sizewise.data.recurrent_ranks import matrix_moments
from sizewise.graph.factorize import Factoring
from sizewise.graph.recurrent_matrices import Matrix
from sizewise.graph.refit_factors import Factored, product_form, refit_factored
from sizewise.graph.trace import Traced
from sizewise.protocols import Inputs, Progress
from sizewise.types import LayerShape

__all__ = ["Chosen", "solved"]


@dataclass(frozen=True)
class Chosen:
    """What becomes of a model's layers.

    Attributes:
        layers: that become stacks, by path.
        shapes: of these layers.
        absorbing: paths of layers that can add a constant, chosen or not.
        matrices: of recurrent layers, chosen or not.
        ranks: of those that become products, by name.
    """

    layers: Mapping[str, Factoring]
    shapes: Mapping[str, LayerShape]
    absorbing: set[str]
    matrices: Sequence[Matrix] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of all that changes."""
        return sorted([*self.layers, *self.ranks])

    def spared(self, model: nn.Module) -> int:
        """Numbers that products save in a file, and only there."""
        shapes = {name: model.get_parameter(name).shape for name in self.ranks}
        return sum(shapes[name].numel() - rank * sum(shapes[name]) for name, rank in self.ranks.items())


def solved(
    model: nn.Module, traced: Traced | None, batches: Sequence[Inputs], chosen: Chosen, most: int, seed: int, progress: Progress
) -> tuple[Factored, str]:
    """Weights of all new layers and of what they are fitted with, and on what they were fitted.

    Args:
        model: whole; not changed.
        traced: of it, exported; None where torch cannot.
        batches: calibration inputs, or none.
        chosen: what becomes of which layers.
        most: examples whose activations of one place can be held.
        seed: of the choice of positions where there are more than enough.
        progress: told which layer is being fitted.
    """
    if traced is not None:
        usable = batches if traced.batch == "dynamic" else rebatched(batches, traced.batch)
        fitting = list(first_batches(usable, most))
        if fitting:
            found = refit_factored(model, traced.program, fitting, chosen.layers, seed, progress, chosen.ranks)
            return found, f"fitted on {sum(map(examples_in, fitting))} examples"
    return _by_themselves(model, batches, chosen), _lacking(traced, batches)


def _lacking(traced: Traced | None, batches: Sequence[Inputs]) -> str:
    if not batches:
        return "no calibration data: factors are nearest in weights, not in outputs"
    why = (
        "torch cannot export the model" if traced is None else f"fewer calibration examples than the batch of {traced.batch} that it fixes"
    )
    return f"{why}: every layer was fitted by itself"


def _by_themselves(model: nn.Module, batches: Sequence[Inputs], chosen: Chosen) -> Factored:
    """Every layer for the inputs that it has in the whole model; only a bias makes up for means, since nothing behind is known."""
    plan = chosen.layers
    biased = {path for path in chosen.absorbing if model.get_submodule(path)._parameters.get("bias") is not None}
    factors, biases = {}, dict[str, Tensor]()
    for part, moments in layer_moments(model, chosen.shapes, batches, biased):
        for path in part:
            layer, own = model.get_submodule(path), moments.get(path)
            weight = layer.get_parameter("weight").detach()
            factors[path] = plan[path].solved(weight, own.matrix if own else None)
            if path in biased and own is not None and own.mean is not None:
                gone = weight.double() - plan[path].composed(factors[path])
                biases[f"{path}.bias"] = layer.get_parameter("bias").detach() + (gone.flatten(1) @ own.mean).to(weight)
    matrices = [matrix for matrix in chosen.matrices if matrix.name in chosen.ranks]
    seen, products = matrix_moments(model, matrices, batches), {}
    for matrix in matrices:
        weight, known = model.get_parameter(matrix.name).detach(), seen.get(matrix.name)
        products[matrix.name] = form = product_form(weight, known.matrix if known else None, chosen.ranks[matrix.name])
        if matrix.bias is not None and known is not None and known.mean is not None:
            gone = (weight.double() - form.decode().double()) @ known.mean
            biases[matrix.bias] = model.get_parameter(matrix.bias).detach() + gone.to(weight)
    return Factored(plan, factors, biases, products)
