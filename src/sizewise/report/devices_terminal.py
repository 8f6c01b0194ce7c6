"""The known devices as plain text."""

from collections.abc import Sequence

from sizewise.report import _costs as costs
from sizewise.report._text import row_blocks, wrap
from sizewise.types import Device
from sizewise.units import format_bytes

__all__ = ["devices_summary"]

_HEAD = ("device", "RAM", "flash", "GMAC/s", "GB/s", "threads", "latencies are")


def devices_summary(devices: Sequence[Device]) -> str:
    """Each device with its memory, speed, and how its latencies are known.

    Args:
        devices: in the order to be shown.

    Returns:
        Lines of at most 100 characters, without colour codes and without a newline at the end.
    """
    head, *rows = row_blocks([_HEAD, *map(_row, devices)], squeeze=(0,))
    lines = [*head, *(line for device, row in zip(devices, rows, strict=True) for line in (*row, *_below(device)))]
    note = "GMAC/s: billions of float32 multiply-accumulates a second, all threads together. GB/s: main memory."
    return "\n".join([*lines, "", *wrap(note)])


def _row(device: Device) -> tuple[str, ...]:
    rates = device.rates
    return (
        device.name,
        format_bytes(device.ram_bytes) if device.ram_bytes is not None else "",
        format_bytes(device.flash_bytes) if device.flash_bytes is not None else "",
        _billions(rates.peak_macs_per_s["float32"]) if rates else "",
        _billions(rates.bandwidth_bytes_per_s) if rates else "",
        str(device.threads),
        costs.accuracy_of(device),
    )


def _billions(value: float) -> str:
    """Without a unit, which the column's title has."""
    return f"{value / 1e9:.3g}" if value < 999.5e9 else f"{value / 1e9:,.0f}"


def _below(device: Device) -> list[str]:
    """Titles are too long for a column."""
    lacks = f"; lacks {', '.join(device.unsupported)}" if device.unsupported else ""
    return wrap(f"{device.title}{lacks}", "      ")
