"""Device files: every way of saying something wrong has its error, which says where."""

import pytest

from sizewise.devices import _schema
from sizewise.errors import UsageError

VALID = """
title = "a board"
kind = "microcontroller"
how = "predicted"
threads = 2

[unsupported]
gru = "no kernel"

[numbers]
ram_bytes = { value = 1_000, source = "sheet" }
flash_bytes = { value = 2e3, source = "sheet" }
bandwidth_bytes_per_s = { value = 3e9, source = "guess" }
cache_bytes = { value = 16, source = "sheet" }
cache_bandwidth_bytes_per_s = { value = 4e9, source = "guess" }
operator_overhead_s = { value = 1e-6, source = "guess" }
step_overhead_s = { value = 2e-6, source = "guess" }
error_factor = { value = 2, source = "guess" }

[numbers.peak_macs_per_s]
float32 = { value = 5e9, source = "sheet" }
int8 = { value = 10e9, source = "sheet" }

[numbers.efficiency]
conv = { value = 0.5, source = "bench" }
pointwise = { value = 0.4, source = "bench" }
depthwise = { value = 0.3, source = "bench" }
matmul = { value = 0.2, source = "bench" }
recurrent = { value = 1.0, source = "bench" }

[sources]
sheet = "data sheet, page 1"
guess = "estimate: by eye"
bench = "a table"
spare = "nobody cites it"
"""
RAM = "ram_bytes = { value = 1_000, source = "
CONV = "conv = { value = 0.5, source"


def test_a_whole_file_is_read() -> None:
    found = _schema.read(VALID, "x.toml")
    assert (found.title, found.kind, found.how, found.threads) == ("a board", "microcontroller", "predicted", 2)
    assert (found.ram_bytes, found.flash_bytes) == (1000, 2000)
    assert isinstance(found.flash_bytes, int)
    assert found.unsupported == {"gru": "no kernel"}
    rates = found.rates
    assert rates is not None
    assert rates.peak_macs_per_s == {"float32": 5e9, "int8": 10e9}
    assert rates.efficiency == {"conv": 0.5, "conv1d": 0.5, "pointwise": 0.4, "depthwise": 0.3, "matmul": 0.2, "recurrent": 1.0}
    assert (rates.bandwidth_bytes_per_s, rates.cache_bytes, rates.cache_bandwidth_bytes_per_s) == (3e9, 16, 4e9)
    assert (rates.operator_overhead_s, rates.step_overhead_s, rates.error_factor) == (1e-6, 2e-6, 2)


def test_only_cited_sources_are_given_each_once() -> None:
    found = _schema.read(VALID, "x.toml")
    assert found.sources == ("sheet: data sheet, page 1", "guess: estimate: by eye", "bench: a table")


def test_what_may_be_left_out() -> None:
    text = VALID.replace('[unsupported]\ngru = "no kernel"\n', "").replace('flash_bytes = { value = 2e3, source = "sheet" }\n', "")
    found = _schema.read(text, "x.toml")
    assert found.flash_bytes is None
    assert found.unsupported == {}
    half = VALID.replace("float32 =", 'float16 = { value = 7e9, source = "sheet" }\nfloat32 =')
    rates = _schema.read(half, "x.toml").rates
    assert rates is not None
    assert rates.peak_macs_per_s["float16"] == 7e9


