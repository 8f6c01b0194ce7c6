import math

import pytest

from sizewise.report import _format as fmt
from sizewise.types import Interval, Plan, Step
from sizewise.units import format_bytes, format_seconds


def span(value: float, low: float, high: float, **fields: object) -> Interval:
    return Interval(value=value, low=low, high=high, n=31, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (span(41.2e-6, 40.1e-6, 43e-6), "41.2 us [40.1, 43.0]"),
        (span(990e-6, 950e-6, 1.02e-3), "990 us [950 us, 1.02 ms]"),
        (span(5e-3, 5e-3, 5e-3), "5.00 ms"),
        (span(5e-3, 4e-3, 6e-3, how="predicted"), "5.00 ms [4.00, 6.00] (predicted)"),
        (span(5e-3, 5e-3, 5e-3, how="declared"), "5.00 ms (declared)"),
        (span(125.0, 115.0, 130.0), "2 m 05 s [1 m 55 s, 2 m 10 s]"),
    ],
)
def test_a_latency_shows_its_unit_once_unless_the_bounds_differ_in_it(figure: Interval, text: str) -> None:
    assert fmt.interval(figure, format_seconds) == text


def test_an_exact_size_has_no_brackets() -> None:
    assert fmt.interval(Interval.exact(88_100), format_bytes) == "88.1 kB"


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("accuracy", "97.50 % [95.51, 98.63]"),
        ("top5", "97.50 % [95.51, 98.63]"),
        ("loss", "0.975 [0.9551, 0.9863]"),
        ("f_beta", "0.975 [0.9551, 0.9863]"),
    ],
)
def test_shares_print_as_percent_and_other_metrics_as_they_are(metric: str, text: str) -> None:
    assert fmt.quality(span(0.975, 0.9551, 0.9863), metric) == text


def test_drops_carry_a_sign_and_no_negative_zero() -> None:
    assert fmt.drop(span(0.0025, -0.006, 0.011), "accuracy") == "+0.25 pt [-0.60, +1.10]"
    assert fmt.drop(span(-0.0, -0.01, 0.01), "accuracy").startswith("+0.00 pt")
    assert fmt.drop(span(0.0142, 0.01, 0.02), "loss") == "+0.0142 [+0.01, +0.02]"
    assert fmt.drop(None, "accuracy") == ""


@pytest.mark.parametrize(
    ("value", "text"), [(5.12, "5.1 times faster"), (39.6, "40 times faster"), (1.0, "1.00 times faster"), (0.8, "1.25 times slower")]
)
def test_a_ratio_below_one_turns_into_its_opposite(value: float, text: str) -> None:
    assert fmt.times(value, "faster", "slower") == text


def test_a_ratio_of_nothing_is_still_finite() -> None:
    assert math.isfinite(float(fmt.times(0.0, "faster", "slower").split()[0]))


def test_a_least_quality_is_a_floor_for_accuracy_and_a_ceiling_for_a_loss() -> None:
    assert fmt.at_limit("min_quality", 0.95, "accuracy", higher_is_better=True) == "at least 95.00 %"
    assert fmt.at_limit("min_quality", 0.4, "loss", higher_is_better=False) == "at most 0.4"
    assert fmt.at_limit("max_drop", 0.01, "accuracy", higher_is_better=True) == "at most 1.00 pt"
    assert fmt.at_limit("memory", 64e6, "accuracy", higher_is_better=True) == "at most 64.0 MB"


def test_a_kind_forgets_the_settings() -> None:
    cut = Step(technique="channel_pruning", settings={"rate": 0.5})
    assert fmt.kind(Plan(scale="s")) == "float"
    assert fmt.kind(Plan(scale="s", steps=(cut, Step(technique="int8_static")))) == "channel_pruning + int8_static"


def test_control_characters_become_spaces() -> None:
    assert fmt.printable("a\x1b[31mb\nc") == "a [31mb c"


@pytest.mark.parametrize(
    ("part", "text"), [(0.0, "0 %"), (0.0004, "under 0.1 %"), (0.0243, "2.4 %"), (0.0996, "10 %"), (0.61, "61 %"), (1.0, "100 %")]
)
def test_a_part_of_a_whole_is_a_percentage(part: float, text: str) -> None:
    assert fmt.portion(part) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(950.0, "950 MAC/s"), (400e6, "400 MMAC/s"), (76.8e9, "76.8 GMAC/s"), (999.9e9, "1 TMAC/s"), (33.5e12, "33.5 TMAC/s")],
)
def test_a_speed_has_one_unit(rate: float, text: str) -> None:
    assert fmt.speed(rate) == text


def test_nested_facts_fit_one_line() -> None:
    assert fmt.flat({"examples": 400, "sha256": "77", "shape": [1, 8]}) == "examples 400, sha256 77, shape [1, 8]"
