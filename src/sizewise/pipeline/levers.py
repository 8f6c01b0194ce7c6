"""What may be done to every scale of a task, by what it computes, the runtime, the data and the budget."""

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sizewise import registry
from sizewise.data.batches import LabelledSample
from sizewise.errors import blaming
from sizewise.evaluate.metrics import primary_output
from sizewise.evaluate.scoring import module_call, score_batch
from sizewise.pipeline.quantize import quantization_step, scheme_by_work
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.protocols import Inputs
from sizewise.search.levers import LOW_RANK_RATES, low_rank_lever, precision_lever, pruning_lever, recovery_lever
from sizewise.search.space import Lever, Space
from sizewise.training.distill import FEATURES
from sizewise.training.objective import are_classes
from sizewise.types import Cost, Step

__all__ = ["make_space"]

TIMED_MACS = 5_000_000  # of a call, about a millisecond: below, kernels are so short that channels save little time, and noise much
WIDE = 16_384  # parameters of a layer, from which factors of it are worth a look
FACTORED = ("conv", "conv1d", "pointwise", "matmul")
HEAVY_MACS = 8_000_000  # of a layer: below, two or three short kernels are as slow as one
HEAVY_SHARE = 1 / 3  # of the model's MACs that such layers must make up
HALF = 0.5  # of the limit that integers may use up
SAFE = 0.95  # of the latency that layers in float may use up
TARGETS = {"labels": 10.0, "features": 0.0}
TAUGHT = {"teacher": "reference"}
BY_REFERENCE = {"source": "reference", "targets": "reference, targets"}
SAMPLE, NEARLY = 512, 0.7  # train examples that tell what is left to learn of them; share of what is missed on validation
PART = 0.25  # of a training, that plans are tried with first
BRIEF_S, BRIEF_STEPS = 30.0, 200  # that such a part has at least


def make_space(setup: Setup, prepared: Mapping[str, Prepared], reference: str, recovery: Step | None) -> Space:
    """Every plan that is worth a thought.

    Args:
        setup: the run.
        prepared: the scales.
        reference: name of the one that drops are counted from.
        recovery: the training that follows what shrinks; None where nothing may be trained.
    """
    trainings = _trainings(setup, prepared, reference, recovery) if recovery is not None else {}
    levers = {scale: _levers(setup, found.record.cost, trainings.get(scale, {})) for scale, found in prepared.items()}
    named = {level.step.technique for own in levers.values() for lever in own for level in lever.levels if level.step is not None}
    return Space(levers, {name: registry.get("techniques", name) for name in sorted(named)}, setup.seed)


def _levers(setup: Setup, cost: Cost, trainings: Mapping[str, Step]) -> tuple[Lever, ...]:
    timed = setup.context.timer is not None and cost.macs >= TIMED_MACS
    recovers, precisions = bool(trainings), _precisions(setup, cost)
    integers = precisions["int8"][0].technique if "int8" in precisions else None
    # what is pruned will run in integers where it can, in which other layers are the slow ones
    target = "macs" if not timed else "int8_latency" if integers == "int8_static" else "latency"
    factors = _factors_pay(cost, timed) and not (timed and integers == "int8_dynamic" and setup.budget.size_bytes is None)
    return (
        pruning_lever(target, recovers=recovers),
        low_rank_lever("latency" if timed else "params", recovers=recovers, rates=LOW_RANK_RATES if factors else ()),
        recovery_lever(trainings, _briefer(setup, trainings)),
        precision_lever(precisions),
    )


def _factors_pay(cost: Cost, timed: bool) -> bool:
    """Whether low rank is worth a look.

    Fewer parameters always are fewer bytes. Less latency comes of it only where layers are so large that further kernels do not count,
    and hold more weights than activations pass through them, which factors do not make fewer: of ResNet-56 and EfficientNet-Lite0 the
    lowest ranks everywhere take no more than 21 % and 5 % away; of MiniLM the first fifth goes as wanted. In dynamic integers, where every
    layer quantizes what it gets, those factors took 4 % away: they are of use there only for the size.
    """
    wide = [layer for layer in cost.layers if layer.params >= WIDE and layer.family in FACTORED]
    if not timed:
        return bool(wide)
    heavy = sum(layer.macs for layer in wide if layer.macs >= HEAVY_MACS and layer.weight_bytes > layer.activation_bytes)
    return heavy >= HEAVY_SHARE * cost.macs


