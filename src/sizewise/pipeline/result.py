"""What a run gives back, and the bundle that it leaves."""

from dataclasses import dataclass
from pathlib import Path

from sizewise.graph.trace import tensors_in
from sizewise.pipeline.bundle import write_bundle
from sizewise.pipeline.setup import Setup
from sizewise.types import Candidate, RunRecord, Verdict

__all__ = ["Result", "finish"]


@dataclass(frozen=True)
class Result:
    """What `fit` and `run_plan` return.

    Attributes:
        chosen: the candidate in the bundle.
        frontier: measured candidates that no other beats on all counts, fastest first.
        verdict: proved, undecided or refused, per limit.
        record: everything; the same as `run.json`.
        path: the bundle's folder.
    """

    chosen: Candidate
    frontier: tuple[Candidate, ...]
    verdict: Verdict
    record: RunRecord
    path: Path


def finish(setup: Setup, record: RunRecord) -> Result:
    """Write the bundle of the chosen candidate and say so."""
    chosen, example = record.winner, setup.task.example
    assert chosen.artefact is not None
    inputs = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors_in(example)]
    write_bundle(setup.store.out, setup.store.folder(chosen.plan), record, setup.runtime.snippet(chosen.artefact, inputs))
    setup.progress.advance(f"{'chosen' if record.searched else 'bundled'}: {chosen.plan.scale}, {chosen.plan.label}")
    on_frontier = [(c.measured.latency.value, c) for c in record.candidates if c.on_frontier and c.measured]
    frontier = tuple(c for _, c in sorted(on_frontier, key=lambda pair: pair[0]))
    return Result(chosen, frontier, record.verdict, record, setup.store.out)
