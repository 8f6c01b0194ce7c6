"""Rounding that the other weights make up for, against loops, all possible codes, and the rows of data themselves."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.arith.grids import Grid, Steps, dequantize, find_steps, quantize
from sizewise.arith.rounding import DAMPINGS, best_damping, compensated, damped, descend, gptq, matched, output_errors, refit_steps
from sizewise.errors import PreconditionError, UsageError

GRIDS = st.builds(Grid, bits=st.integers(2, 4), symmetric=st.booleans(), block=st.sampled_from([None, 3, 4]), narrow=st.booleans())
SEEDS = st.integers(0, 10_000)


def problem(seed: int, inputs: int, outputs: int = 3, groups: int = 1, rows: int = 60) -> tuple[Tensor, Tensor]:
    """Weights and moments of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, rows, inputs, generator=generator).double()
    x = x @ (torch.eye(inputs) + 0.7 * torch.randn(inputs, inputs, generator=generator)).double()
    return torch.randn(groups, outputs, inputs, generator=generator), x.mT @ x / rows


def errors(weight: Tensor, moments: Tensor, codes: Tensor, steps: Steps, grid: Grid) -> Tensor:
    return output_errors(weight, dequantize(codes.to(torch.int8), steps, grid), moments)


def least(weight: Tensor, moments: Tensor, steps: Steps, grid: Grid) -> Tensor:
    """Error of the best of all codes, output by output, of one group."""
    inputs = weight.shape[2]
    every = torch.tensor(list(itertools.product(range(grid.low, grid.high + 1), repeat=inputs)), dtype=torch.int8)
    found = []
    for row in range(weight.shape[1]):
        own = Steps(steps.scale[:, row : row + 1], steps.zero[:, row : row + 1])
        values = dequantize(every[None], own, grid)
        found.append(output_errors(weight[:, row : row + 1].expand_as(values), values, moments).min())
    return torch.stack(found)


def obq(weight: Tensor, moments: Tensor, scale: float, grid: Grid, damping: float) -> list[int]:
    """One row by Optimal Brain Quantization in a fixed order: a new inverse of what is left for every column."""
    left = weight.double().clone()
    moments = moments + damping * moments.diagonal().mean() * torch.eye(len(moments)).double()
    order = moments.diagonal().argsort(descending=True).tolist()
    codes = [0] * len(left)
    while order:
        inverse = torch.linalg.inv(moments[order][:, order])
        first = order[0]
        codes[first] = min(max(round(float(left[first]) / scale), grid.low), grid.high)
        left[order] -= (left[first] - codes[first] * scale) * inverse[0] / inverse[0, 0]
        order.pop(0)
    return codes


# --- gptq


