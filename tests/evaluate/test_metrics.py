"""Per-example scores against loops, and what users are told about labels that do not fit."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.evaluate.metrics import METRICS, Metric, find_metric, primary_output

NAMES = ["accuracy", "exact_match", "loss", "top3"]


def _sequence() -> tuple[Tensor, Tensor]:
    """Logits [4, 5, 6] and labels [4, 5] with some positions that do not count."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 6, generator=generator)
    labels = torch.randint(0, 6, (4, 5), generator=generator)
    labels[0, 2:] = -100
    labels[1] = logits[1].argmax(-1)  # one example is all right
    return logits, labels


def _slow(name: str, logits: Tensor, labels: Tensor) -> list[float]:
    scores = []
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        counted = [(values, label) for values, label in zip(row, wanted, strict=True) if label != -100]
        if name == "loss":
            parts = [math.log(sum(math.exp(v) for v in values)) - values[label] for values, label in counted]
        else:
            k = 3 if name == "top3" else 1
            parts = [float(label in sorted(range(len(values)), key=lambda i: -values[i])[:k]) for values, label in counted]
        scores.append(float(all(parts)) if name == "exact_match" else sum(parts) / len(parts))
    return scores


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_sequences_are_means_over_the_counted_positions(name: str) -> None:
    logits, labels = _sequence()
    got = find_metric(name).score(logits, labels)
    assert got.shape == (4,)
    assert got.tolist() == pytest.approx(_slow(name, logits, labels), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_plain_classification_are_one_per_example(name: str) -> None:
    logits, labels = _sequence()
    logits, labels = logits[:, 0], labels[:, 0]
    got = find_metric(name).score(logits, labels)
    assert got.tolist() == pytest.approx(_slow(name, logits.unsqueeze(1), labels.unsqueeze(1)), rel=1e-6)
    if find_metric(name).binary:
        assert set(got.tolist()) <= {0.0, 1.0}


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_more_guesses_never_score_less_and_all_classes_always_score(classes: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    scores = [find_metric(f"top{k}").score(logits, labels) for k in range(1, classes + 2)]
    for fewer, more in itertools.pairwise(scores):
        assert bool((more >= fewer).all())
    assert scores[-1].tolist() == [1.0] * n
    assert torch.equal(scores[0], METRICS["accuracy"].score(logits, labels))


@given(st.integers(1, 5), st.integers(2, 8), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_a_margin_is_above_nothing_where_the_score_is_one(k: int, classes: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, classes, generator=generator), torch.randint(0, classes, (n,), generator=generator)
    metric = find_metric(f"top{k}")
    assert metric.margin is not None
    found = metric.margin(logits, labels)
    assert torch.equal(found > 0, metric.score(logits, labels) == 1)


def test_the_margin_of_a_sequence_is_its_smallest_at_a_counted_position() -> None:
    logits, labels = torch.tensor([[[3.0, 1.0], [2.0, 1.0], [0.0, 5.0]]]), torch.tensor([[0, 0, -100]])
    metric = find_metric("exact_match")
    assert metric.margin is not None
    assert metric.margin(logits, labels).tolist() == [1.0]


def test_labels_may_be_lists() -> None:
    assert METRICS["accuracy"].score(torch.eye(3), [0, 1, 1]).tolist() == [1.0, 1.0, 0.0]


def test_an_example_without_counted_positions_agrees_between_metrics() -> None:
    logits, labels = torch.randn(1, 3, 4), torch.full((1, 3), -100)
    assert METRICS["accuracy"].score(logits, labels).tolist() == METRICS["exact_match"].score(logits, labels).tolist()


def test_cosine_compares_whole_outputs_with_the_reference() -> None:
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [0.0, 0.0]]])
    reference = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[-2.0, -4.0], [-6.0, -8.0]], [[1.0, 0.0], [0.0, 0.0]]])
    assert METRICS["cosine"].target == "reference"
    assert METRICS["cosine"].score(outputs, reference).tolist() == pytest.approx([0.0, -1.0, math.sqrt(0.5)])


@pytest.mark.parametrize(("reference", "says"), [(torch.zeros(2, 4), r"(2, 3) and (2, 4)"), (None, "(2, 3) and NoneType")])
def test_cosine_refuses_outputs_of_another_shape(reference: Any, says: str) -> None:
    with pytest.raises(UsageError, match="candidate and the reference do not match") as caught:
        METRICS["cosine"].score(torch.zeros(2, 3), reference)
    assert caught.value.got == says


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("labels", "got", "wanted"),
    [
        (torch.zeros(2), "torch.float32", "an integer dtype"),
        (torch.zeros(2, 1, dtype=torch.long), "labels (2, 1) for outputs (2, 3)", "labels (2,)"),
        (torch.tensor([0, 3]), "0 to 3", "0 to 2, for the model's 3 outputs"),
        (torch.tensor([-1, 2]), "-1 to 2", "0 to 2, for the model's 3 outputs"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_both_sides(name: str, labels: Tensor, got: str, wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_metric(name).score(torch.zeros(2, 3), labels)
    assert caught.value.got == got
    assert caught.value.wanted == wanted


def test_every_named_metric_is_found_under_its_name() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert find_metric(name) is metric
    assert [m.name for m in METRICS.values() if not m.higher_is_better] == ["loss"]


def test_top_k_is_found_in_both_spellings() -> None:
    assert find_metric("top5").name == find_metric("top-5").name == "top5"
    assert find_metric("top12").binary


@pytest.mark.parametrize(("name", "near"), [("acuracy", "accuracy"), ("cosin", "cosine"), ("top0", "top5")])
def test_an_unknown_metric_says_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        find_metric(name)
    assert f"unknown metric {name!r}" in str(caught.value)
    assert f"did you mean {near!r}?" in str(caught.value)


def test_a_metric_of_ones_own_is_taken_as_it_is() -> None:
    own = Metric("own", lambda outputs, targets: outputs[:, 0])
    assert find_metric(own) is own


def test_a_plain_function_is_a_metric_where_more_is_better() -> None:
    def margin(outputs: Tensor, targets: Any) -> Tensor:
        scores: Tensor = outputs[:, 0] - targets
        return scores

    metric = find_metric(margin)
    assert (metric.name, metric.higher_is_better, metric.target, metric.binary) == ("margin", True, "labels", False)
    assert metric.score(torch.ones(2, 1), 1).tolist() == [0.0, 0.0]


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="not a metric") as caught:
        find_metric(3)  # type: ignore[arg-type]
    assert caught.value.got == "int"


def test_the_primary_output_is_found_in_the_usual_containers() -> None:
    tensor, other = torch.ones(1), torch.zeros(1)
    for outputs in (tensor, (tensor, other), [tensor], {"loss": other, "logits": tensor}, {"first": tensor, "second": other}):
        assert primary_output(outputs) is tensor


@pytest.mark.parametrize(("outputs", "got"), [((), "NoneType"), ({}, "NoneType"), ("text", "str"), (((torch.ones(1),),), "tuple")])
def test_an_output_without_a_tensor_is_refused_naming_its_type(outputs: Any, got: str) -> None:
    with pytest.raises(PreconditionError, match="output is not a tensor") as caught:
        primary_output(outputs)
    assert caught.value.got == got
