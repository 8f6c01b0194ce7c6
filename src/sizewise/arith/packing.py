"""Things put into parts that fit a limit, in their order."""

from collections.abc import Iterable, Iterator

__all__ = ["packed"]


def packed(sizes: Iterable[float], most: float) -> Iterator[list[int]]:
    """Positions, part by part: each part is as long as its sizes add up to at most `most`, and holds at least one."""
    part: list[int] = []
    held = 0.0
    for index, size in enumerate(sizes):
        if part and held + size > most:
            yield part
            part, held = [], 0.0
        part.append(index)
        held += size
    if part:
        yield part
