"""Looks at the test split: every file that is judged on it is counted, and its scores are kept.

Who tries one file after the other on the same test split will find one that looks good by luck. So looks are counted in the run
folder, in `trials/looks.json`, before each is taken, and every further one may err less (`evaluate.proof.look_level`). The same bytes
looked at again are the same look.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from numpy import ndarray

from sizewise.evaluate.proof import look_level
from sizewise.files import write_bytes
from sizewise.pipeline.setup import Setup
from sizewise.pipeline.store import Store, load_scores, save_scores
from sizewise.types import from_json, to_json

__all__ = ["Look", "Looks", "looks_of"]

Scores = Float[ndarray, " n"]


@dataclass(frozen=True)
class Look:
    """One file judged on the test split.

    Attributes:
        number: the how-manieth of the run on this split.
        level: one-sided error that it may make.
    """

    number: int
    level: float


@dataclass(frozen=True)
class _Known:
    """SHA-256 of the files looked at, in order, by the test split's fingerprint."""

    splits: dict[str, list[str]] = field(default_factory=dict)


class Looks:
    """The looks of one run at one test split.

    Args:
        store: of the run.
        fingerprint: of the split.
    """

    def __init__(self, store: Store, fingerprint: str) -> None:
        self.path, self.folder, self.fingerprint = store.trials / "looks.json", store.trials / "looks", fingerprint

    @property
    def next_level(self) -> float:
        """One-sided error of the next file that is looked at."""
        return look_level(len(self._known().splits.get(self.fingerprint, ())) + 1)

    def taken(self, sha256: str) -> bool:
        """Whether a file was looked at."""
        return sha256 in self._known().splits.get(self.fingerprint, ())

    def take(self, sha256: str) -> Look:
        """Count a look at a file, before it is taken; a file that was looked at keeps its number."""
        known = self._known()
        files = known.splits.setdefault(self.fingerprint, [])
        if sha256 not in files:
            files.append(sha256)
            write_bytes(self.path, to_json(known))
        number = files.index(sha256) + 1
        return Look(number, look_level(number))

    def scores(self, of: str, compute: Callable[[], Scores]) -> Scores:
        """Per-example scores on the split, kept under a name that says what they are of."""
        path = self.folder / f"{hashlib.sha256(f'{self.fingerprint} {of}'.encode()).hexdigest()[:32]}.npy"
        if path.is_file():
            return load_scores(path)
        found = compute()
        self.folder.mkdir(exist_ok=True)
        save_scores(path, found)
        return found

    def _known(self) -> _Known:
        return from_json(_Known, self.path.read_bytes(), where=str(self.path)) if self.path.is_file() else _Known()


def looks_of(setup: Setup) -> Looks | None:
    """Those of a run at its test split; None where it has none."""
    return Looks(setup.store, setup.test.fingerprint or "") if setup.test is not None else None
