from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sizewise.advice import AdviceRecord
from sizewise.report.advice_terminal import advice_summary
from sizewise.types import Budget, Violation, from_json, to_json


def words(record: AdviceRecord) -> str:
    return " ".join(advice_summary(record).split())


def change(record: AdviceRecord, name: str, **changes: Any) -> AdviceRecord:
    return replace(record, scales=tuple(replace(s, **changes) if s.name == name else s for s in record.scales))


def rows(record: AdviceRecord, title: str) -> list[str]:
    """The lines of a table, without its title and head."""
    block = next(b for b in advice_summary(record).split("\n\n") if b.startswith(title))
    return block.splitlines()[2:]


def test_the_decision_comes_first(advice: AdviceRecord) -> None:
    lines = advice_summary(advice).splitlines()
    assert lines[0].startswith("digits: small is recommended (predicted for Example board, 8 GB, 4 threads")
    assert lines[1].startswith("small: +0.40 pt behind large, within 1.00 pt")
    assert "training on 375, 750, 1,500, 3,000 examples, 3 seeds on the last" in words(advice)


def test_costs_and_limits_before_and_after_shrinking(advice: AdviceRecord) -> None:
    table = rows(advice, "cost of the float models, cheapest first, latencies predicted; * is recommended")
    assert table[0].split() == ["tiny", "40.0", "k", "400", "k", "160", "kB", "65.5", "kB", "400", "us", "none"]
    assert [row[2] for row in table[:3]] == [" ", "*", " "]
    text = words(advice)
    assert "latency 9.00 ms (1.80 times the limit); after shrinking: none" in text
    assert "after shrinking: latency 3.60 ms [1.64, 7.92] (0.40 times), size 4.00 MB (0.25 times), predicted" in text
    assert "- conv: ResNet-50 in static int8, a server" in text


def test_scales_are_ordered_by_cost_whatever_the_record_says(advice: AdviceRecord) -> None:
    turned = replace(advice, scales=advice.scales[::-1])
    assert advice_summary(turned).split("scale by scale")[0] == advice_summary(advice).split("scale by scale")[0]


def test_a_limit_that_shrinking_does_not_mend_stays(advice: AdviceRecord) -> None:
    shrunk = advice.scale("large").shrunk
    assert shrunk is not None
    still = replace(shrunk, breaks=(Violation(limit="size", got=4e6, allowed=1e6),))
    assert "after shrinking: file size 4.00 MB (4.0 times the limit)" in words(change(advice, "large", shrunk=still))


def test_quality_with_intervals_gap_and_distance_to_the_best(advice: AdviceRecord) -> None:
    table = rows(advice, "accuracy")
    assert table[1].split()[:2] == ["*", "small"]
    assert "+3.00 pt  +0.40 pt [-0.20, +1.00]  data-limited" in table[1]
    assert table[2].endswith("best                     saturated")


def test_a_stopped_scale_says_why_and_that_its_quality_is_predicted(advice: AdviceRecord) -> None:
    assert "~87.08 % [85.88, 88.28]" in rows(advice, "accuracy; ~ is predicted by the curve")[0]
    text = words(advice)
    assert "tiny stopped: cannot catch up by all 3,000 examples" in text
    assert "ceiling 92.00 % [90.50, 93.50] (predicted); fitted to 3 sizes" in text


def test_evidence_strategy_and_warnings_are_there(advice: AdviceRecord) -> None:
    text = words(advice)
    assert "small the curve of small still rises by 1 pt" in text
    assert "- Save bytes first. because: 61 % of the time" in text
    assert "warning: the time limit was reached" in text


def test_a_diagnosis_without_evidence_shows_its_certainty(advice: AdviceRecord) -> None:
    assert "data-limited, in 91 % of draws" in words(change(advice, "small", evidence=None))


def test_an_open_choice_names_the_safe_scale_and_what_would_decide(undecided: AdviceRecord) -> None:
    text = words(undecided)
    assert text.startswith("digits: undecided; large is safe")
    assert "recommended none yet safe large undecided small" in text
    assert "7 seeds per scale or about 2,100 validation examples" in text
    assert "* is safe, whatever is undecided" in text
    assert words(replace(undecided, safe=None)).startswith("digits: undecided (predicted for")


def test_nothing_that_fits_is_said(advice: AdviceRecord) -> None:
    nothing = replace(advice, recommended=None, safe=None, decision="no scale keeps the budget's cost limits", budget=Budget(size="1 kB"))
    text = words(nothing)
    assert text.startswith("digits: no recommendation (predicted for")
    assert "no scale keeps the budget's cost limits" in text
    assert "*" not in text


def test_costs_alone_need_no_data(costs_only: AdviceRecord) -> None:
    text = words(costs_only)
    assert text.startswith("digits: costs only, no recommendation")
    assert "scenario Faces at a door (vision)" in text
    assert "limits latency at most 5 ms, size at most 4 MB" in text
    assert "conditions data must not leave the device" in text
    assert "validation" not in text
    assert "recommended none yet" not in text


def test_a_loss_prints_plain_and_worse_is_positive(make_advice: Callable[..., AdviceRecord]) -> None:
    text = words(make_advice(metric="loss"))
    assert "loss; ~ is predicted" in text
    assert "at most 0.01 behind the best" in text
    assert "* small 0.34 0.3992 [0.3932, 0.4052] +0.03 +0.004 [-0.002, +0.01]" in text


def test_a_scale_that_cannot_run_says_so_twice(advice: AdviceRecord) -> None:
    profile = replace(advice.scale("large").profile, misfits=("operator gru is not there: no kernel",))
    text = words(change(advice, "large", profile=profile))
    assert "cannot run there; latency 9.00 ms" in text
    assert "cannot run on Example board, 8 GB: operator gru is not there: no kernel" in text


def test_without_latency_the_table_says_not_known(advice: AdviceRecord) -> None:
    blind = replace(advice.scale("tiny").profile, latency_s=None, layers=())
    assert "tiny 40.0 k 400 k 160 kB 65.5 kB not known none" in words(change(advice, "tiny", profile=blind, shrunk=None))


@pytest.mark.parametrize("length", [1, 30, 90, 300])
def test_no_line_is_wider_than_a_terminal(make_advice: Callable[..., AdviceRecord], length: int) -> None:
    name = "x" * length
    wide = make_advice(task=name, names=(f"t{name}", f"s{name}", f"l{name}"))
    wide = replace(wide, decision=name, metric=f"metric_{name}", warnings=(name,))
    assert max(map(len, advice_summary(wide).splitlines())) <= 100


def test_names_cannot_command_the_terminal(make_advice: Callable[..., AdviceRecord]) -> None:
    text = advice_summary(make_advice(task="a\x1b[2Jb", names=("t\n", "s\x07", "l\r")))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_advice_survives_the_json_round_trip(advice: AdviceRecord, undecided: AdviceRecord, costs_only: AdviceRecord) -> None:
    for record in (advice, undecided, costs_only):
        again = from_json(AdviceRecord, to_json(record))
        assert again == record
        assert advice_summary(again) == advice_summary(record)
