"""Lines for a terminal or a pipe: at most `WIDTH` characters, printable, without colour codes."""

import textwrap
from collections.abc import Collection, Iterable, Sequence

from sizewise.report import _format as fmt

__all__ = ["WIDTH", "columns", "document", "row_blocks", "wrap"]

WIDTH = 100
_LAST_COLUMN = 20


def document(blocks: Iterable[Sequence[str]]) -> str:
    """Blocks of lines with an empty line between them; empty blocks leave no trace."""
    return "\n\n".join("\n".join(block) for block in blocks if block)


def wrap(text: str, first: str = "") -> list[str]:
    """One paragraph; `first` starts its first line, and the others are indented as far."""
    indent = " " * (len(first) or 2)
    return textwrap.wrap(fmt.printable(text), WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def columns(
    rows: Sequence[Sequence[str]], *, last: int = _LAST_COLUMN, squeeze: Collection[int] = (), middles: Collection[int] = ()
) -> list[str]:
    """Aligned columns, two spaces apart and indented by two; the last column wraps below itself.

    Args:
        rows: cells, as many in every row.
        last: room that the last column has at least.
        squeeze: columns that are narrowed where the line is too long; all of them if none is named.
        middles: columns that are shortened in the middle, since their cells end differently.
    """
    return [line for block in row_blocks(rows, last=last, squeeze=squeeze, middles=middles) for line in block]


def row_blocks(
    rows: Sequence[Sequence[str]], *, last: int = _LAST_COLUMN, squeeze: Collection[int] = (), middles: Collection[int] = ()
) -> list[list[str]]:
    """As `columns`, the lines of each row by themselves."""
    cells = [[fmt.printable(cell) for cell in row] for row in rows]
    widths = _shares([max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]], last, squeeze)
    return [_row(row, widths, middles) for row in cells]


def _row(cells: Sequence[str], widths: Sequence[int], middles: Collection[int]) -> list[str]:
    short = (_short(cell, width, middle=i in middles) for i, (cell, width) in enumerate(zip(cells, widths, strict=False)))
    start = "  " + "".join(f"{cell:<{width}}  " for cell, width in zip(short, widths, strict=True))
    return [line.rstrip() for line in wrap(cells[-1], start)] or [start.rstrip()]


def _shares(widths: list[int], last: int, squeeze: Collection[int]) -> list[int]:
    """Narrow the widest columns until the last one has room."""
    room = WIDTH - last - 2 * (len(widths) + 1)
    while sum(widths) > room:
        soft = [i for i in squeeze if widths[i] > _LEAST] or range(len(widths))
        widths[max(soft, key=lambda i: widths[i])] -= 1
    return widths


_LEAST = 8  # characters of a narrowed column, before the others give way too


def _short(text: str, width: int, *, middle: bool) -> str:
    if len(text) <= width:
        return text
    kept = max(width - 3, 0)
    front = kept // 2 if middle else kept
    return f"{text[:front]}...{text[len(text) - kept + front :]}"
