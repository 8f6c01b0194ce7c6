"""Progress on stderr: a bar with remaining time on a terminal, plain lines in a pipe."""

import sys
import time
from typing import Any

from sizewise.protocols import Progress, Silent
from sizewise.units import format_seconds

__all__ = ["make_progress"]


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


def make_progress(*, quiet: bool) -> Progress:
    """The display that fits stderr."""
    if quiet:
        return Silent()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()
