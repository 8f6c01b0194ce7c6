"""Scales between tensors, against networks that must compute the same, and means of outputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.arith.equalization import cross_layer_scales, smoothing_scales
from sizewise.errors import UsageError

RANGES = st.lists(st.floats(0, 1e3), min_size=1, max_size=6)


def test_both_layers_get_the_same_ranges_and_compute_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    first, bias = torch.randn(5, 4, generator=generator).double(), torch.randn(5, generator=generator).double()
    second, third = (torch.randn(n, 5, generator=generator).double() for n in (3, 2))
    first *= torch.tensor([0.1, 1, 5, 0.02, 3])[:, None]
    scales = cross_layer_scales(first.abs().amax(1), [second.abs().amax(0), third.abs().amax(0)])
    x = torch.randn(7, 4, generator=generator).double()
    hidden = (x @ first.T + bias).relu()
    scaled = (x @ (first / scales[:, None]).T + bias / scales).relu()
    for weight in (second, third):
        assert torch.allclose(scaled @ (weight * scales).T, hidden @ weight.T)
    read = torch.cat([second, third]) * scales
    assert torch.allclose((first / scales[:, None]).abs().amax(1), read.abs().amax(0))
    again = cross_layer_scales((first / scales[:, None]).abs().amax(1), [read.abs().amax(0)])
    assert torch.allclose(again, torch.ones(5).double()), "once is enough"


@given(first=RANGES, limit=st.floats(1, 50), alpha=st.floats(0, 1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_scales_are_positive_bounded_and_1_for_dead_channels(first: list[float], limit: float, alpha: float, data: st.DataObject) -> None:
    second = data.draw(st.lists(st.floats(0, 1e3), min_size=len(first), max_size=len(first)))
    written, read = torch.tensor(first), torch.tensor(second)
    for scales in (cross_layer_scales(written, [read], limit), smoothing_scales(written, [read], alpha, limit)):
        assert bool(((scales >= 1 / limit) & (scales <= limit)).all())
        assert bool((scales[(written == 0) | (read == 0)] == 1).all())


def test_smoothing_moves_as_much_as_alpha_says() -> None:
    inputs, weights = torch.tensor([100.0, 1.0, 0.0]), [torch.tensor([0.5, 0.1, 1.0]), torch.tensor([0.25, 0.4, 2.0])]
    half = smoothing_scales(inputs, weights)
    assert half.tolist() == pytest.approx([(100 / 0.5) ** 0.5, (1 / 0.4) ** 0.5, 1.0], rel=1e-6)
    assert (inputs / half)[0] == pytest.approx(float(half[0]) * 0.5), "at one half both have the same range"
    assert smoothing_scales(inputs, weights, alpha=1.0)[:2].tolist() == pytest.approx([100.0, 1.0])
    assert smoothing_scales(inputs, weights, alpha=0.0)[:2].tolist() == pytest.approx([2.0, 2.5])


def test_what_cannot_be_meant() -> None:
    two, three = torch.ones(2), torch.ones(3)
    with pytest.raises(UsageError, match="different numbers"):
        cross_layer_scales(two, [three])
    with pytest.raises(UsageError, match="at least one layer"):
        smoothing_scales(two, [])
    with pytest.raises(UsageError, match="limit"):
        cross_layer_scales(two, [two], limit=0.5)
    with pytest.raises(UsageError, match="alpha"):
        smoothing_scales(two, [two], alpha=1.5)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="finite and not negative"):
            cross_layer_scales(two, [torch.tensor([1.0, bad])])
