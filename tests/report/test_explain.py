"""The explanation of a choice, in words, on the page and in the terminal."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.report.conftest import INT8, PRUNE, candidate, measured

from sizewise.report import _explain as told
from sizewise.report.html import render_html
from sizewise.report.terminal import WIDTH, summary
from sizewise.search.explain import Reference, explain
from sizewise.types import Budget, Candidate, Interval, Measurement, Neighbour, Relaxation, RunRecord

if TYPE_CHECKING:
    from tests.report.conftest import Page


def explained(record: RunRecord, *others: Candidate, untried: tuple[Neighbour, ...] = ()) -> RunRecord:
    """The record with its explanation, as a run would write it."""
    known = (*record.candidates, *others)
    reference = Reference(record.reference, record.reference_weight_bytes, record.runtime, tuple(s.name for s in record.scales))
    found = explain(known, record.winner, record.budget, reference, untried=untried)
    return replace(record, candidates=known, explanation=found)


@pytest.fixture(scope="module")
def whole(record: RunRecord) -> RunRecord:
    predicted = Interval(value=1.2, low=1.0, high=1.5, n=0, how="predicted")
    plan = replace(record.winner.plan, steps=(replace(INT8, settings={"weight_bits": 4}),))
    lost = Interval(value=0.02, low=0.0, high=0.04, n=0, how="predicted")
    other = Neighbour(
        plan=plan,
        change="int8_static(weight_bits=4) instead of int8_static",
        lever="precision",
        why="unpromising",
        latency=predicted,
        size_ratio=0.5,
        drop=lost,
        chance=0.004,
    )
    return explained(record, untried=(other,))


@pytest.fixture(scope="module")
def page(whole: RunRecord, read_page: "type[Page]") -> "Page":
    return read_page(render_html(whole))


def latency(found: Measurement, us: float) -> Measurement:
    return replace(found, latency=replace(found.latency, value=us * 1e-6, low=0.99e-6 * us, high=1.01e-6 * us), latency_ratio=us / 901)


def test_the_stages_go_from_the_reference_to_the_chosen_file(whole: RunRecord) -> None:
    found = told.stages(whole)
    assert [stage.name for stage in found] == ["float PyTorch resnet-l", "runtime onnxruntime", "scale resnet-s", "int8_static"]
    assert [stage.size_bytes for stage in found] == [1_237_744, 1_231_898, 80_200, 26_100]
    assert [stage.latency_s for stage in found] == pytest.approx([901e-6, 90e-6, 46e-6, 41.2e-6])
    assert found[1].faster.startswith("10 times [")
    assert found[2].smaller == "15 times smaller"


def test_a_step_within_the_noise_is_not_called_faster_or_slower(record: RunRecord) -> None:
    chosen = record.winner
    assert chosen.measured is not None
    slow = replace(chosen, measured=latency(chosen.measured, 46.2))
    rows = tuple(slow if c.id == chosen.id else c for c in record.candidates)
    last = told.stages(explained(replace(record, candidates=rows)))[-1]
    assert last.noise
    assert last.faster.startswith("as fast within the noise [")


def test_quality_of_some_examples_is_marked(record: RunRecord) -> None:
    def part(c: Candidate) -> Candidate:
        return replace(c, status="beaten", reason="beaten", measured=None, partly=c.measured) if c.id == "resnet-s.float" else c

    found = told.stages(explained(replace(record, candidates=tuple(map(part, record.candidates)))))
    assert [stage.note for stage in found] == ["", "", "quality of 400 examples", ""]


def test_neighbours_say_why_they_lost(whole: RunRecord) -> None:
    found = {rival.change: rival for rival in told.rivals(whole)}
    scale = found["scale resnet-l instead of resnet-s"]
    assert (scale.latency, scale.size) == ("61.0 us", "318 kB")
    assert scale.why == "breaks latency by 1.00 us, file size by 218 kB"
    assert found["without int8_static"].why.startswith("fits, but costs more: 1.12 times [")
    assert found["with channel_pruning(rate=0.5)"].why == "untried: the time limit was reached"
    guess = found["int8_static(weight_bits=4) instead of int8_static"]
    assert (guess.latency, guess.size, guess.drop) == ("~49.4 us", "~13.1 kB", "~+2.00 pt")
    assert guess.why == "not tried: predicted as shown, under 1 % to be the best that fits"


def test_a_lever_that_does_not_pay_is_named_with_its_figures(record: RunRecord) -> None:
    slow = candidate("resnet-s", (INT8,), measured=measured(50, 26_100, 0.975))
    rows = tuple(replace(c, measured=slow.measured) if c.id == record.chosen else c for c in record.candidates)
    found = explained(replace(record, candidates=rows))
    (sentence,) = (text for text in told.no_faster(found) if text.startswith("int8_static"))
    assert sentence.startswith("int8_static in 1 of 2 measured pairs")
    assert re.search(r"int8_static on resnet-s, float: 1\.09 \[1\.0\d, 1\.1\d\] times the latency, 0\.33 times the size", sentence)
    assert sentence in " ".join(summary(found).split())
    assert [row.faster for row in told.effects(found)] == sorted(row.faster for row in told.effects(found))


def test_where_every_lever_pays_nothing_is_said_against_one(record: RunRecord) -> None:
    fast = explained(replace(record, candidates=tuple(c for c in record.candidates if PRUNE not in c.plan.steps)))
    assert not told.no_faster(fast)
    assert "measurably faster" not in summary(fast)


def test_plans_that_failed_are_told_once_per_reason(record: RunRecord) -> None:
    again = candidate("resnet-m", (PRUNE, INT8), status="failed", reason="parity: outputs differ by 3 & more")
    found = explained(record, again)
    name = "resnet-l, channel_pruning(rate=0.5) + int8_static and 1 other"
    assert told.refused(found) == ((name, "parity: outputs differ by 3 & more"),)


def test_the_page_draws_the_way_and_holds_the_same_figures_as_tables(whole: RunRecord, page: "Page") -> None:
    assert len(page.plots) == 3
    for part in ("runtime onnxruntime", "scale resnet-s", "chosen file", "901 us", "26.1 kB"):
        assert part in page.plots[0]
    for rival in told.rivals(whole):
        assert rival.change in page.words
        assert rival.why in page.words
    order = [page.words.index(title) for title in ("Verdict", "What each lever bought", "Why not its neighbours", "Frontier")]
    assert order == sorted(order)


def test_the_terminal_tells_the_way_and_the_nearest_neighbours(whole: RunRecord) -> None:
    lines = summary(whole).splitlines()
    start = lines.index("what each lever bought:")
    assert [line.rsplit("  ", 1)[1] for line in lines[start + 2 : start + 6]] == [stage.name for stage in told.stages(whole)]
    assert "10 times faster" in lines[start + 3]
    assert "why not its neighbours (~ is predicted):" in lines
    assert max(map(len, lines)) <= WIDTH


def test_a_record_without_explanation_says_nothing_of_it(record: RunRecord, read_page: "type[Page]") -> None:
    assert "lever" not in summary(record)
    assert "What each lever bought" not in read_page(render_html(record)).words


def test_what_relaxing_a_limit_would_buy_is_told_with_its_figures(infeasible: RunRecord, read_page: "type[Page]") -> None:
    figures = "41.2 us, 26.1 kB, accuracy 97.50 %, drop +1.00 pt"
    words = read_page(render_html(infeasible)).words
    assert f"at most 41.2 us, 2.1 times as much resnet-s, int8_static {figures}" in words
    assert figures in " ".join(summary(infeasible).split())


def test_a_looser_drop_is_told_in_points(infeasible: RunRecord) -> None:
    relaxed = replace(infeasible.relaxations[0], limit="max_drop", allowed=0.005, needed=0.01)
    text = " ".join(summary(replace(infeasible, budget=Budget(max_drop=0.005), relaxations=(relaxed,))).split())
    assert "at most 1.00 pt, 0.50 pt more" in text


def test_where_no_limit_alone_helps_the_fewest_that_do_are_named(record: RunRecord, read_page: "type[Page]") -> None:
    budget = Budget(latency="20 us", size="20 kB", max_drop=0.012)
    relaxations = tuple(Relaxation(limit=limit, allowed=1, needed=None, candidate=None) for limit in ("latency", "size"))
    found = replace(record, feasible=False, budget=budget, relaxations=relaxations)
    words = "latency at most 41.2 us and file size at most 26.1 kB would fit resnet-s, int8_static: 41.2 us, 26.1 kB"
    assert f"together: {words}" in " ".join(summary(found).split())
    assert f"Relaxed together: {words}" in read_page(render_html(found)).words
