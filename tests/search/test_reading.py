"""What a part of the validation split says of the whole, beside a split that is read again and again."""

import numpy as np
import pytest

from sizewise.evaluate.metrics import find_metric
from sizewise.evaluate.scoring import quality
from sizewise.search.reading import Reading, deviation
from sizewise.types import Interval, Quality

COUNT = 3000
SCORES = (np.random.default_rng(0).random(COUNT) < 0.04).astype(float)  # what a file loses


def seen(scores: np.ndarray) -> Quality:
    return quality(1 - scores, find_metric("accuracy"), np.ones(len(scores)))


def drop(value: float, n: int, half: float = 0.01) -> Quality:
    interval = Interval(value=value, low=value - half, high=value + half, n=n, how="measured", confidence=0.95)
    return Quality(metric="accuracy", higher_is_better=True, score=interval, drop=interval)


@pytest.mark.parametrize("read", [300, 1500, 2700])
def test_a_part_that_is_drawn_at_random_is_off_by_what_it_says(read: int) -> None:
    rng, whole, reading = np.random.default_rng(1), float(SCORES.mean()), Reading(COUNT, COUNT)
    parts = [seen(rng.permutation(SCORES)[:read]) for _ in range(400)]
    losses = np.array([part.drop.value for part in parts if part.drop])
    real = float(np.sqrt(np.mean((losses - whole) ** 2)))
    assert np.median([reading.off(part) for part in parts]) == pytest.approx(real, rel=0.15)
    assert np.median([reading.whole(part) for part in parts]) == pytest.approx(deviation(seen(SCORES)), rel=0.15)


def test_what_comes_first_leaves_open_a_part_of_what_it_lost_and_the_rest_nothing() -> None:
    reading = Reading(1000, COUNT)
    assert reading.off(drop(0.02, 1000)) == pytest.approx(0.002)
    assert reading.off(drop(0.02, 2000)) == pytest.approx(0.001)
    assert reading.off(drop(0.02, 3000)) == 0
    assert reading.off(drop(0.02, 500)) > deviation(drop(0.02, 500)) * 0.7, "not all that comes first was read"
    assert reading.whole(drop(0.02, 2000)) == deviation(drop(0.02, 2000)), "what differs was read"
