"""Words of many streams at once: numpy takes a step of all their lanes together, as its calls cost as much for one lane as for hundreds.

A file of small tensors has streams of a few lanes each. Side by side, ordered by how many rows of words they have left, they are one
wide array, whose front part is still at work. Every stream has its own frequencies (tables of all streams stand one after another, lanes
know where theirs begin) and its own place in its own bytes: a stream decodes to the same words beside others as alone.

What the states of a stream carry in the end (see `ans.py`) is a stream of fewer lanes, for the next round. Where few lanes are left,
Python's own numbers are faster.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sizewise.errors import UsageError
from sizewise.storage.ans import FEW, HEAD, LOW, SHRINK
from sizewise.storage.frequencies import Words

__all__ = ["Stream", "batches", "broken", "decode_words"]

_TOGETHER = 128  # streams; their tables take 128 KiB each
_ABREAST = 1 << 13  # lanes, about: their states and places stay in the cache
_HALF = np.uint32(16)
_LOWER = np.uint32(LOW - 1)

Numbers = NDArray[np.uint16]
Places = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Stream:
    """What `encode_words` gave for so many words of these frequencies."""

    data: bytes | memoryview
    count: int
    words: Words
    lanes: int


def batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Which streams to decode together: those of about as many rows, and not too many for the memory.

    Args:
        sizes: words and lanes of every stream.
    """
    batch: list[int] = []
    abreast = 0
    for index in sorted(range(len(sizes)), key=lambda index: -(sizes[index][0] // sizes[index][1])):
        if batch and (len(batch) == _TOGETHER or abreast + sizes[index][1] > _ABREAST):
            yield batch
            batch, abreast = [], 0
        batch.append(index)
        abreast += sizes[index][1]
    if batch:
        yield batch


def decode_words(streams: Sequence[Stream]) -> list[Numbers]:
    """The numbers of every stream's words. All streams are decoded together: see `batches`.

    Raises:
        UsageError: a stream does not hold as many words.
    """
    tables = _Tables([stream.words for stream in streams])
    pieces: list[list[Numbers]] = [[] for _ in streams]
    runs = [_Run.opened(stream.data, stream.count, stream.lanes, index) for index, stream in enumerate(streams)]
    while runs:
        for run in runs:
            if tables.sizes[run.table] == 1:  # a single word changes no state
                run.count = 0
        for run, found in zip(runs, _decoded(runs, tables), strict=True):
            pieces[run.table] += found
        runs = [tail for run in runs if (tail := run.carried()) is not None]
    single = [np.zeros(stream.count if len(stream.words.frequency) == 1 else 0, np.uint16) for stream in streams]
    return [np.concatenate([none, *some]) for none, some in zip(single, pieces, strict=True)]


def broken() -> UsageError:
    """What damaged symbols end in."""
    return UsageError("the coded symbols are damaged")


class _Tables:
    """The frequencies of several streams one after another."""

    def __init__(self, words: list[Words]) -> None:
        self.words = words
        self.sizes = np.array([len(word.frequency) for word in words])
        self.begins = np.cumsum(self.sizes) - self.sizes

    @cached_property
    def frequency(self) -> NDArray[np.uint32]:
        return np.concatenate([word.frequency for word in self.words]).astype(np.uint32)

    @cached_property
    def first(self) -> NDArray[np.uint32]:
        # sums begin anew at every stream, as those of each are 2^16
        return (np.cumsum(self.frequency, dtype=np.uint32) - self.frequency) & _LOWER

    @cached_property
    def owner(self) -> Numbers:
        """Of every lower half of a state the word, 2^16 per stream."""
        numbers = (np.arange(len(self.frequency)) - self.begins.repeat(self.sizes)).astype(np.uint16)
        owner: Numbers = numbers.repeat(self.frequency)
        return owner


@dataclass(eq=False)
class _Run:
    """A stream, or what one carries, at its beginning or its end.

    Attributes:
        table: index of its frequencies.
        count: of words, without those that states carry.
        state: of every lane.
        stream: what lanes read.
        tail, size: how many words the states carry, and in how many bytes.
    """

    table: int
    count: int
    state: NDArray[np.uint32]
    stream: Numbers
    tail: int
    size: int

    @staticmethod
    def opened(data: bytes | memoryview, count: int, lanes: int, table: int) -> "_Run":
        tail = size = 0
        if lanes > FEW:
            tail, size = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:HEAD], "little")
            data = data[HEAD:]
        if len(data) < 4 * lanes or len(data) % 2 or tail > count or size > 2 * lanes:
            raise broken()
        state = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
        return _Run(table, count - tail, state, np.frombuffer(data, "<u2", offset=4 * lanes), tail, size)

    def carried(self) -> "_Run | None":
        """The stream that the last states are, once they are known to be that."""
        if len(self.state) <= FEW:
            if (self.state != LOW).any():
                raise broken()
            return None
        data = (self.state - np.uint32(LOW)).astype("<u2").tobytes()
        if (self.state >> _HALF != 1).any() or any(data[self.size :]):
            raise broken()
        return _Run.opened(data[: self.size], self.tail, len(self.state) // SHRINK, self.table)


def _decoded(runs: list[_Run], tables: _Tables) -> list[list[Numbers]]:
    """The words of every run, in pieces; runs get their last states."""
    order = sorted(range(len(runs)), key=lambda index: -(runs[index].count // len(runs[index].state)))
    sorted_runs = [runs[index] for index in order]
    wide = _Wide(sorted_runs, tables)
    pieces = wide.rows()
    for place, found in enumerate(wide.rests([run.count - sum(map(len, some)) for run, some in zip(sorted_runs, pieces, strict=True)])):
        pieces[place].append(found)
    wide.close()
    return [pieces[place] for place in np.argsort(order)]


class _Wide:
    """The lanes of several runs side by side; runs with more rows come first.

    Attributes:
        begins: of every run's lanes, and the end of all.
        state, table, offset, run: of every lane its state, where its owners and its frequencies begin, and whose it is.
        stream: what all runs read, one after another, and 0.
        at: of every run the place of what it reads next.
    """

    def __init__(self, runs: list[_Run], tables: _Tables) -> None:
        self.tables, self.runs = tables, runs
        lanes = np.array([len(run.state) for run in runs])
        table = np.array([run.table for run in runs])
        self.begins = [0, *np.cumsum(lanes).tolist()]
        self.state = np.concatenate([run.state for run in runs])
        self.table = (table * LOW).repeat(lanes)
        self.offset = tables.begins[table].repeat(lanes)
        self.run = np.arange(len(runs)).repeat(lanes)
        self.stream = np.concatenate([*(run.stream for run in runs), np.zeros(1, np.uint16)]).astype(np.uint32)
        self.until = np.cumsum([len(run.stream) for run in runs])
        self.at = self.until - np.array([len(run.stream) for run in runs])

    def rows(self) -> list[list[Numbers]]:
        """Whole rows of words, as long as there are many lanes."""
        rows = [run.count // len(run.state) for run in self.runs]
        found: list[list[Numbers]] = [[] for _ in rows]
        done, active = 0, len(rows)
        while True:
            while active and rows[active - 1] == done:
                active -= 1
            lanes = self.begins[active]
            if lanes <= FEW:
                return found
            block = np.empty((rows[active - 1] - done, lanes), np.uint16)
            self._advance(self.state[:lanes], slice(lanes), block)
            for place in range(active):
                found[place].append(block[:, self.begins[place] : self.begins[place + 1]].reshape(-1))
            done = rows[active - 1]

    def rests(self, counts: list[int]) -> list[Numbers]:
        """So many last words of every run: those of less than a row at once, if they are many, others one by one."""
        lanes = [count if count < len(run.state) else 0 for count, run in zip(counts, self.runs, strict=True)]
        if sum(lanes) <= FEW:
            lanes = [0] * len(lanes)
        some = np.concatenate([np.arange(begin, begin + count) for begin, count in zip(self.begins, lanes, strict=False)])
        found = np.empty((1, len(some)), np.uint16)
        if len(some):
            state = self.state[some]
            self._advance(state, some, found)
            self.state[some] = state
        pieces = np.split(found[0], np.cumsum(lanes)[:-1])
        for place, count in enumerate(counts):
            if count > lanes[place]:
                pieces[place] = self._few(place, count)
        return pieces

    def close(self) -> None:
        """Give runs their states, if every stream was used up and no more than that."""
        if (self.at != self.until).any():
            raise broken()
        for run, begin, end in zip(self.runs, self.begins, self.begins[1:], strict=False):
            run.state = self.state[begin:end]

    def _advance(self, state: NDArray[np.uint32], lanes: slice | Places, rows: Numbers) -> None:
        """Fill rows with words, one per lane. A stream that is too short goes on with what is beside it, and is found in the end."""
        table, offset = self.table[lanes], self.offset[lanes]
        bounds = self.run[lanes].searchsorted(np.arange(len(self.at) + 1))  # of each run's lanes
        owner, frequency, first = self.tables.owner, self.tables.frequency, self.tables.first
        alone = len(self.at) == 1
        slot, place, count = np.empty_like(state), np.empty(len(state), np.intp), np.arange(len(state))
        for row in rows:
            np.bitwise_and(state, _LOWER, out=slot)
            np.add(slot, table, out=place)
            owner.take(place, out=row, mode="clip")
            np.add(row, offset, out=place)
            state >>= _HALF
            state *= frequency.take(place)
            slot -= first.take(place)
            state += slot
            low = (state < LOW).nonzero()[0]
            if alone:
                times: Places | int = len(low)
                here = count[: len(low)] + self.at
            else:
                ends = low.searchsorted(bounds)
                times = ends[1:] - ends[:-1]
                here = (self.at - ends[:-1]).repeat(times)
                here += count[: len(low)]
            state[low] = state.take(low) << _HALF | self.stream.take(here, mode="clip")
            self.at += times

    def _few(self, place: int, count: int) -> Numbers:
        """So many words of one run of few lanes, in Python's own numbers."""
        words = self.tables.words[self.runs[place].table]
        frequency, first = array("Q", words.frequency.tobytes()), array("Q", words.first.tobytes())  # faster to make than lists
        begin, end = self.begins[place : place + 2]
        state, stream = self.state[begin:end].tolist(), array("I", self.stream[self.at[place] : self.until[place]].tobytes())
        at, numbers = 0, array("H")
        for index in range(count):
            lane = index % len(state)
            x = state[lane]
            low = x & 0xFFFF
            word = bisect_right(first, low) - 1
            x = frequency[word] * (x >> 16) + low - first[word]
            if x < LOW:
                if at >= len(stream):
                    raise broken()
                x = x << 16 | stream[at]
                at += 1
            state[lane] = x
            numbers.append(word)
        self.state[begin:end] = state
        self.at[place] += at
        return np.frombuffer(numbers, np.uint16)
