"""How probable a proof is, and what looks may err."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sizewise.evaluate.metrics import METRICS, Metric
from sizewise.evaluate.paired import mcnemar_errors, tango_interval
from sizewise.evaluate.proof import ERROR, confidence_at, drop_proved, drop_refused, look_level, most_chance, proof_chance
from sizewise.evaluate.scoring import quality
from sizewise.types import Budget, Quality

BUDGET = Budget(max_drop="1 %")
LOSS = METRICS["loss"]


def seen(worse: int, better: int, count: int, right: float = 0.9) -> Quality:
    ones = round(right * count)
    reference = np.repeat([1.0, 0.0], [ones, count - ones])
    candidate = reference.copy()
    candidate[:worse] = 0
    candidate[ones : ones + better] = 1
    return quality(candidate, METRICS["accuracy"], reference)


def test_all_looks_together_stay_within_five_percent() -> None:
    levels = [look_level(look) for look in range(1, 200)]
    assert sum(levels) == pytest.approx(ERROR)
    assert levels[0] == pytest.approx(0.04)
    assert all(later == pytest.approx(0.2 * earlier) for earlier, later in itertools.pairwise(levels))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(100, 2000), st.floats(0.001, 0.2), st.sampled_from([0.04, 0.008]))
@settings(max_examples=60, deadline=None)
def test_proved_and_refused_are_the_ends_of_tangos_interval(b: int, c: int, n: int, limit: float, level: float) -> None:
    low, high = tango_interval(b, c, n, confidence_at(level))
    if min(abs(low - limit), abs(high - limit)) > 1e-6:
        assert bool(drop_proved(b, c, n, limit, level)) == (high <= limit)
        assert bool(drop_refused(b, c, n, limit, level)) == (low > limit)


@given(st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_mcnemars_errors_are_a_fair_coins(b: int, c: int) -> None:
    fewer, more = mcnemar_errors(b, c)
    weights = np.array([stats.binom.pmf(k, b + c, 0.5) for k in range(b + c + 1)])
    assert float(fewer) == pytest.approx(weights[: b + 1].sum())
    assert float(more) == pytest.approx(weights[b:].sum())


def test_at_a_limit_of_nothing_only_more_won_than_lost_proves() -> None:
    assert not drop_proved(0, 0, 1000, 0, 0.04)
    assert not drop_proved(0, 4, 1000, 0, 0.04)
    assert drop_proved(0, 5, 1000, 0, 0.04), "one in 32"
    assert drop_refused(5, 0, 1000, 0, 0.04)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (4, 2), (12, 6), (25, 5)])
def test_the_chance_is_how_often_fresh_examples_would_prove_it(worse: int, better: int) -> None:
    count, examples = 2000, 1500
    rng = np.random.default_rng(1)
    proofs = []
    for _ in range(400):  # slow and obvious: draw what may be true, then a test split, then look at its bound
        shares = rng.dirichlet([worse + 0.5, better + 0.5, count - worse - better + 0.5])
        lost, won, _ = rng.multinomial(examples, shares)
        proofs.append(tango_interval(int(lost), int(won), examples, confidence_at(0.04))[1] <= 0.01)
    got = proof_chance(seen(worse, better, count), BUDGET, examples, 0.04)
    assert got == pytest.approx(float(np.mean(proofs)), abs=0.07)


@given(st.integers(0, 30), st.integers(0, 20), st.integers(200, 3000))
@settings(max_examples=30, deadline=None)
def test_more_lost_is_never_more_probable_to_be_proved(worse: int, better: int, examples: int) -> None:
    one, other = (proof_chance(seen(w, better, 1000), BUDGET, examples, 0.04) for w in (worse, worse + 10))
    assert one is not None
    assert other is not None
    assert 0 <= other <= one + 0.03 <= 1.03


def test_few_test_examples_prove_nothing_and_stricter_looks_less() -> None:
    found = seen(0, 0, 5000)
    small, large = (proof_chance(found, BUDGET, examples, 0.04) for examples in (150, 2000))
    assert small == 0
    assert large is not None
    assert large > 0.95
    middling = seen(8, 4, 2000)
    first, second = (proof_chance(middling, BUDGET, 1500, look_level(look)) for look in (1, 2))
    assert first is not None
    assert second is not None
    assert second < first


@pytest.mark.parametrize("metric", [LOSS, Metric("own", LOSS.score)])
def test_other_scores_go_by_mean_and_spread(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    reference = rng.exponential(1, 800)
    candidate = reference + rng.normal(0.0, 0.2, 800)
    found = quality(candidate, metric, reference)
    assert found.drop is not None
    drop, examples, sign = found.drop.value, 500, -1 if metric.higher_is_better else 1
    spread = float(np.std(sign * (candidate - reference), ddof=1))
    for limit in (0.01, 0.02, 0.03):
        proofs = []
        for _ in range(2000):
            truth = rng.normal(drop, spread / np.sqrt(800))
            mean = rng.normal(truth, spread / np.sqrt(examples))
            proofs.append(mean + stats.t.isf(0.04, examples - 1) * spread / np.sqrt(examples) <= limit)
        assert proof_chance(found, Budget(max_drop=limit), examples, 0.04) == pytest.approx(np.mean(proofs), abs=0.04)


def test_a_least_quality_is_proved_by_the_scores_themselves_and_both_limits_by_the_weaker() -> None:
    found = seen(5, 5, 2000)
    easy, hard = (proof_chance(found, Budget(min_quality=q), 1500, 0.04) for q in ("85 %", "89.9 %"))
    assert easy is not None
    assert hard is not None
    assert easy > 0.99
    assert hard < 0.2
    both = proof_chance(found, Budget(min_quality="89.9 %", max_drop="5 %"), 1500, 0.04)
    assert both == hard
    loss = replace(found, higher_is_better=False, drop=None, flips=None)
    assert proof_chance(loss, Budget(min_quality="95 %"), 1500, 0.04) == pytest.approx(1.0, abs=1e-3)
    assert proof_chance(loss, Budget(min_quality="85 %"), 1500, 0.04) == pytest.approx(0.0, abs=1e-3)


def test_nothing_to_prove_or_nothing_to_prove_it_with() -> None:
    assert proof_chance(seen(0, 0, 100), Budget(size="1 MB"), 1000, 0.04) is None
    assert proof_chance(seen(0, 0, 100), BUDGET, 0, 0.04) is None


@given(st.integers(0, 25), st.integers(0, 25), st.floats(0.1, 1), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_part_never_promises_less_than_the_whole_shows(worse: int, better: int, share: float, seed: int) -> None:
    """Whole splits that keep the limit, of which a part was read and the loss is known."""
    count = 2500
    rng = np.random.default_rng(seed)
    read = rng.permutation(count)[: int(share * count)]
    lost, won = int(np.sum(read < worse)), int(np.sum(read >= count - better))
    chance = most_chance(seen(lost, won, len(read)), (worse - better) / count, count, BUDGET, 3000, 0.04)
    whole = proof_chance(seen(worse, better, count), BUDGET, 3000, 0.04)
    assert chance is not None
    assert whole is not None
    assert chance >= whole or (worse - better) / count > 0.01
    assert chance <= 1


def test_no_chance_is_told_where_nothing_is_proved() -> None:
    assert most_chance(seen(3, 0, 500), 0.0, 1000, Budget(min_quality="80 %"), 3000, 0.04) is None
    assert most_chance(seen(3, 0, 500), 0.0, 1000, BUDGET, 1, 0.04) is None
    losses = quality(np.linspace(0, 1, 500), LOSS, np.linspace(0, 1, 500))
    assert most_chance(losses, 0.0, 1000, BUDGET, 3000, 0.04) is None
