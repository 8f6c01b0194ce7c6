"""Train every scale on more and more examples, and stop those that cannot catch up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sizewise.devices.loader import usable_threads
from sizewise.pipeline.points import Job, Points, recipe_for
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.workers import run_jobs
from sizewise.report import _format as fmt
from sizewise.select.capacity import SeedNoise
from sizewise.select.errors_of import ErrorScale, error_scale
from sizewise.select.halving import Progress, hopeless_scales
from sizewise.select.judge import Evidence
from sizewise.types import ModelProfile
from sizewise.units import format_seconds

__all__ = ["Climb"]

STEP_MACS = 3e6  # what a training example costs besides its MACs, in MACs: Python and small kernels
ONE_SIDED = 1.645
CURVE_SEEDS = 2  # at sizes below the last


@dataclass
class Climb:
    """The trainings of one `select`.

    Attributes:
        setup: the run.
        points: trains and remembers.
        sizes: numbers of training examples, rising; empty where nothing can be trained.
        seeds: trainings per scale at the last size.
        tolerance: in the error's unit.
        profiles: cost per scale, for guessing how long trainings take.
        stopped: scales that were given up, with the reason.
        reached: the size that the scales still in the race have all been trained on; 0 where nothing was trained.
        extra: further seeds that scales in doubt were given at the last size.
    """

    setup: Setup
    points: Points
    sizes: Sequence[int]
    seeds: int
    tolerance: float
    profiles: Mapping[str, ModelProfile]
    stopped: dict[str, str] = field(default_factory=dict)
    reached: int = 0
    extra: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """All sizes, smallest first, until the time limit."""
        scales = list(self.profiles)
        given = [Job(scale, 0, self.setup.seed, 0) for scale in scales if not self.setup.task.is_untrained(scale)]
        jobs = [*given, *(job for size in self.sizes for scale in scales for job in self._jobs(scale, size))]
        self.setup.progress.start(len(jobs), sum(map(self._work, jobs)))
        self._train(given)
        for rung, size in enumerate(self.sizes):
            if rung and self.setup.late:
                self._skip(size, self.racing, "not trained further, the time limit is reached")
                break
            self._train([job for scale in self.racing for job in self._jobs(scale, size)])
            self.reached = size
            if rung and size != self.sizes[-1]:
                self._halve(self.sizes[rung - 1], size)

    def add_seeds(self, scales: Sequence[str]) -> None:
        """One more training of each at the last size."""
        jobs = []
        for scale in scales:
            self.extra[scale] = self.extra.get(scale, 0) + 1
            jobs.append(self._jobs(scale, self.reached)[-1])
        self.setup.progress.start(len(jobs), sum(map(self._work, jobs)))
        self._train(jobs)

    @property
    def racing(self) -> list[str]:
        """Scales that were not stopped."""
        return [scale for scale in self.profiles if scale not in self.stopped]

    def evidence(self) -> dict[str, Evidence]:
        """What is known of every scale that was scored."""
        found = {}
        for scale in self.profiles:
            by_size = {size: [self.points.get(job) for job in self._jobs(scale, size)] for size in self.sizes if self._done(scale, size)}
            given = [] if self.setup.task.is_untrained(scale) else [self.points.get(Job(scale, 0, self.setup.seed, 0))]
            if given:
                by_size[0] = given
            if by_size:
                points = tuple(point for rows in by_size.values() for point, _ in rows)
                scores = {size: np.stack([row for _, row in rows]) for size, rows in by_size.items()}
                found[scale] = Evidence(points, scores, self._final(scale, scores))
        return found

    def errors(self, evidence: Mapping[str, Evidence]) -> ErrorScale:
        """How this run's scores become errors; `evidence` is what `self.evidence()` read from the files."""
        higher = self.setup.task.metric.higher_is_better
        return error_scale((scores for found in evidence.values() for scores in found.scores.values()), higher_is_better=higher)

    def _final(self, scale: str, scores: Mapping[int, np.ndarray]) -> int | None:
        """What stands for the scale: its trainings at the size reached, or the given model as it is where that is no worse."""
        if scale in self.stopped or (self.reached and self.reached not in scores):
            return 0 if 0 in scores else None
        if 0 not in scores or self.reached == 0:
            return self.reached
        sign = 1 if self.setup.task.metric.higher_is_better else -1
        return 0 if sign * scores[0].mean() >= sign * scores[self.reached].mean() else self.reached

    def _done(self, scale: str, size: int) -> bool:
        return size <= self.reached and all(self.points.find(job) is not None for job in self._jobs(scale, size))

    def _jobs(self, scale: str, size: int) -> list[Job]:
        """One per seed. On fewer examples two seeds do: they shape the curve, the verdict rests on the last size. There are more
        epochs on fewer, by the root of the ratio: as many steps would cost as much as all examples do, and as many epochs would
        leave small subsets undertrained.
        """
        epochs = max(1, round(recipe_for(self.setup.task, scale).epochs * math.sqrt(self.sizes[-1] / size)))
        seeds = self.seeds if size == self.sizes[-1] else min(self.seeds, CURVE_SEEDS)
        seeds += self.extra.get(scale, 0) if size == self.reached else 0
        return [Job(scale, size, self.setup.seed + i, epochs) for i in range(seeds)]

    def _work(self, job: Job) -> float:
        profile = self.profiles[job.scale]
        passes = 3 * job.epochs * job.examples + sum(map(float, self.sizes[:1]))
        return passes * (profile.macs / max(profile.batch, 1) + STEP_MACS)

    def _train(self, jobs: Sequence[Job]) -> None:
        """What is not finished yet, the longest first, so that the workers end together."""
        todo = [job for job in jobs if self.points.find(job) is None]
        for job in jobs:
            if job not in todo:
                self.setup.progress.advance(f"{_label(job)}: known", work=self._work(job))
        if todo:
            self.setup.progress.working(f"training {len({job.scale for job in todo})} scales on {todo[0].examples} examples")
        run_jobs(sorted(todo, key=self._work, reverse=True), self.points.run, self._finished, workers=usable_threads())

    def _finished(self, job: Job) -> None:
        point, _ = self.points.get(job)
        metric = self.setup.task.metric.name
        train = "" if point.train is None else f" (train {fmt.quality_value(point.train, metric)})"
        text = f"{metric} {fmt.quality_value(point.validation, metric)}{train}, {format_seconds(point.seconds)}"
        self.setup.progress.advance(f"{_label(job)}: {text}", work=self._work(job))

    def _halve(self, before: int, now: int) -> None:
        everything = self.evidence()
        errors = self.errors(everything)
        evidence = {scale: found for scale, found in everything.items() if scale in self.racing}
        noise = SeedNoise.of([errors.error(found.scores[now]) for found in evidence.values()], share=errors.kind == "share")

        def progress(found: Evidence) -> Progress:
            was, this = (errors.error(found.scores[size]) for size in (before, now))
            half = ONE_SIDED * math.sqrt(noise.variance(this) / len(this))
            return Progress(float(was.mean()), float(this.mean()), half)

        doublings = math.log2(self.sizes[-1] / now)
        hopeless = hopeless_scales({scale: progress(found) for scale, found in evidence.items()}, doublings, self.tolerance, errors.least)
        for scale, reason in hopeless.items():
            self.stopped[scale] = f"stopped at {now} examples: {reason}"
            self._skip(2 * now, [scale], self.stopped[scale])

    def _skip(self, size: int, scales: Sequence[str], reason: str) -> None:
        """Take the trainings of these scales on `size` and more examples off the list."""
        for scale in scales:
            left = [job for later in self.sizes if later >= size for job in self._jobs(scale, later)]
            self.setup.progress.advance(f"{scale}: {reason}", units=len(left), work=sum(map(self._work, left)))


def _label(job: Job) -> str:
    return f"{job.scale}, {job.examples} examples, seed {job.seed}" if job.examples else f"{job.scale} as given"
