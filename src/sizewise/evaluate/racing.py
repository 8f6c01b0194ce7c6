"""Score a candidate on growing parts of a split, and stop as soon as the rest cannot change the answer.

Everything it is compared with was scored on the whole split before, so a candidate's differences to it, example by example, are a
list of known length with an unknown mean, read in random order; `without_replacement` tells when that mean is surely above what is
allowed. Whatever is not stopped ends with all examples read, where nothing is left to estimate.

Where it is known which examples are most easily changed, a third of them is read first, in random order, and the others by how easily
they change: of an example that is not read yet the difference is at least what the best score would make it, nothing where the
reference is right. What the first group loses is lost on the whole, and it holds most of what is lost at all: of ResNet-56's losses
by pruning, and of ResNet-20 beside it, 84 to 98 %.

The stated error is that of one candidate over all orders. All candidates of a run are read in the same order: an unlucky one misleads about
similar candidates alike, instead of about each by itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sizewise.errors import UsageError
from sizewise.evaluate.without_replacement import exceeded, lower_bound

__all__ = ["RACING_ERROR", "Broken", "Hurdle", "Lap", "Order", "ScoreRange", "laps", "shuffled", "surely_worse"]

Scores = Float[ndarray, " n"]
RACING_ERROR = 0.01  # how often a race may wrongly find a hurdle broken; a candidate runs at most two, as a module and as a file
FIRST, FIRST_SHARE = 100, 0.25  # examples of the first lap, of a small split that share, rounded up to whole batches
GROWTH = 1.2
SHARE_FIRST = 1 / 3  # of a split that comes first


@dataclass(frozen=True)
class Order:
    """In which order a split is read.

    Attributes:
        parts: what is read at a time: places of its examples in the split.
        by: what was shuffled: single examples, or the loader's batches as they are.
        growth: how many times as many examples every lap ends with.
        first: how many parts hold the examples that are read first; None where all are alike.
    """

    parts: tuple[Int[ndarray, " _"], ...]
    by: Literal["examples", "batches"]
    growth: float = GROWTH
    first: int | None = None

    @property
    def count(self) -> int:
        """Examples of the split."""
        return sum(map(len, self.parts))

    @property
    def drawn(self) -> Int[ndarray, " _"]:
        """Places of the examples among which the order is random until all of them are read."""
        return np.concatenate(self.parts[: self.first])

    def parts_with(self, places: Int[ndarray, " n"]) -> int:
        """How many parts hold just these places, read in this order; 0 where no number of them does."""
        ends = np.cumsum([len(part) for part in self.parts])
        done = int(np.searchsorted(ends, len(places))) + 1
        same = len(places) and done <= len(ends) and np.array_equal(np.concatenate(self.parts[:done]), places)
        return done if same else 0

    def restored(self, scores: Scores) -> Scores:
        """Scores in the split's order, of all examples in the order of reading."""
        found = np.empty_like(scores)
        found[np.concatenate(self.parts)] = scores
        return found

    def can_only_lose(self, parts: int) -> bool:
        """Whether after so many parts no example is left in which a candidate could be better than the reference."""
        return self.first is not None and parts >= self.first


@dataclass(frozen=True)
class ScoreRange:
    """What is known of a metric's scores: which way is better, and the best that a score can be (infinite where it is unknown)."""

    higher_is_better: bool
    best: float

    def worse(self, reference: Scores, scores: Scores) -> Scores:
        """By how much scores are worse than the reference's."""
        difference: Scores = reference - scores
        return difference if self.higher_is_better else -difference


@dataclass(frozen=True)
class Hurdle:
    """What a candidate must not break: on the whole split it is on average at most `allowed` worse than scores that are known.

    Attributes:
        name: of what stands behind it.
        against: the known scores, in the split's order.
        allowed: in the metric's unit; may be negative.
        error: how probable it may be that a candidate which keeps it is found to break it.
    """

    name: str
    against: Scores
    allowed: float
    error: float = RACING_ERROR


@dataclass(frozen=True)
class Broken:
    """A hurdle that is surely broken, and what the whole split's difference is at least."""

    hurdle: Hurdle
    least: float


@dataclass(frozen=True)
class Lap:
    """What is known after some of the examples.

    Attributes:
        scores: of the examples read, in the order of reading.
        examples: their places in the split.
        parts: how many of the order's parts these are.
        whole: whether that is all of them; then nothing is broken surely or otherwise, everything is known.
        broken: the first hurdle that is surely broken, or None.
    """

    scores: Scores
    examples: Int[ndarray, " n"]
    parts: int
    whole: bool
    broken: Broken | None = None


