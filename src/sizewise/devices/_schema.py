"""What a device file may say: every number with its source, and one error for each way of saying it wrong."""

import difflib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sizewise.errors import UsageError
from sizewise.types import Rates

__all__ = ["DeviceFile", "Kind", "read"]

Kind = Literal["cpu", "gpu", "microcontroller"]
Stance = Literal["measured", "predicted"]

_KEYS = {
    "title": "what people call the device",
    "kind": "one of cpu, gpu, microcontroller",
    "how": '"predicted"; "measured" is for the machine that Sizewise runs on',
    "threads": "threads per call",
    "unsupported": "operators that the device's usual runtime lacks, each with the reason",
    "numbers": "a table of numbers with their sources",
    "sources": "a table of citations",
}
_GROUPS = ("peak_macs_per_s", "efficiency")
_BYTES = ("ram_bytes", "flash_bytes")
_OPTIONAL = ("flash_bytes", "peak_macs_per_s.float16", "efficiency.conv1d")
_REQUIRED = (
    "ram_bytes",
    "bandwidth_bytes_per_s",
    "cache_bytes",
    "cache_bandwidth_bytes_per_s",
    "operator_overhead_s",
    "step_overhead_s",
    "error_factor",
    "peak_macs_per_s.float32",
    "peak_macs_per_s.int8",
    "efficiency.conv",
    "efficiency.pointwise",
    "efficiency.depthwise",
    "efficiency.matmul",
    "efficiency.recurrent",
)
_ENTRY = 'a value and its source, like { value = 4e9, source = "brief" }'
_OPERATOR = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class DeviceFile:
    """A device file that was read and checked.

    Attributes:
        title, kind, how: as in the file.
        threads: per call; None where the device is measured.
        ram_bytes, flash_bytes, rates: None where the device is measured, or where the file gives none.
        unsupported: operators that its usual runtime lacks, each with the reason.
        sources: "key: citation" of every source that a number cites, in the order of the numbers; all of them where the device
            is measured.
    """

    title: str
    kind: Kind
    how: Stance
    threads: int | None = None
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    rates: Rates | None = None
    unsupported: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...]


