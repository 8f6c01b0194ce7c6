"""Quantities people write, to base units and back."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.errors import UsageError
from sizewise.units import (
    format_bytes,
    format_count,
    format_points,
    format_seconds,
    parse_bytes,
    parse_points,
    parse_seconds,
    parse_training,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5 ms", 5e-3),
        ("5ms", 5e-3),
        ("  1.5 s ", 1.5),
        ("10m", 600.0),
        ("2 min", 120.0),
        ("1 h", 3600.0),
        ("250 us", 250e-6),
        ("250 µs", 250e-6),
        ("250 μs", 250e-6),
        ("7 ns", 7e-9),
        (".5 s", 0.5),
        ("1e-3 s", 1e-3),
        ("+2 ms", 2e-3),
        ("0", 0.0),
        (3, 3.0),
        (0.25, 0.25),
    ],
)
def test_seconds_are_read_from_the_forms_people_write(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2 MB", 2_000_000),
        ("2 MiB", 2_097_152),
        ("1 kB", 1000),
        ("1 KB", 1000),
        ("1 KiB", 1024),
        ("3 B", 3),
        ("1 GB", 10**9),
        ("1 GiB", 2**30),
        (17, 17),
    ],
)
def test_sizes_are_decimal_unless_the_unit_says_binary(text: str | float, size: int) -> None:
    got = parse_bytes(text)
    assert got == size
    assert isinstance(got, int)


@pytest.mark.parametrize(("text", "share"), [("1 %", 0.01), ("1 pt", 0.01), ("1pp", 0.01), ("0.02", 0.02), (0.03, 0.03), ("0 %", 0.0)])
def test_percent_and_points_mean_the_same_and_a_bare_number_is_in_the_metrics_unit(text: str | float, share: float) -> None:
    assert parse_points(text) == pytest.approx(share, rel=1e-12)


@given(st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_whole_percentages_are_the_nearest_float(percent: int) -> None:
    assert parse_points(f"{percent} %") == percent / 100


@pytest.mark.parametrize(
    ("parse", "text", "hint"),
    [(parse_seconds, "5 MS", "'ms'"), (parse_seconds, "5 msec", "'ms'"), (parse_bytes, "2 mb", "'MB'"), (parse_bytes, "2 mib", "'MiB'")],
)
def test_an_unknown_unit_names_itself_and_the_nearest(parse: Callable[[str], float], text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert repr(text.split()[1]) in message
    assert repr(text) in message
    assert f"did you mean {hint}?" in message


def test_every_known_unit_is_listed_in_the_message() -> None:
    with pytest.raises(UsageError, match="furlong") as caught:
        parse_bytes("2 furlong")
    wanted = caught.value.wanted
    assert wanted is not None
    for unit in ("B", "kB", "MB", "GB", "KiB", "MiB", "GiB"):
        assert re.search(rf"\b{unit}\b", wanted)
        assert parse_bytes(f"1 {unit}") > 0


@pytest.mark.parametrize(("parse", "example"), [(parse_seconds, "5 ms"), (parse_bytes, "2 MB")])
def test_a_text_without_a_unit_is_refused_with_an_example(parse: Callable[..., float], example: str) -> None:
    with pytest.raises(UsageError, match="the_limit has no unit") as caught:
        parse("5", "the_limit")
    assert caught.value.got == "'5'"
    assert example in str(caught.value)


@pytest.mark.parametrize("parse", [parse_seconds, parse_bytes, parse_points])
@pytest.mark.parametrize("text", ["", "ms", "5 5 ms", "one ms", "5 m s", "--1 %", "1,5 s", "nan s"])
def test_what_is_no_quantity_is_refused_naming_what_and_where(parse: Callable[..., float], text: str) -> None:
    with pytest.raises(UsageError, match="the_limit") as caught:
        parse(text, "the_limit")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("parse", [parse_seconds, parse_bytes, parse_points])
@pytest.mark.parametrize("value", [-1, -0.5, math.inf, -math.inf, math.nan])
def test_negative_and_endless_numbers_are_refused(parse: Callable[..., float], value: float) -> None:
    with pytest.raises(UsageError, match="limit must be finite and not negative") as caught:
        parse(value, "limit")
    assert caught.value.got == repr(value)


@pytest.mark.parametrize("text", ["-1 ms", "1e999 s"])
def test_negative_and_endless_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="finite and not negative"):
        parse_seconds(text)


@pytest.mark.parametrize("value", [True, None, [1], {"s": 1}])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="duration is not a quantity") as caught:
        parse_seconds(value)  # type: ignore[arg-type]
    assert caught.value.got == repr(value)


def test_an_integer_beyond_floats_is_refused_as_any_other_number() -> None:
    with pytest.raises(UsageError, match="finite"):
        parse_seconds(10**400)


def test_numpy_numbers_are_numbers() -> None:
    assert parse_bytes(np.int64(5)) == 5  # type: ignore[arg-type]


@given(st.floats(1e-5, 59.9))
@settings(max_examples=50, deadline=None)
def test_formatted_seconds_read_back_within_three_digits(value: float) -> None:
    assert parse_seconds(format_seconds(value)) == pytest.approx(value, rel=5.01e-3)


@given(st.integers(0, 10**12))
@settings(max_examples=50, deadline=None)
def test_formatted_bytes_read_back_within_three_digits(value: int) -> None:
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=5.01e-3)


@given(st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_formatted_points_read_back_within_half_a_hundredth_of_a_point(value: float) -> None:
    assert parse_points(format_points(value)) == pytest.approx(value, abs=0.5001e-4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (41.2e-6, "41.2 us"),
        (5.03e-3, "5.03 ms"),
        (1.2, "1.20 s"),
        (125.0, "2 m 05 s"),
        (0.1234, "123 ms"),
        (59.94, "59.9 s"),
        (3600.0, "60 m 00 s"),
        (0.0, "0.00 us"),
    ],
)
def test_seconds_as_people_read_them(value: float, text: str) -> None:
    assert format_seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(905, "905 B"), (88_100, "88.1 kB"), (2_097_152, "2.10 MB"), (3.456e9, "3.46 GB"), (0, "0 B")])
def test_bytes_as_people_read_them(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(77_900, "77.9 k"), (4.1e9, "4.10 G"), (3_504_872, "3.50 M"), (12, "12"), (999, "999")])
def test_counts_as_people_read_them(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(0.0123, False, "1.23 pt"), (0.0123, True, "+1.23 pt"), (-0.0123, True, "-1.23 pt"), (1.0, False, "100.00 pt")],
)
def test_points_as_people_read_them(value: float, signed: bool, text: str) -> None:
    assert format_points(value, signed=signed) == text


@pytest.mark.parametrize(
    ("got", "text"), [(format_seconds(0.99996), "1.00 s"), (format_bytes(999_999), "1.00 MB"), (format_count(999_999), "1.00 M")]
)
def test_rounding_up_moves_to_the_next_unit(got: str, text: str) -> None:
    assert got == text


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("1epoch", (1.0, None)),
        ("3 epochs", (3.0, None)),
        ("0.5 epochs", (0.5, None)),
        ("10m", (None, 600.0)),
        ("90s", (None, 90.0)),
        ("1h", (None, 3600.0)),
    ],
)
def test_trainings_last_epochs_or_a_time(text: str, length: tuple[float | None, float | None]) -> None:
    assert parse_training(text) == length


@pytest.mark.parametrize("text", ["", "epoch", "3", "0 epochs", "0s", "-1 epochs", "-5m", "2 epoch s", "1 epok", "10 MB", "1e999 epochs"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--recover"):
        parse_training(text, "--recover")


def test_an_unknown_length_says_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse_training("1 epohs", "--recover")
    assert "did you mean 'epochs'?" in str(caught.value)
