"""From the scores of all trainings to curves, diagnoses, how far each scale is behind, and the choice.

Uncertainty: bootstrap over validation examples (the same draw for every scale and size, so that comparisons stay paired) and
over seeds (Efron and Tibshirani, An introduction to the bootstrap, 1993). With S seeds their resampled means vary
(S - 1) / S times too little; deviations from the mean are stretched by its root.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from sizewise.advice import BandPoint, Curve, Diagnosis, Point
from sizewise.select.capacity import CONFIDENCE, Choice, Figures, SeedNoise, choose, diagnose, shortfall
from sizewise.select.errors_of import ErrorScale
from sizewise.select.learning_curve import fit_power_laws
from sizewise.types import How, Interval

__all__ = ["Evidence", "Judged", "Ruling", "judge_scales", "what_decides"]

DRAWS = 400
BAND_POINTS = 25


@dataclass(frozen=True)
class Evidence:
    """The trainings of one scale.

    Attributes:
        points: every training.
        scores: number of training examples to scores [seeds, validation examples]; seeds in the order of the points'.
        final: the number of examples whose scores stand for the scale, or None when it was stopped before all examples.
    """

    points: tuple[Point, ...]
    scores: Mapping[int, Float[ndarray, "seeds examples"]]
    final: int | None


@dataclass(frozen=True)
class Judged:
    """What the trainings of one scale say; see `ScaleAdvice` for the fields."""

    train: Interval | None
    validation: Interval | None
    gap: Interval | None
    behind: Interval | None
    curve: Curve | None
    diagnosis: Diagnosis | None
    certainty: float | None


@dataclass(frozen=True)
class Ruling:
    """All scales judged, the best one, and the choice.

    Attributes:
        scales: by name.
        best: the smallest error on validation at all examples.
        choice: among the scales that were allowed.
        by_example: part of the variance of each scale's `behind` that more seeds would not remove.
        by_seed: of each scale, the part that one seed each for it and the best would leave.
    """

    scales: dict[str, Judged]
    best: str
    choice: Choice
    by_example: dict[str, float]
    by_seed: dict[str, float]


def judge_scales(
    evidence: Mapping[str, Evidence],
    errors: ErrorScale,
    order: Sequence[str],
    allowed: Sequence[str],
    total: int,
    tolerance: float,
    seed: int,
) -> Ruling:
    """Judge every scale and choose.

    Args:
        evidence: per scale; at least one with final scores.
        errors: of the metric.
        order: all scales from cheapest to dearest.
        allowed: those that may be chosen (not out of reach of the budget).
        total: all training examples.
        tolerance: in the error's unit.
        seed: of the bootstrap.
    """
    draws = {name: _Draws.of(found, errors, _weights(evidence, seed), seed + i) for i, (name, found) in enumerate(evidence.items())}
    finals = {name: errors.error(found.scores[found.final]) for name, found in evidence.items() if found.final is not None}
    best = min(finals, key=lambda name: (float(finals[name].mean()), order.index(name)))
    noise = SeedNoise.of(list(finals.values()), share=errors.kind == "share")
    behind: dict[str, Interval] = {}
    by_example: dict[str, float] = {}
    trained = {name: bool(found.final) for name, found in evidence.items()}
    own = {name: noise.variance(matrix) if trained[name] else 0.0 for name, matrix in finals.items()}
    by_seed = {name: own[best] + own[name] for name in finals}
    for name, matrix in finals.items():
        if name == best:
            behind[name] = Interval(value=0.0, low=0.0, high=0.0, n=matrix.shape[1], confidence=CONFIDENCE)
        else:
            behind[name], by_example[name] = shortfall(finals[best], matrix, noise, trained=(trained[best], trained[name]))
    diagnoses = _diagnoses(draws, finals, errors.least, total, tolerance, order)
    scales = {name: _judged(found, draws[name], errors, total, behind.get(name), diagnoses.get(name)) for name, found in evidence.items()}
    choice = choose(behind, tolerance, [name for name in order if name in allowed])
    return Ruling(scales, best, choice, by_example, by_seed)


def what_decides(ruling: Ruling, name: str, tolerance: float, seeds: int) -> tuple[int | None, int | None]:
    """Seeds per scale, and validation examples, that would decide whether `name` is within the tolerance, each alone.

    The half-width of its interval must fall to the distance between the estimate and the tolerance, while the estimate and
    the variances stay as they are. None where that alone would not do, or the estimate sits on the tolerance.
    """
    figure = ruling.scales[name].behind
    assert figure is not None
    distance = abs(tolerance - figure.value)
    if distance <= 1e-12 or name not in ruling.by_example:
        return None, None
    allowed = (distance / float(stats.norm.ppf(0.5 + CONFIDENCE / 2))) ** 2
    fixed, by_seed = ruling.by_example[name], ruling.by_seed[name]
    more_seeds = math.ceil(by_seed / (allowed - fixed)) if by_seed and allowed > fixed else None
    left = allowed - by_seed / seeds
    more_examples = math.ceil(figure.n * fixed / left) if left > 0 and fixed else None
    return more_seeds, more_examples


def _weights(evidence: Mapping[str, Evidence], seed: int) -> Float[ndarray, "draws examples"]:
    """How often each validation example is drawn, over how many are drawn."""
    n = next(iter(next(iter(evidence.values())).scores.values())).shape[1]
    weights: Float[ndarray, "draws examples"] = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    return weights


@dataclass(frozen=True)
class _Draws:
    """Bootstrap draws of one scale's mean errors, and the means themselves.

    `sizes` are the numbers of examples it was trained on, rising; the given model as it is (0 examples) is not among them.
    """

    sizes: tuple[int, ...]
    validation: Float[ndarray, "draws sizes"]
    mean: Float[ndarray, " sizes"]
    final: Float[ndarray, " draws"] | None
    train: Float[ndarray, " draws"]
    train_mean: float

    @classmethod
    def of(cls, found: Evidence, errors: ErrorScale, weights: Float[ndarray, "draws examples"], seed: int) -> "_Draws":
        generator = np.random.default_rng(seed)
        columns, trains = {}, {}
        for size, scores in sorted(found.scores.items()):
            picks = generator.integers(0, len(scores), (DRAWS, len(scores)))
            columns[size] = _over_seeds(weights @ errors.error(scores).T, picks)
            train = errors.error(np.array([math.nan if p.train is None else p.train for p in found.points if p.examples == size]))
            trains[size] = _over_seeds(np.broadcast_to(train, (DRAWS, len(train))), picks), float(train.mean())
        sizes = tuple(size for size in columns if size)
        last = found.final if found.final is not None else max(columns)
        return cls(
            sizes=sizes,
            validation=np.stack([columns[size] for size in sizes], 1) if sizes else np.empty((DRAWS, 0)),
            mean=np.array([float(errors.error(found.scores[size]).mean()) for size in sizes]),
            final=columns[found.final] if found.final is not None else None,
            train=trains[last][0],
            train_mean=trains[last][1],
        )


def _over_seeds(values: Float[ndarray, "draws seeds"], picks: ndarray) -> Float[ndarray, " draws"]:
    """Mean over resampled seeds, its deviation from the plain mean stretched as the module's text says."""
    plain = values.mean(1)
    drawn = np.take_along_axis(values, picks, 1).mean(1)
    seeds = values.shape[1]
    stretched: Float[ndarray, " draws"] = plain + (drawn - plain) * (math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0)
    return stretched


