import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from sizewise.advice import AdviceRecord
from sizewise.report.advice_html import render_advice
from sizewise.types import Budget, from_json, to_json

if TYPE_CHECKING:
    from tests.report.conftest import Page

EVIL = "</script><script>alert(1)</script>"
Trace = dict[str, Any]


@pytest.fixture(scope="module")
def page(advice: AdviceRecord, read_page: "type[Page]") -> "Page":
    return read_page(render_advice(advice))


def plot(page: "Page", name: str) -> tuple[list[Trace], dict[str, Any]]:
    """Traces and layout of a plot, as the page gives them to plotly."""
    script = next(s for s in page.plots if f'"plot-{name}"' in s)
    decoder = json.JSONDecoder()
    start = script.index("[", script.index(f'"plot-{name}",', script.index("Plotly.newPlot")))
    traces, end = decoder.raw_decode(script, start)
    layout, _ = decoder.raw_decode(script, script.index("{", end))
    return traces, layout


def named(traces: list[Trace], name: str, mode: str = "markers") -> list[Trace]:
    return [t for t in traces if t.get("name") == name and t.get("mode") == mode and t["x"] != [None]]


def change(record: AdviceRecord, name: str, **changes: Any) -> AdviceRecord:
    return replace(record, scales=tuple(replace(s, **changes) if s.name == name else s for s in record.scales))


def test_the_decision_comes_first(page: "Page", advice: AdviceRecord) -> None:
    assert page.words.index("digits: small is recommended") < page.words.index(advice.decision) < page.words.index("Quality")
    assert "Latencies: predicted for Example board, 8 GB, 4 threads, within a factor of 2.2." in page.words


def test_every_scale_is_there_with_its_figures_and_evidence(page: "Page", advice: AdviceRecord) -> None:
    for scale in advice.scales:
        assert (scale.evidence or scale.reason or "no evidence") in page.words
    for text in (
        "small complete, recommended",
        "large complete, best",
        "+0.40 pt [-0.20, +1.00]",
        "data-limited in 91 % of draws",
        "latency 9.00 ms (1.80 times the limit)",
        "latency 3.60 ms [1.64, 7.92] (0.40 times), size 4.00 MB (0.25 times), predicted",
        "conv: ResNet-50 in static int8, a server",
        "Save bytes first.",
        "not counted: grid_sampler 3",
        "7754" * 16,
        "brief: of the board",
    ):
        assert text in page.words


def test_the_words_are_explained(page: "Page") -> None:
    conventions = page.words.split("Conventions")[1]
    for word in ("MAC", "Gap:", "Behind:", "Tolerance:", "Ceiling:", "90 % of bootstrap draws", "predicted by a roofline", "underfits"):
        assert word in conventions


@pytest.mark.parametrize(("name", "axis"), [("quality-latency", 0.002), ("quality-size", 1.6e6), ("quality-MACs", 4e6)])
def test_quality_is_drawn_against_every_cost_with_a_star_on_the_recommended(page: "Page", name: str, axis: float) -> None:
    traces, layout = plot(page, name)
    (small,), (star,) = named(traces, "small"), named(traces, "recommended")
    assert small["x"] == star["x"] == [pytest.approx(axis)]
    assert small["y"] == star["y"]
    assert small["error_y"]["array"] == [pytest.approx(0.006)]
    assert ("error_x" in small) == (name == "quality-latency")
    assert layout["xaxis"]["type"] == "log"
    assert "1.00 pt below large" in str(layout["annotations"])


def test_limits_of_the_budget_are_lines_or_remarks(advice: AdviceRecord, read_page: "type[Page]") -> None:
    near = read_page(render_advice(advice))
    assert "latency at most 5.00 ms" in str(plot(near, "quality-latency")[1]["annotations"])
    assert "size at most 4.00 MB" in str(plot(near, "quality-size")[1]["annotations"])
    far = read_page(render_advice(replace(advice, budget=Budget(latency="5 s"))))
    assert "The limit, latency at most 5.00 s, lies to the right of the plot." in far.words


