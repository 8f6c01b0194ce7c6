"""A worker at a search that another process, on this machine or another, has begun: it tries plans, and leaves the choice to that one."""

from pathlib import Path

from sizewise.pipeline.engines import Place, check_place
from sizewise.pipeline.run_search import TRIALS, Options, begin, run_search
from sizewise.pipeline.searching import Limits
from sizewise.profile.timing import threads
from sizewise.protocols import Progress, Runtime
from sizewise.tasks.task import Task
from sizewise.types import Budget, SearchRecord

__all__ = ["join"]


def join(
    task: Task,
    budget: Budget,
    storage: str,
    runtime: str | Runtime = "onnxruntime",
    device: str = "local",
    out: str | Path = "runs/worker",
    *,
    resume: bool = False,
    time_limit: str | float | None = None,
    trials: int = TRIALS,
    workers: int = 1,
    recover: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SearchRecord:
    """Try plans of the search that `fit` makes with the same task, budget, runtime, recovery, seed and storage, until nothing is left.

    What is measured is told through the study. Sizes and quality count for every run that shares it; latencies and memory for those
    on the same kind of device, with the same versions of the runtime. Each run trains the scales for itself, or has them in `out`.
    No file is chosen and the test split is not looked at. One worker per machine: two at once would disturb each other's timings, while
    `workers` of one hold still for each other.

    Args:
        task, budget, runtime, device, time_limit, workers, recover, seed, progress: as for `fit`.
        storage: the address of the study that is shared.
        out: the run folder of this worker, absent or empty unless `resume`.
        resume: go on in `out`.
        trials: most plans that are tried here.

    Returns:
        what was tried here, and why it ended.

    Raises:
        UsageError: input that cannot be meant, or a storage that cannot be used.
        MissingExtra: the database's driver is not installed.
        PreconditionError: models or data that cannot be used.
    """
    limits = Limits(trials)
    place = Place(workers)
    check_place(place, task, runtime)
    options = Options(resume=resume, time_limit=time_limit, recover=recover, seed=seed, progress=progress)
    setup, recovery = begin(task, budget, runtime, device, out, options)
    with threads(setup.device.threads), setup.store.held():
        return run_search(setup, recovery, limits, storage, place, concludes=False).record
