"""Patterns, masks against sorted lists, and the surgeon against explicit inverses and least squares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.sparsity import Pattern, joint_masks, parse_pattern, prune_mask, refit_kept, surgeon_prune, wanda
from sizewise.errors import UsageError

few = settings(max_examples=30, deadline=None)
rates = st.floats(0, 0.999)
seeds = st.integers(0, 10_000)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(groups: int, inputs: int, seed: int = 0, rows: int = 200) -> Tensor:
    """Second moments of inputs that depend on each other."""
    x = randn(groups, rows, inputs, seed=seed) @ randn(groups, inputs, inputs, seed=seed + 1)
    return x.mT @ x / rows


def error(old: Tensor, new: Tensor, products: Tensor) -> Tensor:
    """Mean squared change of every output."""
    return torch.einsum("goi,gij,goj->go", new - old, products, new - old)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("weight", Pattern(1, 1, None, 0.3)),
        ("2:4", Pattern(1, 4, 2, 0.5)),
        ("1:4", Pattern(1, 4, 1, 0.75)),
        ("4:8", Pattern(1, 8, 4, 0.5)),
        ("4x1", Pattern(4, 1, None, 0.3)),
        ("2x16", Pattern(2, 16, None, 0.3)),
    ],
)
def test_patterns_are_read_and_n_of_m_fixes_the_rate(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text, 0.3) == pattern


@pytest.mark.parametrize("text", ["", "weights", "4:2", "4:4", "0:4", "2:", "2:4:8", "0x1", "4x0", "-1x4", "2 : 4", "4×1", "1.5x1"])
def test_other_texts_are_refused_with_what_is_wanted(text: str) -> None:
    with pytest.raises(UsageError, match="not a pattern of weights") as caught:
        parse_pattern(text, 0.5)
    assert caught.value.got == repr(text)
    assert '"2:4"' in str(caught.value)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_rates_outside_their_range_are_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="rate must be at least 0 and less than 1"):
        parse_pattern("weight", rate)


@given(st.integers(1, 12), st.integers(1, 12), rates, st.booleans(), seeds)
@few
def test_the_count_is_exact_and_the_smallest_go(outputs: int, inputs: int, rate: float, by_row: bool, seed: int) -> None:
    scores = torch.randint(0, 6, (outputs, inputs), generator=torch.Generator().manual_seed(seed))
    keep = prune_mask(scores, parse_pattern("weight", rate), by_row=by_row)
    size = outputs * inputs
    removed = min(round(rate * size), size - 1)
    assert int((~keep).sum()) == removed
    if by_row:
        per_row = (~keep).sum(1)
        assert int(per_row.max() - per_row.min()) <= 1, "spread evenly"
        for row, stays in zip(scores.tolist(), keep.tolist(), strict=True):
            assert max([v for v, s in zip(row, stays, strict=True) if not s], default=0) <= min(
                [v for v, s in zip(row, stays, strict=True) if s], default=9
            )
    else:
        order = sorted(range(size), key=lambda i: (scores.flatten().tolist()[i], i))
        assert sorted((~keep).flatten().nonzero().flatten().tolist()) == sorted(order[:removed]), "ties go at the lower index"


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5)]), seeds)
@few
def test_n_of_every_m_inputs_stay_and_they_are_the_largest(outputs: int, groups: int, n_m: tuple[int, int], seed: int) -> None:
    n, m = n_m
    scores = randn(outputs, groups * m, seed=seed)
    keep = prune_mask(scores, parse_pattern(f"{n}:{m}", 0.0))
    for group, stays in zip(scores.reshape(-1, m).tolist(), keep.reshape(-1, m).tolist(), strict=True):
        assert sum(stays) == n
        assert sorted(v for v, s in zip(group, stays, strict=True) if s) == sorted(group)[m - n :]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), rates, seeds)
@few
def test_blocks_go_whole_those_with_the_least_sum(rows: int, columns: int, down: int, across: int, rate: float, seed: int) -> None:
    scores = randn(rows * down, columns * across, seed=seed).abs()
    keep = prune_mask(scores, parse_pattern(f"{rows}x{columns}", rate))
    sums, whole = {}, {}
    for i in range(down):
        for j in range(across):
            place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            assert bool(keep[place].all()) or not bool(keep[place].any())
            sums[i, j], whole[i, j] = float(scores[place].sum()), bool(keep[place].all())
    gone = sorted(sums, key=lambda p: sums[p])[: min(round(rate * down * across), down * across - 1)]
    assert {p for p, stays in whole.items() if not stays} == set(gone)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), rates, seeds)
@few
def test_across_layers_the_count_is_exact_and_no_layer_is_emptied(shapes: list[tuple[int, int]], rate: float, seed: int) -> None:
    scores = [randn(*shape, seed=seed + i).abs() * 10**i for i, shape in enumerate(shapes)]
    masks = joint_masks(scores, parse_pattern("weight", rate))
    total = sum(s.numel() for s in scores)
    assert sum(int((~m).sum()) for m in masks) == min(round(rate * total), total - len(scores))
    for score, mask in zip(scores, masks, strict=True):
        assert bool(mask.flatten()[score.argmax()]), "the largest of every layer stays"


def test_across_layers_the_weaker_layer_loses_more() -> None:
    weak, strong = joint_masks([torch.full((2, 4), 0.1), torch.full((2, 4), 1.0)], parse_pattern("weight", 0.5))
    assert int(weak.sum()) == 1
    assert int(strong.sum()) == 7


def test_n_of_m_is_refused_across_layers() -> None:
    with pytest.raises(UsageError, match="cannot be chosen across layers"):
        joint_masks([torch.ones(2, 4)], parse_pattern("2:4", 0.5))


@pytest.mark.parametrize(("text", "reason"), [("2:4", "6 inputs are not a multiple of 4"), ("2x1", "3 outputs are not a multiple of 2")])
def test_a_matrix_that_the_pattern_does_not_fit_is_refused(text: str, reason: str) -> None:
    pattern = parse_pattern(text, 0.5)
    with pytest.raises(UsageError) as caught:
        prune_mask(torch.ones(3, 6), pattern)
    assert caught.value.got == f"its {reason}"
    with pytest.raises(UsageError):
        surgeon_prune(torch.ones(1, 3, 6), torch.eye(6)[None], pattern)


def test_wanda_is_the_loss_of_output_for_inputs_that_do_not_depend_on_each_other() -> None:
    weight, norms = randn(3, 4), torch.tensor([1.0, 2.0, 0.0, 0.5])
    scores = wanda(weight, norms)
    for row in range(3):
        for column in range(4):
            new = weight.clone()
            new[row, column] = 0
            loss = error(weight[None], new[None], torch.diag(norms.double().square())[None]).sum()
            assert float(scores[row, column]) == pytest.approx(float(loss) ** 0.5)


def by_explicit_inverses(weight: Tensor, products: Tensor, keep: Tensor, damping: float) -> Tensor:
    """The update of the surgeon for a mask that is given, written plainly; with its fallback for rows."""
    new = weight.clone()
    for g, h in enumerate(products):
        damped = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
        for i in range(len(h)):
            inverse = torch.linalg.inv(damped[i:, i:])
            for row in range(weight.shape[1]):
                if not keep[g, row, i]:
                    new[g, row, i:] -= new[g, row, i] / inverse[0, 0] * inverse[0]
                    new[g, row, i] = 0
    plain = weight * keep
    worse = error(weight, new, products) > error(weight, plain, products)
    return torch.where(worse[..., None], plain, new)


PATTERNS = ["weight", "2:4", "1:2", "2x1", "2x4"]


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("slab", [4, 128])
def test_the_surgeon_agrees_with_explicit_inverses(text: str, slab: int) -> None:
    weight, products = randn(2, 6, 12, seed=3), correlated(2, 12, seed=4)
    new, keep = surgeon_prune(weight, products, parse_pattern(text, 0.5), 0.05, slab)
    assert torch.allclose(new, by_explicit_inverses(weight, products, keep, 0.05), atol=1e-9)


@given(st.sampled_from(PATTERNS), st.floats(0, 0.95), st.integers(1, 3), st.sampled_from([4, 8, 128]), seeds)
@few
def test_the_surgeons_promises(text: str, rate: float, groups: int, slab: int, seed: int) -> None:
    weight, products = randn(groups, 4, 12, seed=seed), correlated(groups, 12, seed=seed, rows=8)
    pattern = parse_pattern(text, rate)
    new, keep = surgeon_prune(weight, products, pattern, slab=slab)
    size = pattern.rows * pattern.columns
    if pattern.kept is None:
        units = weight.numel() // size
        assert int((~keep).sum()) == min(round(rate * units), units - 1) * size
    else:
        assert (keep.reshape(-1, pattern.columns).sum(1) == pattern.kept).all()
    assert not new[~keep].any()
    zeroed = error(weight, weight * keep, products)
    assert (error(weight, new, products) <= zeroed + 1e-9 * zeroed.max()).all(), "never worse than zeros alone"


def least_squares(weight: Tensor, products: Tensor, keep: Tensor) -> Tensor:
    """The best weights on a mask, row by row."""
    best = torch.zeros_like(weight)
    for g, h in enumerate(products):
        for row, stays in enumerate(keep[g]):
            best[g, row, stays] = torch.linalg.solve(h[stays][:, stays], h[stays] @ weight[g, row])
    return best


def test_magnitude_the_surgeon_and_a_refit_come_nearer_in_this_order_to_what_least_squares_reaches() -> None:
    x = torch.relu(randn(500, 8) @ randn(8, 24, seed=1)) + 0.3 * randn(500, 24, seed=2)
    weight, products = randn(1, 32, 24, seed=3), (x.T @ x / 500)[None]
    pattern = parse_pattern("weight", 0.5)
    new, keep = surgeon_prune(weight, products, pattern)
    refit = refit_kept(weight, new, keep, products)
    candidates = (least_squares(weight, products, keep), refit, new, weight * prune_mask(weight[0].abs(), pattern))
    least, refitted, reached, magnitude = (float(error(weight, w, products).sum()) for w in candidates)
    assert least <= refitted < 1.1 * least
    assert refitted < reached < 0.6 * magnitude


@given(st.integers(1, 3), st.floats(0, 0.95), st.integers(0, 30), st.sampled_from([0.0, 1e-2, 1.0]), seeds)
@few
def test_a_refit_keeps_the_mask_and_is_in_no_row_worse(groups: int, rate: float, steps: int, damping: float, seed: int) -> None:
    old, products = randn(groups, 4, 8, seed=seed), correlated(groups, 8, seed=seed, rows=5)
    keep = prune_mask(old.flatten(0, 1).abs(), parse_pattern("weight", rate)).reshape(old.shape)
    new = old * keep
    refit = refit_kept(old, new, keep, products, damping, steps)
    assert not refit[~keep].any()
    assert refit.isfinite().all()
    assert (error(old, refit, products) <= error(old, new, products)).all()


def test_enough_steps_without_damping_are_least_squares() -> None:
    old, products = randn(2, 5, 8), correlated(2, 8, seed=3)
    keep = prune_mask(old.flatten(0, 1).abs(), parse_pattern("weight", 0.5)).reshape(old.shape)
    refit = refit_kept(old, old * keep, keep, products, damping=0.0, steps=60)
    assert torch.allclose(refit, least_squares(old, products, keep), atol=1e-6)


def test_an_input_that_another_one_repeats_is_lost_at_no_cost() -> None:
    x = randn(100, 4)
    x = torch.cat([x, x[:, :2]], 1)
    weight, products = randn(1, 3, 6, seed=1), (x.T @ x / 100)[None]
    new, _ = surgeon_prune(weight, products, parse_pattern("weight", 1 / 3), damping=1e-9)
    assert float(error(weight, new, products).max()) < 1e-6


def test_inputs_that_are_always_zero_go_first_and_the_others_stay_as_they_were() -> None:
    products = correlated(1, 6)
    products[:, [1, 4]], products[:, :, [1, 4]] = 0.0, 0.0
    weight = randn(1, 3, 6, seed=2)
    new, keep = surgeon_prune(weight, products, parse_pattern("weight", 1 / 3))
    assert not keep[:, :, [1, 4]].any()
    assert torch.allclose(new[keep], weight[keep])


def test_without_any_input_the_smallest_weights_go() -> None:
    weight = randn(1, 3, 6)
    new, keep = surgeon_prune(weight, torch.zeros(1, 6, 6, dtype=torch.float64), parse_pattern("weight", 0.5))
    assert torch.equal(keep[0], prune_mask(weight[0].abs(), parse_pattern("weight", 0.5)))
    assert torch.equal(new, weight * keep)


def test_a_rate_of_zero_changes_nothing() -> None:
    weight = randn(1, 3, 6)
    new, keep = surgeon_prune(weight, correlated(1, 6), parse_pattern("weight", 0.0))
    assert keep.all()
    assert torch.equal(new, weight)
