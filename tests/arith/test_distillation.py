"""Distances between a student's numbers and its teacher's, against their definitions written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.distillation import attention_error, label_loss, relative_error, softened_divergence

seeds, temperatures = st.integers(0, 2**31 - 1), st.floats(0.5, 20)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, temperatures, st.sampled_from([(5, 3), (2, 4, 3), (7,)]))
@settings(max_examples=30, deadline=None)
def test_the_divergence_is_the_textbook_sum_for_any_leading_shape(seed: int, temperature: float, shape: tuple[int, ...]) -> None:
    student, teacher = normal(seed, *shape), normal(seed + 1, *shape)
    total, rows = 0.0, 0
    for got, want in zip(student.reshape(-1, shape[-1]), teacher.reshape(-1, shape[-1]), strict=True):
        q, p = torch.softmax(got / temperature, 0), torch.softmax(want / temperature, 0)
        total += sum(float(p[i]) * math.log(float(p[i]) / float(q[i])) for i in range(shape[-1]))
        rows += 1
    assert float(softened_divergence(student, teacher, temperature)) == pytest.approx(total / rows * temperature**2, rel=1e-6, abs=1e-9)


@given(seeds, temperatures)
@settings(max_examples=30, deadline=None)
def test_the_divergence_is_zero_for_scores_that_differ_by_a_constant_and_positive_else(seed: int, temperature: float) -> None:
    teacher = normal(seed, 6, 4)
    assert float(softened_divergence(teacher + 3.0, teacher, temperature)) == pytest.approx(0, abs=1e-9)
    assert float(softened_divergence(normal(seed + 1, 6, 4), teacher, temperature)) > 0


def test_gradients_mean_the_same_at_every_high_temperature() -> None:
    """Hinton et al., equation 4: that of centred scores, over the number of classes and rows."""
    student, teacher = normal(0, 3, 5).requires_grad_(), normal(1, 3, 5)
    (gradient,) = torch.autograd.grad(softened_divergence(student, teacher, 1e4), student)
    gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, gap.detach() / 15, rtol=1e-3, atol=1e-4)


@given(seeds, st.floats(1e-3, 1e3), st.floats(-10, 10))
@settings(max_examples=30, deadline=None)
def test_the_relative_error_knows_no_units(seed: int, scale: float, shift: float) -> None:
    student, teacher = normal(seed, 8, 5), normal(seed + 1, 8, 5)
    error = float(relative_error(student, teacher))
    assert error == pytest.approx(float((student - teacher).square().mean() / teacher.var(correction=0)), rel=1e-4)
    assert float(relative_error(scale * student, scale * teacher)) == pytest.approx(error, rel=1e-9)
    assert float(relative_error(student + shift, teacher + shift)) == pytest.approx(error, rel=1e-2)
    assert float(relative_error(teacher, teacher)) == 0


def test_a_constant_teacher_divides_by_nothing_no_more() -> None:
    for value in (0.0, 2.0):
        teacher = torch.full((4, 3), value)
        student = teacher.clone().requires_grad_()
        loss = relative_error(student, teacher)
        loss.backward()  # type: ignore[no-untyped-call]
        assert float(loss.detach()) == 0
        assert student.grad is not None
        assert bool(student.grad.isfinite().all())


@given(seeds, st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_maps_of_activity_are_compared_whatever_the_channels(seed: int, some: int, others: int) -> None:
    student, teacher = normal(seed, 3, some, 4, 2), normal(seed + 1, 3, others, 4, 2)
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        one, two = a.square().mean(0).flatten(), b.square().mean(0).flatten()
        total += float((one / one.norm() - two / two.norm()).square().sum())
    assert float(attention_error(student, teacher)) == pytest.approx(total / 3)
    assert 0 <= float(attention_error(student, teacher)) <= 2
    assert float(attention_error(2 * teacher, teacher)) == pytest.approx(0, abs=1e-12), "how active it is does not count, where does"


def test_positions_that_do_not_count_are_left_out_of_the_label_loss() -> None:
    scores, labels = normal(0, 2, 3, 4), torch.tensor([[1, -100, 3], [-100, 0, -100]])
    rows = [(0, 0, 1), (0, 2, 3), (1, 1, 0)]
    want = -sum(float(torch.log_softmax(scores[i, j], 0)[k]) for i, j, k in rows) / 3
    assert float(label_loss(scores, labels)) == pytest.approx(want)
    assert float(label_loss(scores, torch.full((2, 3), -100))) == 0