def test_learning_curves_hold_every_training_and_dash_what_is_extrapolated(page: "Page", advice: AdviceRecord) -> None:
    traces, layout = plot(page, "curves")
    for scale in advice.scales:
        train, validation = named(traces, scale.name)
        assert sorted(validation["y"]) == pytest.approx(sorted(p.validation for p in scale.points))
        assert train["marker"]["symbol"].endswith("-open")
        band, solid, dashed = named(traces, scale.name, "lines")
        assert band["fill"] == "toself"
        assert dashed["line"]["dash"] == "dash"
        assert solid["x"][-1] == dashed["x"][0] == max(p.examples for p in scale.points)
        assert dashed["x"][-1] == 12_000
    assert "all 3,000" in str(layout["annotations"])


def test_scales_without_a_curve_are_named_and_their_trainings_drawn(advice: AdviceRecord, read_page: "type[Page]") -> None:
    page = read_page(render_advice(change(advice, "tiny", curve=None)))
    traces, _ = plot(page, "curves")
    assert len(named(traces, "tiny")) == 2
    assert not named(traces, "tiny", "lines")
    assert "No curve, since it needs three numbers of examples: tiny." in page.words


def test_trainings_without_a_train_score_leave_no_marker(advice: AdviceRecord, read_page: "type[Page]") -> None:
    points = tuple(replace(p, train=float("nan")) for p in advice.scale("tiny").points)
    traces, _ = plot(read_page(render_advice(change(advice, "tiny", points=points))), "curves")
    train, validation = named(traces, "tiny")
    assert (len(train["y"]), len(validation["y"])) == (0, len(points))


def test_given_models_have_no_learning_curve(advice: AdviceRecord, read_page: "type[Page]") -> None:
    scales = tuple(replace(s, points=(replace(s.points[0], examples=0),), curve=None, status="evaluated") for s in advice.scales)
    page = read_page(render_advice(replace(advice, scales=scales, sizes=())))
    assert "Not drawn: nothing was trained on parts of the data." in page.words


def test_the_roofline_shows_roofs_layers_and_whole_models(page: "Page", advice: AdviceRecord) -> None:
    traces, layout = plot(page, "roofline")
    layers, whole = named(traces, "small")
    profile = advice.scale("small").profile
    assert whole["x"] == [4.2]
    assert whole["y"] == [pytest.approx(profile.macs / 2e-3)]
    assert len(layers["x"]) == sum(layer.macs > 0 for layer in profile.layers)
    names = " ".join(a["text"] for a in layout["annotations"])
    assert "depthwise" in names
    assert "recurrent" not in names  # no such layer
    flat = sorted(t["y"][0] for t in traces if t.get("mode") == "lines" and t["y"][0] == t["y"][-1] is not None)
    assert flat == pytest.approx([76.8e9 * share for share in (0.2, 0.45, 0.5, 0.55, 1)])
    assert "Left out: 12 layers without MACs." in page.words


def test_a_device_without_rates_has_no_roofline(advice: AdviceRecord, read_page: "type[Page]") -> None:
    page = read_page(render_advice(replace(advice, device=replace(advice.device, rates=None))))
    assert "Not drawn: the speed of the device or the latency of the scales is not known." in page.words


def test_costs_alone_are_a_page_without_quality(costs_only: AdviceRecord, read_page: "type[Page]") -> None:
    page = read_page(render_advice(costs_only))
    for text in (
        "digits: costs only, no recommendation",
        "Faces at a door (vision)",
        "There are no data yet: the figures below are costs only.",
        "Not drawn: no scale has a measured or predicted quality.",
        "Not drawn: nothing was trained on parts of the data.",
        "latency 9.00 ms (1.80 times the limit)",
    ):
        assert text in page.words
    assert len(page.plots) == 1


def test_without_anything_to_plot_plotly_is_left_out(costs_only: AdviceRecord, read_page: "type[Page]") -> None:
    scales = tuple(replace(s, profile=replace(s.profile, latency_s=None, layers=())) for s in costs_only.scales)
    text = render_advice(replace(costs_only, scales=scales))
    assert len(text) < 100_000
    assert "not known layer by layer" in read_page(text).words