def _precisions(setup: Setup, cost: Cost) -> dict[str, tuple[Step, str]]:
    """Int8 of the kind that suits the scale's work; mixed where that may lose too much; int4 where the size is limited."""
    if setup.runtime.scheme is None:
        return {}
    budget = setup.budget
    scheme = scheme_by_work(cost, data=setup.context.calibration is not None)
    found = {"int8": (quantization_step("int8", scheme), {"static": "static8", "dynamic": "dynamic8", "weight_only": "weights8"}[scheme])}
    if scheme == "static" and budget.max_drop:
        found["mixed"] = (quantization_step("int8", "static", max_drop=HALF * budget.max_drop), "mixed")
    elif scheme == "static" and not budget.max_drop and budget.latency_s and setup.context.timer is not None:
        found["mixed"] = (Step(technique="int8_static", settings={"max_seconds": SAFE * budget.latency_s}), "mixed")
    if budget.size_bytes is not None:
        four = "static" if scheme == "static" else "weight_only"
        found["int4"] = (quantization_step("int4", four), "static4" if four == "static" else "weights4")
    return found


def _trainings(setup: Setup, prepared: Mapping[str, Prepared], reference: str, recovery: Step) -> dict[str, dict[str, Step]]:
    """Per scale the trainings that suit it: whether there is something to learn of targets, and whether the reference has the same outputs.

    A model that sees smaller inputs learns the features of the same model at the reference's size too: 72 steps on parts of 200 photos
    left EfficientNet-Lite0 at 192 pixels at a divergence of 0.286 from the one at 224 without them, 0.191 with, 0.203 without training.

    Where targets count, features do not: they would hold back what a model learns beyond its teacher. MiniLM without a third of its MACs,
    whose head alone had been trained before, had 80.6 % of the labels of SST-2 by distillation alone, 88.3 % so, and 81.2 % whole.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        sample = list(LabelledSample(setup.task.train or (), SAMPLE, "train"))
    outputs = {scale: _outputs(found.module, sample[0][0]) for scale, found in prepared.items()}
    trainings: dict[str, dict[str, Step]] = {}
    for scale, own in outputs.items():
        labels = are_classes(own, sample[0][1])
        found = {"targets": _with(recovery, TARGETS)} if labels and _may_learn(setup, prepared[scale], sample) else {}
        found["source"] = recovery
        if scale != reference and own.shape == outputs[reference].shape:
            found |= {BY_REFERENCE[kind]: _with(step, TAUGHT) for kind, step in found.items()}
            if setup.task.model_of(scale) == setup.task.model_of(reference):
                found[BY_REFERENCE["source"]] = _with(recovery, {"features": FEATURES, **recovery.settings, **TAUGHT})
        trainings[scale] = found
    return trainings


def _may_learn(setup: Setup, scale: Prepared, sample: Sequence[tuple[Inputs, Any]]) -> bool:
    """Whether a scale misses nearly as many train labels as on validation.

    What a model has learned by heart teaches it nothing more: ResNet-56 misses 3 % of its train labels and 11 % of others. Without 30 % of
    its latency it had 88.8 % of CIFAR-10 after an epoch, with labels and without.
    """
    metric = setup.task.metric
    if metric.target == "reference":
        return False
    if not math.isfinite(metric.best):
        return True
    call = module_call(scale.module)
    known = np.concatenate([score_batch(call, *batch, metric, None, where="train") for batch in sample])
    missed, elsewhere = (abs(metric.best - float(np.mean(scores))) for scores in (known, scale.scores))
    return missed > 0 and missed >= NEARLY * elsewhere


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.inference_mode(), blaming("the model failed on these inputs", "train"):
        return primary_output(inputs.call(model))


def _with(step: Step, settings: Mapping[str, Any]) -> Step:
    return Step(technique=step.technique, settings={**step.settings, **settings})


def _briefer(setup: Setup, trainings: Mapping[str, Step]) -> dict[str, Step]:
    """The same trainings for a part of their time, where that still is a training."""
    return {kind: _with(step, length) for kind, step in trainings.items() if (length := _brief(setup, step))}


def _brief(setup: Setup, step: Step) -> dict[str, float]:
    """A part of a training's length; empty where nothing is gained by it, or not known to be."""
    seconds, epochs = (PART * step.settings.get(name, 0.0) for name in ("seconds", "epochs"))
    if seconds:
        return {"seconds": seconds} if seconds >= BRIEF_S else {}
    steps = epochs * len(setup.task.train) if isinstance(setup.task.train, Sized) else 0
    return {"epochs": epochs} if steps >= BRIEF_STEPS else {}
