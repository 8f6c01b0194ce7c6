"""Train a graph with its integers simulated, to do what a float graph does; what ships is what was trained."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from torch.fx import GraphModule

from sizewise.graph.learned_codes import learning
from sizewise.graph.prepared import Prepared
from sizewise.graph.taps import Runnable, block_outputs, tapped
from sizewise.protocols import Progress
from sizewise.training.distill import LABELS, TEMPERATURE, Judge, Outcome, Recipe, distill
from sizewise.training.objective import Weights
from sizewise.training.schedule import Length

__all__ = ["LEARNED", "Learned", "frozen_names", "train_integers"]

Learned = Literal["scales", "codes"]
LEARNED: tuple[Learned, ...] = get_args(Learned)
RATES: dict[Learned, float] = {"scales": 3e-3, "codes": 2e-4}
FEATURES = 100.0  # codes are near the float model to begin with: less than where layers or blocks are gone


def train_integers(
    prepared: Prepared,
    teacher: GraphModule,
    train: Iterable[Any],
    length: Length,
    *,
    learn: Learned = "scales",
    pruned: GraphModule,
    frozen: Collection[str] = (),
    judge: Judge | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train `prepared` itself by distillation, with weights and activations rounded as they will be.

    "scales" trains the scales of weights and activations, and biases, and leaves codes as the fit before chose them; "codes" trains
    weights too, which end rounded to nearest. Either way conversion gives the very integers that were trained. Features are
    compared where blocks end, node by node of the same name; normalizations that could not be folded keep their statistics. Always
    in float32: activations of 8 bits would drown in bfloat16.

    Args:
        prepared: with a range for every activation; of no use when this raises.
        teacher: a float graph of the same code.
        train: loader of batches, with targets or without.
        length: epochs or seconds.
        learn: see above.
        pruned: the float graph that `prepared` comes from, whose zeros stay.
        frozen: names of parameters that stay.
        judge: how good a module is; more is better. The best of the states at every quarter and of the start is kept.
        seed: of the order of the data.
        checkpoint: file that an interrupted training goes on from.
        progress: told how far it is.

    Raises:
        PreconditionError: a graph fails on the data, nothing can be trained, or the loss is not finite.
        UsageError: data that cannot be read, or a checkpoint of another training.

    Source: Jacob et al., CVPR 2018, section 3; Mishra and Marr, Apprentice, ICLR 2018, for the float model as teacher; Chen et al.,
    EfficientQAT, 2024, who also leave codes as they are at the end.
    Deviation: codes stay from the start by default, since a fit by their effect chose them together, and gradients that pass through
    rounding move them one by one. On ResNet-20, calibrated on 512 pictures, outputs held back changed by 1.02 % of their variance with
    3 bits; 156 steps of codes made that 1.05 % at a rate of 0.0002, and 1.49 % at 0.001. With 4 bits 125 steps of scales made 0.31 % of
    0.33 %, and 86.2 % of 2,000 pictures right of 86.1 %, which is noise; calibrated on 256, 93 steps made 1.17 % of 1.37 %. So the fit
    leaves little to a short training; longer ones were not measured.
    """
    recipe = Recipe(length, Weights(TEMPERATURE, FEATURES, LABELS), RATES[learn], seed, precision="float32")
    graph, names = prepared.graph, block_outputs(teacher)
    with learning(graph), tapped(graph, names), tapped(teacher, names), _thawed(graph, frozen, learn):
        student, guide = Runnable(graph), Runnable(teacher)
        return distill(student, guide, train, recipe, judge=judge, checkpoint=checkpoint, progress=progress, pruned=Runnable(pruned))


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Names of a module's frozen parameters; none where all are, since it then was frozen for inference."""
    named = dict(model.named_parameters(remove_duplicate=False))
    if not any(parameter.requires_grad for parameter in named.values()):
        return frozenset()
    return frozenset(name for name, parameter in named.items() if not parameter.requires_grad)


@contextmanager
def _thawed(graph: GraphModule, frozen: Collection[str], learn: Learned) -> Iterator[None]:
    """What is to be learned requires gradients, which what folding made does not, and nothing else does."""
    before = {parameter: parameter.requires_grad for parameter in graph.parameters()}
    for name, parameter in graph.named_parameters():
        wanted = parameter.is_floating_point() and name not in frozen and (learn == "codes" or parameter.ndim < 2)
        parameter.requires_grad_(wanted)
    try:
        yield
    finally:
        for parameter in graph.parameters():
            parameter.requires_grad_(before[parameter])
