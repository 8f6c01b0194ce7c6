"""Learning curves against exact laws, bounded least squares and the definition of what fits best."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from scipy.optimize import nnls

from sizewise.select.learning_curve import EXPONENTS, fit_power_laws

SIZES = (50, 100, 200, 400, 800)
errors_in = st.lists(st.floats(0.0, 1.0), min_size=len(SIZES), max_size=len(SIZES))


def law(amplitude: float, exponent: float, floor: float, sizes: Sequence[float] = SIZES) -> ndarray:
    found: ndarray = floor + amplitude * (np.asarray(sizes, float) / max(sizes)) ** -exponent
    return found


def residual(amplitude: float, exponent: float, floor: float, errors: ndarray) -> float:
    return float(np.square(law(amplitude, exponent, floor) - errors).sum())


@given(amplitude=st.floats(0.01, 0.5), exponent=st.sampled_from(list(EXPONENTS)), floor=st.floats(0.0, 0.5))
@settings(max_examples=100, deadline=None)
def test_a_law_without_noise_is_found_again(amplitude: float, exponent: float, floor: float) -> None:
    found = fit_power_laws(SIZES, law(amplitude, exponent, floor)[None])
    assert found.exponent[0] == pytest.approx(exponent)
    assert found.amplitude[0] == pytest.approx(amplitude, abs=1e-5)
    assert found.floor[0] == pytest.approx(floor, abs=1e-5)
    assert found.at(6400)[0] == pytest.approx(floor + amplitude * 8**-exponent, abs=1e-5)


@given(errors=errors_in, least=st.floats(0.0, 0.2))
@settings(max_examples=100, deadline=None)
def test_amplitude_and_floor_keep_their_bounds(errors: list[float], least: float) -> None:
    found = fit_power_laws(SIZES, np.array([errors]), least=least)
    assert found.amplitude[0] >= 0
    assert found.floor[0] >= least - 1e-12
    assert EXPONENTS[0] <= found.exponent[0] <= EXPONENTS[-1]


@given(errors=errors_in)
@settings(max_examples=100, deadline=None)
def test_curves_never_rise_with_more_examples(errors: list[float]) -> None:
    found = fit_power_laws(SIZES, np.array([errors]))
    values = [float(found.at(n)[0]) for n in (25, 50, 75, 200, 800, 1600, 1e9)]
    assert all(late <= early + 1e-12 for early, late in itertools.pairwise(values))
    assert values[-1] >= float(found.floor[0])


@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
def test_errors_that_do_not_fall_have_no_amplitude_and_their_mean_as_floor(level: float) -> None:
    found = fit_power_laws(SIZES, np.full((1, len(SIZES)), level))
    assert found.amplitude[0] == pytest.approx(0, abs=1e-12)
    assert found.at(10**6)[0] == pytest.approx(level)


def test_rising_errors_are_a_flat_curve_at_their_mean() -> None:
    errors = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    found = fit_power_laws(SIZES, errors)
    assert found.amplitude[0] == 0
    assert found.floor[0] == pytest.approx(0.3)


@given(errors=errors_in, exponent=st.sampled_from(list(EXPONENTS)))
@settings(max_examples=100, deadline=None)
def test_for_one_exponent_it_is_the_bounded_least_squares_solution(errors: list[float], exponent: float) -> None:
    found = fit_power_laws(SIZES, np.array([errors]), exponents=np.array([exponent]))
    design = np.stack([np.ones(len(SIZES)), (np.array(SIZES) / max(SIZES)) ** -exponent], 1)
    best = nnls(design, np.array(errors))[1] ** 2
    assert residual(found.amplitude[0], exponent, found.floor[0], np.array(errors)) == pytest.approx(best, abs=1e-9)


@given(errors=errors_in)
@settings(max_examples=50, deadline=None)
def test_no_other_exponent_fits_better(errors: list[float]) -> None:
    found = fit_power_laws(SIZES, np.array([errors]))
    mine = residual(found.amplitude[0], found.exponent[0], found.floor[0], np.array(errors))
    for exponent in EXPONENTS:
        other = fit_power_laws(SIZES, np.array([errors]), exponents=np.array([exponent]))
        assert mine <= residual(other.amplitude[0], exponent, other.floor[0], np.array(errors)) + 1e-9


@given(floor=st.floats(-3.0, -0.1), amplitude=st.floats(0.01, 0.5))
@settings(max_examples=30, deadline=None)
def test_without_a_bound_the_floor_may_be_negative(floor: float, amplitude: float) -> None:
    exponent = float(EXPONENTS[12])
    found = fit_power_laws(SIZES, law(amplitude, exponent, floor)[None], least=None)
    assert found.floor[0] == pytest.approx(floor, abs=1e-5)
    assert found.amplitude[0] == pytest.approx(amplitude, abs=1e-5)


def test_rows_are_fitted_independently_of_each_other() -> None:
    rows = np.random.default_rng(0).uniform(0, 1, (7, len(SIZES)))
    together = fit_power_laws(SIZES, rows)
    for index, row in enumerate(rows):
        alone = fit_power_laws(SIZES, row[None])
        assert alone.at(1234)[0] == pytest.approx(together.at(1234)[index])


def test_the_order_of_the_sizes_does_not_matter() -> None:
    errors = np.array([[0.5, 0.4, 0.33, 0.3, 0.28]])
    back = fit_power_laws(SIZES[::-1], errors[:, ::-1])
    assert back.at(1600)[0] == pytest.approx(fit_power_laws(SIZES, errors).at(1600)[0])


def test_the_unit_of_the_examples_does_not_change_the_curve() -> None:
    errors = np.array([[0.5, 0.4, 0.33, 0.3, 0.28]])
    found, scaled = fit_power_laws(SIZES, errors), fit_power_laws([1000 * n for n in SIZES], errors)
    assert scaled.at(1600 * 1000)[0] == pytest.approx(found.at(1600)[0])
