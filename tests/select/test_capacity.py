"""The choice between scales, diagnoses on hand-made draws, and whether intervals hold the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from sizewise.advice import Diagnosis, Point
from sizewise.select.capacity import CONFIDENCE, Figures, SeedNoise, choose, diagnose, shortfall
from sizewise.select.errors_of import ErrorScale
from sizewise.select.judge import Evidence, judge_scales, what_decides
from sizewise.types import Interval

ORDER = ("s", "m", "l")
SHARE = ErrorScale("share", 0.0)


def interval(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high, n=100, confidence=CONFIDENCE)


WITHIN, OUTSIDE, OPEN, BEST = interval(-0.002, 0.008), interval(0.02, 0.04), interval(-0.01, 0.03), interval(0.0, 0.0)


def test_the_smallest_within_is_recommended_when_every_smaller_one_is_outside() -> None:
    choice = choose({"s": OUTSIDE, "m": WITHIN, "l": BEST}, 0.01, ORDER)
    assert (choice.recommended, choice.safe, choice.undecided) == ("m", "m", ())


def test_a_smaller_scale_in_doubt_leaves_only_what_is_safe() -> None:
    choice = choose({"s": OPEN, "m": WITHIN, "l": BEST}, 0.01, ORDER)
    assert (choice.recommended, choice.safe, choice.undecided) == (None, "m", ("s",))


def test_the_best_is_safe_however_much_is_undecided() -> None:
    choice = choose({"s": OPEN, "m": OPEN, "l": BEST}, 0.01, ORDER)
    assert (choice.recommended, choice.safe, choice.undecided) == (None, "l", ("s", "m"))


def test_larger_scales_in_doubt_do_not_matter() -> None:
    assert choose({"s": WITHIN, "m": OPEN, "l": OPEN}, 0.01, ORDER).recommended == "s"


def test_the_order_given_decides_which_is_smaller() -> None:
    behind = {"s": WITHIN, "m": WITHIN, "l": BEST}
    assert choose(behind, 0.01, ("l", "m", "s")).recommended == "l"


def test_scales_without_an_interval_are_left_out() -> None:
    assert choose({"m": WITHIN, "l": BEST}, 0.01, ORDER).recommended == "m"
    nothing = choose({}, 0.01, ORDER)
    assert (nothing.recommended, nothing.safe, nothing.undecided) == (None, None, ())


def test_nothing_within_is_no_recommendation() -> None:
    choice = choose({"s": OUTSIDE, "m": OUTSIDE}, 0.01, ("s", "m"))
    assert (choice.recommended, choice.safe, choice.undecided) == (None, None, ())


def test_a_bound_on_the_tolerance_is_within() -> None:
    assert choose({"s": interval(0.0, 0.01)}, 0.01, ("s",)).recommended == "s"


def figures(train: float, validation: float, gain: float = 0.0, draws: int = 8) -> Figures:
    return Figures(np.full(draws, train), np.full(draws, validation), np.full(draws, gain))


@pytest.mark.parametrize(
    ("train", "validation", "gain", "want"),
    [
        (0.05, 0.102, 0.001, "saturated"),
        (0.05, 0.102, 0.03, "data-limited"),
        (0.28, 0.30, 0.0, "underfits"),
        (0.0, 0.30, 0.03, "overfits"),
    ],
)
def test_each_diagnosis_has_its_figures(train: float, validation: float, gain: float, want: Diagnosis) -> None:
    scales = {"s": figures(train, validation, gain), "l": figures(0.005, 0.10)}
    found = diagnose(scales, 0.01, ("s", "l"))
    assert found["s"] == (want, 1.0)
    assert found["l"][0] == "saturated"


def test_the_certainty_is_the_share_of_draws_that_say_so() -> None:
    mixed = Figures(np.zeros(8), np.array([0.3] * 6 + [0.1] * 2), np.zeros(8))
    found = diagnose({"s": mixed, "l": figures(0.09, 0.1)}, 0.01, ("s", "l"))
    assert found["s"] == ("overfits", 0.75)


def test_a_largest_scale_that_is_far_ahead_and_does_not_fit_its_data_underfits() -> None:
    found = diagnose({"s": figures(0.5, 0.5), "l": figures(0.3, 0.31)}, 0.01, ("s", "l"))
    assert found["l"][0] == "underfits"


@pytest.mark.parametrize(
    ("small", "train", "validation", "why"),
    [(0.315, 0.3, 0.31, "not ahead"), (0.5, 0.005, 0.0051, "fits its data"), (0.5, 0.1, 0.31, "a gap")],
)
def test_a_largest_scale_does_not_underfit_without_all_three_signs(small: float, train: float, validation: float, why: str) -> None:
    found = diagnose({"s": figures(small, small), "l": figures(train, validation)}, 0.01, ("s", "l"))
    assert found["l"][0] == "saturated", why


def test_a_single_scale_is_not_called_too_small_for_lack_of_others() -> None:
    assert diagnose({"s": figures(0.5, 0.5)}, 0.01, ("s",))["s"][0] == "saturated"


def draw(
    generator: np.random.Generator, seeds: int, examples: int, spread: tuple[float, float, float], shift: float
) -> tuple[ndarray, ...]:
    """Errors of two scales: what examples share, what they do not, and what a seed adds; the second is worse by `shift`."""
    by_example, own, by_seed = spread
    shared = generator.normal(0, by_example, examples)
    base = 1.0 + shared
    first, second = (
        base + generator.normal(0, own, examples) + generator.normal(0, by_seed, (seeds, 1)) + generator.normal(0, 0.02, (seeds, examples))
        for _ in range(2)
    )
    return first, second + shift


@pytest.mark.parametrize(
    ("seeds", "spread"),
    [(3, (1.0, 0.3, 0.02)), (3, (1.0, 0.3, 0.0)), (2, (0.2, 0.05, 0.05)), (5, (0.2, 0.01, 0.1))],
    ids=["both", "examples alone", "few seeds", "seeds alone"],
)
def test_nine_in_ten_intervals_hold_the_truth(seeds: int, spread: tuple[float, float, float]) -> None:
    generator, held, runs = np.random.default_rng(7), 0, 1500
    for _ in range(runs):
        first, second = draw(generator, seeds, 60, spread, 0.05)
        found, _ = shortfall(first, second, SeedNoise.of([first, second], share=False))
        held += found.low <= 0.05 <= found.high
    assert 0.85 <= held / runs <= 0.97


def test_nine_in_ten_intervals_hold_the_truth_for_right_and_wrong() -> None:
    """Scores of 0 and 1: examples differ in difficulty, scales in skill, and seeds move a training's skill."""
    generator = np.random.default_rng(11)

    def errors(skill: float, difficulty: ndarray, seeds: int) -> ndarray:
        chance = 1 / (1 + np.exp(skill + generator.normal(0, 0.15, (seeds, 1)) - difficulty))
        found: ndarray = (generator.uniform(size=chance.shape) < chance).astype(float)
        return found

    def truth(skill: float) -> float:
        many = generator.normal(0, 2, 2000)
        return float(errors(skill, many, 500).mean())

    want, held, runs = truth(2.0) - truth(2.6), 0, 1000
    for _ in range(runs):
        difficulty = generator.normal(0, 2, 300)
        best, other = errors(2.6, difficulty, 3), errors(2.0, difficulty, 3)
        found, _ = shortfall(best, other, SeedNoise.of([best, other], share=True))
        held += found.low <= want <= found.high
    assert 0.85 <= held / runs <= 0.97