def read(text: str, where: str) -> DeviceFile:
    """Parse and check the text of a device file.

    Args:
        text: TOML.
        where: what errors call the file.

    Raises:
        UsageError: not TOML (says the line); a key, number or source that is missing, unknown or impossible (says which).
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("not valid TOML", where=where, got=str(error), hint="mend the line that the message names") from error
    _known(table, _KEYS, where)
    title = _text(table, "title", where)
    kind = _choice(table, "kind", get_args(Kind), where)
    how = _choice(table, "how", get_args(Stance), where)
    sources = _texts(table, "sources", where)
    unsupported = _texts(table, "unsupported", where) if "unsupported" in table else {}
    for name in unsupported:
        if not _OPERATOR.fullmatch(name):
            raise UsageError(
                "not the name of an operator", where=f"{where}, unsupported.{name}", got=repr(name), wanted="torch's name for it, like gru"
            )
    common: dict[str, Any] = {"title": title, "kind": kind, "how": how, "unsupported": unsupported}
    if how == "measured":
        for key in ("numbers", "threads"):
            if key in table:
                raise UsageError(
                    f"a measured device declares no {key}", where=f"{where}, {key}", hint='remove it, or set how = "predicted"'
                )
        return DeviceFile(**common, sources=tuple(f"{key}: {citation}" for key, citation in sources.items()))
    return _declared(table, common, sources, where)


def _declared(table: Mapping[str, Any], common: dict[str, Any], sources: Mapping[str, str], where: str) -> DeviceFile:
    threads = _present(table, "threads", where)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError("threads must be a whole number of at least 1", where=f"{where}, threads", got=repr(threads))
    numbers, cited = _numbers(_table(_present(table, "numbers", where), f"{where}, numbers"), sources, where)
    rates = Rates(
        peak_macs_per_s=_group(numbers, "peak_macs_per_s"),
        efficiency={"conv1d": numbers["efficiency.conv"], **_group(numbers, "efficiency")},
        **{key: numbers[key] for key in _REQUIRED if "." not in key and key not in _BYTES},
    )
    return DeviceFile(
        **common,
        threads=threads,
        ram_bytes=int(numbers["ram_bytes"]),
        flash_bytes=int(numbers["flash_bytes"]) if "flash_bytes" in numbers else None,
        rates=rates,
        sources=tuple(f"{key}: {sources[key]}" for key in cited),
    )


def _numbers(table: Mapping[str, Any], sources: Mapping[str, str], where: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """Every number under its dotted key, and the sources that they cite."""
    entries: dict[str, Any] = {}
    for key, entry in table.items():
        if key in _GROUPS:
            entries |= {f"{key}.{name}": inner for name, inner in _table(entry, f"{where}, numbers.{key}").items()}
        else:
            entries[key] = entry
    _known(entries, (*_REQUIRED, *_OPTIONAL), where, "numbers.")
    numbers: dict[str, float] = {}
    cited: dict[str, None] = {}
    for key in (*_REQUIRED, *_OPTIONAL):
        place = f"{where}, numbers.{key}"
        if key in entries:
            numbers[key], source = _number(entries[key], key, place)
            cited[_cited(source, sources, place)] = None
        elif key in _REQUIRED:
            raise UsageError("a number is missing", where=place, wanted=_ENTRY)
    return numbers, tuple(cited)


def _number(entry: Any, key: str, where: str) -> tuple[float, Any]:
    if not isinstance(entry, dict) or "value" not in entry:
        hint = "a number needs a source beside it" if isinstance(entry, int | float) else None
        raise UsageError("not a number with a source", where=where, got=repr(entry), wanted=_ENTRY, hint=hint)
    _known(entry, ("value", "source"), where, joint=".")
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("the value is not a number", where=where, got=repr(value), wanted=_ENTRY)
    if not 0 < value <= sys.float_info.max:
        raise UsageError("the value must be finite and more than zero", where=where, got=repr(value))
    if key.startswith("efficiency.") and value > 1:
        raise UsageError("an efficiency is a share of the peak, at most 1", where=where, got=repr(value))
    if key == "error_factor" and value < 1:
        raise UsageError("an error factor is at least 1", where=where, got=repr(value), hint="2 stands for half to twice the prediction")
    if key in _BYTES and value != int(value):
        raise UsageError("bytes are whole", where=where, got=repr(value))
    return float(value), entry.get("source")


def _cited(source: Any, sources: Mapping[str, str], where: str) -> str:
    if source is None:
        raise UsageError("a number without a source", where=where, wanted=_ENTRY)
    if not isinstance(source, str) or source not in sources:
        raise UsageError(
            "the source is not in [sources]",
            where=where,
            got=repr(source),
            wanted=f"one of {', '.join(sources)}",
            hint=_nearest(str(source), sources) or "cite it under [sources]: document, section, and how the number follows from it",
        )
    return source


def _group(numbers: Mapping[str, float], group: str) -> dict[str, float]:
    return {key.partition(".")[2]: value for key, value in numbers.items() if key.startswith(f"{group}.")}


# ---- one table


def _known(table: Mapping[str, Any], known: Iterable[str], where: str, prefix: str = "", joint: str = ", ") -> None:
    known = tuple(known)
    for key in table:
        if key not in known:
            raise UsageError(
                "an unknown key",
                where=f"{where}{joint}{prefix}{key}",
                got=repr(key.rpartition(".")[2]),
                wanted=f"one of {', '.join(known)}",
                hint=_nearest(key, known),
            )


def _present(table: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in table:
        raise UsageError("a key is missing", where=f"{where}, {key}", wanted=_KEYS.get(key))
    return table[key]


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError("not a table", where=where, got=repr(value), wanted="[...] and keys below it")
    return value


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = _present(table, key, where)
    if not isinstance(value, str) or not value.strip():
        raise UsageError("must be a text that is not empty", where=f"{where}, {key}", got=repr(value))
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    values = _table(_present(table, key, where), f"{where}, {key}")
    return {name: _text(values, name, f"{where}, {key}") for name in values}


def _choice(table: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = _present(table, key, where)
    if value not in known:
        wanted = f"one of {', '.join(known)}"
        raise UsageError(f"an unknown {key}", where=f"{where}, {key}", got=repr(value), wanted=wanted, hint=_nearest(str(value), known))
    return str(value)


def _nearest(key: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(key, list(known), 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else None
