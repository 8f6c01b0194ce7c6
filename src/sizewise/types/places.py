"""Where a file runs: devices, their rates, and how a runtime computes in integers."""

from dataclasses import dataclass, field
from typing import Literal

from sizewise.types.figures import How

__all__ = ["Device", "Rates", "Scheme"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a runtime wants quantized graphs, so that it executes them as integers.

    Attributes:
        activation: dtype and range of activations, per tensor, affine.
        weight: dtype and range of weights, symmetric, one scale per output channel.
        fused_activations: activations that the runtime folds into the layer before them; they share its output scale.
        pair_limit: what the 8-bit codes of two weights may add up to, in absolute value, whose products kernels add in 16 bits on some
            processors (`arith/pairs.py`); None where all add in 32.
    """

    name: str
    activation: Literal["uint8", "int8"]
    activation_range: tuple[int, int]
    weight: Literal["int8"]
    weight_range: tuple[int, int]
    fused_activations: tuple[str, ...]
    pair_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where latency and memory are measured or predicted.

    Attributes:
        name: the file's name.
        title: for people.
        how: "measured" when this machine is the device.
        threads: threads per call.
        machine: what was found (processor, cores, memory, system).
        sources: where the numbers come from.
        kind: what sort of machine.
        ram_bytes: memory for activations, and for weights where `flash_bytes` is None.
        flash_bytes: where weights are stored and executed from; None where they are loaded into RAM.
        rates: how fast it is; None for the local device before it is calibrated.
        unsupported: operators that its usual runtime lacks, each with the reason.
    """

    name: str
    title: str
    how: How
    threads: int
    machine: dict[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    kind: Literal["cpu", "gpu", "microcontroller"] = "cpu"
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    rates: "Rates | None" = None
    unsupported: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The numbers of a roofline: what a device computes and moves per second, and what every operator costs besides.

    Attributes:
        peak_macs_per_s: per dtype ("float32", "float16", "int8"), all threads together.
        efficiency: share of the peak that each family of operators reaches when data is at hand: conv (kernels larger than
            1x1), conv1d (1-d convolutions but depthwise ones, which CPU runtimes have poorer kernels for; a device file without it
            takes conv's), pointwise (1x1 convolutions), depthwise, matmul, recurrent.
        bandwidth_bytes_per_s: sustained, from main memory.
        cache_bytes: working sets up to this size stay in the cache.
        cache_bandwidth_bytes_per_s: sustained, from the cache.
        operator_overhead_s: per operator, before it computes.
        step_overhead_s: per time step of a recurrent layer, since steps wait for one another.
        error_factor: a prediction p stands for [p / error_factor, p * error_factor].
    """

    peak_macs_per_s: dict[str, float]
    efficiency: dict[str, float]
    bandwidth_bytes_per_s: float
    cache_bytes: float
    cache_bandwidth_bytes_per_s: float
    operator_overhead_s: float
    step_overhead_s: float
    error_factor: float