def test_equal_scores_have_an_interval_of_zero() -> None:
    scores = np.tile(np.random.default_rng(0).integers(0, 2, 50).astype(float), (2, 1))
    found, fixed = shortfall(scores, scores.copy(), SeedNoise.of([scores, scores], share=True))
    assert (found.value, found.low, found.high, found.n, fixed) == (0.0, 0.0, 0.0, 50, 0.0)


def test_pairing_removes_what_examples_share() -> None:
    generator = np.random.default_rng(0)
    first, second = draw(generator, 3, 200, (5.0, 0.01, 0.0), 0.1)
    found, _ = shortfall(first, second, SeedNoise.of([first, second], share=False))
    assert found.low > 0.09
    assert found.high < 0.11


def test_one_seed_leaves_the_examples_uncertainty() -> None:
    first, second = draw(np.random.default_rng(0), 1, 100, (1.0, 0.3, 0.0), 0.1)
    noise = SeedNoise.of([first, second], share=False)
    assert (noise.variance(first), noise.freedom) == (0.0, 0)
    found, fixed = shortfall(first, second, noise)
    assert found.low < found.value < found.high
    assert math.isfinite(found.high)
    assert fixed == pytest.approx(float((second - first)[0].var(ddof=1)) / 100)


def test_one_example_tells_nothing() -> None:
    found, _ = shortfall(np.zeros((3, 1)), np.ones((3, 1)), SeedNoise(0.01, False, 4))
    assert found.value == 1.0
    assert found.low < -1e200
    assert found.high > 1e200


