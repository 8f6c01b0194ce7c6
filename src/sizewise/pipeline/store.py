"""The run folder: what is finished stays finished, so that a run can go on where it stopped.

`trials/run.json` names the run by its fingerprint; `trials/scales/` holds what was learned about each scale; `trials/tables/` figures
that plans share;
`trials/<candidate>/` holds each candidate's files, and its `candidate.json`, written last, says that it is finished. `trials/held` is
locked by the process that works here.
"""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sizewise.errors import UsageError
from sizewise.files import TEMPORARY, replacing, write_bytes
from sizewise.types import Candidate, Plan, ScaleRecord, from_json, to_json

if sys.platform != "win32":
    import fcntl

__all__ = ["Store", "Tables"]

Scores = Float[ndarray, " n"]
TRIALS = "trials"


@dataclass(frozen=True)
class _Identity:
    fingerprint: str
    task: str


class Store:
    """Files of one run under `out`.

    Args:
        out: the run folder.
        resume: go on with what is there; without it the folder must be empty or absent.

    Raises:
        UsageError: not a folder, not empty without `resume`, not writable, or another process is at work in it.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        self.out, self.trials = out, out / TRIALS
        if out.exists() and not out.is_dir():
            raise UsageError("is a file", where=str(out), wanted="a folder for the run")
        if out.is_dir() and any(out.iterdir()) and not resume:
            hint = "--resume goes on with an interrupted run; or name another folder"
            raise UsageError("the folder is not empty", where=str(out), hint=hint)
        try:
            (self.trials / "scales").mkdir(parents=True, exist_ok=True)
            with replacing(self.trials / "writable") as probe:
                probe.write_bytes(b"")
            (self.trials / "writable").unlink()
        except OSError as error:
            raise UsageError("the folder cannot be written", where=str(out), got=error.strerror or str(error)) from error
        with self.held():
            for left in [*out.rglob(f"{TEMPORARY}*")]:
                left.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this process works here, no other does. The system lets go when the process ends, however it does; Windows holds nothing.

        Raises:
            UsageError: another process is at work here.
        """
        if sys.platform == "win32":
            yield
            return
        with (self.trials / "held").open("ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                hint = "runs that share a study need a folder each"
                raise UsageError("another process is at work in the folder", where=str(self.out), hint=hint) from error
            yield

    def identify(self, fingerprint: str, task: str) -> None:
        """Remember which run this is, or check that it is the one that was begun.

        Raises:
            UsageError: the folder holds another run.
        """
        path = self.trials / "run.json"
        if path.exists():
            known = from_json(_Identity, path.read_bytes(), where=str(path))
            if known.fingerprint != fingerprint:
                raise UsageError(
                    "the folder holds another run",
                    where=str(self.out),
                    got=f"task {known.task!r}, fingerprint {known.fingerprint[:12]}",
                    wanted=f"task {task!r}, fingerprint {fingerprint[:12]}",
                    hint="models, data, metric, quality limits, runtime, seed or version differ; name another folder",
                )
        else:
            write_bytes(path, to_json(_Identity(fingerprint, task)))

    def scale_file(self, scale: str, suffix: str) -> Path:
        """Where something about a scale is kept; any name is safe."""
        return self.trials / "scales" / f"{_safe(scale)}{suffix}"

    def folder(self, plan: Plan) -> Path:
        """Where a candidate's files are kept."""
        return self.trials / self.identifier(plan)

    @staticmethod
    def identifier(plan: Plan) -> str:
        """The candidate's name, which is also its folder's."""
        return _safe(plan.id)

    def scale(self, scale: str) -> tuple[ScaleRecord, Scores] | None:
        """What is known about a finished scale."""
        record, scores = self.scale_file(scale, ".json"), self.scale_file(scale, ".npy")
        if not record.exists():
            return None
        return from_json(ScaleRecord, record.read_bytes(), where=str(record)), load_scores(scores)

    def save_scale(self, record: ScaleRecord, scores: Scores) -> None:
        """Mark a scale as finished."""
        save_scores(self.scale_file(record.name, ".npy"), scores)
        write_bytes(self.scale_file(record.name, ".json"), to_json(record))

    def candidate(self, plan: Plan) -> Candidate | None:
        """A finished candidate."""
        path = self.folder(plan) / "candidate.json"
        return from_json(Candidate, path.read_bytes(), where=str(path)) if path.exists() else None

    @property
    def tables(self) -> "Tables":
        """What was told once about models and data of this run."""
        return Tables(self.trials / "tables")

    def finished(self) -> tuple[Candidate, ...]:
        """Every finished candidate, by name."""
        paths = sorted(self.trials.glob("*/candidate.json"))
        return tuple(from_json(Candidate, path.read_bytes(), where=str(path)) for path in paths)

    def save_candidate(self, candidate: Candidate) -> None:
        """Mark a candidate as finished."""
        write_bytes(self.folder(candidate.plan) / "candidate.json", to_json(candidate))

    def clear(self, plan: Plan) -> Path:
        """An empty folder for a candidate that is about to be tried."""
        folder = self.folder(plan)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder


class Tables:
    """Figures by content, one JSON file each; a file that is missing or damaged is one that was never written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Any | None:
        """What was kept under a key, or None."""
        try:
            return msgspec.json.decode(self._path(key).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value. Where the disk is full the run ends, as with all that it writes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path(key), msgspec.json.encode(value))

    def _path(self, key: str) -> Path:
        return self.folder / f"{_safe(key)}.json"


def _safe(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
    if plain == name and not plain.startswith(".") and len(plain) <= 100:
        return plain
    return f"{plain.lstrip('.')[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def save_scores(path: Path, scores: Scores) -> None:
    """Per-example scores to a `.npy` file."""
    with replacing(path) as draft, draft.open("wb") as file:
        np.save(file, scores, allow_pickle=False)


def load_scores(path: Path) -> Scores:
    """Per-example scores from a `.npy` file.

    Raises:
        UsageError: missing or damaged.
    """
    try:
        scores: Scores = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError("the scores of a finished step cannot be read", where=str(path), got=str(error)) from error
    return scores
