"""What a person types to name a model with settings, `mobilenet_v2:width=0.5,size=160`, read and checked; knows no models."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from sizewise.errors import UnknownName, UsageError

__all__ = ["Value", "check_settings", "parse_spec", "plain_defaults"]

Value = bool | int | float | str
_WANTED = "name, or name:setting=value,setting=value"
_KEY = re.compile(r"[A-Za-z_]\w*")
_WORD = re.compile(r"[A-Za-z][\w.-]*")
_KINDS: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def parse_spec(spec: str) -> tuple[str, dict[str, Value]]:
    """Split `name:key=value,key=value` into the name and its settings; values are whole numbers, numbers, true, false or words.

    Raises:
        UsageError: not of this form, or a setting is given twice.
    """
    name, colon, rest = (part.strip() for part in spec.partition(":"))
    if not name or (colon and not rest):
        raise UsageError("not a model's name", got=repr(spec), wanted=_WANTED)
    settings: dict[str, Value] = {}
    for item in rest.split(",") if rest else ():
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not _KEY.fullmatch(key) or not text:
            raise UsageError("not a setting", where=name, got=repr(item.strip()), wanted=_WANTED)
        if key in settings:
            raise UsageError(f"{key} is given twice", where=name, got=repr(rest))
        settings[key] = _value(text, f"{name}:{key}")
    return name, settings


def _value(text: str, where: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if not _WORD.fullmatch(text):
        raise UsageError("not a value", where=where, got=repr(text), wanted="a number, true, false or a word")
    return text


def plain_defaults(function: Callable[..., Any]) -> dict[str, Value]:
    """The parameters of a function or class that can be typed: those whose default is a number, a truth value or a word."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, Value)}


def check_settings(settings: Mapping[str, Value], known: Mapping[str, Value], where: str) -> None:
    """Refuse what cannot be meant, going by the kind of each default.

    Whole numbers are at least 1 (0 is allowed where it is the default); numbers are above 0; `dropout` is at least 0 and below 1.

    Raises:
        UnknownName: no such setting; says the nearest.
        UsageError: a value of another kind or outside its range.
    """
    for key, value in settings.items():
        if key not in known:
            raise UnknownName("setting", key, known, where=where)
        kind = type(known[key])
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if not fits or not _in_range(key, value, known[key]):
            raise UsageError(f"{key} cannot be this", where=where, got=str(value), wanted=_wanted(key, known[key]))


def _in_range(key: str, value: Value, default: Value) -> bool:
    if isinstance(value, bool | str):
        return True
    if key == "dropout":
        return 0 <= value < 1
    return math.isfinite(value) and (value > 0 or value == default)


def _wanted(key: str, default: Value) -> str:
    if key == "dropout":
        return "a number from 0 to below 1"
    least = {int: " of at least 0" if default == 0 else " of at least 1", float: " above 0"}
    return _KINDS[type(default)] + least.get(type(default), "")
