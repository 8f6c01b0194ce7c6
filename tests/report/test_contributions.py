"""What each method saves, in the report and in the terminal."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sizewise.report.html import render_html
from sizewise.report.terminal import WIDTH, summary
from sizewise.types import Change, Contribution, RunRecord, StoredTensor, StoredWeights

if TYPE_CHECKING:
    from tests.report.conftest import Page

SAVED = (
    Contribution(method="low <rank>", size_bytes=12_000, bytes_without=18_000),
    Contribution(method="shared values", size_bytes=12_000, bytes_without=90_000),
    Contribution(method="entropy coding", size_bytes=12_000, bytes_without=16_000),
)


@pytest.fixture
def compressed(record: RunRecord) -> RunRecord:
    tensor = StoredTensor(name="linear.weight", size_bytes=11_000, float_bytes=120_000, form="product")
    stored = StoredWeights(path="weights.swz", size_bytes=12_000, whole_bytes=130_000, tensors=(tensor,))
    changes = (Change(contributions=SAVED[:1]), Change(contributions=SAVED[1:]))
    winner = replace(record.winner, stored=stored, changes=changes)
    others = tuple(winner if c.id == winner.id else c for c in record.candidates)
    return replace(record, candidates=others, searched=False)


def test_the_report_shows_the_file_with_each_method_left_out(compressed: RunRecord, read_page: "type[Page]") -> None:
    words = read_page(render_html(compressed)).words
    assert "File without it" in words
    for method, without, saved in (
        ("low <rank>", "18.0 kB", "33.3 %"),
        ("shared values", "90.0 kB", "86.7 %"),
        ("entropy coding", "16.0 kB", "25.0 %"),
    ):
        assert method in words
        assert without in words
        assert saved in words


def test_so_does_the_terminal(compressed: RunRecord) -> None:
    lines = summary(compressed).splitlines()
    assert any("entropy coding" in line and "16.0 kB" in line and "25.0 %" in line for line in lines)
    assert all(len(line) <= WIDTH for line in lines)


def test_without_figures_there_is_no_table(record: RunRecord) -> None:
    for found in (record, replace(record, searched=False)):
        assert "left out" not in summary(found)
        assert "File without it" not in render_html(found)
