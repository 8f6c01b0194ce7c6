"""Scores as errors and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizewise.select.errors_of import ErrorScale, error_scale
from sizewise.types import Interval

SCALES = [ErrorScale("share", 0.0), ErrorScale("more", None), ErrorScale("less", 0.0), ErrorScale("less", None)]


@pytest.mark.parametrize(
    ("scores", "higher", "want"),
    [
        ([0.0, 1.0], True, ErrorScale("share", 0.0)),
        ([0.0, 1.5], True, ErrorScale("more", None)),
        ([-0.5, 1.0], True, ErrorScale("more", None)),
        ([0.0, 7.0], False, ErrorScale("less", 0.0)),
        ([-0.1, 7.0], False, ErrorScale("less", None)),
    ],
)
def test_the_scale_follows_from_the_scores(scores: list[float], higher: bool, want: ErrorScale) -> None:
    assert error_scale([np.array(scores)], higher_is_better=higher) == want
    assert error_scale([np.array([[score]]) for score in scores], higher_is_better=higher) == want, "over all blocks"


@pytest.mark.parametrize("scale", SCALES, ids=lambda s: f"{s.kind}-{s.least}")
@given(score=st.floats(-10, 10))
def test_a_score_comes_back_from_its_error(scale: ErrorScale, score: float) -> None:
    assert scale.quality(float(scale.error(np.array(score)))) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("scale", SCALES[:3], ids=lambda s: s.kind)
def test_a_better_score_has_a_smaller_error_and_a_positive_difference(scale: ErrorScale) -> None:
    worse, better = (0.7, 0.4) if scale.kind == "less" else (0.4, 0.7)
    assert scale.error(np.array(better)) < scale.error(np.array(worse))
    assert scale.difference(worse, better) == pytest.approx(0.3)
    want = float(scale.error(np.array(worse)) - scale.error(np.array(better)))
    assert scale.difference(worse, better) == pytest.approx(want)


@pytest.mark.parametrize("scale", SCALES[:3], ids=lambda s: s.kind)
def test_an_interval_stays_the_right_way_round(scale: ErrorScale) -> None:
    found = scale.qualities(Interval(value=0.2, low=0.1, high=0.4, n=7, how="predicted", confidence=0.9))
    assert found.low < found.value < found.high
    assert (found.n, found.how, found.confidence) == (7, "predicted", 0.9)
    assert sorted((scale.quality(0.1), scale.quality(0.4))) == [found.low, found.high]
