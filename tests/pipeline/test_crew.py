"""Workers beside each other: what they try, what is timed while they hold still, and what their deaths cost."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from optuna.trial import Trial
from torch import nn

from sizewise.errors import PreconditionError, UnsupportedModel, UsageError
from sizewise.pipeline import crew as module
from sizewise.pipeline import engines, member
from sizewise.pipeline.crew import DEATHS, Alone
from sizewise.pipeline.engines import Place, make_hands
from sizewise.pipeline.forked import ForkedCrew
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.store import Store
from sizewise.pipeline.timer import RuntimeTimer
from sizewise.pipeline.trial import Bench
from sizewise.pipeline.workers import can_fork
from sizewise.profile.timing import Timings, threads
from sizewise.protocols import Context, Inputs, Silent
from sizewise.runtimes.onnxruntime import OnnxRuntime
from sizewise.search.planner import Proposal
from sizewise.search.space import Point
from sizewise.testing import NullRuntime
from sizewise.types import Candidate, Device, LayerShape, Plan, Step

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers cannot be forked here")

X = Inputs((torch.randn(1, 6),))
HERE = Device(name="local", title="", how="measured", threads=1)
Trying = Callable[[Plan, Path, Bench], None]


class Heard(Silent):
    """Remembers what workers are said to do."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def working(self, what: str) -> None:
        self.words.append(what)


def plan(scale: str, *techniques: str) -> Plan:
    return Plan(scale=scale, steps=tuple(Step(technique=name) for name in techniques), seed=0)


def proposal(made: Plan) -> Proposal:
    return Proposal(Point(made.scale, ()), made, cast(Trial, None), "")


def setup_in(folder: Path, runtime: Any = None, timer: Any = None) -> Setup:
    store = Store(folder / "out", resume=True)
    context = Context(X, timer=timer, tables=store.tables)
    shared: dict[str, Any] = {
        "store": store,
        "progress": Heard(),
        "warnings": [],
        "context": context,
        "runtime": runtime or NullRuntime(),
        "device": HERE,
    }
    return cast(Setup, SimpleNamespace(task=SimpleNamespace(example=X), **shared))


def bench_of(made: Setup) -> Bench:
    scores = np.zeros(1)
    split: Any = None
    return Bench(made.runtime, made.context, split, split, split, 1, 1, nn.Identity(), scores, split)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return setup_in(tmp_path)


@pytest.fixture
def trying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trying], None]:
    """What workers do instead of a trial; they are forked, so they do what is patched here."""

    def use(what: Trying) -> None:
        monkeypatch.setattr(member, "run_trial", as_trial(what))

    return use


def as_trial(what: Trying) -> Callable[..., Candidate]:
    def run_trial(model: nn.Module, tried: Plan, folder: Path, bench: Bench, rivals: Sequence[str] = ()) -> Candidate:
        with (folder.parent / "rivals").open("a") as told:
            told.write(f"{' '.join(rivals)}\n")
        what(tried, folder, bench)
        (folder / "who").write_text(f"{os.getpid()} {torch.get_num_threads()}")
        return Candidate(id=folder.name, plan=tried, status="stopped", reason="as asked", seconds=0.1)

    return run_trial


def crew(made: Setup, workers: int = 2) -> ForkedCrew:
    scale: Any = SimpleNamespace(module=nn.Identity())
    return ForkedCrew(made, bench_of(made), dict.fromkeys("abcd", scale), workers)


def who(made: Setup, tried: Plan) -> tuple[int, int]:
    pid, count = (made.store.folder(tried) / "who").read_text().split()
    return int(pid), int(count)