@given(seed=SEEDS, inputs=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_gptq_is_brain_surgery_column_by_column(seed: int, inputs: int) -> None:
    weight, moments = problem(seed, inputs)
    grid = Grid(3)
    steps = find_steps(weight, grid)
    codes, nearest = gptq(weight, moments, steps, grid), quantize(weight, steps, grid)
    for row in range(3):
        want = obq(weight[0, row], moments[0], float(steps.scale[0, row, 0]), grid, 1e-2)
        wanted = codes.clone()
        wanted[0, row] = torch.tensor(want, dtype=torch.int8)
        best = min(float(errors(weight, moments, option, steps, grid)[0, row]) for option in (wanted, nearest))
        assert float(errors(weight, moments, codes, steps, grid)[0, row]) == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(seed=SEEDS, grid=GRIDS, beams=st.sampled_from([1, 3, 8]), inputs=st.integers(1, 10), rows=st.sampled_from([2, 60]))
@settings(max_examples=50, deadline=None)
def test_no_row_is_worse_than_rounded_to_nearest(seed: int, grid: Grid, beams: int, inputs: int, rows: int) -> None:
    weight, moments = problem(seed, inputs, groups=2, rows=rows)
    steps = find_steps(weight, grid, "mse")
    plain = errors(weight, moments, quantize(weight, steps, grid), steps, grid)
    codes = gptq(weight, moments, steps, grid, beams=beams)
    assert codes.dtype == torch.int8
    assert grid.low <= int(codes.min()) <= int(codes.max()) <= grid.high
    assert bool((errors(weight, moments, codes, steps, grid) <= plain).all())
    codes, fitted = compensated(weight, moments, steps, grid, beams=beams)
    assert bool((errors(weight, moments, codes, fitted, grid) <= plain).all())
    assert grid.low <= int(codes.min()) <= int(codes.max()) <= grid.high
    assert bool((fitted.scale > 0).all())


def test_slabs_and_parts_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(1, 37, outputs=7, groups=2, rows=200)
    grid = Grid(3, block=8)
    steps = find_steps(weight, grid)
    whole = [gptq(weight, moments, steps, grid, beams=beams) for beams in (1, 3)]
    whole.append(descend(weight, moments, steps, grid, whole[0]))
    monkeypatch.setattr("sizewise.arith.rounding.SLAB", 5)
    monkeypatch.setattr("sizewise.arith.rounding.MOST", 1000)
    parts = [gptq(weight, moments, steps, grid, beams=beams) for beams in (1, 3)]
    parts.append(descend(weight, moments, steps, grid, parts[0]))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_groups_are_matrices_of_their_own() -> None:
    weight, moments = problem(2, 9, outputs=1, groups=5)
    grid = Grid(4)
    steps = find_steps(weight, grid)
    both, fitted = compensated(weight, moments, steps, grid)
    for group in range(5):
        own = slice(group, group + 1)
        alone = compensated(weight[own], moments[own], Steps(steps.scale[own], steps.zero[own]), grid)
        assert torch.equal(both[own], alone[0])
        assert torch.equal(fitted.scale[own], alone[1].scale)


@pytest.mark.parametrize("bits", [2, 3])
def test_most_rows_get_nearly_the_best_of_all_codes(bits: int) -> None:
    ratios: dict[str, list[float]] = {"nearest": [], "gptq": [], "beams": [], "descend": []}
    grid = Grid(bits)
    for seed in range(12):
        weight, moments = problem(seed, 4, outputs=4)
        steps = find_steps(weight, grid, "mse")
        best = least(weight, moments, steps, grid)
        options = {"nearest": quantize(weight, steps, grid), "gptq": gptq(weight, moments, steps, grid, 1e-6)}
        options["beams"] = gptq(weight, moments, steps, grid, 1e-6, beams=8)
        options["descend"] = descend(weight, moments, steps, grid, options["beams"])
        for name, codes in options.items():
            found = errors(weight, moments, codes, steps, grid)[0]
            assert bool((found >= best * (1 - 1e-6)).all())
            ratios[name] += (found <= best * 1.001).tolist()
    shares = {name: sum(hits) / len(hits) for name, hits in ratios.items()}
    assert shares["nearest"] < shares["gptq"] < shares["beams"] <= shares["descend"]
    assert shares["descend"] > 0.85


def test_inputs_that_are_always_zero_and_groups_that_saw_nothing() -> None:
    weight, moments = problem(3, 6, groups=2)
    moments[0, 2] = moments[0, :, 2] = 0
    moments[1] = 0
    grid = Grid(4)
    steps = find_steps(weight, grid)
    codes, fitted = compensated(weight, moments, steps, grid)
    assert torch.equal(codes[1], quantize(weight, steps, grid)[1])
    assert torch.equal(fitted.scale[1], steps.scale[1])
    assert torch.equal(gptq(weight, moments, steps, grid)[0, :, 2], quantize(weight, steps, grid)[0, :, 2])


# --- moving single codes and scales


@given(seed=SEEDS, grid=GRIDS, inputs=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_descending_ends_where_no_single_code_can_be_better(seed: int, grid: Grid, inputs: int) -> None:
    weight, moments = problem(seed, inputs, outputs=2)
    steps = find_steps(weight, grid)
    start = quantize(weight, steps, grid)
    codes = descend(weight, moments, steps, grid, start, sweeps=200)
    found = errors(weight, moments, codes, steps, grid)
    assert bool((found <= errors(weight, moments, start, steps, grid) * (1 + 1e-6)).all())
    for column, code in itertools.product(range(inputs), range(grid.low, grid.high + 1)):
        other = codes.clone()
        other[:, :, column] = code
        assert bool((errors(weight, moments, other, steps, grid) >= found * (1 - 1e-5) - 1e-9).all())


@given(seed=SEEDS, grid=GRIDS)
@settings(max_examples=30, deadline=None)
def test_fitted_scales_are_never_worse_and_exact_where_there_is_one(seed: int, grid: Grid) -> None:
    weight, moments = problem(seed, 8)
    steps = find_steps(weight, grid)
    codes = gptq(weight, moments, steps, grid)
    before = steps.scale.clone()
    fitted = refit_steps(weight, moments, steps, grid, codes)
    assert torch.equal(steps.scale, before), "what was given is not changed"
    found = errors(weight, moments, codes, fitted, grid)
    assert bool((found <= errors(weight, moments, codes, steps, grid)).all())
    for factor in (0.97, 1.03) if grid.block is None else ():
        other = Steps(fitted.scale * factor, fitted.zero)
        assert bool((errors(weight, moments, codes, other, grid) >= found).all())


# --- data


def layer(seed: int, rows: int, inputs: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, and rows of inputs with few directions that matter: to fit to, and new ones."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) @ torch.diag(0.9 ** torch.arange(inputs))
    x = torch.randn(rows + 2000, inputs, generator=generator) @ mix.T
    return torch.randn(1, 8, inputs, generator=generator), x[None, :rows].double(), x[None, rows:].double()


def moments_of(x: Tensor) -> Tensor:
    return x.mT @ x / x.shape[1]


def test_new_data_gain_too_and_every_part_does_its_share() -> None:
    weight, x, new = layer(0, 1000)
    fit, judge, grid = moments_of(x), moments_of(new), Grid(4)
    steps = find_steps(weight, grid, "mse", fit.diagonal(dim1=1, dim2=2))
    options = [(quantize(weight, steps, grid), steps), (gptq(weight, fit, steps, grid), steps)]
    options += [(gptq(weight, fit, steps, grid, beams=4), steps), compensated(weight, fit, steps, grid)]
    found = [float(errors(weight, judge, *option, grid).sum()) for option in options]
    assert found[1] < 0.5 * found[0]
    assert found[3] < found[2] < found[1]


@pytest.mark.parametrize("rows", [100, 4000])
def test_rows_held_out_choose_a_damping_that_does_well_on_new_rows(rows: int) -> None:
    weight, x, new = layer(1, rows)
    grid = Grid(4)
    steps = find_steps(weight, grid, "mse")
    halves = moments_of(x[:, ::2]), moments_of(x[:, 1::2])
    done = {d: float(errors(weight, moments_of(new), gptq(weight, moments_of(x), steps, grid, d), steps, grid).sum()) for d in DAMPINGS}
    chosen = done[best_damping(weight, halves, steps, grid)]
    assert chosen <= min(done.values()) + 0.3 * (max(done.values()) - min(done.values()))


def test_matched_weights_make_up_for_inputs_that_were_quantized() -> None:
    weight, x, _ = layer(2, 500)
    shifted = x * torch.linspace(0.8, 1.1, x.shape[2]) + 0.1 * x.roll(1, 2)
    moments, cross = moments_of(shifted), x.mT @ shifted / x.shape[1]
    found = matched(weight, moments, cross, damping=1e-9)
    wanted = x @ weight.double().mT
    assert float((shifted @ found.mT - wanted).square().mean()) < 1e-6 * float((shifted @ weight.double().mT - wanted).square().mean())
    assert torch.allclose(matched(weight, moments, moments), weight.double()), "the same inputs want the same weights"


def test_rounding_matched_weights_aims_at_the_float_outputs() -> None:
    weight, x, _ = layer(3, 500)
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    moments, cross, grid = moments_of(noisy), x.mT @ noisy / x.shape[1], Grid(4)
    wanted, steps = x @ weight.double().mT, find_steps(weight, grid, "mse")
    far = []
    for target in (weight.double(), matched(weight, moments, cross, 1e-3)):
        values = dequantize(gptq(target, moments, steps, grid), steps, grid).double()
        far.append(float((noisy @ values.mT - wanted).square().mean()))
    assert far[1] < 0.9 * far[0]


def test_what_cannot_be_meant() -> None:
    weight, moments = problem(0, 3)
    grid = Grid(4)
    steps = find_steps(weight, grid)
    bad = moments.clone()
    bad[0, 0, 0] = torch.nan
    with pytest.raises(PreconditionError, match="not finite"):
        gptq(weight, bad, steps, grid)
    with pytest.raises(PreconditionError, match="not finite"):
        descend(weight, bad, steps, grid, quantize(weight, steps, grid))
    with pytest.raises(UsageError, match="beam"):
        gptq(weight, moments, steps, grid, beams=0)
    with pytest.raises(UsageError, match="damping"):
        damped(moments, -0.1)
