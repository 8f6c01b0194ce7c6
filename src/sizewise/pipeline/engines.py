"""Where the trials of a search are carried out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from sizewise.errors import UnknownName, UsageError
from sizewise.pipeline.crew import Alone, Hands
from sizewise.pipeline.forked import ForkedCrew
from sizewise.pipeline.scales import Prepared
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.trial import Bench
from sizewise.pipeline.workers import can_fork
from sizewise.protocols import Runtime
from sizewise.tasks.task import Task

__all__ = ["Engine", "Place", "check_place", "make_hands", "ready"]

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Place:
    """Where trials are carried out.

    Attributes:
        workers: that try plans beside each other.
        engine: "local" for processes of this machine, "ray" for a Ray cluster.

    Raises:
        UsageError: no worker.
        UnknownName: no such engine.
    """

    workers: int = 1
    engine: Engine = "local"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError("at least one worker tries plans", where="workers", got=str(self.workers))
        if self.engine not in get_args(Engine):
            raise UnknownName("engine", self.engine, get_args(Engine))


def check_place(place: Place, task: Task, runtime: str | Runtime) -> None:
    """What can be meant, before any work is done.

    Raises:
        UsageError: a task or runtime that a cluster cannot find.
        MissingExtra: Ray is not installed.
    """
    if place.engine == "ray":
        from sizewise.pipeline.ray_engine import check_ray

        check_ray(task.source, runtime)


@contextmanager
def ready(setup: Setup, place: Place) -> Iterator[None]:
    """With a cluster that has trained the scales, where one is wanted."""
    if place.engine == "local":
        yield
        return
    from sizewise.pipeline.ray_engine import connected, train_scales

    with connected():
        train_scales(setup, setup.task.source or "")
        yield


def make_hands(setup: Setup, bench: Bench, prepared: Mapping[str, Prepared], place: Place) -> Hands:
    """Workers, or the run's own process for one, or where none can be forked, which the record then says."""
    if place.engine == "ray":
        from sizewise.pipeline.ray_engine import RayCrew

        return RayCrew(setup, bench, prepared, place.workers, setup.task.source or "")
    if place.workers > 1 and can_fork():
        return ForkedCrew(setup, bench, prepared, place.workers)
    if place.workers > 1:
        setup.warnings.append("no worker can be forked on this system, or once CUDA is in use: plans were tried one after the other")
    return Alone(setup, bench, prepared)
