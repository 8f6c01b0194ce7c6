"""Scores over a split, honest repeats, parity of a file with its module."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sizewise.errors import PreconditionError, UsageError
from sizewise.evaluate.metrics import METRICS, Metric, find_metric
from sizewise.evaluate.paired import mean_interval, paired_drop
from sizewise.evaluate.scoring import Split, measure_parity, module_call, quality, score
from sizewise.protocols import Inputs

Batch = tuple[Tensor, Tensor]


def _batches(n: int = 10, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    pictures, labels = torch.randn(n, 3, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    return [(pictures[i : i + size], labels[i : i + size]) for i in range(0, n, size)]


def _identity(inputs: Inputs) -> Tensor:
    tensor: Tensor = inputs.args[0]
    return tensor


def _plus(offset: float) -> Callable[[Inputs], Tensor]:
    return lambda inputs: _identity(inputs) + offset


class Shuffled:
    """A loader that yields its batches in another order at every reading."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.reading = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        self.reading += 1
        return iter(self.batches[:: 1 if self.reading % 2 else -1])


def test_scores_come_one_per_example_in_order_over_uneven_batches() -> None:
    batches = _batches(10, 4)
    got = score(_identity, Split("validation", batches), METRICS["accuracy"])
    want = [float(row.argmax() == label) for pictures, labels in batches for row, label in zip(pictures, labels, strict=True)]
    assert got.tolist() == want
    assert got.dtype == np.float64


def test_a_module_is_called_without_gradients() -> None:
    layer = nn.Linear(3, 2)
    out = module_call(layer)(Inputs((torch.ones(1, 3),)))
    assert torch.equal(out, layer(torch.ones(1, 3)))
    assert not out.requires_grad


def test_a_metric_that_compares_needs_no_labels() -> None:
    split = Split("validation", [pictures for pictures, _ in _batches()])
    same = score(_identity, split, METRICS["cosine"])
    assert same.tolist() == pytest.approx([1.0] * 10)  # the reference against itself
    other = score(_plus(1.0), split, METRICS["cosine"], reference=_identity)
    assert max(other) < 1 - 1e-6


def test_missing_targets_are_named_with_the_metric_and_a_way_out() -> None:
    split = Split("validation", [pictures for pictures, _ in _batches()])
    with pytest.raises(UsageError, match="validation: the batches carry no target") as caught:
        score(_identity, split, METRICS["accuracy"])
    assert "'accuracy'" in str(caught.value)
    assert "cosine" in str(caught.value)


def test_outputs_that_are_not_finite_are_refused_saying_where() -> None:
    batches = _batches(10, 4)
    batches[1][0][2, 0] = math.nan
    with pytest.raises(PreconditionError, match=r"validation, after 4 examples: the model's outputs are not finite"):
        score(_identity, Split("validation", batches), METRICS["accuracy"])


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda outputs, targets: outputs.mean(), "()"),
        (lambda outputs, targets: outputs, "(4, 3)"),
        (lambda outputs, targets: 1.0, "float"),
    ],
)
def test_a_metric_must_return_one_score_per_example(wrong: Callable[[Tensor, Any], Any], got: str) -> None:
    with pytest.raises(UsageError, match="validation: the metric 'own' must return one score per example") as caught:
        score(_identity, Split("validation", _batches()), Metric("own", wrong))
    assert caught.value.got == got
    assert caught.value.wanted == "(4,)"


def test_scores_that_are_not_finite_are_refused() -> None:
    metric = Metric("own", lambda outputs, targets: outputs[:, 0] / 0)
    with pytest.raises(PreconditionError, match="the metric 'own' gave scores that are not finite"):
        score(_identity, Split("validation", _batches()), metric)


def test_the_first_reading_leaves_count_and_fingerprint_and_later_ones_pass() -> None:
    split = Split("validation", _batches(10, 4))
    first = score(_identity, split, METRICS["accuracy"])
    assert split.count == 10
    assert split.fingerprint is not None
    before = split.fingerprint
    assert np.array_equal(score(_identity, split, METRICS["accuracy"]), first)
    assert split.fingerprint == before


