"""HTML building blocks: everything is escaped unless it is already `Html`. One page, no network."""

import html
from collections.abc import Iterable, Sequence

__all__ = ["Html", "bullets", "details", "escape", "join", "page", "paragraph", "plot_figure", "section", "stacked", "table", "tag"]


class Html(str):
    """Text that is HTML already; plain strings are escaped wherever they are put in."""

    __slots__ = ()


def escape(text: object) -> Html:
    """HTML for a text; `Html` passes unchanged."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(between.join(escape(part) for part in parts))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """An element; attribute names lose a trailing underscore (`class_`) and turn others to hyphens (`aria_label`)."""
    inner = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{inner}>{join(content)}</{name}>")


def paragraph(*content: object, **attributes: str) -> Html:
    """A paragraph."""
    return tag("p", *content, **attributes)


def section(title: str, *content: object) -> Html:
    """A section with a heading."""
    return tag("section", tag("h2", title), *content)


def details(summary: object, *content: object, open_: bool = False) -> Html:
    """Something folded away, still in the page; `open_` shows it at first."""
    return tag("details", tag("summary", summary), *content, **({"open": ""} if open_ else {}))


def bullets(lines: Iterable[object]) -> Html:
    """A list; nothing where there is nothing to say."""
    rows = [tag("li", line) for line in lines]
    return tag("ul", *rows) if rows else Html("")


def stacked(text: str) -> Html:
    """The interval below its figure, which keeps columns narrow."""
    value, bracket, rest = text.partition(" [")
    return join((value, tag("span", f"[{rest}", class_="interval"))) if bracket else escape(text)


def plot_figure(drawn: Html, remarks: Sequence[str], caption: str) -> Html:
    """A plot with what it shows and what lies outside it."""
    return tag("figure", tag("div", drawn, class_="plot"), tag("figcaption", " ".join((caption, *remarks))), aria_label=caption)


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = (), marked: Sequence[int] = (), label: str = ""
) -> Html:
    """A table that scrolls sideways by itself where it is too wide.

    Args:
        head: column titles; the first column names the row.
        rows: cells.
        numbers: titles of the columns that hold figures.
        marked: rows to stand out.
        label: what the table is, for screen readers.
    """
    kinds = ["number" if title in numbers else "text" for title in head]
    top = tag("tr", *(tag("th", title, scope="col", class_=kind) for title, kind in zip(head, kinds, strict=True)))
    body = (_row(cells, kinds, marked=index in marked) for index, cells in enumerate(rows))
    # focusable, so that a keyboard can scroll it
    return tag(
        "div",
        tag("table", tag("thead", top), tag("tbody", *body)),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=label or head[0],
    )


def _row(cells: Sequence[object], kinds: Sequence[str], *, marked: bool) -> Html:
    first = tag("th", cells[0], scope="row")
    rest = (tag("td", cell, class_=kind) for cell, kind in zip(cells[1:], kinds[1:], strict=True))
    return tag("tr", first, *rest, **({"class_": "marked"} if marked else {}))


def page(title: str, *content: object) -> str:
    """The whole document. The policy forbids every request, so that the page stays what it was when it was written."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{join(content, chr(10))}\n</main>\n</body>\n</html>\n"
    )


_CSS = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #59626c; --paper: #fbfbfa; --card: #fff; --line: #d9dde1;
  --mark: #e9f2fb; --bar: #0072b2; --good: #1a6b3c; --open: #8a5a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3acb5; --paper: #15181b; --card: #1d2125;
  --line: #363d44; --mark: #1d3145; --bar: #56b4e9; --good: #6fcf97; --open: #e8b04a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 4px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 95ch; overflow-wrap: anywhere; }
.lead { font-size: 18px; }
.soft, figcaption { color: var(--soft); font-size: 13.5px; }
.banner { border: 3px solid var(--bad); border-radius: 6px; padding: 12px 18px; margin: 0 0 22px; background: var(--card); }
.banner strong { color: var(--bad); font-size: 22px; letter-spacing: .02em; }
.scroll { overflow-x: auto; margin: 10px 0; border: 1px solid var(--line); border-radius: 6px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 8em; }
.number { text-align: right; white-space: nowrap; }
td.text { min-width: 9em; } td.text:nth-child(n+5):last-child { min-width: 18em; }
thead th.number { white-space: normal; }
td:has(> .bar) { min-width: 15em; }
tr.marked > * { background: var(--mark); }
tr.marked th { font-weight: 700; }
.proved { color: var(--good); font-weight: 600; } .undecided { color: var(--open); font-weight: 600; }
.refused { color: var(--bad); font-weight: 600; }
.interval { color: var(--soft); font-size: 12px; display: block; }
.bar { height: 10px; min-width: 1px; margin-top: 6px; border-radius: 2px; background: var(--bar); print-color-adjust: exact; }
figure { margin: 10px 0 24px; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: 4px; color-scheme: light; }
details { margin: 6px 0; } summary { cursor: pointer; }
ul { margin: 6px 0; padding-left: 22px; } li { overflow-wrap: anywhere; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 16px 12px 48px; } h1 { font-size: 22px; } .lead { font-size: 16px; }
  th, td { padding: 5px 8px; } }
@media print { .scroll { overflow: visible; } }
"""
