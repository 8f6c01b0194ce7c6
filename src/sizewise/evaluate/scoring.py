"""Run a model or a loaded file over a split and collect per-example scores."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from sizewise.data.batches import batches, digest, examples_in
from sizewise.errors import PreconditionError, UsageError, blaming
from sizewise.evaluate.metrics import Metric, primary_output
from sizewise.evaluate.paired import flips, mean_interval, paired_drop
from sizewise.protocols import Inputs
from sizewise.types import Parity, Quality

__all__ = ["Split", "margins", "measure_parity", "module_call", "quality", "score", "score_batch"]

Call = Callable[[Inputs], Any]
Scores = Float[ndarray, " n"]


def module_call(model: nn.Module) -> Call:
    """A module as a function of `Inputs`, without gradients."""

    def call(inputs: Inputs) -> Any:
        with blaming("the model failed on these inputs"), torch.inference_mode():
            return inputs.call(model)

    return call


@dataclass
class Split:
    """A loader with its name, and the fingerprints its first reading left, one after every batch.

    Comparing two models example by example needs the same examples in the same order at every reading, so every later
    reading is checked against the first, as far as it goes.
    """

    name: str
    loader: Iterable[Any]
    fingerprint: str | None = None
    count: int = 0
    sizes: list[int] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)

    def read(self, most: int | None = None) -> Iterator[tuple[Inputs, Any]]:
        """Inputs and targets of every batch, or of the first `most`.

        Raises:
            UsageError: the loader yields other examples, or another order, than the first time.
        """
        hashed, sizes, prefixes = hashlib.sha256(), list[int](), list[str]()
        for inputs, target in batches(self.loader, self.name):
            digest(inputs, target, hashed)
            sizes.append(examples_in(inputs))
            prefixes.append(hashed.hexdigest())
            yield inputs, target
            if len(sizes) == most:
                break
        if self.fingerprint is None and most is None:
            self.fingerprint, self.count, self.sizes, self.prefixes = prefixes[-1], sum(sizes), sizes, prefixes
        elif self.fingerprint is not None and prefixes[-1:] != (
            [self.fingerprint] if most is None else self.prefixes[len(prefixes) - 1 :][:1]
        ):
            raise UsageError(
                "the loader yields other examples, or another order, at each reading",
                where=self.name,
                hint="models are compared example by example: no shuffling and no random augmentation on this split",
            )


def score(call: Call, split: Split, metric: Metric, reference: Call | None = None) -> Scores:
    """Per-example scores of a model over a split.

    Args:
        call: the model or file.
        split: what to read.
        metric: one score per example.
        reference: the reference model, for metrics that compare with it.

    Raises:
        PreconditionError: outputs that are not finite.
        UsageError: labels missing or outside the classes.
    """
    parts: list[Scores] = []
    for inputs, target in split.read():
        parts.append(score_batch(call, inputs, target, metric, reference, where=split.name, before=sum(map(len, parts))))
    return np.concatenate(parts)


def score_batch(call: Call, inputs: Inputs, target: Any, metric: Metric, reference: Call | None, *, where: str, before: int = 0) -> Scores:
    """The scores of one batch; errors are those of `score`, with the split's name and how many examples came before."""
    outputs = primary_output(call(inputs))
    if not bool(torch.isfinite(outputs).all()):
        raise PreconditionError("the model's outputs are not finite", where=f"{where}, after {before} examples")
    if metric.target == "reference":
        target = primary_output(reference(inputs)) if reference else outputs
    elif target is None:
        raise UsageError(
            "the batches carry no target",
            where=where,
            wanted=f"(input, target) batches for the metric {metric.name!r}",
            hint='metric="cosine" compares with the reference model and needs no labels',
        )
    return _scores(metric, outputs, target, examples_in(inputs), where)


def _scores(metric: Metric, outputs: Tensor, target: Any, n: int, where: str) -> Scores:
    with blaming(f"the metric {metric.name!r} failed", where):
        values = metric.score(outputs, target)
    if not isinstance(values, Tensor) or values.shape != (n,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(f"the metric {metric.name!r} must return one score per example", where=where, got=str(shape), wanted=f"({n},)")
    scores: Scores = values.detach().double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise PreconditionError(f"the metric {metric.name!r} gave scores that are not finite", where=where)
    return scores


def margins(call: Call, split: Split, metric: Metric) -> Scores:
    """Of every example of a split, how far its score is from another one, by the metric's `margin`."""
    assert metric.margin is not None
    found: list[Scores] = []
    for inputs, target in split.read():
        with blaming(f"the metric {metric.name!r} failed", split.name):
            found.append(metric.margin(primary_output(call(inputs)), target).detach().double().cpu().numpy())
    return np.concatenate(found)


def quality(scores: Scores, metric: Metric, reference: Scores | None = None, confidence: float = 0.95) -> Quality:
    """Mean score with its interval, and the paired drop against the reference's scores."""
    drop = counts = None
    if reference is not None:
        counts = flips(reference, scores, higher_is_better=metric.higher_is_better) if metric.binary else None
        drop = paired_drop(reference, scores, higher_is_better=metric.higher_is_better, binary=metric.binary, confidence=confidence)
    return Quality(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        score=mean_interval(scores, binary=metric.binary, confidence=confidence),
        drop=drop,
        flips=counts,
    )


def measure_parity(module: Call, file: Call, split: Split, limit: int = 256) -> Parity:
    """Compare a file with the module it was made from, on the first batches of a split that hold `limit` examples.

    Raises:
        PreconditionError: the file's outputs have another shape or are not finite.
    """
    largest, total, elements, magnitude, agreed, n, classes = 0.0, 0.0, 0, 0.0, 0.0, 0, True
    for inputs, _ in batches(split.loader, split.name):
        want, got = primary_output(module(inputs)).double(), primary_output(file(inputs)).double()
        if want.shape != got.shape:
            raise PreconditionError("the file's outputs have another shape", got=str(tuple(got.shape)), wanted=str(tuple(want.shape)))
        if not bool(torch.isfinite(got).all()):
            raise PreconditionError("the file's outputs are not finite", where=split.name)
        gap = (want - got).abs()
        largest = max(largest, float(gap.max()))
        total, elements, magnitude = total + float(gap.sum()), elements + gap.numel(), magnitude + float(want.abs().sum())
        classes = classes and want.ndim >= 2 and want.shape[-1] > 1
        if classes:
            agreed += float((want.argmax(-1) == got.argmax(-1)).double().mean()) * examples_in(inputs)
        n += examples_in(inputs)
        if n >= limit:
            break
    return Parity(
        max_abs=largest,
        mean_abs=total / elements,
        output_scale=magnitude / elements,
        top1_agreement=agreed / n if classes else None,
        n=n,
    )


def signed_quality(reference: nn.Module, metric: Metric, split: Split, module: nn.Module) -> float:
    """Mean score of a module on a split, so that more is better whatever the metric."""
    mean = float(score(module_call(module), split, metric, module_call(reference)).mean())
    return mean if metric.higher_is_better else -mean
