import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from sizewise.report.terminal import WIDTH, summary
from sizewise.types import Budget, Interval, RunRecord, SearchRecord


def lines_of(record: RunRecord) -> list[str]:
    return summary(record).splitlines()


def test_it_holds_the_figures_the_verdict_and_the_frontier(record: RunRecord) -> None:
    text = " ".join(summary(record).split())  # long lines wrap
    for part in (
        "digits: resnet-s, int8_static (onnxruntime on this machine, 2 threads, batch 1)",
        "41.2 us [40.0, 42.4]",
        "22 times [20, 23] faster than float PyTorch resnet-l (901 us)",
        "47 times smaller than resnet-l's float weights (1.24 MB)",
        "500 test examples; drop +0.80 pt",
        "verdict: undecided",
        "about 19,180 test examples would decide",
        "frontier: 3 of 5 measured, 8 candidates in all",
        "warning: the time limit was reached",
    ):
        assert part in text
    assert 15 <= len(lines_of(record)) <= 26


def test_the_frontier_is_fastest_first_and_marks_the_chosen(record: RunRecord) -> None:
    lines = lines_of(record)
    start = next(i for i, line in enumerate(lines) if line.startswith("frontier"))
    rows = lines[start + 2 : start + 5]
    names = [re.split(r"\s{2,}", row.replace("*", " ").strip())[0] for row in rows]
    assert names == ["resnet-s, int8_static", "resnet-s, float", "resnet-l, int8_static"]
    assert ["*" in row for row in rows] == [True, False, False]
    assert len({row.index(" us") for row in rows}) == 1


def test_a_run_outside_the_budget_says_why_and_what_would_help(infeasible: RunRecord) -> None:
    text = " ".join(summary(infeasible).split())
    assert text.startswith("OUTSIDE THE BUDGET")
    for part in ("nearest candidate is resnet-s, int8_static", "limits that bind:", "allowed at most 20.0 us", "at most 41.2 us"):
        assert part in text


def test_a_refusal_by_the_test_split_is_told_apart(record: RunRecord) -> None:
    limits = record.verdict.limits
    refused = replace(record.verdict, judgement="refused", limits=(*limits[:2], replace(limits[2], judgement="refused", needed=None)))
    text = " ".join(summary(replace(record, feasible=False, verdict=refused)).split())
    assert "keeps every limit on validation, but the final measurement refuses it" in text
    assert "drop in accuracy +0.80 pt [-0.40, +2.00] allowed at most 1.50 pt in the final measurement" in text


@pytest.mark.parametrize("length", [1, 30, 90, 300])
def test_no_line_is_wider_than_a_terminal(make_record: Callable[..., RunRecord], infeasible: RunRecord, length: int) -> None:
    name = "x" * length
    wide = make_record(task=name, large=f"l-{name}", small=f"s {name}", metric=f"metric_{name}")
    outside = replace(wide, feasible=False, budget=infeasible.budget, relaxations=infeasible.relaxations[1:])
    for record in (wide, outside, infeasible):
        assert max(map(len, lines_of(record))) <= WIDTH


def test_names_cannot_command_the_terminal(make_record: Callable[..., RunRecord]) -> None:
    text = summary(make_record(task="a\x1b[2Jb", small="c\nd\x07"))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_long_frontier_is_cut_with_a_count(record: RunRecord) -> None:
    more = tuple(replace(record.winner, id=f"copy-{i}") for i in range(10))
    assert "and 5 more in the report" in summary(replace(record, candidates=(*record.candidates, *more)))


def test_a_slower_file_is_called_slower(record: RunRecord) -> None:
    slow = replace(record, speedup=replace(record.speedup, value=0.5, low=0.4, high=0.8))
    assert "2.0 times [1.25, 2.5] slower than" in summary(slow)


@pytest.fixture
def given(record: RunRecord) -> RunRecord:
    """The same files, of which the second was asked for instead of found."""
    pair = tuple(c for c in record.candidates if c.id in ("resnet-s.float", record.chosen))
    verdict = replace(record.verdict, judgement="proved", limits=())
    faster = Interval(value=1.12, low=1.08, high=1.2, n=31)
    return replace(record, candidates=pair, budget=Budget(), verdict=verdict, searched=False, file_speedup=faster)


def test_without_a_search_the_whole_model_stands_beside_what_was_done(given: RunRecord) -> None:
    text = " ".join(summary(given).split())
    for part in (
        "Beside the file of the whole resnet-s: 1.12 times [1.08, 1.20] faster, 3.1 times smaller.",
        "whole 46.0 us",
        "this file 41.2 us",
        "folded 9 norms",
        "left alone: embed & <co>: no integer kernel",
    ):
        assert part in text
    assert "frontier" not in text
    assert "verdict" not in text
    assert max(map(len, lines_of(given))) <= WIDTH


def test_a_speed_that_cannot_be_told_apart_is_not_called_faster(given: RunRecord) -> None:
    same = replace(given, file_speedup=Interval(value=1.01, low=0.97, high=1.05, n=31))
    assert "as fast within the noise [0.97, 1.05]" in " ".join(summary(same).split())


def test_reports_never_import_torch() -> None:
    code = (
        "import sys, sizewise.report.html, sizewise.report.terminal, sizewise.report.card, sizewise.report.advice_html\n"
        "import sizewise.report.advice_terminal, sizewise.report.profile_terminal, sizewise.report.devices_terminal\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("searched", "says"),
    [
        (SearchRecord(plans=812, tried=17, most=24, ended="done"), "17 of 812 plans tried: none that is left is expected"),
        (SearchRecord(plans=812, tried=24, most=24, ended="trials", promising=1), "no more were to be tried; 1 plan left might be better."),
        (SearchRecord(plans=812, tried=3, most=24, ended="time"), "the time limit was reached."),
        (SearchRecord(plans=812, tried=1, most=24, ended="target"), "the first that fits was all that was wanted"),
    ],
)
def test_it_says_how_far_the_search_went(record: RunRecord, searched: SearchRecord, says: str) -> None:
    assert says in " ".join(summary(replace(record, search=searched)).split())
    assert "plans tried" not in summary(record), "older records do not say"
