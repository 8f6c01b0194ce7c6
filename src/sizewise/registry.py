"""Techniques, runtimes and devices by file name. Listing imports nothing; getting one imports its file only.

A technique or a runtime is one public file in its folder; the file defines exactly one class named in `EXPORT`.
"""

import importlib
from functools import cache
from importlib import resources
from typing import Any

from sizewise.errors import InternalError, UnknownName

__all__ = ["device_file", "device_names", "get", "names"]

_ATTRIBUTE = {"techniques": "TECHNIQUE", "runtimes": "RUNTIME"}


@cache
def names(kind: str) -> tuple[str, ...]:
    """Public module names in the folder `kind` ("techniques" or "runtimes"), sorted, without importing them."""
    files = (entry.name for entry in resources.files("sizewise").joinpath(kind).iterdir())
    return tuple(sorted(n[:-3] for n in files if n.endswith(".py") and not n.startswith("_")))


def get(kind: str, name: str) -> Any:
    """The class that the file `kind`/`name`.py offers.

    Raises:
        UnknownName: no such file; says the nearest.
        InternalError: the file does not say what it offers.
    """
    if name not in names(kind):
        raise UnknownName(kind[:-1], name, names(kind))
    module = importlib.import_module(f"sizewise.{kind}.{name}")
    attribute = _ATTRIBUTE[kind]
    if not hasattr(module, attribute):
        raise InternalError(f"the file defines no {attribute}", where=f"sizewise.{kind}.{name}")
    return getattr(module, attribute)


@cache
def device_names() -> tuple[str, ...]:
    """Names of the device files, sorted."""
    files = (entry.name for entry in resources.files("sizewise").joinpath("devices").iterdir())
    return tuple(sorted(n[:-5] for n in files if n.endswith(".toml")))


def device_file(name: str) -> str:
    """The text of devices/`name`.toml.

    Raises:
        UnknownName: no such file; says the nearest.
    """
    if name not in device_names():
        raise UnknownName("device", name, device_names())
    return resources.files("sizewise").joinpath("devices", f"{name}.toml").read_text(encoding="utf-8")
