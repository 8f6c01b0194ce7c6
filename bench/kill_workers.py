"""Searches by two workers, of which random ones are killed without warning at random moments.

    python bench/kill_workers.py [REPETITIONS [FOLDER]]

Every repetition is a search of 20 trials with ONNX Runtime's files on digits, whose scales are trained once. None may lose a trial that was
finished, and all must choose the plan that the search without kills chooses. So that noise of clocks decides nothing, the budget limits
the size alone (the best in quality is chosen, by a metric without ties), every file is said to take a millisecond, and every trial to take
as long as any other; what is killed when goes by the real clock. So that no search ends before its 20th trial, plans of little promise are
tried, too. Prints one row per repetition, and whether the same plans were tried; needs the `demo` extra. A FOLDER keeps the trained scales
for the next time.
"""

import math
import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

import sizewise
from sizewise.files import sha256_of
from sizewise.pipeline import conclude, crew
from sizewise.pipeline.trial import FILE, REFERENCE
from sizewise.profile.timing import Timings
from sizewise.search import planner, promise
from sizewise.tasks.digits import make_task
from sizewise.types import Candidate, from_json

TRIALS, WORKERS, EPOCHS, SIZE = 20, 2, 10, "12 kB"
SCALES = ("resnet-s", "mobilenet-s")
SHARE, PAUSE_S = 0.4, (0.0, 8.0)  # of the finished trials a kill follows, so long afterwards
promise.LEAST_CHANCE = 0.0
conclude.ROUNDS, conclude.COMPANIONS = 3, 0  # latencies decide nothing here
crew.beside_reference = lambda *_: Timings(dict.fromkeys((FILE, REFERENCE), np.full(9, 1e-3)))
planner.expected_seconds = lambda *_: 1.0


def the_task() -> sizewise.Task:
    """Digits with small scales, judged by the cross-entropy: two plans do not have the same."""
    task = make_task(EPOCHS)
    splits = {"train": task.train, "calibration": task.calibration, "validation": task.validation, "test": task.test}
    models = {scale: task.models[scale] for scale in SCALES}
    return sizewise.Task(models=models, example_inputs=task.example, metric="loss", reference=SCALES[0], name="digits loss", **splits)


@dataclass
class Killer(threading.Thread):
    """Kills a random worker some time after a trial has finished, now and then, and remembers what was finished then.

    Attributes:
        out: the run folder.
        chance: of moments and workers.
        kills: so far.
        finished: per candidate the checksum of its model file, or of its record where it has none.
    """

    out: Path
    chance: random.Random
    kills: int = 0
    finished: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        """Kill until the search has ended."""
        seen, due = -1, math.inf
        while not self.ended.wait(0.02):
            self.finished |= finished(self.out)
            if len(self.finished) != seen:
                seen = len(self.finished)
                due = time.monotonic() + self.chance.uniform(*PAUSE_S) if self.chance.random() < SHARE else math.inf
            workers = [child for child in psutil.Process().children() if is_worker(child)]
            if workers and time.monotonic() >= due:
                self.chance.choice(workers).kill()
                self.kills, due = self.kills + 1, math.inf


def is_worker(child: psutil.Process) -> bool:
    """Whether it lives and was forked from this process, unlike the probes of memory, which run a command of their own."""
    try:
        return child.status() != psutil.STATUS_ZOMBIE and child.cmdline() == psutil.Process().cmdline()
    except psutil.NoSuchProcess:
        return False


def finished(out: Path) -> dict[str, str]:
    """The candidates that the run folder says are finished."""
    found = {}
    for path in out.glob("trials/*/candidate.json"):
        candidate = from_json(Candidate, path.read_bytes())
        found[candidate.id] = candidate.artefact.sha256 if candidate.artefact else sha256_of(path)
    return found


def search(out: Path, killer: Killer | None) -> sizewise.Result:
    """One search."""
    if killer:
        killer.start()
    try:
        return sizewise.fit(the_task(), sizewise.Budget(size=SIZE), out=out, trials=TRIALS, workers=WORKERS, resume=out.exists())
    finally:
        if killer:
            killer.ended.set()
            killer.join()


def with_scales_of(one: Path, other: Path) -> Path:
    """A run folder that knows what another has learned of the scales, and no more."""
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(one / "trials" / "scales", other / "trials" / "scales")
    for name in ("run.json", "latencies.json"):
        shutil.copy(one / "trials" / name, other / "trials" / name)
    return other


def main(repetitions: int, folder: Path) -> int:
    """Search, kill, compare, print; how many repetitions went wrong."""
    wanted = search(folder / "undisturbed", None).record
    print(f"undisturbed: {wanted.search.tried if wanted.search else 0} trials, chosen {wanted.chosen}", flush=True)
    kills = wrong = 0
    for number in range(repetitions):
        killer = Killer(with_scales_of(folder / "undisturbed", folder / str(number)), random.Random(number))
        record = search(killer.out, killer).record
        lost = [name for name, checksum in killer.finished.items() if finished(killer.out).get(name) != checksum]
        lost += [name for name in killer.finished if name not in {c.id for c in record.candidates}]
        same = {c.id for c in record.candidates} == {c.id for c in wanted.candidates}
        again = sum("it was tried again" in warning for warning in record.warnings)
        met = not lost and record.chosen == wanted.chosen
        wrong += not met
        kills += killer.kills
        tried = record.search.tried if record.search else 0
        rest = ("the same" if same else "others") + f", chosen {record.chosen}" + (f", LOST {', '.join(lost)}" if lost else "")
        print(f"{'ok  ' if met else 'MISS'}  {number}: {killer.kills} kills, {again} tried again, {tried} trials, {rest}", flush=True)
    print(f"{repetitions - wrong} of {repetitions} searches chose the same plan and lost nothing, under {kills} kills")
    return wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(sys.argv[2] if len(sys.argv) > 2 else temporary)))
