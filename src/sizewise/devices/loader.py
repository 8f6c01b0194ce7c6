"""Read a device file; for the local device, say which machine it is."""

import os
import platform
import tomllib
from pathlib import Path

import psutil

from sizewise import registry
from sizewise.types import Device

__all__ = ["load_device"]


def load_device(name: str) -> Device:
    """The device of that name, with this machine's description when it is measured here.

    Raises:
        UnknownName: no such device file.
    """
    text = tomllib.loads(registry.device_file(name))
    return Device(
        name=name,
        title=text["title"],
        how=text["how"],
        threads=usable_threads(),
        machine=describe_machine(),
        sources=tuple(text["sources"]),
    )


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
