"""Matrices as codes and values: what is stored is what is worth it."""

import pytest
import torch
from torch import Tensor

from sizewise.arith.rate_rounding import SLOPE
from sizewise.arith.rounding import output_errors
from sizewise.arith.shared_codes import Shared, on_codebook, on_grid
from sizewise.errors import UsageError


def problem(seed: int = 0, outputs: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 400, 30, generator=generator).double() @ torch.randn(30, 30, generator=generator).double()
    return torch.randn(1, outputs, 30, generator=generator), x.mT @ x / 400


def error(weight: Tensor, moments: Tensor, found: Shared) -> float:
    return float(output_errors(weight, found.values, moments).sum())


def test_codes_of_a_grid_are_worth_themselves_times_the_scale() -> None:
    weight, moments = problem()
    found = on_grid(weight, moments, 0.3)
    assert found.scale is not None
    assert torch.equal(found.values, found.codes.float() * found.scale)
    assert int(found.codes.abs().max()) <= 127
    assert error(weight, moments, found) < 0.05 * error(weight, moments, on_grid(weight, moments, 3.0))


def test_coarse_grids_get_values_of_their_own_where_that_is_worth_the_bytes() -> None:
    weight, moments = problem(outputs=400)
    weight = torch.tensor([-3.0, -1, 0, 1, 3])[(2 + weight).round().long().clamp(0, 4)]  # no multiples of anything about 1.3
    plain, single = (on_grid(weight, moments, 1.3, single=one) for one in (False, True))
    assert single.scale is None
    assert torch.equal(single.levels.half().float(), single.levels) or single.levels.dtype == torch.float32
    saved = error(weight, moments, plain) - error(weight, moments, single)
    assert saved > 12 * SLOPE * plain.density * 16 * len(single.levels)
    few = weight[:, :1]
    assert on_grid(few, moments, 0.05, single=True).scale is not None  # 30 weights, nearly right, do not pay for a list


def test_density_is_about_the_error_of_a_weight() -> None:
    weight, moments = problem()
    found = on_grid(weight, moments, 0.2, slope=0.0)
    assert found.density == pytest.approx(error(weight, moments, found) / weight.numel(), rel=0.5)


@pytest.mark.parametrize("slope", [0.0, SLOPE])
def test_codebooks_have_no_more_values_than_asked_for(slope: float) -> None:
    weight, moments = problem()
    errors = []
    for count in (2, 5, 16):
        found = on_codebook(weight, moments, count, slope)
        assert len(torch.unique(found.values)) <= count
        errors.append(error(weight, moments, found))
    assert errors[0] > errors[1] > errors[2]


def test_weights_that_all_are_zero_and_steps_that_are_none() -> None:
    weight, moments = problem()
    assert not on_grid(torch.zeros_like(weight), moments, 1.0).values.any()
    assert not on_codebook(torch.zeros_like(weight), moments, 4).values.any()
    with pytest.raises(UsageError, match="positive"):
        on_grid(weight, moments, 0.0)