def wait_for(found: Callable[[], Any], seconds: float = 20) -> Any:
    limit = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.005)
    return value


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_plans_are_tried_beside_each_other_on_one_thread_each(setup: Setup, trying: Callable[[Trying], None], tmp_path: Path) -> None:
    def both(tried: Plan, folder: Path, bench: Bench) -> None:
        (tmp_path / tried.scale).touch()
        wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())  # neither ends before the other has begun

    trying(both)
    with threads(2), crew(setup) as hands:
        hands.begin(proposal(plan("a")))
        free = [hands.free]
        hands.begin(proposal(plan("b")))
        free.append(hands.free)
        assert free == [True, False]
        ended = [hands.next() for _ in range(2)]
        assert not hands.busy
        for tried, candidate in ended:
            assert candidate == setup.store.candidate(tried.plan)
            assert candidate.reason == "as asked"
    assert {tried.plan.scale for tried, _ in ended} == {"a", "b"}
    found = [who(setup, plan(scale)) for scale in "ab"]
    assert len({os.getpid(), *(pid for pid, _ in found)}) == 3
    assert [count for _, count in found] == [1, 1]


def test_a_plan_goes_to_the_worker_that_has_done_its_first_steps(setup: Setup, trying: Callable[[Trying], None]) -> None:
    trying(lambda tried, folder, bench: None)
    first, second = plan("a", "pruning"), plan("b", "pruning")
    following = plan("b", "pruning", "int8"), plan("a", "pruning", "int8")
    with crew(setup) as hands:
        for pair in ((first, second), following):
            for made in pair:
                hands.begin(proposal(made))
            for _ in pair:
                hands.next()
    assert who(setup, first)[0] == who(setup, following[1])[0] != who(setup, second)[0] == who(setup, following[0])[0]


def test_what_a_worker_does_is_shown(setup: Setup, trying: Callable[[Trying], None]) -> None:
    trying(lambda tried, folder, bench: bench.context.progress.working("fitting"))
    with crew(setup) as hands:
        hands.begin(proposal(plan("a")))
        hands.next()
    assert cast(Heard, setup.progress).words == ["fitting"]


@pytest.mark.parametrize("kind", [UsageError, PreconditionError, UnsupportedModel])
def test_an_error_of_a_trial_ends_the_run(kind: type[Exception], setup: Setup, trying: Callable[[Trying], None]) -> None:
    def fail(tried: Plan, folder: Path, bench: Bench) -> None:
        raise kind("no")

    trying(fail)
    with crew(setup) as hands:
        hands.begin(proposal(plan("a")))
        with pytest.raises(kind, match="no"):
            hands.next()


def test_a_killed_worker_loses_its_trial_only_which_is_tried_again(setup: Setup, trying: Callable[[Trying], None], tmp_path: Path) -> None:
    def unlucky(tried: Plan, folder: Path, bench: Bench) -> None:
        (folder / "half").touch()
        if tried.scale == "a" and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        assert tried.scale == "b" or list(folder.iterdir()) == [folder / "half"], "it begins anew"
        wait_for(lambda: (tmp_path / "killed").exists())

    trying(unlucky)
    with crew(setup) as hands:
        for scale in "ab":
            hands.begin(proposal(plan(scale)))
        ended = {hands.next()[0].plan.scale for _ in range(2)}
    assert ended == {"a", "b"}
    assert [w for w in setup.warnings if "a:" in w and "SIGKILL" in w and "tried again" in w]
    assert len(setup.warnings) == 1
    assert all(c.reason == "as asked" for c in setup.store.finished())


def test_a_plan_that_is_tried_again_races_against_whom_it_did_at_first(
    setup: Setup, trying: Callable[[Trying], None], tmp_path: Path
) -> None:
    def unlucky(tried: Plan, folder: Path, bench: Bench) -> None:
        if not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trying(unlucky)
    with crew(setup) as hands:
        hands.begin(replace(proposal(plan("a")), rivals=("x", "y")))
        hands.next()
    assert (setup.store.trials / "rivals").read_text().splitlines() == ["x y", "x y"]


