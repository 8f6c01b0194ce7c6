"""From values to JSON and back, checked."""

from numbers import Real
from typing import Any, TypeVar

import msgspec

from sizewise.errors import UsageError

__all__ = ["from_json", "to_json"]

T = TypeVar("T")


def to_json(value: Any) -> bytes:
    """Encode a dataclass of this module, indented, keys in field order; numpy's numbers are written as numbers."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain_number), indent=1) + b"\n"


def _plain_number(value: Any) -> Any:
    if isinstance(value, Real) and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def from_json(kind: type[T], data: bytes | str, *, where: str = "record") -> T:
    """Decode and check; the inverse of `to_json`.

    Raises:
        UsageError: the text is not JSON or does not have the shape of `kind`.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"not a valid {kind.__name__}", where=where, got=str(error), hint="the file is damaged or from another version"
        ) from error
