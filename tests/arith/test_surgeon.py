"""The surgeon against solving every possible removal anew."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.surgeon import Reader, absorbed, removal_order


def problem(seed: int, channels: int, per: int, outputs: int = 3) -> Reader:
    generator = torch.Generator().manual_seed(seed)
    size = channels * per
    data = torch.randn(20 * size, size, generator=generator, dtype=torch.float64)
    data = data @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    return Reader(weight, data.T @ data / len(data), [list(range(c * per, (c + 1) * per)) for c in range(channels)])


def share_lost(reader: Reader, gone: list[int]) -> tuple[float, Tensor]:
    """Least loss without some channels, and the weights that reach it, by one least-squares solution."""
    dead = {column for channel in gone for column in reader.columns[channel]}
    kept = [column for column in range(len(reader.covariance)) if column not in dead]
    best = torch.zeros_like(reader.weight)
    best[:, kept] = torch.linalg.solve(reader.covariance[kept][:, kept], (reader.weight @ reader.covariance[:, kept]).T).T
    difference = reader.weight - best
    loss = torch.einsum("oi,ij,oj->", difference, reader.covariance, difference)
    whole = torch.einsum("oi,ij,oj->", reader.weight, reader.covariance, reader.weight)
    return float(loss / whole), best


@given(seed=st.integers(0, 1000), channels=st.integers(2, 5), per=st.integers(1, 3), readers=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_every_loss_is_the_least_possible_and_every_removal_the_cheapest(seed: int, channels: int, per: int, readers: int) -> None:
    problems = [problem(seed + i, channels, per) for i in range(readers)]
    found = removal_order(problems, damping=1e-12)
    assert sorted(found.order) == list(range(channels))
    gone: list[int] = []
    for channel, loss in zip(found.order, found.losses, strict=False):
        options = {c: sum(share_lost(p, [*gone, c])[0] for p in problems) for c in range(channels) if c not in gone}
        assert options[channel] == pytest.approx(min(options.values()), rel=1e-5, abs=1e-9)
        gone.append(channel)
        assert loss == pytest.approx(options[channel], rel=1e-5, abs=1e-9)


def test_the_updated_weights_are_the_least_squares_solution() -> None:
    reader = problem(0, 5, 2)
    found = removal_order([reader], keep=2, damping=1e-12)
    _, best = share_lost(reader, list(found.order[:3]))
    assert torch.allclose(found.weights[0], best, atol=1e-8)


def test_a_channel_that_the_others_predict_goes_first_and_costs_nothing() -> None:
    reader = problem(1, 4, 1)
    mixed = torch.eye(4, dtype=torch.float64)
    mixed[2] = torch.tensor([1.0, -2.0, 0.0, 0.5])
    found = removal_order([Reader(reader.weight, mixed @ reader.covariance @ mixed.T, reader.columns)], damping=1e-10)
    assert found.losses[0] < 1e-6 < found.losses[1]


def test_losses_rise_and_a_silent_reader_has_no_say() -> None:
    loud, silent = problem(2, 6, 2), problem(3, 6, 2)
    silent = Reader(torch.zeros_like(silent.weight), silent.covariance, silent.columns)
    both, alone = removal_order([loud, silent]), removal_order([loud])
    assert (both.order, both.losses) == (alone.order, alone.losses)
    assert all(a <= b for a, b in itertools.pairwise(both.losses))


# --- columns that belong to no channel


def scattered(seed: int, channels: int, own: int, per: int = 1) -> Reader:
    """Channels whose columns lie between columns of nobody, in no order."""
    whole = problem(seed, channels * per + own, 1)
    places = torch.randperm(channels * per + own, generator=torch.Generator().manual_seed(seed)).tolist()
    return Reader(whole.weight, whole.covariance, [places[c * per : (c + 1) * per] for c in range(channels)])


@given(seed=st.integers(0, 1000), channels=st.integers(2, 4), own=st.integers(1, 4), per=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_columns_of_no_channel_stay_and_take_over(seed: int, channels: int, own: int, per: int) -> None:
    reader = scattered(seed, channels, own, per)
    found = removal_order([reader], keep=1, damping=1e-12)
    assert sorted(found.order) == list(range(channels))
    gone: list[int] = []
    for channel, loss in zip(found.order, found.losses, strict=False):
        options = {c: share_lost(reader, [*gone, c])[0] for c in range(channels) if c not in gone}
        assert options[channel] == pytest.approx(min(options.values()), rel=1e-4, abs=1e-8)
        gone.append(channel)
        assert loss == pytest.approx(options[channel], rel=1e-4, abs=1e-8)
    _, best = share_lost(reader, gone)
    assert torch.allclose(found.weights[0], best, rtol=1e-4, atol=1e-6)
    dead = [column for c in gone for column in reader.columns[c]]
    assert not found.weights[0][:, dead].any()
    assert len(set(range(len(reader.covariance))) - set(dead)) == own + per


@given(seed=st.integers(0, 1000), kept=st.sets(st.integers(0, 3), max_size=4))
@settings(max_examples=30, deadline=None)
def test_all_at_once_is_least_squares(seed: int, kept: set[int]) -> None:
    reader = scattered(seed, 4, 3)
    _, best = share_lost(reader, [channel for channel in range(4) if channel not in kept])
    assert torch.allclose(absorbed(reader, sorted(kept), damping=1e-12), best, rtol=1e-4, atol=1e-6)


def test_nothing_gone_changes_nothing() -> None:
    reader = scattered(5, 4, 2)
    assert torch.allclose(absorbed(reader, range(4)), reader.weight, atol=1e-8)


def test_readers_of_many_outputs_are_judged_as_those_of_few_are() -> None:
    """More outputs than inputs are replaced by a triangle."""
    wide = problem(4, 4, 2, outputs=30)
    found = removal_order([wide], damping=1e-12)
    for count, loss in enumerate(found.losses, 1):
        assert loss == pytest.approx(share_lost(wide, list(found.order[:count]))[0], rel=1e-5)


def test_inputs_that_never_vary_are_no_trouble() -> None:
    reader = problem(6, 4, 1)
    covariance = reader.covariance.clone()
    covariance[1] = covariance[:, 1] = 0
    found = removal_order([Reader(reader.weight, covariance, reader.columns)])
    assert found.order[0] == 1
    assert found.losses[0] == pytest.approx(0, abs=1e-3)
    assert all(torch.isfinite(weight).all() for weight in found.weights)
