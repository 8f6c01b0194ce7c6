"""Batches of a training, pass after pass, from any position on."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from sizewise.data.batches import batches, first_batches
from sizewise.errors import UsageError
from sizewise.protocols import Inputs

__all__ = ["Stream"]

WHERE = "train"


class Stream:
    """One process's batches of a loader.

    Every pass begins under a seed of its own, so that a loader that shuffles or augments by torch's global generator gives the
    same batches again. Several processes read the same passes and take turns; a round that not all of them get is left out.

    Args:
        loader: a re-iterable of batches.
        seed: of the passes.
        rank: of this process.
        processes: in all.
    """

    def __init__(self, loader: Iterable[Any], seed: int, rank: int = 0, processes: int = 1) -> None:
        self.loader, self.seed, self.rank, self.processes = loader, seed, rank, processes

    def first(self) -> Inputs:
        """The inputs of the first batch.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        return next(iter(self.sample(1)))

    def sample(self, examples: int) -> Iterator[Inputs]:
        """The inputs of the first batches that hold so many examples, the same for every process.

        Raises:
            UsageError: a batch that cannot be read, or none at all.
        """
        torch.manual_seed(self.seed)
        yield from first_batches((inputs for inputs, _ in batches(self.loader, WHERE)), examples)

    def rounds(self) -> int:
        """Batches per pass and process, by the loader's length, else by reading it once.

        Raises:
            UsageError: not one for every process.
        """
        try:
            count = len(self.loader) if isinstance(self.loader, Sized) else 0
        except TypeError:  # a DataLoader over a stream has no length
            count = 0
        count = count or sum(1 for _ in batches(self.loader, WHERE))
        if count < self.processes:
            raise UsageError("fewer batches than processes", where=WHERE, got=f"{count} for {self.processes}", hint="make batches smaller")
        return count // self.processes

    def read(self, epoch: int, done: int = 0, state: Tensor | None = None) -> Iterator[tuple[Inputs, Any]]:
        """The batches of one pass, but for the first `done` of this process.

        Args:
            epoch: number of the pass.
            done: batches that an interrupted training had before.
            state: of torch's global generator after those.

        Raises:
            UsageError: a batch that cannot be read, or none at all.
        """
        torch.manual_seed(self.seed + epoch)
        mine, rounds = None, 0
        for index, pair in enumerate(batches(self.loader, WHERE)):
            turn = index % self.processes
            mine = pair if turn == self.rank else mine
            if turn < self.processes - 1 or mine is None:
                continue
            rounds += 1
            if rounds > done:
                yield mine
            elif rounds == done and state is not None:
                torch.set_rng_state(state)
            mine = None
        if not rounds:
            raise UsageError("fewer batches than processes", where=WHERE, hint="make batches smaller")
