"""Metrics as per-example scores, so that two models can be compared example by example.

Every metric maps outputs and targets of one batch to one score per example; the metric's value is their mean.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sizewise.errors import PreconditionError, UnknownName, UsageError

__all__ = ["METRICS", "Metric", "find_metric", "primary_output"]

Score = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Metric:
    """One score per example.

    Attributes:
        name: for people and reports.
        score: outputs [n, ...] and targets to scores [n].
        higher_is_better: False for losses.
        target: what the score compares with: the batch's target, or the reference model's outputs.
        binary: every score is 0 or 1, which allows an exact paired interval.
        margin: outputs and targets to [n]: how far each example's score is from another one, the more the farther; only the order counts.
            Where it is known, examples that change most easily are scored first.
        bounds: least and largest score that there can be, infinite where there is no such; None where nobody knows, and then
            every candidate is scored on all examples.
    """

    name: str
    score: Score
    higher_is_better: bool = True
    target: Literal["labels", "reference"] = "labels"
    binary: bool = False
    bounds: tuple[float, float] | None = None
    margin: Score | None = None

    @property
    def best(self) -> float:
        """The best score that there can be; infinite where it is unknown."""
        low, high = self.bounds or ((0.0, 1.0) if self.binary else (-math.inf, math.inf))
        return high if self.higher_is_better else low


def primary_output(outputs: Any) -> Tensor:
    """The tensor a metric looks at: the output itself, the first of a tuple, or `.logits` of a dict-like output.

    Raises:
        PreconditionError: no tensor there.
    """
    if isinstance(outputs, dict) or hasattr(outputs, "keys"):
        outputs = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()), None)
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0] if outputs else None
    if not isinstance(outputs, Tensor):
        raise PreconditionError("the model's output is not a tensor", got=type(outputs).__name__)
    return outputs


def _check_labels(logits: Tensor, labels: Any) -> Tensor:
    if not isinstance(labels, Tensor):
        labels = torch.as_tensor(labels)
    if labels.is_floating_point():
        raise UsageError("labels must be class numbers", got=str(labels.dtype), wanted="an integer dtype")
    if labels.shape != logits.shape[:-1]:
        raise UsageError(
            "labels and outputs do not match",
            got=f"labels {tuple(labels.shape)} for outputs {tuple(logits.shape)}",
            wanted=f"labels {tuple(logits.shape[:-1])}",
        )
    numbers: Tensor = labels.long()
    seen = numbers[numbers != IGNORED]
    classes = logits.shape[-1]
    if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < classes:
        raise UsageError(
            "labels outside the classes",
            got=f"{int(seen.min())} to {int(seen.max())}",
            wanted=f"0 to {classes - 1}, for the model's {classes} outputs",
        )
    return numbers


IGNORED = -100  # torch's convention for positions that do not count


def _mean_per_example(values: Tensor, counted: Tensor, empty: float) -> Tensor:
    """[n, ...] values to [n] means over counted positions; `empty` where none counts."""
    values, counted = values.reshape(len(values), -1).double(), counted.reshape(len(counted), -1).double()
    means = (values * counted).sum(1) / counted.sum(1).clamp_min(1)
    return torch.where(counted.sum(1) > 0, means, empty)


def top_k(k: int) -> Score:
    """Share of positions whose label is among the k largest outputs."""

    def score(logits: Tensor, labels: Any) -> Tensor:
        labels = _check_labels(logits, labels)
        best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
        right: Tensor = best.eq(labels.unsqueeze(-1)).any(-1)
        return _mean_per_example(right, labels != IGNORED, empty=1.0)  # nothing to get wrong

    return score


def label_margin(k: int) -> Score:
    """The label's output less the k-th largest of the others, at the counted position of an example where that is smallest."""

    def margin(logits: Tensor, labels: Any) -> Tensor:
        labels = _check_labels(logits, labels)
        own = labels.clamp_min(0).unsqueeze(-1)
        others = logits.scatter(-1, own, -math.inf)
        rival = others.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1]
        ahead = (logits.gather(-1, own).squeeze(-1) - rival).double()
        return torch.where(labels != IGNORED, ahead, math.inf).reshape(len(labels), -1).amin(1)

    return margin


def exact_match(logits: Tensor, labels: Any) -> Tensor:
    """1 where every counted position of an example is right."""
    labels = _check_labels(logits, labels)
    right = (logits.argmax(-1) == labels) | (labels == IGNORED)
    every: Tensor = right.reshape(len(right), -1).all(1)
    return every.double()


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """Mean negative log-likelihood per example, in nats; the exponential of its mean is the perplexity."""
    labels = _check_labels(logits, labels)
    classes = logits.shape[-1]
    loss = F.cross_entropy(logits.reshape(-1, classes).double(), labels.reshape(-1), reduction="none", ignore_index=IGNORED)
    return _mean_per_example(loss.reshape(labels.shape), labels != IGNORED, empty=0.0)


def cosine(outputs: Tensor, reference: Any) -> Tensor:
    """Cosine similarity of each example's flattened output to the reference model's."""
    if not isinstance(reference, Tensor) or reference.shape != outputs.shape:
        shape = tuple(reference.shape) if isinstance(reference, Tensor) else type(reference).__name__
        raise UsageError("outputs of the candidate and the reference do not match", got=f"{tuple(outputs.shape)} and {shape}")
    return F.cosine_similarity(outputs.reshape(len(outputs), -1).double(), reference.reshape(len(reference), -1).double(), dim=1)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", top_k(1), binary=True, margin=label_margin(1)),
        Metric("exact_match", exact_match, binary=True, margin=label_margin(1)),
        Metric("loss", cross_entropy, higher_is_better=False, bounds=(0.0, math.inf)),
        Metric("cosine", cosine, target="reference", bounds=(-1.0, 1.0)),
    )
}


def find_metric(metric: "str | Metric | Score") -> Metric:
    """A metric by name ("accuracy", "top5", "exact_match", "loss", "cosine"), a `Metric`, or a scoring function.

    A plain function takes outputs and targets of a batch, returns one score per example, and more is better.

    Raises:
        UnknownName: no metric of that name.
        UsageError: neither a name nor callable.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if match := re.fullmatch(r"top-?([1-9]\d*)", metric):
            return Metric(f"top{match[1]}", top_k(int(match[1])), binary=True, margin=label_margin(int(match[1])))
        if metric not in METRICS:
            raise UnknownName("metric", metric, [*METRICS, "top5"])
        return METRICS[metric]
    if not callable(metric):
        raise UsageError("not a metric", got=type(metric).__name__, wanted="a name, a sizewise.Metric or a function")
    return Metric(getattr(metric, "__name__", "custom"), metric)
