"""Predictions: the prior where nothing is known, measurements where they are, monotone in between, and better with more of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.search.spaces import BASES, UNIT, observed, small_space, truth

from sizewise.search.proxy import FIGURES, Observation, Proxy
from sizewise.search.space import Point

SPACE = small_space()
PROXY = Proxy(SPACE, BASES, UNIT)
LATENCY, SIZE, LOSS = (FIGURES.index(name) for name in ("latency", "size", "loss"))


def at(*levels: str, scale: str = "large") -> Point:
    point = SPACE.canonical(scale, levels)
    assert point is not None
    return point


def place(point: Point) -> int:
    return SPACE.points.index(point)


RATES = ("off", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8")
WHOLE = at("off", "off", "off", "off")


def test_before_anything_is_measured_the_beliefs_hold() -> None:
    found = PROXY.predict([])
    half = place(at("0.5", "off", "off", "off"))
    assert found.mean[LATENCY, half] - found.mean[LATENCY, place(WHOLE)] == pytest.approx(0.7 * math.log(0.5), rel=0.05)
    assert found.mean[LOSS, place(WHOLE)] == pytest.approx(0.0, abs=1e-9), "a scale's own loss is known"
    assert found.mean[LOSS, place(replace(WHOLE, scale="small"))] == pytest.approx(BASES["small"].loss, abs=1e-6)
    assert found.sd[LOSS, half] > 3 * found.sd[LOSS, place(WHOLE)]


points = st.lists(st.sampled_from(SPACE.points), max_size=8, unique=True)


@given(points)
@settings(max_examples=40, deadline=None)
def test_at_a_higher_rate_a_small_loss_is_no_more_probable_and_what_was_measured_stays(known: list[Point]) -> None:
    found, nodes = PROXY.predict([observed(point) for point in known]), np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    losses = found.losses(nodes)
    assert (np.diff(losses, axis=1) >= -1e-12).all(), "quantiles"
    assert losses[:, 2] == pytest.approx(found.mean[LOSS])
    for point in known:
        assert losses[place(point)] == pytest.approx(truth(point)[-1], abs=0.01 * UNIT)
    for line in found.lines:
        assert (np.diff(losses[line], axis=0) >= -1e-6 * UNIT).all()


def test_where_a_mild_rate_loses_too_much_a_harsh_one_has_no_chance_however_little_is_known_of_it() -> None:
    mild, harsh = at("0.4", "off", "off", "int8"), at("0.8", "off", "off", "int8")
    found = PROXY.predict([replace(observed(mild), loss=5 * UNIT)])
    assert found.mean[LOSS, place(harsh)] - 3 * found.sd[LOSS, place(harsh)] < 5 * UNIT
    assert found.losses(np.array([-3.0]))[place(harsh)] >= 5 * UNIT - 1e-2 * UNIT


@given(points)
@settings(max_examples=40, deadline=None)
def test_what_was_measured_is_told_as_it_was_and_the_rest_is_monotone(known: list[Point]) -> None:
    found = PROXY.predict([observed(point) for point in known])
    assert np.isfinite(found.mean).all()
    assert (found.sd > 0).all()
    for point in known:
        latency, size, _, loss = truth(point)
        assert found.mean[LATENCY, place(point)] == pytest.approx(math.log(latency))
        assert found.mean[SIZE, place(point)] == pytest.approx(math.log(size))
        assert found.mean[LOSS, place(point)] == pytest.approx(loss, abs=1e-9)
    for scale in SPACE.scales:
        for precision in ("off", "int8", "int4"):
            line = [place(at(rate, "off", "off", precision, scale=scale)) for rate in RATES]
            assert (np.diff(found.mean[LOSS, line]) >= -1e-6 * UNIT).all()
            assert (np.diff(found.mean[LATENCY, line]) <= 1e-6).all()


@given(points)
@settings(max_examples=25, deadline=None)
def test_measurements_that_are_as_believed_do_not_make_predictions_less_sure(known: list[Point]) -> None:
    before = PROXY.predict([])
    figures = np.vstack([np.exp(before.mean[:LOSS]), before.mean[LOSS:]])
    told = [(point, figures[:, place(point)]) for point in known]
    after = PROXY.predict([Observation(point, latency, size, memory, loss) for point, (latency, size, memory, loss) in told])
    assert (after.sd <= before.sd + 1e-9).all()


def test_what_one_scale_shows_is_believed_of_the_other_in_part() -> None:
    """Int8 that is no faster on one scale is expected to be slower than believed on the other, but not as sure."""
    int8 = at("off", "off", "off", "int8")
    slow = [observed(WHOLE), replace(observed(int8), latency=truth(WHOLE)[0])]
    other = place(replace(int8, scale="small"))
    base = place(replace(WHOLE, scale="small"))
    before, after = PROXY.predict([observed(WHOLE)]), PROXY.predict(slow)
    believed, shown = (found.mean[LATENCY, other] - found.mean[LATENCY, base] for found in (before, after))
    assert believed < shown < 0
    assert after.sd[LATENCY, other] < before.sd[LATENCY, other]


def test_a_few_measurements_predict_the_rest_of_a_law_that_is_not_the_prior() -> None:
    known = [
        WHOLE,
        at("off", "off", "off", "int8"),
        at("0.4", "off", "off", "int8"),
        at("0.7", "off", "off", "int8"),
        at("off", "off", "off", "int8", scale="small"),
        at("off", "0.2", "off", "off", scale="small"),
    ]
    before, after = PROXY.predict([]), PROXY.predict([observed(point) for point in known])
    wanted = np.array([truth(point) for point in SPACE.points]).T
    wanted[:LOSS] = np.log(wanted[:LOSS])
    for figure in (LATENCY, SIZE, LOSS):
        errors = [float(np.abs(found.mean[figure] - wanted[figure]).mean()) for found in (before, after)]
        assert errors[1] < 0.7 * errors[0], FIGURES[figure]
    z = (wanted - after.mean) / after.sd
    assert (np.abs(z[[LATENCY, SIZE, LOSS]]) < 3).mean() > 0.95, "what is not known is called so"


def test_where_rules_of_thumb_are_far_off_they_are_no_longer_believed() -> None:
    """A net that loses 20 points with half of its channels, seen on few examples, is expected to lose as much whatever is done besides."""
    lost = [replace(observed(at(rate, "off", "off", "int8")), loss=20 * UNIT, loss_sd=3 * UNIT) for rate in ("0.5", "0.6")]
    found = PROXY.predict([observed(WHOLE), *lost])
    near, far, other = (place(at(*levels, "off", "int8")) for levels in (("0.5", "0.2"), ("0.2", "off"), ("off", "0.2")))
    assert found.mean[LOSS, near] - 3 * found.sd[LOSS, near] > 5 * UNIT
    assert found.mean[LOSS, far] - 1.5 * found.sd[LOSS, far] < 1 * UNIT, "little pruning may still do little"
    assert found.mean[LOSS, other] < 5 * UNIT, "that was not the other levers' doing"


def test_a_loss_that_is_only_known_to_be_too_large_raises_what_is_expected() -> None:
    half = at("0.5", "off", "off", "off")
    bound = Observation(half, loss=0.05, at_least=True)
    before, after = PROXY.predict([]), PROXY.predict([bound])
    assert after.mean[LOSS, place(half)] > before.mean[LOSS, place(half)]
    assert after.mean[LOSS, place(at("0.6", "off", "off", "int8"))] > before.mean[LOSS, place(at("0.6", "off", "off", "int8"))]
    harmless = Observation(at("0.8", "off", "off", "off"), loss=1e-4, at_least=True)
    assert np.allclose(PROXY.predict([harmless]).mean, before.mean), "a bound below what is expected says nothing"


def test_a_part_of_the_examples_counts_by_what_it_leaves_open() -> None:
    half = at("0.5", "off", "off", "off")
    sure, vague = (PROXY.predict([replace(observed(half), loss=0.05, loss_sd=sd)]) for sd in (1e-4, 0.02))
    prior = PROXY.predict([]).mean[LOSS, place(half)]
    assert prior < vague.mean[LOSS, place(half)] < sure.mean[LOSS, place(half)] < 0.05 + 1e-9
    assert vague.sd[LOSS, place(half)] > sure.sd[LOSS, place(half)]
