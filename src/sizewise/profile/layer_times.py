"""How long a layer takes at any number of channels: measured at a grid of counts, kept on disk, interpolated between."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sizewise.errors import UsageError
from sizewise.files import write_bytes
from sizewise.protocols import Progress, Silent, Timer
from sizewise.types import LayerShape, from_json, to_json

__all__ = ["Grid", "Wanted", "grid_counts", "layer_times"]

VERSION = 2  # of the measurement: kept figures of another one are not used
COUNTS = 8  # per axis, besides the least; kernels work on blocks of channels, so their times have steps


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A layer to time, and which of its axes may get smaller."""

    shape: LayerShape
    out: bool
    into: bool


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Seconds of a layer at some counts of output and input channels, rising, of which the last are the whole layer's.

    Where inputs go with outputs, `ins` is one count.
    """

    shape: LayerShape
    outs: tuple[int, ...]
    ins: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    @property
    def whole(self) -> float:
        """Seconds of the whole layer."""
        return self.seconds[-1][-1]

    def at(self, out: float, into: float) -> float:
        """Seconds with so many output and input channels, bilinear between measured counts; the nearest ones' outside."""
        row, down = _place(self.outs, out)
        column, right = _place(self.ins, into)
        below, beside = min(row + 1, len(self.outs) - 1), min(column + 1, len(self.ins) - 1)
        upper = (1 - right) * self.seconds[row][column] + right * self.seconds[row][beside]
        lower = (1 - right) * self.seconds[below][column] + right * self.seconds[below][beside]
        return (1 - down) * upper + down * lower


def _place(counts: Sequence[int], count: float) -> tuple[int, float]:
    """Between which two counts, and how far from the first to the second."""
    place = min(max(bisect_right(counts, count) - 1, 0), max(len(counts) - 2, 0))
    if len(counts) < 2:
        return 0, 0.0
    return place, min(max((count - counts[place]) / (counts[place + 1] - counts[place]), 0.0), 1.0)


def layer_times(timer: Timer, wanted: Sequence[Wanted], multiple: int, progress: Progress | None = None) -> dict[LayerShape, Grid]:
    """A grid of times for every shape: kept ones, the others measured in one go and kept.

    Args:
        timer: measures, and says what its figures hold for and where they are kept.
        wanted: repeated shapes are measured once, with every axis that any of them asks for.
        multiple: channel counts that the runtime likes are multiples of this.
        progress: told when something is measured, and when it cannot be kept.
    """
    grids = {grid.shape: grid for grid in _empty(wanted, multiple)}
    missing = []
    for shape, grid in grids.items():
        kept = _kept(timer, grid)
        if kept is None:
            missing.append(grid)
        else:
            grids[shape] = kept
    if missing:
        (progress or Silent()).working(f"measuring {len(missing)} shapes of layers on {timer.name}")
        for grid in _measured(timer, missing):
            grids[grid.shape] = grid
            _keep(timer, grid, progress or Silent())
    return grids


def grid_counts(size: int, multiple: int) -> tuple[int, ...]:
    """At which sizes of an axis a layer is measured: the least, multiples of it so far apart that they are few, and the whole."""
    least = step = multiple if size >= 2 * multiple else 1
    while -(-size // step) > COUNTS:
        step *= 2
    return tuple(sorted({least, *range(step, size, step), size}))


def _empty(wanted: Sequence[Wanted], multiple: int) -> list[Grid]:
    axes: dict[LayerShape, tuple[bool, bool]] = {}
    for item in wanted:
        out, into = axes.get(item.shape, (False, False))
        axes[item.shape] = (out or item.out, into or item.into)
    return [_empty_grid(shape, out, into, multiple) for shape, (out, into) in axes.items()]


def _empty_grid(shape: LayerShape, out: bool, into: bool, multiple: int) -> Grid:
    outs: tuple[int, ...] = (shape.out_channels,)
    ins: tuple[int, ...] = (shape.in_channels,)
    if out or (into and shape.tied):
        size = shape.out_channels // shape.groups if shape.groups > 1 else 1  # whole groups go
        outs = tuple(size * count for count in grid_counts(shape.out_channels // size, multiple if size == 1 else 1))
    if into and not shape.tied:
        ins = grid_counts(shape.in_channels, multiple)
    return Grid(shape=shape, outs=outs, ins=ins, seconds=())


def _shapes(grid: Grid) -> list[LayerShape]:
    """The layer at every point, row by row."""
    return [grid.shape.resized(out, into) for out in grid.outs for into in grid.ins]


def _measured(timer: Timer, grids: Sequence[Grid]) -> list[Grid]:
    points = [_shapes(grid) for grid in grids]
    times = iter(timer.kernel_seconds([shape for part in points for shape in part]))
    return [_filled(grid, [next(times) for _ in part]) for grid, part in zip(grids, points, strict=True)]


def _filled(grid: Grid, times: Sequence[float]) -> Grid:
    """No more than larger layers take, which could do the same work: what is measured above that is other work on the machine."""
    measured = np.array(times, dtype=float).reshape(len(grid.outs), len(grid.ins))
    for axis in (0, 1):
        measured = np.flip(np.minimum.accumulate(np.flip(measured, axis), axis=axis), axis)
    return replace(grid, seconds=tuple(tuple(row) for row in measured.tolist()))


def _path(timer: Timer, grid: Grid) -> Path:
    facts = repr((VERSION, timer.facts, grid.shape, grid.outs, grid.ins))
    return timer.folder / f"layer-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"


def _kept(timer: Timer, grid: Grid) -> Grid | None:
    """The grid from the disk, if it is there, whole, and the one that is meant."""
    path = _path(timer, grid)
    try:
        found = from_json(Grid, path.read_bytes(), where=str(path))
    except (OSError, UsageError):
        return None
    same = (found.shape, found.outs, found.ins) == (grid.shape, grid.outs, grid.ins)
    full = [len(row) for row in found.seconds] == [len(grid.ins)] * len(grid.outs)
    return found if same and full and all(0 < time < math.inf for row in found.seconds for time in row) else None


def _keep(timer: Timer, grid: Grid, progress: Progress) -> None:
    try:
        write_bytes(_path(timer, grid), to_json(grid))
    except OSError as error:
        progress.note(f"times of layers cannot be kept in {timer.folder} ({error.strerror}); SIZEWISE_CACHE names another folder")
