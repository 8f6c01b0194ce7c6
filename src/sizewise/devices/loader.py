"""Read a device file, shipped or the user's own; for the local device, say which machine it is."""

import os
import platform
from pathlib import Path

import psutil

from sizewise import registry
from sizewise.devices import _schema
from sizewise.errors import UsageError
from sizewise.types import Device

__all__ = ["load_device"]


def load_device(name: str) -> Device:
    """The device of that name, or the one that a file describes.

    Args:
        name: of a shipped device, such as "raspberry_pi_4"; or the path of a file of your own, ending with .toml.

    Returns:
        A declared device with its numbers and the sources of them; a measured one without rates, with the description, memory
        and usable threads of this machine.

    Raises:
        UnknownName: no device of that name; says the nearest.
        UsageError: a file that cannot be read or says something impossible; says where.
    """
    own = name.endswith(".toml")
    text, where = (_own_text(Path(name).expanduser()), name) if own else (registry.device_file(name), f"devices/{name}.toml")
    found = _schema.read(text, where)
    here = found.how == "measured"
    return Device(
        name=Path(name).stem if own else name,
        title=found.title,
        how=found.how,
        threads=found.threads or usable_threads(),
        machine=describe_machine() if here else {},
        sources=found.sources,
        kind=found.kind,
        ram_bytes=psutil.virtual_memory().total if here else found.ram_bytes,
        flash_bytes=found.flash_bytes,
        rates=found.rates,
        unsupported=dict(found.unsupported),
    )


def _own_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the device file cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            wanted=f"the path of a TOML file, or one of {', '.join(registry.device_names())}",
        ) from error


def usable_threads() -> int:
    """Physical cores this process may use: more threads than that slow dense kernels down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, system and Python, as texts."""
    return {
        "processor": _processor(),
        "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
