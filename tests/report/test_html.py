import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sizewise.errors import InternalError
from sizewise.report.html import render_html
from sizewise.types import Budget, RunRecord, from_json, to_json

if TYPE_CHECKING:
    from tests.report.conftest import Page

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(record: RunRecord, read_page: "type[Page]") -> "Page":
    return read_page(render_html(record))


@pytest.fixture(scope="module")
def outside(infeasible: RunRecord, read_page: "type[Page]") -> "Page":
    return read_page(render_html(infeasible))


def test_every_candidate_is_there_with_its_reason(page: "Page", record: RunRecord) -> None:
    for candidate in record.candidates:
        assert candidate.id in page.words
        assert (candidate.reason or "") in page.words
        assert candidate.status in page.words


def test_the_headline_compares_with_the_reference(page: "Page") -> None:
    wanted = "41.2 us, 26.1 kB, accuracy 97.60 %; 22 times faster and 47 times smaller than resnet-l in float PyTorch"
    assert wanted in page.words


def test_the_verdict_names_the_examples_that_would_decide(page: "Page") -> None:
    assert "undecided +0.80 pt [-0.40, +2.00] at most 1.50 pt" in page.words
    assert "about 19,180 test examples would decide" in page.words


def test_scales_changes_warnings_and_method_are_there(page: "Page", record: RunRecord) -> None:
    for text in ("add 3, relu 7", "308 k", "embed & <co>", "no integer kernel", "folded 9 norms", *record.warnings):
        assert text in page.words
    for text in ("Example CPU", "torch 2.13.0", record.fingerprint, "7754" * 16, "One MAC (multiply-accumulate) is two FLOPs."):
        assert text in page.words


def test_both_plots_hold_every_measured_candidate(page: "Page", record: RunRecord) -> None:
    assert len(page.plots) == 2
    measured = sum(c.measured is not None for c in record.candidates)
    for script in page.plots:
        assert script.count("on disk") == measured + 1  # the chosen one has a star too


def test_limits_in_reach_are_drawn_and_others_are_remarked(record: RunRecord, read_page: "type[Page]") -> None:
    near, far = read_page(render_html(record)), read_page(render_html(replace(record, budget=Budget(latency="5 s", min_quality="10 %"))))
    assert "latency at most 60.0 us" in near.plots[0]
    assert "1.50 pt below resnet-l" in near.plots[0]
    assert "The limit, latency at most 5.00 s, lies to the right of the plot." in far.words
    assert "The limit, at least 10.00 %, lies below the plot." in far.words


def test_a_run_outside_the_budget_says_so_first(outside: "Page", page: "Page") -> None:
    title = outside.words.index("OUTSIDE THE BUDGET")
    assert title < outside.words.index("Verdict")
    assert ("div", {"class": "banner", "role": "alert"}) in outside.elements
    assert "Latency 41.2 us as tried at most 20.0 us" in outside.words
    assert "relaxing it alone does not help" in outside.words
    assert "OUTSIDE" not in page.words


def test_the_page_asks_nothing_of_the_network(page: "Page") -> None:
    policy = next(a["content"] for name, a in page.elements if name == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for name, attributes in page.elements:
        assert name not in ("link", "iframe", "img", "base", "form")
        assert not {"src", "href", "srcset", "action"} & set(attributes), name
    for script in page.plots:
        assert not re.search(r"https?://", script)
        assert '"showSendToCloud": false' in script


def test_plotly_is_in_the_page_once(page: "Page") -> None:
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1


def test_names_cannot_break_out_of_text_or_script(make_record: Callable[..., RunRecord], read_page: "type[Page]") -> None:
    evil = make_record(task=EVIL, large=f"l{EVIL}", small=f"<img src=x onerror=alert(1)>{EVIL}")
    evil = replace(evil, warnings=(EVIL,), data={EVIL: {EVIL: EVIL}}, versions={EVIL: EVIL}, fingerprint=EVIL)
    text = render_html(evil)
    page = read_page(text)
    assert EVIL not in text
    assert [name for name, _ in page.elements if name in ("img", "script")] == ["script"] * len(page.scripts)
    assert len(page.scripts) == len(read_page(render_html(make_record())).scripts)
    assert EVIL in page.words
    for script in page.plots:
        assert "<img" not in script
        assert "\\u003cimg" not in script  # plotly would draw it from here


def test_a_metric_that_is_no_share_prints_plain(make_record: Callable[..., RunRecord], read_page: "type[Page]") -> None:
    page = read_page(render_html(make_record(metric="loss")))
    assert "loss 0.976" in page.words
    assert " pt " not in page.words.split("All 8 candidates")[1].split("Scales")[0]


def test_a_run_without_limits_or_test_split_renders(record: RunRecord, read_page: "type[Page]") -> None:
    bare = replace(record, budget=Budget(), verdict=replace(record.verdict, limits=(), test_quality=None), warnings=())
    page = read_page(render_html(bare))
    assert "No limits were set" in page.words
    assert "400 validation examples, which the search looked at" in page.words


def test_one_measured_candidate_is_enough(record: RunRecord, read_page: "type[Page]") -> None:
    alone = replace(record, candidates=(record.winner,), scales=record.scales[1:])
    assert len(read_page(render_html(alone)).plots) == 2


def test_the_page_survives_the_json_round_trip(record: RunRecord, infeasible: RunRecord) -> None:
    for one in (record, infeasible):
        again = from_json(RunRecord, to_json(one))
        assert again == one
        assert render_html(again) == render_html(one)
        json.loads(to_json(one))


def test_a_chosen_candidate_without_measurements_is_our_mistake(record: RunRecord) -> None:
    with pytest.raises(InternalError, match="was not measured"):
        render_html(replace(record, chosen=record.candidates[2].id))
