"""Rows of a bench of the whole search: the file that `sizewise.fit` chose, beside what single tools make of the same models."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from quantization_rows import File, speeds

from sizewise.errors import BudgetInfeasible
from sizewise.pipeline.fit import fit
from sizewise.pipeline.progress import shown
from sizewise.pipeline.result import Result
from sizewise.protocols import Inputs
from sizewise.tasks.task import Task
from sizewise.types import Budget

__all__ = ["Peer", "chosen_file", "compare", "folder", "racing", "score", "searched"]


@dataclass(frozen=True)
class Peer:
    """A file, and its score in hundredths on the examples that judge."""

    file: File
    score: float


def searched(
    task: Task, budget: Budget, out: Path, *, recover: str | None = None, time_limit: str | None = None, workers: int = 1
) -> Result:
    """What `fit` finds; where nothing fits, the nearest. Goes on where an earlier run in `out` stopped."""
    options = {"recover": recover, "time_limit": time_limit, "workers": workers}
    try:
        with shown(True) as progress:
            return fit(task, budget, out=out, resume=out.exists(), progress=progress, **options)
    except BudgetInfeasible as error:
        if error.result is None:
            raise
        print(error)
        return error.result


def chosen_file(result: Result) -> File:
    """The file that ships."""
    return File.at(result.path / result.chosen.artefact.path)  # type: ignore[union-attr]


def compare(whole: Peer, ours: Peer, peers: Mapping[str, Peer], example: Inputs, allowed: float, wanted: float) -> bool:
    """Print a row per file, all timed in the same rounds; whether ours is so much faster than the fastest peer within the drop.

    Args:
        whole: the reference's float file.
        ours: the chosen one.
        peers: the others.
        example: inputs of one call.
        allowed: hundredths that may be lost against the reference.
        wanted: times that ours is to be faster.
    """
    rows = {"float": whole, "sizewise": ours, **peers}
    ratio = speeds({name: row.file for name, row in rows.items()}, example)
    for name, row in rows.items():
        faster = ratio("float", name)
        kept = "within" if whole.score - row.score <= allowed + 1e-9 else "beyond"
        figures = f"{row.file.size / 1e6:7.3f} MB  {faster.value:5.2f} x [{faster.low:.2f}, {faster.high:.2f}] faster"
        print(f"{name:34} {row.score:6.2f} %  {kept} the drop  {figures}")
    within = [name for name, row in peers.items() if whole.score - row.score <= allowed + 1e-9]
    best = min(within or ["float"], key=lambda name: ratio(name, "float").value)
    found = ratio(best, "sizewise")
    met = found.value >= wanted and whole.score - ours.score <= allowed + 1e-9
    print(
        f"{'ok  ' if met else 'FAIL'} {found.value:.2f} x [{found.low:.2f}, {found.high:.2f}] as fast as {best}, the fastest peer within "
        f"{allowed:g} points; wanted {wanted:g}; lost {whole.score - ours.score:.2f} points"
    )
    return met


def racing(result: Result) -> str:
    """What the race saved."""
    record = result.record
    if not record.examples_evaluated or not record.examples_in_full:
        return "no racing"
    times = record.examples_in_full / record.examples_evaluated
    return f"racing: {record.examples_evaluated:,} examples scored instead of {record.examples_in_full:,}, {times:.1f} times fewer"


def folder(default: str) -> Path:
    """Where the search keeps its files: the first argument, or a new folder under `runs`."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs") / default


def score(file: File, batches: list[tuple[Inputs, torch.Tensor]]) -> float:
    """Hundredths of the examples whose largest output is the target."""
    right = [(file.runner(inputs)[0].argmax(1) == target).float() for inputs, target in batches]
    return 100 * float(torch.cat(right).mean())
