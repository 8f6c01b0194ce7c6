"""Low-rank forms against random factors, the plain singular value decomposition, and every error worked out anew."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sizewise.arith.low_rank import (
    Form,
    composed,
    damped,
    factored,
    full_ranks,
    spatial_errors,
    svd_errors,
    truncated,
    tucker_errors,
    weighted_error,
)

FORMS: tuple[Form, ...] = ("svd", "spatial", "tucker")


def problem(seed: int, *shape: int, rows: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and moments of inputs that are far from independent; with few rows the moments are singular."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    columns = weight[0].numel()
    x = torch.randn(rows or 4 * columns, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return weight, x.T @ x / len(x)


sizes = st.integers(1, 7)


@given(seed=st.integers(0, 10**6), outputs=sizes, inputs=sizes, data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_other_product_of_that_rank_is_nearer(seed: int, outputs: int, inputs: int, data: st.DataObject) -> None:
    weight, moments = problem(seed, outputs, inputs)
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    left, right = truncated(weight, moments, rank)
    assert left.shape == (outputs, rank)
    assert right.shape == (rank, inputs)
    found = weighted_error(weight, left @ right, moments)
    generator = torch.Generator().manual_seed(seed)
    for scale in (1e-3, 0.1, 1.0):  # near ones, which would show a saddle, and any
        a, b = (t + scale * torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (left, right))
        assert found <= weighted_error(weight, a @ b, moments) + 1e-9
        best_b = torch.linalg.lstsq(a, weight).solution
        assert found <= weighted_error(weight, a @ best_b, moments) + 1e-9


@given(seed=st.integers(0, 10**6), outputs=sizes, inputs=sizes)
@settings(max_examples=30, deadline=None)
def test_the_errors_at_all_ranks_are_those_of_the_products(seed: int, outputs: int, inputs: int) -> None:
    weight, moments = problem(seed, outputs, inputs)
    errors = svd_errors(weight, moments)
    assert len(errors) == min(outputs, inputs) + 1
    assert errors[0] == pytest.approx(1)
    for rank in range(1, len(errors)):
        left, right = truncated(weight, moments, rank)
        assert errors[rank] == pytest.approx(weighted_error(weight, left @ right, moments), abs=1e-8)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_without_moments_it_is_the_plain_singular_value_decomposition(shape: tuple[int, int]) -> None:
    weight, _ = problem(0, *shape)
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    left, right = truncated(weight, None, 3)
    torch.testing.assert_close(left @ right, u[:, :3] * values[:3] @ v[:3])
    assert svd_errors(weight, None)[3] == pytest.approx(float(values[3:].square().sum() / values.square().sum()))
    same = truncated(weight, torch.eye(shape[1], dtype=torch.float64), 3)
    torch.testing.assert_close(same[0] @ same[1], left @ right)


def test_inputs_that_never_vary_do_no_harm() -> None:
    weight, moments = problem(1, 6, 9, rows=4)
    left, right = truncated(weight, moments, 4)
    assert weighted_error(weight, left @ right, moments) < 1e-12, "four rows span four dimensions"
    left, right = truncated(weight, torch.zeros(9, 9, dtype=torch.float64), 4)
    assert bool(left.isfinite().all() & right.isfinite().all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("known", [True, False])
def test_at_full_rank_every_form_is_exact(form: Form, known: bool) -> None:
    weight, moments = problem(2, 5, 4, 3, 3)
    ranks = full_ranks(weight.shape, form)
    factors = factored(weight, moments if known else None, form, ranks)
    torch.testing.assert_close(composed(form, factors), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_factors_in_a_row_are_the_composed_convolution(form: Form) -> None:
    weight, moments = problem(3, 5, 4, 3, 2)
    ranks = {"svd": (3,), "spatial": (4,), "tucker": (2, 3)}[form]
    factors = factored(weight, moments, form, ranks)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    y = x
    for factor in factors:
        y = nn.functional.conv2d(y, factor)
    torch.testing.assert_close(y, nn.functional.conv2d(x, composed(form, factors)))
    assert composed(form, factors).shape == weight.shape


@given(seed=st.integers(0, 10**6), outputs=st.integers(2, 6), inputs=st.integers(2, 6), form=st.sampled_from(["spatial", "tucker"]))
@settings(max_examples=25, deadline=None)
def test_turns_only_come_nearer_and_start_no_worse_than_foretold(seed: int, outputs: int, inputs: int, form: Form) -> None:
    weight, moments = problem(seed, outputs, inputs, 3, 3)
    ranks = tuple(max(1, full // 2) for full in full_ranks(weight.shape, form))
    losses = [weighted_error(weight, composed(form, factored(weight, moments, form, ranks, sweeps)), moments) for sweeps in (0, 1, 2, 6)]
    foretold = (
        spatial_errors(weight, moments, ranks)[0] if form == "spatial" else tucker_errors(weight, moments, ranks[:1], ranks[1:])[0][0]
    )
    assert losses[0] == pytest.approx(foretold, abs=1e-6)
    assert all(later <= earlier + 1e-7 for earlier, later in pairwise(losses))


@pytest.mark.parametrize("form", ["spatial", "tucker"])
def test_turns_find_factors_that_are_there(form: Form) -> None:
    """Weights of a low rank, in a metric that the start does not know."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"spatial": [(3, 6, 3, 1), (8, 3, 1, 3)], "tucker": [(3, 6, 1, 1), (4, 3, 3, 3), (8, 4, 1, 1)]}[form]
    weight = composed(form, [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes])
    _, moments = problem(6, 8, 6, 3, 3)
    ranks = (3,) if form == "spatial" else (3, 4)
    assert weighted_error(weight, composed(form, factored(weight, moments, form, ranks)), moments) < 1e-8


def test_moments_make_it_nearer_in_outputs_than_weights_alone() -> None:
    weight, moments = problem(7, 16, 12, 3, 3)
    for form, ranks in (("svd", (5,)), ("spatial", (6,)), ("tucker", (5, 6))):
        kind: Form = form  # type: ignore[assignment]
        with_data, plain = (composed(kind, factored(weight, m, kind, ranks)) for m in (moments, None))
        assert weighted_error(weight, with_data, moments) < 0.9 * weighted_error(weight, plain, moments)
        assert weighted_error(weight, plain, None) < weighted_error(weight, with_data, None), "each is best in its own metric"


def test_errors_of_the_tucker_form_fall_with_both_ranks() -> None:
    weight, moments = problem(8, 6, 5, 3)
    table = torch.tensor(tucker_errors(weight, moments, range(1, 6), range(1, 7)))
    assert bool((table.diff(dim=0) <= 1e-9).all() & (table.diff(dim=1) <= 1e-9).all())
    assert float(table[-1, -1]) == pytest.approx(0, abs=1e-6)


def test_damping_is_stronger_where_rows_are_few_and_makes_zeros_a_metric() -> None:
    _, moments = problem(9, 3, 8, rows=5)
    few, many = damped(moments, 5), damped(moments, 10**6)
    assert float(torch.linalg.eigvalsh(many).min()) > 0
    assert float(torch.linalg.eigvalsh(few).min()) > 100 * float(torch.linalg.eigvalsh(many).min())
    assert float(torch.linalg.eigvalsh(damped(torch.zeros(3, 3), 7)).min()) > 0


def test_the_same_twice() -> None:
    weight, moments = problem(10, 6, 5, 3, 3)
    for form, ranks in (("svd", (3,)), ("spatial", (4,)), ("tucker", (3, 3))):
        kind: Form = form  # type: ignore[assignment]
        first, second = factored(weight, moments, kind, ranks), factored(weight, moments, kind, ranks)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
