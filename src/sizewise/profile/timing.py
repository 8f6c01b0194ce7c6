"""Latency of several callables side by side, on a machine that is not quiet.

Each round visits every callable once, in a random order, as a block of calls after a warm-up; a callable's sample in that
round is the median of its block. Slow spells of the machine then hit all callables alike, and ratios within a round
cancel them.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from sizewise.errors import UsageError
from sizewise.evaluate.paired import median_interval
from sizewise.types import Interval

__all__ = ["Timings", "threads", "time_interleaved"]

THREADED_S = 5e-5  # shorter calls run on one thread


@dataclass(frozen=True)
class Timings:
    """Samples in seconds, one per round, for every callable; rounds are aligned."""

    samples: Mapping[str, Float[ndarray, " rounds"]]

    def latency(self, name: str) -> Interval:
        """Median over rounds, seconds."""
        return median_interval(self.samples[name])

    def ratio(self, name: str, to: str) -> Interval:
        """Median over rounds of how many times `name` takes what `to` takes."""
        return median_interval(self.samples[name] / self.samples[to])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with that many threads, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    block_s: float = 0.01,
    warmup_s: float = 0.05,
    settle_s: float = 0.1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time every callable in every round.

    Args:
        calls: what to time, by name.
        rounds: samples per callable.
        block_s: about how long one block of calls lasts; at least three calls.
        warmup_s: about how long each callable runs before anything counts.
        settle_s: pause before a block of calls that are long enough to use several threads: the threads of the callable
            before wait actively for more work, and on two cores they halve the speed of whatever comes next for some
            50 milliseconds.
        seed: of the order within rounds.
        clock: seconds; another one for tests.

    Raises:
        UsageError: nothing to time, or fewer than one round.
    """
    if not calls or rounds < 1:
        raise UsageError("nothing to time", got=f"{len(calls)} callables, {rounds} rounds")
    spent = {name: _seconds_per_call(call, warmup_s, clock) for name, call in calls.items()}
    count = {name: max(3, min(1000, round(block_s / max(seconds, 1e-9)))) for name, seconds in spent.items()}
    order = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            if len(calls) > 1 and spent[name] >= THREADED_S:
                time.sleep(settle_s)
            # two calls that do not count: the caches and the thread pool still belong to the one before
            for _ in range(2):
                calls[name]()
            samples[name].append(_block(calls[name], count[name], clock))
    return Timings({name: np.array(values) for name, values in samples.items()})


def _seconds_per_call(call: Callable[[], object], warmup_s: float, clock: Callable[[], float]) -> float:
    begin, spent, calls = clock(), 0.0, 0
    while calls < 3 or (spent < warmup_s and calls < 10_000):
        call()
        calls += 1
        spent = clock() - begin
    return spent / calls


def _block(call: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(count):
        begin = clock()
        call()
        times.append(clock() - begin)
    return float(np.median(times))