def test_latencies_that_are_not_known_leave_out_one_plot(advice: AdviceRecord, read_page: "type[Page]") -> None:
    scales = tuple(replace(s, profile=replace(s.profile, latency_s=None)) for s in advice.scales)
    page = read_page(render_advice(replace(advice, scales=scales)))
    assert "Not drawn: latency is not known of any scale." in page.words
    one = read_page(render_advice(replace(advice, scales=(scales[0], *advice.scales[1:]))))
    assert "Not drawn, since a figure is missing: tiny." in one.words


def test_an_open_choice_stars_the_safe_scale(undecided: AdviceRecord, read_page: "type[Page]") -> None:
    page = read_page(render_advice(undecided))
    assert "digits: undecided; large is safe" in page.words
    assert "small complete, undecided" in page.words
    assert "7 seeds per scale or about 2,100 validation examples" in page.words
    traces, _ = plot(page, "quality-MACs")
    assert named(traces, "safe")[0]["x"] == named(traces, "large")[0]["x"]


def test_a_loss_turns_the_tolerance_around(make_advice: Callable[..., AdviceRecord], read_page: "type[Page]") -> None:
    page = read_page(render_advice(make_advice(metric="loss")))
    assert "0.01 above large" in str(plot(page, "quality-MACs")[1]["annotations"])
    assert " pt" not in page.words.split("In short")[1].split("What the errors come from")[0]
    assert "validation minus train, since less is better" in page.words


def test_a_scale_that_cannot_run_stands_out(advice: AdviceRecord, read_page: "type[Page]") -> None:
    profile = replace(advice.scale("large").profile, misfits=("operator gru is not there",))
    page = read_page(render_advice(change(advice, "large", profile=profile)))
    assert "large cannot run on Example board, 8 GB: operator gru is not there." in page.words
    assert ("span", {"class": "refused"}) in page.elements


def test_the_page_asks_nothing_of_the_network(page: "Page") -> None:
    for name, attributes in page.elements:
        assert name not in ("link", "iframe", "img", "base", "form")
        assert not {"src", "href", "srcset", "action"} & set(attributes), name
    for script in page.plots:
        assert not re.search(r"https?://", script)
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1


def test_names_cannot_break_out_of_text_or_script(make_advice: Callable[..., AdviceRecord], read_page: "type[Page]") -> None:
    evil = make_advice(task=EVIL, names=(f"t{EVIL}", f"<img src=x onerror=alert(1)>{EVIL}", f"<b>l{EVIL}"))
    scales = [
        replace(
            s,
            reason=EVIL,
            evidence=EVIL,
            profile=replace(s.profile, misfits=(EVIL,), notes=(EVIL,), layers=(replace(s.profile.layers[1], path=EVIL, kind=EVIL),)),
        )
        for s in evil.scales
    ]
    evil = replace(evil, scales=tuple(scales), decision=EVIL, warnings=(EVIL,), data={EVIL: {EVIL: EVIL}}, fingerprint=EVIL)
    evil = replace(evil, device=replace(evil.device, title=EVIL, machine={EVIL: EVIL}, sources=(EVIL,)))
    text = render_advice(evil)
    page = read_page(text)
    assert EVIL not in text
    assert len(page.scripts) == len(read_page(render_advice(make_advice())).scripts)
    assert [name for name, _ in page.elements if name in ("img", "b")] == []
    assert EVIL in page.words
    for script in page.plots:
        assert "<img" not in script
        assert "\\u003cimg" not in script  # plotly would draw it from here


def test_many_scales_are_told_apart_by_symbols_where_colours_repeat(advice: AdviceRecord, read_page: "type[Page]") -> None:
    small = advice.scale("small")
    more = tuple(replace(small, name=f"s{i}", profile=replace(small.profile, name=f"s{i}", macs=10**6 * (i + 1))) for i in range(9))
    page = read_page(render_advice(replace(advice, scales=more, best="s8", recommended="s0", safe="s0")))
    traces, _ = plot(page, "quality-MACs")
    looks = {(named(traces, f"s{i}")[0]["marker"]["color"], named(traces, f"s{i}")[0]["marker"]["symbol"]) for i in range(9)}
    assert len(looks) == 9


def test_the_page_survives_the_json_round_trip(advice: AdviceRecord, undecided: AdviceRecord, costs_only: AdviceRecord) -> None:
    for record in (advice, undecided, costs_only):
        assert render_advice(from_json(AdviceRecord, to_json(record))) == render_advice(record)
