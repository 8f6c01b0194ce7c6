"""The bundle: one folder with the file, what rebuilds the torch model, the record, the report and checksums."""

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from torch import nn

from sizewise.errors import UsageError
from sizewise.files import replacing, sha256_of, write_bytes, write_text
from sizewise.pipeline.apply import rebuild_plan
from sizewise.pipeline.weights import WEIGHT_FILES, load_weights
from sizewise.protocols import Context, Runtime
from sizewise.report.card import render_card
from sizewise.report.html import render_html
from sizewise.tasks.task import Task
from sizewise.types import Artefact, Plan, RunRecord, Scheme, from_json, to_json

__all__ = ["Made", "SavedPlan", "load", "read_plan", "write_bundle"]

SUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Made:
    """The file that a plan made, and what its bytes depend on besides models, data and seed.

    Attributes:
        file: its name.
        sha256: of the file.
        reference: the scale that was the reference.
        threads: that torch computed with; sums of floats depend on it.
        versions: of what computed and wrote it.
        machine: the processor's architecture and name.
    """

    file: str
    sha256: str
    reference: str
    threads: int
    versions: dict[str, str]
    machine: str


@dataclass(frozen=True, kw_only=True)
class SavedPlan:
    """What `plan.json` holds: an applied plan, the runtime it was made for, the integer scheme that it follows, and the file it made."""

    plan: Plan
    runtime: str
    scheme: Scheme | None
    format: int = 1
    made: Made | None = None


def write_bundle(out: Path, trial: Path, record: RunRecord, snippet: str) -> None:
    """Copy the chosen candidate's files into `out` and write record, report, card and checksums; the checksums come last."""
    artefact = record.winner.artefact
    assert artefact is not None
    (out / SUMS).unlink(missing_ok=True)  # a bundle without checksums is known to be unfinished
    for name in WEIGHT_FILES:  # of an earlier bundle
        (out / name).unlink(missing_ok=True)
    names = [artefact.path, *(name for name in WEIGHT_FILES if (trial / name).is_file()), "plan.json"]
    for name in names:
        with replacing(out / name) as draft:
            shutil.copyfile(trial / name, draft)
    write_bytes(out / "run.json", to_json(record))
    write_text(out / "report.html", render_html(record))
    write_text(out / "README.md", render_card(record, snippet))
    names += ["run.json", "report.html", "README.md"]
    write_text(out / SUMS, "".join(f"{sha256_of(out / name)}  {name}\n" for name in sorted(names)))


def load(folder: str | Path, task: Task) -> nn.Module:
    """Rebuild the shrunk torch module of a bundle (or of one folder under its `trials/`), without pickle.

    Args:
        folder: a bundle, or one candidate's folder under its `trials/`.
        task: the task the bundle was made from; its model definitions give the structure, the folder the weights.

    Returns:
        the module in inference mode; a quantized one is an exported graph.

    Raises:
        UsageError: files missing, damaged or not matching their checksums.
        PreconditionError: the plan does not fit the task's model.
    """
    folder = Path(folder)
    _verify(folder)
    saved = read_plan(folder / "plan.json")
    context = Context(task.example, scheme=saved.scheme, seed=saved.plan.seed)
    module = rebuild_plan(task.build(saved.plan.scale, saved.plan.seed), saved.plan, context)
    load_weights(module, folder)
    return module


def made_here(artefact: Artefact, runtime: Runtime, reference: str, threads: int) -> Made:
    """That a file was made on this machine, by what is installed."""
    packages = ("sizewise", "torch", "torchao", "numpy")
    return Made(
        file=artefact.path,
        sha256=artefact.sha256,
        reference=reference,
        threads=threads,
        versions={**{name: metadata.version(name) for name in packages}, **runtime.versions()},
        machine=f"{platform.machine()} {platform.processor()}".strip(),
    )


def read_plan(path: Path) -> SavedPlan:
    """What a `plan.json` holds.

    Raises:
        UsageError: no such file, or it is damaged.
    """
    if not path.is_file():
        raise UsageError("not a bundle: it has no plan.json", where=str(path.parent))
    return from_json(SavedPlan, path.read_bytes(), where=str(path))


def _verify(folder: Path) -> None:
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if Path(name).name != name or not path.is_file() or sha256_of(path) != digest:
            raise UsageError("the file is missing or does not match its checksum", where=str(path), hint="copy the bundle again")
