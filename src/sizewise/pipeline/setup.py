"""What every phase of a run shares, and what makes two runs the same run."""

import hashlib
import time
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch
from torch import nn

from sizewise.data.batches import CalibrationSample, LabelledSample, digest, examples_in
from sizewise.evaluate.scoring import Split
from sizewise.pipeline.store import Store
from sizewise.pipeline.timer import timer_for
from sizewise.protocols import Context, Progress, Runtime
from sizewise.tasks.task import Task
from sizewise.types import Budget, Device

__all__ = ["Setup", "fingerprint", "make_setup", "read_data", "version"]

CALIBRATION_EXAMPLES = 512


@dataclass(frozen=True)
class Setup:
    """One call of `fit` or `run_plan`.

    Attributes:
        begin: monotonic seconds at which it started.
        deadline: monotonic seconds after which no new work begins, or None.
        warnings: collected for the record.
        failed: scales that cannot be used, each with the reason.
    """

    task: Task
    budget: Budget
    runtime: Runtime
    device: Device
    store: Store
    seed: int
    progress: Progress
    context: Context
    validation: Split
    test: Split | None
    begin: float
    deadline: float | None
    warnings: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        """Whether the time limit is reached."""
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def seconds_left(self) -> float | None:
        """Until the time limit; None where there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()


def make_setup(
    task: Task, budget: Budget, runtime: Runtime, device: Device, store: Store, seed: int, progress: Progress, limit_s: float | None
) -> Setup:
    """Gather what the phases share; warn about what the task lacks."""
    begin = time.monotonic()
    calibration = CalibrationSample(task.calibration, CALIBRATION_EXAMPLES) if task.calibration is not None else None
    warnings = []
    if task.test is None:
        warnings.append("the task has no test split: quality limits stay undecided")
    labelled = LabelledSample(task.calibration, CALIBRATION_EXAMPLES) if task.calibration is not None else None
    if calibration is None:
        warnings.append("the task has no calibration or train data: static int8 and the repair of pruned channels need it")
    return Setup(
        task=task,
        budget=budget,
        runtime=runtime,
        device=device,
        store=store,
        seed=seed,
        progress=progress,
        context=Context(
            task.example,
            calibration,
            runtime.scheme,
            runtime.channel_multiple,
            seed,
            progress,
            timer_for(runtime, device),
            labelled,
            train=task.train,
            tables=store.tables,
        ),
        validation=Split("validation", task.validation),
        test=Split("test", task.test) if task.test is not None else None,
        begin=begin,
        deadline=begin + limit_s if limit_s is not None else None,
        warnings=warnings,
    )


def read_data(setup: Setup) -> dict[str, Any]:
    """Read the fixed splits once: counts and fingerprints, which later readings are checked against."""
    setup.progress.working("reading the data")
    facts: dict[str, Any] = {}
    for split in (setup.validation, setup.test):
        if split is not None:
            for _ in split.read():
                pass
            facts[split.name] = {"examples": split.count, "sha256": split.fingerprint}
    if setup.context.calibration is not None:
        facts["calibration"] = _calibration_facts(setup)
    return facts


def _calibration_facts(setup: Setup) -> dict[str, Any]:
    hashed, count = hashlib.sha256(), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        for inputs in setup.context.calibration or ():
            digest(inputs, None, hashed)
            count += examples_in(inputs)
    source = "train" if setup.task.calibration is setup.task.train else "calibration"
    return {"examples": count, "sha256": hashed.hexdigest(), "from": source}


def fingerprint(setup: Setup, data: dict[str, Any]) -> str:
    """What makes two runs the same: models, data, metric, quality limits, runtime, seed and version.

    Cost limits are not part of it, so that a finished run can be resumed under another latency, size or memory limit.
    """
    task, budget = setup.task, setup.budget
    facts = (version(), task.name, task.metric.name, task.reference, setup.runtime.name, setup.seed)
    hashed = hashlib.sha256(repr((facts, budget.max_drop, budget.min_quality, sorted(data.items()))).encode())
    digest(task.example, None, hashed)
    for level in task.levels:
        hashed.update(f"{level.label} {'function' if level.size is None else 'size'}".encode())
    for name, model in task.models.items():
        hashed.update(f"{name} {'module' if isinstance(model, nn.Module) else 'function'}".encode())
        if isinstance(model, nn.Module):
            for key, tensor in model.state_dict().items():
                hashed.update(f"{key} {tuple(tensor.shape)} {float(tensor.double().sum()):.12g}".encode())
    return hashed.hexdigest()


def version() -> str:
    """Of the installed package."""
    return metadata.version("sizewise")