def _diagnoses(
    draws: Mapping[str, _Draws],
    finals: Mapping[str, ndarray],
    least: float | None,
    total: int,
    tolerance: float,
    order: Sequence[str],
) -> dict[str, tuple[Diagnosis, float]]:
    figures = {}
    for name in order:
        if name not in finals or not math.isfinite(draws[name].train_mean):
            continue
        found = draws[name]
        assert found.final is not None
        gain = np.zeros(DRAWS)
        if len(found.sizes) >= 3:
            laws = fit_power_laws(found.sizes, found.validation, least=least)
            gain = laws.at(total) - laws.at(2 * total)
        figures[name] = Figures(found.train, found.final, gain)
    return diagnose(figures, tolerance, list(figures)) if figures else {}


def _judged(
    found: Evidence, draws: _Draws, errors: ErrorScale, total: int, behind: Interval | None, diagnosis: tuple[Diagnosis, float] | None
) -> Judged:
    curve = _curve(draws, errors, total) if len(draws.sizes) >= 3 else None
    validation, gap = curve.at_full if curve is not None else None, None
    if found.final is not None:
        assert draws.final is not None
        value = float(errors.error(found.scores[found.final]).mean())
        validation = errors.qualities(_interval(value, draws.final, found.scores[found.final].size))
        gap = _interval(value - draws.train_mean, draws.final - draws.train, len(found.points))
    known = math.isfinite(draws.train_mean)
    return Judged(
        train=errors.qualities(_interval(draws.train_mean, draws.train, len(found.points))) if known else None,
        validation=validation,
        gap=gap if known else None,
        behind=behind,
        curve=curve,
        diagnosis=diagnosis[0] if diagnosis else None,
        certainty=diagnosis[1] if diagnosis else None,
    )


def _curve(draws: _Draws, errors: ErrorScale, total: int) -> Curve:
    laws = fit_power_laws(draws.sizes, draws.validation, least=errors.least)
    plain = fit_power_laws(draws.sizes, draws.mean[None], least=errors.least)

    def quality(examples: float) -> Interval:
        how: How = "measured" if examples <= max(draws.sizes) else "predicted"
        return errors.qualities(_interval(float(plain.at(examples)[0]), laws.at(examples), len(draws.sizes), how))

    grid = np.unique(np.geomspace(min(draws.sizes), 4 * total, BAND_POINTS).round().astype(int))
    floor = _interval(float(plain.floor[0]), laws.floor, len(draws.sizes), "predicted")
    return Curve(
        amplitude=float(plain.amplitude[0] * plain.unit ** plain.exponent[0]),
        exponent=float(plain.exponent[0]),
        floor=float(plain.floor[0]),
        ceiling=errors.qualities(floor),
        at_full=quality(total),
        at_double=errors.qualities(_interval(float(plain.at(2 * total)[0]), laws.at(2 * total), len(draws.sizes), "predicted")),
        band=tuple(BandPoint(examples=int(n), quality=quality(int(n))) for n in grid),
        sizes=len(draws.sizes),
    )


def _interval(value: float, draws: ndarray, n: int, how: How = "measured") -> Interval:
    low, high = (float(np.quantile(draws, q)) for q in (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2))
    return Interval(value=value, low=min(low, value), high=max(high, value), n=n, how=how, confidence=CONFIDENCE)