@pytest.mark.parametrize("loader", [Shuffled(_batches(8, 4)), Shuffled(_batches(10, 5))])
def test_a_loader_in_another_order_is_caught_at_the_second_reading(loader: Shuffled) -> None:
    split = Split("validation", loader)
    score(_identity, split, METRICS["accuracy"])
    with pytest.raises(UsageError, match="validation: the loader yields other examples, or another order") as caught:
        score(_identity, split, METRICS["accuracy"])
    assert "shuffl" in str(caught.value)


@pytest.mark.parametrize("change", ["input", "label", "fewer"])
def test_the_fingerprint_depends_on_every_input_and_label(change: str) -> None:
    one, other = Split("a", _batches()), Split("b", _batches())
    if change == "fewer":
        other.loader = _batches()[:-1]
    else:
        list(other.loader)[-1][change == "label"].view(-1)[-1] += 1
    for split in (one, other):
        list(split.read())
    assert one.fingerprint != other.fingerprint


def test_a_reading_that_is_broken_off_leaves_no_fingerprint() -> None:
    split = Split("validation", _batches())
    next(iter(split.read()))
    assert (split.fingerprint, split.count) == (None, 0)


def test_an_empty_loader_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="test: the loader yields no batch"):
        score(_identity, Split("test", []), METRICS["accuracy"])


@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_quality_is_the_mean_and_the_paired_drop(name: str) -> None:
    metric = find_metric(name)
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 2, 50).astype(float)
    scores = np.where(rng.random(50) < 0.2, 0.0, reference)
    got = quality(scores, metric, reference, confidence=0.9)
    assert (got.metric, got.higher_is_better) == (name, metric.higher_is_better)
    assert got.score == mean_interval(scores, binary=metric.binary, confidence=0.9)
    assert got.drop == paired_drop(reference, scores, higher_is_better=metric.higher_is_better, binary=metric.binary, confidence=0.9)
    assert (got.drop.value > 0) == metric.higher_is_better  # fewer ones: worse as accuracy, better as loss
    assert quality(scores, metric).drop is None


def test_parity_of_a_model_with_itself_is_perfect() -> None:
    got = measure_parity(_identity, _identity, Split("validation", _batches()))
    assert (got.max_abs, got.mean_abs, got.top1_agreement, got.n) == (0.0, 0.0, 1.0, 10)
    assert got.output_scale == pytest.approx(float(torch.cat([p for p, _ in _batches()]).abs().mean()))


def test_parity_measures_gaps_and_agreement_over_uneven_batches() -> None:
    batches = _batches(10, 4)

    def flipped(inputs: Inputs) -> Tensor:
        out = _identity(inputs).clone()
        out[0] = out[0].flip(0) * torch.tensor([1.0, 1.0, 1.0])
        return out

    got = measure_parity(_identity, flipped, Split("validation", batches))
    want = torch.cat([p for p, _ in batches])
    have = torch.cat([flipped(Inputs((p,))) for p, _ in batches])
    assert got.max_abs == pytest.approx(float((want - have).abs().max()))
    assert got.mean_abs == pytest.approx(float((want - have).abs().mean()))
    assert got.top1_agreement == pytest.approx(float((want.argmax(1) == have.argmax(1)).double().mean()))
    assert got.top1_agreement is not None
    assert got.top1_agreement < 1


def test_parity_stops_reading_once_it_has_enough_examples() -> None:
    got = measure_parity(_identity, _plus(0.5), Split("validation", _batches(10, 4)), limit=4)
    assert got.n == 4
    assert got.max_abs == pytest.approx(0.5)


def test_parity_looks_at_whole_batches_and_no_more_than_needed() -> None:
    assert measure_parity(_identity, _identity, Split("validation", _batches(12, 4)), limit=5).n == 8


def test_outputs_without_classes_have_no_agreement() -> None:
    def first(inputs: Inputs) -> Tensor:
        return _identity(inputs)[:, 0]

    assert measure_parity(first, first, Split("validation", _batches())).top1_agreement is None


def test_a_file_with_another_output_shape_is_refused() -> None:
    with pytest.raises(PreconditionError, match="another shape") as caught:
        measure_parity(_identity, lambda inputs: _identity(inputs)[:, :2], Split("validation", _batches()))
    assert (caught.value.got, caught.value.wanted) == ("(4, 2)", "(4, 3)")


def test_a_file_that_gives_nan_is_far_from_its_module() -> None:
    with pytest.raises(PreconditionError, match="not finite"):
        measure_parity(_identity, lambda inputs: _identity(inputs) * math.nan, Split("validation", _batches()))
