"""Intervals against slow and obvious references."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from sizewise.evaluate.paired import UNBOUNDED, examples_needed, mean_interval, median_interval, paired_drop, tango_interval
from sizewise.types import Interval

scores = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)
pairs = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=30)
bits = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


def _restricted_z(d: float, b: int, c: int, n: int) -> float:
    """Score statistic at a hypothesised difference, the likelihood maximised numerically over the nuisance parameter."""
    low, high = max(0.0, -d), (1 - d) / 2

    def minus_log_likelihood(q: float) -> float:
        cells = ((b, q + d), (c, q), (n - b - c, 1 - 2 * q - d))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    q = float(optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
    # the bounded search stays inside: an optimum on the border is compared explicitly
    q = min((low, q, high), key=minus_log_likelihood)
    p10, p01 = q + d, q
    return (b - c - n * d) / math.sqrt(n * (p10 + p01 - (p10 - p01) ** 2))


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [
        (0, 0, 20),
        (3, 1, 25),
        (1, 3, 25),
        (9, 2, 40),
        (0, 7, 30),
        (7, 0, 30),
        (5, 5, 10),
        (12, 30, 100),
        (20, 0, 20),
        (1, 0, 1),
        (0, 1, 2),
        (2, 4, 1000),
    ],
)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_tango_is_where_the_restricted_score_statistic_is_within_the_quantile(b: int, c: int, n: int, confidence: float) -> None:
    quantile = float(stats.norm.ppf(0.5 + confidence / 2))
    low, high = tango_interval(b, c, n, confidence)
    assert -1 <= low <= (b - c) / n <= high <= 1
    for d in np.linspace(-0.995, 0.995, 80):
        if min(abs(d - low), abs(d - high)) > 1e-4:
            assert (abs(_restricted_z(float(d), b, c, n)) <= quantile) == (low <= d <= high), d
    for end, inside in ((low, 1e-3), (high, -1e-3)):
        if abs(end) < 0.999:
            assert abs(_restricted_z(end, b, c, n)) == pytest.approx(quantile, abs=2e-3)
            assert abs(_restricted_z(end - inside, b, c, n)) > quantile


def test_tango_without_discordant_pairs_has_a_closed_form() -> None:
    n, z2 = 500, float(stats.norm.ppf(0.975)) ** 2
    assert tango_interval(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=50, deadline=None)
def test_tango_mirrors_contains_and_nests(b: int, c: int, both: int, confidence: float) -> None:
    n = max(1, b + c + both)
    low, high = tango_interval(b, c, n, confidence)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert high - low > 0
    assert tango_interval(c, b, n, confidence) == pytest.approx((-high, -low), abs=1e-8)
    wider = tango_interval(b, c, n, 0.5 + confidence / 2)
    assert wider[0] <= low + 1e-9
    assert wider[1] >= high - 1e-9


def test_tango_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    p10, p01, n = 0.06, 0.03, 150
    draws = rng.multinomial(n, [p10, p01, 1 - p10 - p01], size=600)
    ends = {(b, c): tango_interval(b, c, n) for b, c in {(int(b), int(c)) for b, c, _ in draws}}
    hits = [ends[int(b), int(c)][0] <= p10 - p01 <= ends[int(b), int(c)][1] for b, c, _ in draws]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 10), (950, 1000), (1, 1)])
def test_a_mean_of_bits_has_wilsons_interval(right: int, n: int) -> None:
    values = np.array([1.0] * right + [0.0] * (n - right))
    z, p = float(stats.norm.ppf(0.975)), right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    got = mean_interval(values, binary=True)
    assert (got.value, got.n, got.confidence, got.how) == (p, n, 0.95, "measured")
    assert (got.low, got.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= got.low <= got.value <= got.high <= 1


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_a_mean_of_other_scores_has_students_interval(binary: bool, confidence: float) -> None:
    values = np.random.default_rng(0).normal(3, 2, 17)  # not bits, whatever the metric declares
    got = mean_interval(values, binary=binary, confidence=confidence)
    want = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.value == pytest.approx(float(values.mean()))


def test_bits_of_a_metric_that_is_not_binary_have_students_interval() -> None:
    values = np.array([0.0, 1.0, 1.0, 1.0])
    want = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values, binary=False).high == pytest.approx(want.high)


@pytest.mark.parametrize("higher", [True, False])
def test_a_paired_drop_of_other_scores_is_students_on_the_differences(higher: bool) -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(0, 5, 40)
    candidate = reference + rng.normal(0.2, 0.1, 40)
    got = paired_drop(reference, candidate, higher_is_better=higher, binary=False)
    first, second = (reference, candidate) if higher else (candidate, reference)
    want = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.value == pytest.approx(-0.2 if higher else 0.2, abs=0.05)
    assert got.high - got.low < 0.1  # the shared spread of 5 does not count


def test_a_paired_drop_of_bits_is_tangos_on_the_discordant_pairs() -> None:
    reference = np.array([1.0] * 12 + [0.0] * 3 + [1.0] * 85)
    candidate = np.array([0.0] * 12 + [1.0] * 3 + [1.0] * 85)
    got = paired_drop(reference, candidate, higher_is_better=True, binary=True)
    assert got.value == pytest.approx(0.09)  # positive: the candidate is worse
    assert (got.low, got.high) == tango_interval(12, 3, 100)
    errors = paired_drop(reference, candidate, higher_is_better=False, binary=True)
    assert (errors.low, errors.high) == tango_interval(3, 12, 100)


def test_without_any_difference_bits_still_leave_doubt() -> None:
    same = np.ones(30)
    got = paired_drop(same, same, higher_is_better=True, binary=True)
    assert got.value == 0
    assert got.low < -0.05
    assert got.high > 0.05


@given(pairs, st.booleans())
@settings(max_examples=50, deadline=None)
def test_swapping_the_models_negates_the_drop(values: list[tuple[float, float]], higher: bool) -> None:
    first, second = np.array(values).T
    one = paired_drop(first, second, higher_is_better=higher, binary=False)
    other = paired_drop(second, first, higher_is_better=higher, binary=False)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), rel=1e-9, abs=1e-9)
    assert one.low <= one.value <= one.high
    flipped = paired_drop(first, second, higher_is_better=not higher, binary=False)
    assert flipped.value == pytest.approx(-one.value)


@given(bits)
@settings(max_examples=50, deadline=None)
def test_swapping_the_models_negates_the_drop_of_bits(values: list[tuple[int, int]]) -> None:
    first, second = np.array(values, float).T
    one = paired_drop(first, second, higher_is_better=True, binary=True)
    other = paired_drop(second, first, higher_is_better=True, binary=True)
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), abs=1e-8)
    assert one.low <= one.value <= one.high


@given(scores, st.booleans())
@settings(max_examples=50, deadline=None)
def test_intervals_contain_their_value(values: list[float], binary: bool) -> None:
    for got in (mean_interval(np.array(values), binary=binary), median_interval(np.array(values))):
        assert got.low <= got.value <= got.high
        assert got.n == len(values)


def test_one_example_leaves_everything_open() -> None:
    for got in (
        mean_interval(np.array([0.3]), binary=False),
        paired_drop(np.array([0.3]), np.array([0.2]), higher_is_better=True, binary=False),
    ):
        assert got.low <= -0.9 * UNBOUNDED
        assert got.high >= 0.9 * UNBOUNDED


@pytest.mark.parametrize("limit", [0.02, -0.02, 0.06])
def test_as_many_examples_as_said_decide_and_clearly_fewer_do_not(limit: float) -> None:
    def drop(n: int) -> Interval:
        noise = 0.3 * np.where(np.arange(n) % 2, 1.0, -1.0)  # the same mean and spread at every even n
        return paired_drop(noise + 0.01, np.zeros(n), higher_is_better=True, binary=False)

    needed = examples_needed(drop(400), limit)
    assert needed is not None

    def decides(n: float) -> bool:
        again = drop(2 * round(n / 2))
        return not again.low < limit < again.high

    assert decides(1.05 * needed)
    assert not decides(0.95 * needed)


@pytest.mark.parametrize(("b", "c", "limit"), [(40, 20, 0.08), (40, 20, 0.01), (30, 30, 0.05)])
def test_as_many_pairs_of_bits_as_said_decide_and_clearly_fewer_do_not(b: int, c: int, limit: float) -> None:
    n = 500
    low, high = tango_interval(b, c, n)
    needed = examples_needed(Interval(value=(b - c) / n, low=low, high=high, n=n), limit)
    assert needed is not None

    def decides(m: float) -> bool:
        again = tango_interval(round(b * m / n), round(c * m / n), round(m))
        return not again[0] < limit < again[1]

    assert decides(1.15 * needed)
    assert not decides(0.85 * needed)


def test_without_discordant_pairs_just_as_many_examples_as_asked_for_decide() -> None:
    same = np.ones(100)
    needed = examples_needed(paired_drop(same, same, higher_is_better=True, binary=True), 0.01, (0, 0))
    assert needed is not None
    assert tango_interval(0, 0, needed)[1] <= 0.01 < tango_interval(0, 0, needed - 1)[1]


def test_no_number_of_examples_decides_an_estimate_on_the_limit() -> None:
    assert examples_needed(Interval(value=0.01, low=0.0, high=0.02, n=100), 0.01) is None


def test_the_side_towards_the_limit_counts() -> None:
    drop = Interval(value=0.0, low=-0.01, high=0.04, n=100)
    assert examples_needed(drop, 0.02) == 400
    assert examples_needed(drop, -0.02) == 25


def test_an_unbounded_interval_cannot_say_how_many() -> None:
    assert examples_needed(paired_drop(np.array([0.5]), np.array([0.5]), higher_is_better=True, binary=False), 0.1) is None


def test_scores_of_different_examples_are_refused() -> None:
    with pytest.raises(ValueError):
        paired_drop(np.array([1.0]), np.array([0.0, 1.0, 1.0]), higher_is_better=True, binary=True)


@pytest.mark.parametrize("n", range(1, 31))
def test_the_median_interval_is_the_narrowest_symmetric_pair_of_order_statistics_with_the_level(n: int) -> None:
    ordered = np.arange(1.0, n + 1)
    got = median_interval(ordered[::-1])
    # P(X_(k) <= median <= X_(n+1-k)) by counting how many of n fair coins fall below
    below = [math.comb(n, i) / 2**n for i in range(n + 1)]
    coverage = {k: sum(below[k : n - k + 1]) for k in range(1, (n + 1) // 2 + 1)}
    good = [k for k, share in coverage.items() if share >= 0.95]
    k = max(good, default=1)
    assert (got.low, got.high) == (ordered[k - 1], ordered[n - k])
    assert got.value == float(np.median(ordered))
    assert got.confidence == pytest.approx(min(0.95, coverage[k]))


@pytest.mark.parametrize("n", [4, 9, 25])
def test_the_median_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(n).exponential(1.0, (1000, n))
    found = [median_interval(row) for row in draws]
    hits = np.mean([got.low <= math.log(2) <= got.high for got in found])
    assert hits >= found[0].confidence - 0.02
    assert hits <= found[0].confidence + 0.05


def test_the_median_interval_does_not_depend_on_order_or_touch_its_argument() -> None:
    values = np.array([3.0, 1.0, 2.0, 9.0, 4.0, 8.0, 7.0])
    kept = values.copy()
    assert median_interval(values) == median_interval(np.sort(values))
    assert np.array_equal(values, kept)
