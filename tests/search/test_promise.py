"""What is worth a trial: against simulation, and at the edges."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from tests.search.spaces import goal

from sizewise.search.promise import LEAST_CHANCE, Proofs, goal_of, promise
from sizewise.search.proxy import Forecast, Observation
from sizewise.search.space import Point
from sizewise.types import Budget

HERE = Point("large", ())
BEST = Observation(HERE, latency=2e-3, size=1e6, memory=4e6, loss=0.004)
TOP = math.log(2e-3 * 1e6)


def forecast(*rows: tuple[float, float, float, float], sd: tuple[float, float, float, float] = (0.2, 0.1, 0.1, 0.005)) -> Forecast:
    mean = np.array([[math.log(latency), math.log(size), math.log(memory), loss] for latency, size, memory, loss in rows]).T
    return Forecast(mean, np.tile(np.array(sd)[:, None], (1, len(rows))))


ROWS = ((1.5e-3, 0.8e6, 4e6, 0.006), (2.5e-3, 1.2e6, 4e6, 0.001), (1e-3, 0.3e6, 4e6, 0.015), (1.9e-3, 1.9e6, 6e6, 0.002))
EVERY = np.ones(len(ROWS), dtype=bool)


def test_chance_and_gain_are_what_draws_say() -> None:
    found = forecast(*ROWS)
    wanted = goal(Budget(latency="2.2 ms", size="2 MB", max_drop="1 %"))
    rng = np.random.default_rng(0)
    draws = found.mean[..., None] + found.sd[..., None] * rng.standard_normal((*found.mean.shape, 40_000))
    fits = np.all(draws <= np.array(wanted.limits)[:, None, None], axis=0)
    gain = math.log(2e-3 * 1e6) - 0.02 - (draws[0] + draws[1])
    told = promise(found, wanted, EVERY, TOP, [BEST])
    assert told.chance == pytest.approx((fits & (gain > 0)).mean(-1), abs=0.06), "cost and latency are taken for independent"
    assert told.gain[2] > told.gain[3]
    assert ((told.gain > 0) == (told.chance >= LEAST_CHANCE)).all()


def test_a_cost_counts_as_far_as_it_will_be_proved_and_else_what_is_spare_does() -> None:
    found, wanted, spare = forecast(*ROWS), goal(Budget(max_drop="1 %")), TOP + 0.1
    proofs = Proofs(half=np.full(len(ROWS), 0.006), spread=np.full(len(ROWS), 0.003))
    rng = np.random.default_rng(0)
    draws = found.mean[..., None] + found.sd[..., None] * rng.standard_normal((*found.mean.shape, 40_000))
    chances = norm.cdf((0.006 - draws[3]) / 0.003)
    gain = TOP - 0.02 - (chances * (draws[0] + draws[1]) + (1 - chances) * spare)
    better = (gain > 0) & (draws[3] <= wanted.limits[3])
    told = promise(found, wanted, EVERY, TOP, [BEST], proofs, spare)
    assert told.chance == pytest.approx(better.mean(-1), abs=0.02)
    kept = told.chance >= LEAST_CHANCE
    assert told.gain[kept] == pytest.approx(np.where(better, gain, 0.0).mean(-1)[kept], abs=0.03)
    dear = promise(found, wanted, EVERY, TOP, [BEST], proofs, TOP + 2)
    assert dear.gain[2] < told.gain[2], "much is lost without a proof"


def test_before_anything_fits_the_chance_to_fit_counts() -> None:
    wanted = goal(Budget(latency="2.2 ms", max_drop="1 %"))
    told = promise(forecast(*ROWS), wanted, EVERY, None, [])
    assert int(np.argmax(told.gain)) == 0
    assert not told.nearing


def test_what_may_not_be_tried_promises_nothing() -> None:
    told = promise(forecast(*ROWS), goal(Budget(max_drop="1 %")), ~EVERY, TOP, [BEST])
    assert not told.gain.any()


def test_where_nothing_has_a_chance_the_nearest_is_tried_as_long_as_it_is_nearer() -> None:
    wanted = goal(Budget(size="1 kB", max_drop="1 %"))
    told = promise(forecast(*ROWS), wanted, EVERY, None, [BEST])
    assert told.nearing
    assert int(np.argmax(told.gain)) == 2, "the smallest"
    assert told.gain[1] == 0, "larger than what was measured"


def test_without_a_limit_of_quality_the_best_in_quality_is_wanted() -> None:
    wanted = goal(Budget(size="2 MB"))
    told = promise(forecast(*ROWS), wanted, EVERY, 0.004, [BEST])
    assert not wanted.by_cost
    assert int(np.argmax(told.gain)) == 1


@pytest.mark.parametrize(("higher", "reference", "least", "limit"), [(True, 0.95, "90 %", 0.05), (False, 0.5, "0.6", 0.1)])
def test_a_least_quality_is_a_largest_loss(higher: bool, reference: float, least: str, limit: float) -> None:
    found = goal_of(Budget(min_quality=least), reference, higher_is_better=higher, unit=0.01)
    assert found.limits[:-1] == (math.inf, math.inf, math.inf)
    assert found.limits[-1] == pytest.approx(limit)
    both = goal_of(Budget(min_quality=least, max_drop="1 %"), reference, higher_is_better=higher, unit=0.01)
    assert both.limits[-1] == pytest.approx(0.01)