def test_one_dimensional_convolutions_may_have_a_share_of_their_own() -> None:
    own = _schema.read(VALID.replace("[numbers.efficiency]", '[numbers.efficiency]\nconv1d = { value = 0.25, source = "sheet" }'), "x.toml")
    assert own.rates is not None
    assert (own.rates.efficiency["conv1d"], own.rates.efficiency["conv"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        ('title = "a board"\n', "", "title", "a key is missing"),
        ('title = "a board"', 'title = " "', "title", "must be a text"),
        ('title = "a board"', "title = 3", "title", "must be a text"),
        ('"microcontroller"', '"tpu"', "kind", "an unknown kind"),
        ('kind = "microcontroller"\n', "", "kind", "a key is missing"),
        ('"predicted"', '"declared"', "how", "an unknown how"),
        ('"predicted"', '["predicted"]', "how", "an unknown how"),
        ("threads = 2\n", "", "threads", "a key is missing"),
        ("threads = 2", "threads = 0", "threads", "at least 1"),
        ("threads = 2", "threads = true", "threads", "at least 1"),
        ("threads = 2", "threads = 1.5", "threads", "at least 1"),
        ("threads = 2", "threads = 2\ncolour = 1", "colour", "an unknown key"),
        ('gru = "no kernel"', 'gru = ""', "unsupported, gru", "must be a text"),
        ('gru = "no kernel"', '"aten.gru" = "no"', "unsupported.aten.gru", "not the name of an operator"),
        (f'{RAM}"sheet" }}\n', "", "numbers.ram_bytes", "a number is missing"),
        ("int8 = { value = 10e9, source", "int4 = { value = 10e9, source", "numbers.peak_macs_per_s.int4", "an unknown key"),
        ('int8 = { value = 10e9, source = "sheet" }\n', "", "numbers.peak_macs_per_s.int8", "a number is missing"),
        (f'{CONV} = "bench" }}\n', "", "numbers.efficiency.conv", "a number is missing"),
        ("ram_bytes", "ram_byte", "numbers.ram_byte", "an unknown key"),
        ('value = 1_000, source = "sheet"', "value = 1_000", "numbers.ram_bytes", "a number without a source"),
        (f'{RAM}"sheet" }}', "ram_bytes = 1_000", "numbers.ram_bytes", "not a number with a source"),
        (f'{RAM}"sheet"', 'ram_bytes = { source = "sheet"', "numbers.ram_bytes", "not a number with a source"),
        (f'{RAM}"sheet"', f'{RAM}"shet"', "numbers.ram_bytes", r"the source is not in \[sources\]"),
        (f'{RAM}"sheet"', f"{RAM}7", "numbers.ram_bytes", r"the source is not in \[sources\]"),
        (f'{RAM}"sheet"', f'{RAM}"sheet", unit = "B"', "numbers.ram_bytes.unit", "an unknown key"),
        ("value = 1_000", 'value = "1 kB"', "numbers.ram_bytes", "the value is not a number"),
        ("value = 1_000", "value = true", "numbers.ram_bytes", "the value is not a number"),
        ("value = 1_000", "value = 1000.5", "numbers.ram_bytes", "bytes are whole"),
        ("value = 1_000", "value = 0", "numbers.ram_bytes", "finite and more than zero"),
        ("value = 3e9", "value = -3e9", "numbers.bandwidth_bytes_per_s", "finite and more than zero"),
        ("value = 3e9", "value = nan", "numbers.bandwidth_bytes_per_s", "finite and more than zero"),
        ("value = 3e9", "value = inf", "numbers.bandwidth_bytes_per_s", "finite and more than zero"),
        ("value = 3e9", "value = 1" + 400 * "0", "numbers.bandwidth_bytes_per_s", "finite and more than zero"),
        ("value = 0.5", "value = 1.01", "numbers.efficiency.conv", "at most 1"),
        ("value = 2, ", "value = 0.9, ", "numbers.error_factor", "at least 1"),
        ('sheet = "data sheet, page 1"', 'sheet = ""', "sources, sheet", "must be a text"),
        ('"predicted"', '"measured"', "numbers", "a measured device declares no numbers"),
    ],
)
def test_one_error_that_says_where(old: str, new: str, where: str, what: str) -> None:
    assert old in VALID
    with pytest.raises(UsageError, match=what) as caught:
        _schema.read(VALID.replace(old, new), "devices/x.toml")
    assert caught.value.where is not None
    assert caught.value.where.removeprefix("devices/x.toml").lstrip(", ") == where
    assert caught.value.got or caught.value.wanted or caught.value.hint


@pytest.mark.parametrize(("table", "where"), [("numbers", "numbers"), ("sources", "sources")])
def test_a_table_that_is_missing_or_is_none(table: str, where: str) -> None:
    head = 'title = "a"\nkind = "cpu"\nhow = "predicted"\nthreads = 1\n'
    rest = {"numbers": '[sources]\na = "b"\n', "sources": "[numbers]\n"}[table]
    with pytest.raises(UsageError, match="a key is missing") as missing:
        _schema.read(head + rest, "x.toml")
    with pytest.raises(UsageError, match="not a table") as flat:
        _schema.read(f"{head}{table} = 3\n{rest}", "x.toml")
    assert missing.value.where == flat.value.where == f"x.toml, {where}"


def test_a_group_of_numbers_that_is_no_table() -> None:
    text = VALID.partition("[numbers.efficiency]")
    with pytest.raises(UsageError, match="not a table") as caught:
        _schema.read(
            text[0].replace("[numbers]", "[numbers]\nefficiency = 0.5") + "[sources]" + text[2].partition("[sources]")[2], "x.toml"
        )
    assert caught.value.where == "x.toml, numbers.efficiency"


def test_toml_that_is_broken_says_the_line() -> None:
    with pytest.raises(UsageError, match="not valid TOML") as caught:
        _schema.read('title = "a"\nkind = cpu\n', "x.toml")
    assert caught.value.where == "x.toml"
    assert "line 2" in str(caught.value.got)


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("ram_bytes", "ram_byte", "did you mean 'ram_bytes'?"),
        (f'{RAM}"sheet"', f'{RAM}"shet"', "did you mean 'sheet'?"),
        ('"microcontroller"', '"micro-controller"', "did you mean 'microcontroller'?"),
        (f'{RAM}"sheet" }}', "ram_bytes = 1_000", "a number needs a source beside it"),
    ],
)
def test_near_misses_are_named(old: str, new: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        _schema.read(VALID.replace(old, new), "x.toml")
    assert caught.value.hint == hint


def test_a_measured_device_declares_no_threads() -> None:
    with pytest.raises(UsageError, match="declares no threads"):
        _schema.read('title = "a"\nkind = "cpu"\nhow = "measured"\nthreads = 1\n[sources]\na = "b"\n', "x.toml")