def test_what_is_finished_when_its_worker_dies_is_not_tried_again(setup: Setup, trying: Callable[[Trying], None], tmp_path: Path) -> None:
    def finish_and_die(tried: Plan, folder: Path, bench: Bench) -> None:
        (tmp_path / str(os.getpid())).touch()
        setup.store.save_candidate(Candidate(id=folder.name, plan=tried, status="stopped", reason="in time", seconds=0.1))
        os.kill(os.getpid(), signal.SIGKILL)

    trying(finish_and_die)
    with crew(setup) as hands:
        hands.begin(proposal(plan("a")))
        assert hands.next()[1].reason == "in time"
    assert setup.warnings == []


def test_an_idle_worker_that_died_is_not_missed(setup: Setup, trying: Callable[[Trying], None]) -> None:
    trying(lambda tried, folder, bench: None)
    with crew(setup, workers=1) as hands:
        hands.begin(proposal(plan("a")))
        hands.next()
        first, _ = who(setup, plan("a"))
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: gone(first))
        hands.begin(proposal(plan("b")))
        assert hands.next()[1].reason == "as asked"
    assert who(setup, plan("b"))[0] != first


def test_a_plan_that_kills_every_worker_has_failed(setup: Setup, trying: Callable[[Trying], None]) -> None:
    trying(lambda tried, folder, bench: os.kill(os.getpid(), signal.SIGKILL))
    tried = plan("a", "pruning")
    with crew(setup) as hands:
        hands.begin(proposal(tried))
        _, candidate = hands.next()
    assert candidate.status == "failed"
    assert f"{DEATHS} workers died" in str(candidate.reason)
    assert "SIGKILL" in str(candidate.reason)
    assert setup.store.candidate(tried) == candidate


def counting(path: Path) -> None:
    for count in range(20_000):
        path.write_text(str(count))
        time.sleep(1e-3)


