"""Quantities people write ("5 ms", "2 MB", "1 %") to base units (seconds, bytes, share of 1) and back.

Conventions: 1 kB = 1000 bytes, 1 KiB = 1024 bytes; "%" and "pt" both mean percentage points of a metric.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import SupportsFloat

from sizewise.errors import UsageError

__all__ = [
    "format_bytes",
    "format_count",
    "format_points",
    "format_seconds",
    "parse_bytes",
    "parse_points",
    "parse_seconds",
    "parse_training",
]

# decimal texts, so that "95 %" is the float nearest to 0.95
_SECONDS = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ms": "1e-3", "s": "1", "m": "60", "min": "60", "h": "3600"}
_BYTES = {"B": "1", "kB": "1e3", "KB": "1e3", "MB": "1e6", "GB": "1e9", "KiB": "1024", "MiB": "1048576", "GiB": "1073741824"}
_POINTS = {"%": "0.01", "pt": "0.01", "pp": "0.01"}
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s]*)\s*")


def _parse(text: object, units: Mapping[str, str], where: str, bare: str) -> float:
    """Read one quantity; a number without a unit is taken in `bare` units, which the error message names."""
    if isinstance(text, bool) or not isinstance(text, str | Real):
        raise UsageError(f"{where} is not a quantity", got=repr(text), wanted=f"a text like {_example(units)!r}")
    if isinstance(text, str):
        match = _QUANTITY.fullmatch(text)
        if match is None:
            raise UsageError(f"{where} is not a quantity", got=repr(text), wanted=f"a number and a unit, like {_example(units)!r}")
        number, unit = Decimal(match[1]), match[2]
        if not unit and number != 0 and bare == "":
            raise UsageError(f"{where} has no unit", got=repr(text), wanted=f"one of {', '.join(units)}, like {_example(units)!r}")
        if unit and unit not in units:
            raise _unknown_unit(where, text, unit, units)
        value = float(number * Decimal(units[unit] if unit else 1))
    else:
        value = _finite(text)
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{where} must be finite and not negative", got=repr(text))
    return value


def _finite(number: SupportsFloat) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _example(units: Mapping[str, str]) -> str:
    return {"ms": "5 ms", "MB": "2 MB"}.get(next((u for u in ("ms", "MB") if u in units), ""), "1 %")


def _unknown_unit(where: str, text: str, unit: str, units: Mapping[str, str]) -> UsageError:
    folded = {name.lower(): name for name in units}
    near = [folded[unit.lower()]] if unit.lower() in folded else difflib.get_close_matches(unit, units, 1, 0.3)
    hint = f"did you mean {near[0]!r}?" if near else None
    return UsageError(f"{where}: unknown unit {unit!r}", got=repr(text), wanted=f"one of {', '.join(units)}", hint=hint)


def parse_seconds(text: str | float, where: str = "duration") -> float:
    """Seconds from "5 ms", "10m", "1.5 s"; a bare number (not text) is seconds.

    Raises:
        UsageError: not a quantity, unknown or missing unit, negative or not finite.
    """
    return _parse(text, _SECONDS, where, bare="")


def parse_training(text: str, where: str = "length") -> tuple[float | None, float | None]:
    """How long to train: passes over the data from "1epoch", "0.5 epochs", else seconds from "10m", "90s"; the other is None.

    Raises:
        UsageError: neither, or not more than zero.
    """
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    wanted = "epochs such as 1epoch, or a time such as 10m"
    if match is None or not match[2]:
        raise UsageError(f"{where} is not a length of training", got=repr(text), wanted=wanted)
    value = _parse(text, {"epoch": "1", "epochs": "1", **_SECONDS}, where, bare="")
    if value == 0:
        raise UsageError(f"{where} must be more than 0", got=repr(text), wanted=wanted)
    return (value, None) if match[2] in ("epoch", "epochs") else (None, value)


def parse_bytes(text: str | float, where: str = "size") -> int:
    """Bytes from "2 MB" (2,000,000) or "2 MiB" (2,097,152); a bare number (not text) is bytes.

    Raises:
        UsageError: not a quantity, unknown or missing unit, negative or not finite.
    """
    return round(_parse(text, _BYTES, where, bare=""))


def parse_points(text: str | float, where: str = "share") -> float:
    """Share of 1 from "1 %" or "1 pt" (both 0.01); a number without a unit is taken in the metric's own unit.

    Raises:
        UsageError: not a quantity, unknown unit, negative or not finite.
    """
    return _parse(text, _POINTS, where, bare="metric")


def format_seconds(value: float) -> str:
    """Three significant digits in the unit that fits: "41.2 us", "5.03 ms", "1.20 s", "2 m 05 s"."""
    if value >= 60:
        return f"{int(value // 60)} m {int(value % 60):02d} s"
    return _scaled(value, (("s", 1.0), ("ms", 1e-3))) or f"{_three(value * 1e6)} us"


def format_bytes(value: float) -> str:
    """Three significant digits in decimal units: "905 B", "88.1 kB", "2.10 MB"."""
    return _scaled(value, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))) or f"{value:.0f} B"


def format_count(value: float) -> str:
    """Three significant digits with k, M, G: "77.9 k", "4.10 G"."""
    return _scaled(value, (("G", 1e9), ("M", 1e6), ("k", 1e3))) or f"{value:.0f}"


def _scaled(value: float, scales: Sequence[tuple[str, float]]) -> str | None:
    """In the first unit of which the rounded value is at least one."""
    for unit, scale in scales:
        if value >= 0.9995 * scale:
            return f"{_three(value / scale)} {unit}"
    return None


def format_points(value: float, *, signed: bool = False) -> str:
    """A share of 1 as percentage points: 0.0123 is "1.23 pt"."""
    return f"{100 * value:{'+' if signed else ''}.2f} pt"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
