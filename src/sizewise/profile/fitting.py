"""Whether a model fits a device at all: memory, and operators that the device's runtime lacks."""

from collections.abc import Sequence

from sizewise.profile.graph_cost import Operator
from sizewise.types import Cost, Device
from sizewise.units import format_bytes

__all__ = ["memory_misfits", "misfits"]


def misfits(cost: Cost, operators: Sequence[Operator], device: Device) -> tuple[str, ...]:
    """Why the model cannot run there, one sentence each; empty when nothing is known to be in the way."""
    return (*memory_misfits(cost.weight_bytes, cost.peak_bytes, device), *_operators(operators, device))


def memory_misfits(weights: int, peak: int | None, device: Device) -> tuple[str, ...]:
    """What does not fit: weights the flash they are executed from, activations (and weights, without flash) the RAM."""
    found = []
    ram, flash = device.ram_bytes, device.flash_bytes
    if flash is not None and weights > flash:
        found.append(f"weights of {format_bytes(weights)} do not fit {format_bytes(flash)} of flash")
    need, what = ((peak or 0), "activations") if flash is not None else ((peak or 0) + weights, "weights and activations")
    if ram is not None and need > ram:
        found.append(f"{what} of {format_bytes(need)} do not fit {format_bytes(ram)} of RAM")
    return tuple(found)


def _operators(operators: Sequence[Operator], device: Device) -> tuple[str, ...]:
    used = dict.fromkeys(op.kind.rstrip("_") for op in operators)
    return tuple(f"operator {kind} is not there: {device.unsupported[kind]}" for kind in used if kind in device.unsupported)