def test_nobody_moves_while_a_file_is_timed(
    setup: Setup, trying: Callable[[Trying], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, seen = tmp_path / "counter", list[str]()

    def try_it(tried: Plan, folder: Path, bench: Bench) -> None:
        if tried.scale == "b":
            counting(counter)
        wait_for(counter.exists)
        assert bench.timed is not None
        timed = bench.timed(folder / "file")
        assert timed.samples["file"].tolist() == [1.0, 2.0]
        before = counter.read_text()
        wait_for(lambda: counter.read_text() != before)  # it goes on afterwards

    def time_it(*given: Any) -> Timings:
        for _ in range(2):
            seen.append(counter.read_text())
            time.sleep(0.2)
        return Timings({"file": np.array([1.0, 2.0])})

    trying(try_it)
    monkeypatch.setattr(module, "beside_reference", time_it)
    monkeypatch.setattr(NullRuntime, "load", lambda *_, **__: None)
    with crew(setup) as hands:
        for scale in "ba":
            hands.begin(proposal(plan(scale)))
        assert hands.next()[0].plan.scale == "a"
        assert [dropped.plan.scale for dropped in hands.drop()] == ["b"]
        assert not hands.busy
    assert seen[0] == seen[1]


def test_an_error_of_the_timing_is_the_trials_and_nobody_stays_stopped(
    setup: Setup, trying: Callable[[Trying], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_it(tried: Plan, folder: Path, bench: Bench) -> None:
        assert bench.timed is not None
        with pytest.raises(UnsupportedModel, match="cannot load"):
            bench.timed(folder / "file")

    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedModel("cannot load it")

    trying(try_it)
    monkeypatch.setattr(NullRuntime, "load", refuse)
    with crew(setup) as hands:
        hands.begin(proposal(plan("a")))
        assert hands.next()[1].reason == "as asked"


@pytest.mark.parametrize("how", ["error while others are stopped", "kill while others are stopped", "kill"])
def test_no_worker_outlives_the_run(
    how: str, setup: Setup, trying: Callable[[Trying], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_it(tried: Plan, folder: Path, bench: Bench) -> None:
        (tmp_path / f"draft-{tried.scale}").write_text(str(os.getpid()))
        (tmp_path / f"draft-{tried.scale}").rename(tmp_path / f"pid-{tried.scale}")
        if tried.scale == "b":
            counting(tmp_path / "counter")
        wait_for((tmp_path / "counter").exists)
        if how == "kill":
            (tmp_path / "now").touch()
            time.sleep(60)
        assert bench.timed is not None
        bench.timed(folder)

    def time_it(*_: Any) -> Timings:
        (tmp_path / "now").touch()
        if how.startswith("error"):
            raise ZeroDivisionError
        time.sleep(60)
        raise AssertionError

    def search() -> None:
        with crew(setup) as hands:
            for scale in "ab":
                hands.begin(proposal(plan(scale)))
            hands.next()

    trying(try_it)
    monkeypatch.setattr(module, "beside_reference", time_it)
    monkeypatch.setattr(NullRuntime, "load", lambda *_, **__: None)
    if how.startswith("error"):
        with pytest.raises(ZeroDivisionError):
            search()
    else:
        parent = os.fork()
        if not parent:
            search()
            os._exit(0)
        wait_for((tmp_path / "now").exists)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    for scale in "ab":
        pid = int((tmp_path / f"pid-{scale}").read_text())
        wait_for(lambda pid=pid: gone(pid))  # type: ignore[misc]


class Stopwatch(RuntimeTimer):
    """Says who timed, and that files were there."""

    def kernel_seconds(self, shapes: Any) -> list[float]:
        return [float(os.getpid()) for _ in shapes]

    def file_share(self, whole: Path, other: Path, example: Inputs) -> float:
        assert example is X
        return whole.stat().st_size / other.stat().st_size + os.getpid()


@pytest.mark.slow
def test_techniques_have_the_runs_own_process_time(tmp_path: Path, trying: Callable[[Trying], None]) -> None:
    shape = LayerShape(kind="linear", out_channels=4, in_channels=6, batch=1)

    def try_it(tried: Plan, folder: Path, bench: Bench) -> None:
        timer = bench.context.timer
        assert timer is not None
        half, whole = nn.Linear(6, 500).eval(), nn.Linear(6, 1000).eval()
        share = timer.beside(whole, X)
        timer.beside(half, X)  # another question in between does not change the first one's answer
        cost = timer.profile(whole, X)
        assert cost.latency_s is not None
        answers = {"kernels": timer.kernel_seconds([shape, shape]), "share": share(half), "layers": [layer.path for layer in cost.layers]}
        (tmp_path / "answers").write_text(json.dumps(answers))

    runtime = OnnxRuntime()
    trying(try_it)
    with crew(setup_in(tmp_path, runtime, Stopwatch(runtime, HERE))) as hands:
        hands.begin(proposal(plan("a")))
        hands.next()
    answers = json.loads((tmp_path / "answers").read_text())
    assert answers["kernels"] == [os.getpid()] * 2
    assert 1.9 < answers["share"] - os.getpid() < 2.1
    assert answers["layers"] == [""]


def test_where_nothing_can_be_forked_plans_are_tried_one_by_one_and_the_record_says_so(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "can_fork", lambda: False)
    monkeypatch.setattr(module, "run_trial", as_trial(lambda *_: None))
    hands = make_hands(setup, bench_of(setup), cast(Any, {"a": SimpleNamespace(module=nn.Identity())}), Place(2))
    assert isinstance(hands, Alone)
    assert "one after the other" in setup.warnings[0]
    with hands:
        hands.begin(proposal(plan("a")))
        assert (hands.free, hands.busy) == (False, True)
        assert hands.next()[1] == setup.store.candidate(plan("a"))
        assert (hands.free, hands.busy) == (True, False)
    assert who(setup, plan("a"))[0] == os.getpid()


@pytest.fixture(autouse=True)
def _nobody_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert not [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