@given(factor=st.floats(1.1, 10), seeds=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_more_seed_variance_never_narrows_the_interval(factor: float, seeds: int) -> None:
    first, second = draw(np.random.default_rng(0), seeds, 40, (1.0, 0.3, 0.1), 0.1)
    narrow, _ = shortfall(first, second, SeedNoise(0.01, False, 20))
    wide, _ = shortfall(first, second, SeedNoise(0.01 * factor, False, 20))
    assert wide.high - wide.low >= narrow.high - narrow.low


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_pooled_variance_is_the_mean_square_within_scales(seeds: list[int], start: int) -> None:
    generator = np.random.default_rng(start)
    finals = [generator.normal(0, 1, (count, 7)) for count in seeds]
    squares, freedom = 0.0, 0
    for matrix in finals:
        means = [sum(row) / len(row) for row in matrix.tolist()]
        centre = sum(means) / len(means)
        squares += sum((m - centre) ** 2 for m in means)
        freedom += len(means) - 1
    noise = SeedNoise.of(finals, share=False)
    assert noise.freedom == freedom
    assert noise.variance(finals[0]) == pytest.approx(squares / freedom if freedom else 0.0)


def test_for_shares_a_poor_scales_noise_is_not_taken_for_a_good_ones() -> None:
    poor = np.stack([np.repeat([1.0, 0.0], [k, 100 - k]) for k in (40, 50, 60)])
    good = np.stack([np.repeat([1.0, 0.0], [2, 98])] * 3)
    noise = SeedNoise.of([poor, good], share=True)
    assert 0 < noise.variance(good) < noise.variance(poor)
    alone = SeedNoise.of([poor], share=True)
    assert alone.variance(poor) == pytest.approx(float(poor.mean(1).var(ddof=1))), "one scale alone has its own variance"


def test_for_shares_no_error_seen_is_not_no_noise() -> None:
    poor = np.stack([np.repeat([1.0, 0.0], [k, 100 - k]) for k in (40, 50, 60)])
    assert SeedNoise.of([poor], share=True).variance(np.zeros((3, 100))) > 0
    assert SeedNoise.of([np.zeros((3, 100))], share=True).variance(poor) == 0


def evidence(errors: ndarray) -> Evidence:
    """One size: the errors as accuracies."""
    points = tuple(
        Point(examples=100, seed=seed, train=1.0, validation=float(1 - row.mean()), epochs=1, seconds=0.0)
        for seed, row in enumerate(errors)
    )
    return Evidence(points, {100: 1 - errors}, 100)


def test_the_seeds_that_would_decide_do_when_nothing_else_changes() -> None:
    generator = np.random.default_rng(3)
    examples, seeds, tolerance = 400, 3, 0.02
    base = generator.uniform(0.2, 0.4, examples)

    def matrix(shift: float, count: int) -> ndarray:
        """Seeds whose means are spread with the same variance, whatever their number."""
        offsets = np.linspace(-1, 1, count)
        offsets *= 0.02 / offsets.std(ddof=1)
        grown: ndarray = base + shift + offsets[:, None]
        return grown

    order = ("s", "l")
    ruling = judge_scales({"s": evidence(matrix(0.005, seeds)), "l": evidence(matrix(0, seeds))}, SHARE, order, order, 100, tolerance, 0)
    assert ruling.choice.undecided == ("s",)
    more_seeds, _ = what_decides(ruling, "s", tolerance, seeds)
    assert more_seeds is not None
    assert more_seeds > seeds
    first, second = matrix(0, more_seeds + 1), matrix(0.005, more_seeds + 1)  # one more: t instead of the normal
    found, _ = shortfall(first, second, SeedNoise.of([first, second], share=False))
    assert found.high <= tolerance


def test_the_examples_that_would_decide_do_when_nothing_else_changes() -> None:
    generator = np.random.default_rng(3)
    tolerance = 0.02
    difference = generator.normal(0.005, 0.2, 100)
    difference += 0.005 - difference.mean()

    def two(repeats: int) -> tuple[ndarray, ndarray]:
        best = np.full((2, 100 * repeats), 0.3)
        return best, best + np.tile(difference, repeats)

    best, other = two(1)
    order = ("s", "l")
    ruling = judge_scales({"s": evidence(other), "l": evidence(best)}, SHARE, order, order, 100, tolerance, 0)
    assert ruling.choice.undecided == ("s",)
    more_seeds, more_examples = what_decides(ruling, "s", tolerance, 2)
    assert more_seeds is None, "the seeds do not differ"
    assert more_examples is not None
    best, other = two(math.ceil(1.05 * more_examples / 100))
    assert shortfall(best, other, SeedNoise(0.0, False, 2))[0].high <= tolerance
    best, other = two(max(1, math.floor(0.9 * more_examples / 100)))
    assert shortfall(best, other, SeedNoise(0.0, False, 2))[0].high > tolerance


def test_nothing_decides_an_estimate_on_the_tolerance() -> None:
    errors = np.linspace(0.2, 0.4, 50)
    order = ("s", "l")
    found = {"s": evidence(np.stack([errors + 0.01, errors + 0.03])), "l": evidence(np.stack([errors, errors]))}
    ruling = judge_scales(found, SHARE, order, order, 100, 0.02, 0)
    assert ruling.scales["s"].behind is not None
    assert what_decides(ruling, "s", ruling.scales["s"].behind.value, 2) == (None, None)
    assert what_decides(ruling, "l", 0.02, 2) == (None, None), "the best is not in doubt"


def test_the_cheaper_of_two_equally_good_scales_is_the_best() -> None:
    errors = np.full((2, 20), 0.25)
    ruling = judge_scales({"l": evidence(errors), "s": evidence(errors)}, SHARE, ("s", "l"), ("s", "l"), 100, 0.01, 0)
    assert ruling.best == "s"
    assert ruling.choice.recommended == "s"


def test_a_scale_that_is_not_allowed_is_not_chosen_though_it_is_the_best() -> None:
    errors = np.full((2, 20), 0.25)
    found = {"s": evidence(errors), "l": evidence(errors - 0.2)}
    ruling = judge_scales(found, SHARE, ("s", "l"), ("s",), 100, 0.01, 0)
    assert ruling.best == "l"
    assert ruling.choice.safe is None
