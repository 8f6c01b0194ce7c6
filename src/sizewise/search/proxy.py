"""What a plan will cost and lose, predicted from the plans that were measured.

Logarithms of latency and size, and the loss of quality, are sums: of what the scale has as it is, and of what every lever adds. What a
lever adds is believed to be around a rule of thumb (`search/levers.py`), partly the same for all scales and partly a scale's own, and
alike at rates that lie near each other. All that is Gaussian, so that predictions given the measurements have a closed form: kriging.
Along rising rates predicted losses never fall, and costs never rise.

Source: Duvenaud, Nickisch and Rasmussen, Additive Gaussian Processes, NeurIPS 2011, for sums; Barlow et al., Statistical Inference under
Order Restrictions, 1972, for isotonic regression; Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.4, for
how far rules of thumb are off. Deviations: all but that is fixed in the prior, since there are a handful of measurements; monotony is
imposed on the means afterwards.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import isotonic_regression

from sizewise.search.space import Level, Lever, Point, Space

__all__ = ["FIGURES", "LOSS", "Base", "Forecast", "Observation", "Proxy"]

FIGURES = ("latency", "size", "memory", "loss")
SHARED = 0.5  # of the variance of what a lever does is the same for all scales
NEAR = 0.5  # difference of rates at which what they do is still alike
ALIKE = 0.3  # correlation of the levels of an unordered lever
OFFSET = (1.0, 0.3, 1.0, 0.0)  # of all scales together: how a file's figures differ from the module's
OWN = (0.5, 0.1, 0.3, 0.1)  # of every scale by itself
REST = (0.06, 0.04, 0.15, 0.15)  # of every plan by itself: what sums cannot say
NOISE = (0.02, 1e-3, 0.02, 1e-3)  # of a measurement
CENSORED = 1.0  # standard deviation, in hundredths, of a loss that is only known to be too large
# times as wide the margins of what levers lose may be: 20 points here, one there
WIDER = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
LOSS = FIGURES.index("loss")

Values = Float[ndarray, "figures n"]
Column = Float[ndarray, " n"]
Kernel = Float[ndarray, "n m"]


@dataclass(frozen=True)
class Base:
    """What a scale is thought to have as it is: logarithms of seconds, of the file's bytes and of memory's, and the known loss."""

    latency: float
    size: float
    memory: float
    loss: float


@dataclass(frozen=True)
class Observation:
    """What was measured of a plan; None where it was not.

    Attributes:
        latency: seconds.
        size: bytes.
        memory: bytes.
        loss: of quality, in the metric's unit.
        loss_sd: of the loss, where only a part of validation was seen; such a plan is known, but cannot be chosen.
        at_least: whether the loss is only a bound from below.
    """

    point: Point
    latency: float | None = None
    size: float | None = None
    memory: float | None = None
    loss: float | None = None
    loss_sd: float = 0.0
    at_least: bool = False

    @property
    def whole(self) -> bool:
        """Whether everything is known."""
        return None not in (self.latency, self.size, self.memory, self.loss) and not self.at_least and not self.loss_sd


@dataclass(frozen=True)
class Forecast:
    """What is expected of every point.

    Attributes:
        mean: per figure and point: logarithms of seconds, bytes and bytes, and the loss in the metric's unit.
        sd: standard deviations of the same.
        lines: places of points that differ in one rate alone, along which it rises.
    """

    mean: Values
    sd: Values
    lines: Sequence[Sequence[int]] = ()

    def losses(self, nodes: Column) -> Float[ndarray, "n nodes"]:
        """The loss of every point at some deviations from its mean, in standard deviations, none of which falls along a line.

        A higher rate takes away more of the same, so it is as probable to keep a limit as a lower one at the most: what is unlikely of the
        lower one is as unlikely of the higher one, however little is known of that, and what is likely of the higher one, of the lower one.
        """
        found: Float[ndarray, "n nodes"] = self.mean[LOSS][:, None] + self.sd[LOSS][:, None] * nodes
        good, bad = nodes < 0, nodes > 0
        for line in self.lines:
            rising = found[line]
            rising[:, good] = np.maximum.accumulate(rising[:, good], axis=0)
            rising[:, bad] = np.minimum.accumulate(rising[::-1, bad], axis=0)[::-1]
            found[line] = rising
        return found


class Proxy:
    """Predicts every plan of a space.

    Args:
        space: of plans.
        bases: per scale.
        unit: a hundredth of the reference's quality, which losses are believed in.
    """

    def __init__(self, space: Space, bases: Mapping[str, Base], unit: float) -> None:
        self.space, self.unit = space, unit
        points = space.points
        self._index = {point: place for place, point in enumerate(points)}
        levels = [space.levels(point) for point in points]
        self._scales = np.array([space.scales.index(point.scale) for point in points], dtype=int)
        levers = space.levers(space.scales[0]) if space.scales else ()
        self._likes = [_likeness([row[number] for row in levels], lever) for number, lever in enumerate(levers)]
        self._prior, self._spreads = [], []
        for figure in FIGURES:
            of_base = np.array([getattr(bases[point.scale], figure) / (unit if figure == "loss" else 1.0) for point in points])
            beliefs = np.array([[getattr(level.belief, figure) for level in row] for row in levels]).reshape(len(points), len(levers), 2)
            self._prior.append(of_base + beliefs[:, :, 0].sum(axis=1))
            self._spreads.append(beliefs[:, :, 1])
        self._lines = [line for number, lever in enumerate(levers) if lever.ordered for line in _lines(points, levels, number)]

    def predict(self, observed: Sequence[Observation]) -> Forecast:
        """What is expected of every point of the space, in its order; what was measured is told as it was measured."""
        means, sds = [], []
        for place, figure in enumerate(FIGURES):
            seen = [o for o in observed if getattr(o, figure) is not None]
            rows = [(self._index[o.point], *_read(o, figure, self.unit, NOISE[place])) for o in seen]
            bounds = {self._index[o.point] for o in seen if figure == "loss" and o.at_least}
            mean, sd = self._posterior(place, rows, bounds)
            exact = {at: value for at, value, noise in rows if noise <= NOISE[place]}
            mean = self._monotone(mean, sd, exact, rising=figure == "loss")
            for at, value in exact.items():
                mean[at], sd[at] = value, NOISE[place]
            scale = self.unit if figure == "loss" else 1.0
            means.append(mean * scale)
            sds.append(sd * scale)
        return Forecast(np.array(means), np.array(sds), self._lines)

    def _posterior(self, place: int, rows: Sequence[tuple[int, float, float]], bounds: Collection[int]) -> tuple[Column, Column]:
        prior, rest = self._prior[place], REST[place] ** 2
        of_scales, of_levers = OFFSET[place] ** 2 + OWN[place] ** 2, self._spreads[place] ** 2
        if not rows:
            return prior.copy(), np.sqrt(of_scales + of_levers.sum(axis=1) + rest)
        at = [index for index, _, _ in rows]
        values = np.array([max(value, prior[index]) if index in bounds else value for index, value, _ in rows])
        noise = np.diag([noise**2 + rest for _, _, noise in rows])
        scales, levers = self._kernels(place, at)
        # costs are much alike from net to net, losses are not
        wider = _wider(values - prior[at], scales[at] + noise, [own[at] for own in levers]) if place == LOSS else np.ones(len(levers))
        outer = scales + sum(times * own for times, own in zip(wider, levers, strict=True))
        solved = np.linalg.solve(outer[at] + noise, outer.T)
        mean = prior + (values - prior[at]) @ solved
        variance = of_scales + of_levers @ wider - np.einsum("na,an->n", outer, solved)
        return mean, np.sqrt(np.maximum(variance, 0.0) + rest)

    def _kernels(self, place: int, at: Sequence[int]) -> tuple[Kernel, list[Kernel]]:
        """How a figure of every point goes with that of some, by scales and by every lever; all with all would not fit for large spaces."""
        same = self._scales[:, None] == self._scales[None, at]
        scales: Kernel = OFFSET[place] ** 2 + OWN[place] ** 2 * same
        shared = SHARED + (1 - SHARED) * same
        spreads = zip(self._likes, self._spreads[place].T, strict=True)
        return scales, [spread[:, None] * spread[None, at] * like(at) * shared for like, spread in spreads]

    def _monotone(self, mean: Column, sd: Column, exact: Mapping[int, float], *, rising: bool) -> Column:
        """Means that rise (or fall) along every line of rates; measured ones pull hardest."""
        found = mean.copy()
        for line in self._lines:
            values = np.array([exact.get(at, found[at]) for at in line])
            weights = np.array([1e12 if at in exact else 1.0 / max(sd[at], 1e-6) ** 2 for at in line])
            found[line] = isotonic_regression(values, weights=weights, increasing=rising).x
        return found


def _wider(off: Column, rest: Kernel, levers: Sequence[Kernel]) -> Column:
    """Per lever how many times as large the variance of what it loses has to be, for what was measured to be the most probable.

    Lever by lever, twice. Ever wider margins are ever less probable beforehand, by the inverse.

    Args:
        off: what was measured less what was believed.
        rest: covariance of that, but for the levers.
        levers: that of each.
    """
    found = np.ones(len(levers))
    for lever in [*range(len(levers))] * 2:
        others = rest + sum(found[other] * own for other, own in enumerate(levers) if other != lever)
        found[lever] = max(WIDER, key=partial(_evidence, off, others, levers[lever])) ** 2
    return found


def _evidence(off: Column, others: Kernel, lever: Kernel, wider: float) -> float:
    """The logarithm of how probable what was measured is, with margins that wide."""
    covariance = others + wider**2 * lever
    _, size = np.linalg.slogdet(covariance)
    return -0.5 * float(off @ np.linalg.solve(covariance, off) + size) - math.log(wider)


def _read(observed: Observation, figure: str, unit: float, noise: float) -> tuple[float, float]:
    """The value as the model has it, and its noise."""
    value = getattr(observed, figure)
    if figure == "loss":
        return value / unit, CENSORED if observed.at_least else max(noise, observed.loss_sd / unit)
    return math.log(value), noise


def _likeness(levels: Sequence[Level], lever: Lever) -> Callable[[Sequence[int]], Kernel]:
    """The correlation of what a lever does at every point with what it does at some."""
    if lever.ordered:
        strength = np.array([level.strength for level in levels])
        return lambda at: np.exp(-np.abs(strength[:, None] - strength[None, at]) / NEAR)
    names = np.array([level.name for level in levels])
    return lambda at: np.where(names[:, None] == names[None, at], 1.0, ALIKE)


def _lines(points: Sequence[Point], levels: Sequence[Sequence[Level]], lever: int) -> list[list[int]]:
    """Points that differ in one ordered lever alone, by its strength; off is left out where it also turns healing off."""
    lines: dict[Point, list[int]] = {}
    for at, point in enumerate(points):
        rest = Point(point.scale, point.levels[:lever] + point.levels[lever + 1 :])
        lines.setdefault(rest, []).append(at)
    return [sorted(line, key=lambda at: levels[at][lever].strength) for line in lines.values() if len(line) > 1]
