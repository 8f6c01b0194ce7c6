from collections.abc import Callable
from dataclasses import replace

from sizewise.report.card import render_card
from sizewise.types import RunRecord

SNIPPET = 'import onnxruntime as ort\nsession = ort.InferenceSession("model.onnx")\n'


def test_it_holds_the_snippet_the_figures_and_the_limits_of_the_claim(record: RunRecord) -> None:
    text = render_card(record, SNIPPET)
    assert f"```python\n{SNIPPET}```" in text
    for part in (
        "# digits: resnet-s, int8_static",
        "| latency | 41.2 us [40.0, 42.4] | 22 times [20, 23] faster",
        "| drop in accuracy | undecided | +0.80 pt [-0.40, +2.00] | at most 1.50 pt |",
        "sizewise.load(",
        "- inputs: x\n- outputs: output\n- batch: any number of examples per call",
        "the test split, which the search never saw, judged it",
        "processor Example CPU",
        "with 2 threads and batch 1",
    ):
        assert part in text
    assert "OUTSIDE" not in text


def test_every_file_of_the_bundle_is_explained(record: RunRecord) -> None:
    text = render_card(record, SNIPPET)
    for name in ("model.onnx", "weights.safetensors", "plan.json", "run.json", "report.html", "SHA256SUMS"):
        assert f"- {name}: " in text


def test_a_file_outside_the_budget_is_marked_at_the_top(infeasible: RunRecord) -> None:
    text = render_card(infeasible, SNIPPET)
    assert text.index("> **OUTSIDE THE BUDGET.**") < text.index("## Figures")
    assert "> - latency: 41.2 us as tried, allowed at most 20.0 us" in text
    assert "> - would fit with latency at most 41.2 us, 2.1 times as much (resnet-s, int8_static: 41.2 us, 26.1 kB" in text


def test_without_a_test_split_the_claim_is_weaker(record: RunRecord) -> None:
    text = render_card(replace(record, verdict=replace(record.verdict, test_quality=None)), SNIPPET)
    assert "its quality is likely overstated" in text


def test_names_cannot_break_tables_code_or_links(make_record: Callable[..., RunRecord]) -> None:
    text = render_card(make_record(task="a|b`c`", large="[x](http://evil)", small="<b>*s*\n# title"), SNIPPET)
    assert "# a\\|b\\`c\\`: \\<b\\>\\*s\\* # title, int8_static\n" in text
    assert "[x\\](http://evil)" in text
    assert "[x](" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") in (4, 6) for line in rows)


def test_a_fixed_batch_is_said(record: RunRecord) -> None:
    artefact = record.winner.artefact
    assert artefact is not None
    fixed = replace(record.winner, artefact=replace(artefact, batch=4, notes=("the model fixes its batch at 4",)))
    text = render_card(replace(record, candidates=(*record.candidates[:5], fixed, *record.candidates[6:])), SNIPPET)
    assert "- batch: 4 examples per call\n- the model fixes its batch at 4" in text


def test_a_snippet_with_fences_stays_in_its_block(record: RunRecord) -> None:
    assert "````python\n# ```\n````" in render_card(record, "# ```\n")