def shuffled(
    sizes: Sequence[int],
    seed: int,
    by: Literal["examples", "batches"],
    growth: float = GROWTH,
    changeable: Float[ndarray, " n"] | None = None,
) -> Order:
    """A random order of a split whose batches have these sizes; pieces of single examples are as large as the batches.

    Args:
        sizes: of the batches.
        seed: of the order.
        by: what is shuffled.
        growth: of the laps.
        changeable: of every example, how easily its score changes, infinite where it can become better; a third of the examples, and all
            of the infinite ones, come first. The others follow as they rank. Only single examples can be sorted so.
    """
    rng, ends = np.random.default_rng(seed), np.cumsum(sizes)
    if by == "examples":
        mixed = rng.permutation(int(ends[-1]))
        if changeable is None:
            return Order(tuple(np.split(mixed, ends[:-1])), by, growth)
        wanted = max(math.ceil(SHARE_FIRST * len(mixed)), int(np.sum(np.isinf(changeable))))
        first = int(np.searchsorted(ends, wanted)) + 1  # whole pieces
        ranked = mixed[np.argsort(-changeable[mixed], kind="stable")]
        drawn, others = np.split(ranked, [int(ends[first - 1])])
        return Order(tuple(np.split(np.concatenate([rng.permutation(drawn), others]), ends[:-1])), by, growth, first)
    batches = np.split(np.arange(int(ends[-1])), ends[:-1])
    return Order(tuple(batches[index] for index in rng.permutation(len(batches))), by, growth)


def laps(read: Callable[[int, int], Scores], order: Order, hurdles: Sequence[Hurdle], known: ScoreRange) -> Iterator[Lap]:
    """Read more and more of a split; whoever iterates stops when they know enough, at the latest when a lap is whole.

    Args:
        read: scores of the examples in `order.parts[start:stop]`.
        order: of reading.
        hurdles: what to look out for; none can be refuted early where `known.best` is infinite.
        known: of the scores.

    Raises:
        UsageError: scores beyond what the metric calls the best possible.
    """
    scores, examples, done = np.empty(0), np.empty(0, int), 0
    for stop in _ends(order):
        scores = np.concatenate([scores, read(done, stop)])
        examples = np.concatenate([examples, *order.parts[done:stop]])
        done = stop
        _check_best(scores, known)
        whole = done == len(order.parts)
        lap = Lap(scores, examples, done, whole)
        yield lap if whole else replace(lap, broken=_broken(lap, order, hurdles, known))


def surely_worse(lap: Lap, order: Order, hurdle: Hurdle, known: ScoreRange) -> float:
    """By how much the whole split's mean is worse than the hurdle's scores, at least; wrong as rarely as the hurdle is found broken.

    Both go by the same bound: whoever asks at every lap errs no more often than who asks for broken hurdles.
    """
    return _partial(lap, order, hurdle, known).least(hurdle.error)


def _ends(order: Order) -> Iterator[int]:
    """How many parts are read when each lap ends."""
    first = wanted = min(float(FIRST), FIRST_SHARE * order.count)
    read = 0
    for index, part in enumerate(order.parts, start=1):
        read += len(part)
        if read >= wanted or (index == order.first and read >= first) or index == len(order.parts):
            yield index
            wanted = order.growth * read


def _check_best(scores: Scores, known: ScoreRange) -> None:
    if np.any(known.worse(np.asarray(known.best), scores) < -1e-6):
        raise UsageError(
            "scores beyond the metric's bounds", got=f"{scores.min():.6g} to {scores.max():.6g}", wanted=f"up to {known.best:g}"
        )


def _broken(lap: Lap, order: Order, hurdles: Sequence[Hurdle], known: ScoreRange) -> Broken | None:
    if not math.isfinite(known.best):
        return None
    for hurdle in hurdles:
        found = _partial(lap, order, hurdle, known)
        if found.exceeds(hurdle.allowed, hurdle.error):
            return Broken(hurdle, found.least(hurdle.error))
    return None


@dataclass(frozen=True)
class _Partial:
    """A split's mean difference, which is at least `offset` and `share` times the mean of a list that was read in part.

    Attributes:
        values: of the list, as far as it was read.
        count: how many numbers it has.
        lowest: what none of them is below.
        share: numbers of the list per example of the split.
        offset: what the examples outside the list add at least.
    """

    values: Scores
    count: int
    lowest: float
    share: float
    offset: float = 0.0

    def exceeds(self, allowed: float, error: float) -> bool:
        return exceeded(self.values, self.count, (allowed - self.offset) / self.share, self.lowest, error)

    def least(self, error: float) -> float:
        return self.offset + self.share * lower_bound(self.values, self.count, self.lowest, error)


def _partial(lap: Lap, order: Order, hurdle: Hurdle, known: ScoreRange) -> _Partial:
    differences = known.worse(hurdle.against[lap.examples], lap.scores)
    lowest = known.worse(hurdle.against, np.asarray(known.best))
    if order.by == "batches":  # a batch's total is a number of the list
        totals = np.add.reduceat(differences, np.cumsum([0, *map(len, order.parts[: lap.parts - 1])]))
        count = len(order.parts)
        return _Partial(totals, count, min(float(lowest[part].sum()) for part in order.parts), count / order.count)
    drawn = order.drawn
    beyond = lap.examples[len(drawn) :]
    outside = lowest.sum() - lowest[drawn].sum() + (differences[len(drawn) :] - lowest[beyond]).sum()
    count = len(drawn)
    return _Partial(differences[:count], count, float(lowest[drawn].min()), count / order.count, float(outside) / order.count)
