"""The bundle's README.md: what the file is, what was measured, how to run it, and how far the claim goes."""

import re
from collections.abc import Iterable, Sequence

from sizewise.report import _format as fmt
from sizewise.report import _story as story
from sizewise.types import RunRecord

__all__ = ["render_card"]

# a bracket alone means nothing; only what may follow it makes a link
_SPECIAL = re.compile(r"[\\`*<>|&~$]|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FILES = (
    ("plan.json", "what was done, so that the torch model can be rebuilt"),
    ("run.json", "the record of the run: every candidate, figure and reason"),
    ("report.html", "the same to look at; opens without a network"),
    ("SHA256SUMS", "checksums; check with `sha256sum -c SHA256SUMS`"),
)


def render_card(record: RunRecord, snippet: str) -> str:
    """The model card, in GitHub's Markdown.

    Args:
        record: of a finished run.
        snippet: Python that runs the file without Sizewise.

    Returns:
        Markdown; names from the record are escaped.

    Raises:
        InternalError: the record chose a candidate without measurements.
    """
    parts = [_head(record), _figures(record), _verdict(record), _running(snippet), _loading()]
    parts += [_interface(record), _files(record), _limits(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(record: RunRecord) -> str:
    title = f"# {_text(record.task)}: {_text(fmt.plan_name(record.winner.plan))}"
    lead = f"A model file for the task {_text(record.task)}, made by Sizewise {_text(record.version)} for {_text(record.runtime)}."
    compared = [] if record.searched else [_text(story.fit_sentence(record))]
    return "\n\n".join([title, *_outside(record), f"{lead}\n{_text(story.headline(record))}.", *compared])


def _outside(record: RunRecord) -> list[str]:
    if record.feasible:
        return []
    rows = [f"> - {_text(b.name)}: {_text(b.got)} {b.seen}, allowed {_text(b.allowed)}" for b in story.binding(record)]
    rows += [
        f"> - would fit with {_text(name)} {_text(to)} ({_text(who)}: {_text(what)})"
        for name, _, to, who, what in story.relaxations(record)
        if who
    ]
    return ["\n".join([f"> **{story.OUTSIDE}.** {_text(story.fit_sentence(record))}", ">", *rows])]


def _figures(record: RunRecord) -> str:
    brackets = "brackets hold 95 % confidence intervals, in the verdict one-sided bounds"
    note = f"Quality is on {story.judged_on(record)}; {brackets}. 1 MB is 1,000,000 bytes."
    return "## Figures\n\n" + _table(("", "Measured", "Compared"), story.figures(record)) + f"\n\n{_text(note)}" + _integers(record)


def _integers(record: RunRecord) -> str:
    rows = [f"- {_text(cause)}" for cause in story.why_slow(record)]
    parts = [_text(story.integers(record)), *(["Not faster than in float:\n\n" + "\n".join(rows)] if rows else [])]
    return "".join(f"\n\n{part}" for part in parts if part)


def _verdict(record: RunRecord) -> str:
    rows = story.verdict_rows(record)
    if not rows:
        return f"## Verdict\n\n{story.NO_LIMITS}"
    sentence = f"{_text(story.fit_sentence(record))}\n\n" if record.feasible else ""
    others = "".join(f"\n\n{_text(found)}" for found in story.unproved(record))
    return (
        f"## Verdict: {record.verdict.judgement}\n\n{sentence}{_table(('Limit', 'Verdict', 'Figure', 'Allowed', 'Rests on'), rows)}{others}"
    )


def _running(snippet: str) -> str:
    return f"## Run it\n\n{_code(snippet)}"


def _loading() -> str:
    code = 'import sizewise\nmodule = sizewise.load("path/to/this/folder", task)  # the sizewise.Task of this run\n'
    how = "The task's model definition gives the structure, this folder the weights. Nothing is unpickled."
    return f"## Load it in torch\n\n{_code(code)}\n\n{how}"


def _interface(record: RunRecord) -> str:
    artefact = record.winner.artefact
    if artefact is None:
        return ""
    batch = "any number of examples per call" if artefact.batch == "dynamic" else fmt.plural(artefact.batch, "example") + " per call"
    rows = [
        f"- inputs: {', '.join(map(_text, artefact.inputs))}",
        f"- outputs: {', '.join(map(_text, artefact.outputs))}",
        f"- batch: {batch}",
        *(f"- {_text(note)}" for note in artefact.notes),
    ]
    return "## Inputs and outputs\n\n" + "\n".join(rows)


def _files(record: RunRecord) -> str:
    artefact = record.winner.artefact
    model = [] if artefact is None else [(artefact.path, f"the model, for {_text(artefact.runtime)}")]
    stored = record.winner.stored
    weights = ("weights.safetensors" if stored is None else stored.path, "weights of the shrunk torch model")
    return "## Files\n\n" + "\n".join(f"- {_text(name)}: {what}" for name, what in (*model, weights, *_FILES))


def _limits(record: RunRecord) -> str:
    measured, machine = story.winner(record), record.device.machine
    where = _text(", ".join(f"{name} {value}" for name, value in machine.items()) or record.device.title)
    rows = [
        f"- {_judged_by(record)}",
        f"- Latency and memory were measured on one machine ({where}) with {fmt.plural(measured.threads, 'thread')} and batch "
        f"{measured.batch}; they differ elsewhere.",
        f"- Quality holds for data like the task's. The reference is {_text(record.reference)} as a float PyTorch module.",
        *(f"- {_text(warning)}" for warning in record.warnings),
    ]
    return "## Limits of the claim\n\n" + "\n".join(rows)


def _judged_by(record: RunRecord) -> str:
    if not record.searched:
        split = "test" if record.verdict.test_quality else "validation"
        return f"The {split} split judged this file; nothing was chosen by it."
    if record.verdict.test_quality:
        return "The validation split picked this file; the test split, which the search never saw, judged it."
    if "test" in record.data and not record.feasible:
        return "The validation split both picked and judged this file: nothing fits, so the test split was not looked at."
    return "The validation split both picked and judged this file, since the task has no test split: its quality is likely overstated."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Markdown that shows exactly this text, on one line."""
    return _SPECIAL.sub(lambda match: "\\" + match[0], fmt.printable(text))


def _code(code: str) -> str:
    """A code block with a fence longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code.rstrip()}\n{fence}"
