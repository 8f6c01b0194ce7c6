"""Progress on stderr: a bar with remaining time on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sizewise.protocols import Progress, Silent
from sizewise.units import format_seconds

__all__ = ["PlainProgress", "RichProgress", "Within", "shown"]


class PlainProgress:
    """One line per finished unit, with the time left."""

    def __init__(self) -> None:
        self.begin, self.total, self.done = time.monotonic(), 0, 0
        self.work, self.worked = 0.0, 0.0

    def start(self, total: int, work: float | None = None) -> None:
        """The work begins and has `total` units."""
        self.begin, self.total, self.done = time.monotonic(), total, 0
        self.work, self.worked = float(total if work is None else work), 0.0

    def working(self, what: str) -> None:
        """Nothing: a pipe gets results only."""

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        """Print the result of one unit."""
        self.done += units
        self.worked += units if work is None else work
        spent = time.monotonic() - self.begin
        left = spent / self.worked * (self.work - self.worked) if self.worked else 0.0
        self.note(f"[{self.done}/{self.total}] {line}" + (f" (about {format_seconds(left)} left)" if left >= 1 else ""))

    def note(self, line: str) -> None:
        """Print one line."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class RichProgress:
    """A live bar under the lines of finished units."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, TextColumn("{task.description}", markup=False), console=Console(stderr=True), transient=True)
        self.task: Any = None

    def start(self, total: int, work: float | None = None) -> None:
        """Show the bar."""
        self.task = self.bar.add_task("", total=total if work is None else work)
        self.bar.start()

    def working(self, what: str) -> None:
        """Say beside the bar what is being done."""
        if self.task is not None:
            self.bar.update(self.task, description=what)

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        """Print the result above the bar and move it."""
        self.note(line)
        if self.task is None:
            return
        self.bar.advance(self.task, units if work is None else work)
        if self.bar.finished:
            self.stop()

    def note(self, line: str) -> None:
        """Print one line above the bar."""
        self.bar.console.print(line, markup=False, highlight=False)

    def stop(self) -> None:
        """Take the bar away."""
        self.bar.stop()


class Within:
    """What one part of a run may say: its words stand behind the part's name, and it moves no bar and prints no line.

    Args:
        progress: of the whole run.
        part: what is being done, such as the plan that is tried.
    """

    def __init__(self, progress: Progress, part: str) -> None:
        self.progress, self.part = progress, part

    def start(self, total: int, work: float | None = None) -> None:
        """Nothing: the run counts parts, not what they consist of."""

    def working(self, what: str) -> None:
        """Say which part does what."""
        self.progress.working(f"{self.part}: {what}")

    def advance(self, line: str, units: int = 1, work: float | None = None) -> None:
        """Nothing, as with `start`."""

    def note(self, line: str) -> None:
        """Say it beside the bar, too: between the lines of finished units it would stand alone."""
        self.working(line)


@contextmanager
def shown(progress: bool | Progress) -> Iterator[Progress]:
    """The display that fits stderr where `progress` is true, none where it is false, else what is given.

    A display that was made here is taken away at the end, whatever happens.
    """
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield PlainProgress() if progress else Silent()
        return
    display = RichProgress()
    try:
        yield display
    finally:
        display.stop()
