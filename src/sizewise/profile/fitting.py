"""Whether a model fits a device at all: memory, and operators that the device's runtime lacks."""

from collections.abc import Sequence

from sizewise.profile.graph_cost import Operator
from sizewise.types import Cost, Device
from sizewise.units import format_bytes

__all__ = ["misfits"]


def misfits(cost: Cost, operators: Sequence[Operator], device: Device) -> tuple[str, ...]:
    """Why the model cannot run there, one sentence each; empty when nothing is known to be in the way."""
    return (*_memory(cost, device), *_operators(operators, device))


def _memory(cost: Cost, device: Device) -> list[str]:
    found = []
    ram, flash = device.ram_bytes, device.flash_bytes
    peak = cost.peak_bytes or 0
    if flash is not None and cost.weight_bytes > flash:
        found.append(f"weights of {format_bytes(cost.weight_bytes)} do not fit {format_bytes(flash)} of flash")
    need, what = (peak, "activations") if flash is not None else (peak + cost.weight_bytes, "weights and activations")
    if ram is not None and need > ram:
        found.append(f"{what} of {format_bytes(need)} do not fit {format_bytes(ram)} of RAM")
    return found


def _operators(operators: Sequence[Operator], device: Device) -> list[str]:
    used = dict.fromkeys(op.kind.rstrip("_") for op in operators)
    return [f"operator {kind} is not there: {device.unsupported[kind]}" for kind in used if kind in device.unsupported]
