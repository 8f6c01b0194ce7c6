"""The way from the reference to the chosen file that separates its levers best, over files that were measured."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from sizewise.search.contrast import Levers, difference, milder

__all__ = ["best_path"]

T = TypeVar("T")
OFF, PART, DONE = range(3)

Placed = tuple[tuple[T, Levers], Mapping[str, int]]
Key = tuple[int, int, tuple[tuple[int, ...], ...]]


def best_path(start: tuple[T, Levers], stops: Sequence[tuple[T, Levers]], end: tuple[T, Levers]) -> list[tuple[T, Levers]]:
    """A chain of stops from start to end along which levers only move towards where they end.

    A lever moves at once, or over a milder setting. Of all chains that one is taken along which the fewest levers move together with
    others, of those the shortest, and of those the one that moves levers in the order of the plan.

    Args:
        start: where all begins.
        stops: where it may pass by; of two alike, the first is taken.
        end: where it ends.

    Returns:
        start, the stops on the way, end; one alone where start and end do not differ.
    """
    if not difference(start[1], end[1]):
        return [end]
    names = list(dict.fromkeys((*end[1], *start[1])))
    between = [stop for stop in stops if difference(start[1], stop[1]) and difference(stop[1], end[1])]
    placed: list[Placed[T]] = []
    for stop in (start, *between, end):
        if (progress := _progress(names, start[1], stop[1], end[1])) is not None:
            placed.append((stop, progress))
    nodes = sorted(placed, key=lambda pair: sum(pair[1].values()))  # start comes first, and leads to all others; end comes last
    ways: list[tuple[Key, list[int]]] = [((0, 0, ()), [0])]
    for at in range(1, len(nodes)):
        befores = [before for before in range(at) if _leads(nodes[before], nodes[at])]
        ways.append(min((_longer(ways[b][0], names, nodes[b][0][1], nodes[at][0][1]), [*ways[b][1], at]) for b in befores))
    return [nodes[at][0] for at in ways[-1][1]]


def _progress(names: Sequence[str], start: Levers, here: Levers, end: Levers) -> dict[str, int] | None:
    """How far every lever is on its way; None where one is beside it."""
    found = {}
    for name in names:
        if here.get(name) == end.get(name):
            found[name] = DONE
        elif here.get(name) == start.get(name):
            found[name] = OFF
        elif milder(here.get(name), end.get(name)):
            found[name] = PART
        else:
            return None
    return None if set(here) - set(names) else found


def _leads(one: Placed[T], other: Placed[T]) -> bool:
    """Whether levers only go on from one to the other, and at least one does."""
    (_, mine), before = one
    (_, its), after = other
    if not difference(mine, its):
        return False
    onward = all(before[name] <= after[name] for name in after)
    return onward and all(mine.get(name) == its.get(name) for name in after if before[name] == after[name] == PART)


def _longer(key: Key, names: Sequence[str], one: Levers, other: Levers) -> Key:
    moved = difference(one, other)
    together, length, order = key
    return together + len(moved) - 1, length + 1, (*order, tuple(names.index(name) for name in moved))
