"""Side-by-side timing, on a clock that only the timed calls move. Pauses are noted, not waited for."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sizewise.errors import UsageError
from sizewise.evaluate.paired import median_interval
from sizewise.profile.timing import THREADED_S, Timings, time_interleaved

TICK = 2.0**-10  # seconds; a power of two, so that sums are exact


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were asked of `time.sleep`."""
    asked: list[float] = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


class Machine:
    """A clock, and callables that take a given time on it."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.slowdown = slowdown
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds() * self.slowdown(self.now)

        return call


def _blocks(calls: list[str]) -> list[tuple[str, int]]:
    blocks: list[tuple[str, int]] = []
    for name in calls:
        if blocks and blocks[-1][0] == name:
            blocks[-1] = (name, blocks[-1][1] + 1)
        else:
            blocks.append((name, 1))
    return blocks


def test_latencies_and_ratios_are_those_of_the_calls() -> None:
    machine = Machine()
    calls = {"fast": machine.work("fast", lambda: TICK), "slow": machine.work("slow", lambda: 3 * TICK)}
    got = time_interleaved(calls, rounds=7, clock=machine.clock)
    assert {name: len(values) for name, values in got.samples.items()} == {"fast": 7, "slow": 7}
    latency = got.latency("slow")
    assert (latency.value, latency.low, latency.high, latency.n, latency.how) == (3 * TICK, 3 * TICK, 3 * TICK, 7, "measured")
    assert got.latency("fast").value == TICK
    assert got.ratio("slow", to="fast").value == 3
    assert got.ratio("fast", to="slow").value == pytest.approx(1 / 3)


def test_latency_and_ratio_are_medians_over_rounds() -> None:
    samples = {"a": np.array([1.0, 2.0, 9.0, 4.0, 5.0]), "b": np.array([2.0, 1.0, 3.0, 8.0, 5.0])}
    got = Timings(samples)
    assert got.latency("a") == median_interval(samples["a"])
    assert got.ratio("a", to="b") == median_interval(np.array([0.5, 2.0, 3.0, 0.5, 1.0]))


def test_each_block_lasts_about_as_asked_after_the_warm_up() -> None:
    machine = Machine()
    time_interleaved({"a": machine.work("a", lambda: TICK)}, rounds=5, block_s=8 * TICK, warmup_s=64 * TICK, clock=machine.clock)
    assert len(machine.calls) == 64 + 5 * (2 + 8)


def test_a_slow_call_still_runs_three_times_a_block() -> None:
    machine = Machine()
    time_interleaved({"a": machine.work("a", lambda: 1.0)}, rounds=4, block_s=TICK, warmup_s=TICK, clock=machine.clock)
    assert len(machine.calls) == 3 + 4 * (2 + 3)


def test_every_round_visits_every_callable_once_in_changing_order() -> None:
    machine = Machine()
    names = ["a", "b", "c"]
    calls = {name: machine.work(name, lambda: 1.0) for name in names}
    time_interleaved(calls, rounds=20, clock=machine.clock)
    visits = list(machine.calls[9:][::5])  # behind the warm-up, every visit is five calls
    rounds = [tuple(visits[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(order) == names for order in rounds)
    assert len(set(rounds)) > 2


def test_the_seed_decides_the_order() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        time_interleaved({n: machine.work(n, lambda: 1.0) for n in "abcd"}, rounds=6, seed=seed, clock=machine.clock)
        return machine.calls

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_slow_first_calls_do_not_count() -> None:
    machine = Machine()
    remaining = iter([50.0, 20.0, 10.0])
    got = time_interleaved({"a": machine.work("a", lambda: next(remaining, TICK))}, rounds=5, clock=machine.clock)
    assert set(got.samples["a"]) == {TICK}


def test_the_first_two_calls_after_another_callable_do_not_count() -> None:
    machine = Machine()

    def cold(name: str) -> Callable[[], float]:
        return lambda: 100.0 if machine.calls[-3:] != [name] * 3 else TICK

    calls = {name: machine.work(name, cold(name)) for name in ("a", "b")}
    got = time_interleaved(calls, rounds=8, clock=machine.clock)
    assert set(got.samples["a"]) == set(got.samples["b"]) == {TICK}
    assert len(_blocks(machine.calls)) > 6  # they did alternate


def test_one_hiccup_in_a_block_does_not_move_its_sample() -> None:
    machine = Machine()
    calls = {"a": machine.work("a", lambda: 50.0 if len(machine.calls) % 7 == 0 else TICK)}
    got = time_interleaved(calls, rounds=5, block_s=10 * TICK, clock=machine.clock)
    assert set(got.samples["a"]) == {TICK}


def test_slow_spells_of_the_machine_cancel_in_the_ratio() -> None:
    machine = Machine(slowdown=lambda now: 3.0 if math.sin(now) > 0 else 1.0)
    calls = {"a": machine.work("a", lambda: 2 * TICK), "b": machine.work("b", lambda: TICK)}
    got = time_interleaved(calls, rounds=99, clock=machine.clock)
    assert max(got.samples["b"]) == 3 * min(got.samples["b"])
    ratio = got.ratio("a", to="b")
    assert ratio.low == ratio.value == ratio.high == 2.0


def test_a_block_of_long_calls_waits_until_the_threads_of_the_callable_before_are_still(pauses: list[float]) -> None:
    machine = Machine()
    calls = {"long": machine.work("long", lambda: 2 * THREADED_S), "short": machine.work("short", lambda: THREADED_S / 2)}
    time_interleaved(calls, rounds=5, settle_s=0.25, clock=machine.clock)
    assert pauses == [0.25] * 5, "short calls use one thread"


def test_a_callable_alone_waits_for_nobody(pauses: list[float]) -> None:
    machine = Machine()
    time_interleaved({"a": machine.work("a", lambda: 1.0)}, rounds=5, clock=machine.clock)
    assert pauses == []


def test_a_clock_that_stands_still_does_not_hang() -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    got = time_interleaved({"a": call}, rounds=2, clock=lambda: 0.0)
    assert got.latency("a").value == 0
    assert count < 20_000


@pytest.mark.parametrize(
    ("names", "rounds", "got"),
    [("", 15, "0 callables, 15 rounds"), ("a", 0, "1 callables, 0 rounds"), ("ab", -1, "2 callables, -1 rounds")],
)
def test_nothing_to_time_is_refused_saying_what_was_asked(names: str, rounds: int, got: str) -> None:
    machine = Machine()
    with pytest.raises(UsageError, match="nothing to time") as caught:
        time_interleaved({n: machine.work(n, lambda: 1.0) for n in names}, rounds=rounds, clock=machine.clock)
    assert caught.value.got == got
    assert machine.calls == []
