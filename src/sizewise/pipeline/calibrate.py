"""What this machine computes and moves per second with a runtime: a micro-benchmark, run once and kept.

Small chains of one kind of layer are written as files, loaded back and timed side by side; the figures of a roofline are
solved from them (`Rates`). Three shapes per family, small to large, since small layers reach less of the peak; their
geometric mean counts.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sizewise.errors import UsageError
from sizewise.files import cache_folder, write_bytes
from sizewise.pipeline.timed_files import time_files
from sizewise.protocols import Inputs, Progress, Runtime, Silent
from sizewise.types import Device, Rates, from_json, to_json

__all__ = ["calibrate", "calibrated"]

VERSION = 2  # of the benchmark: kept figures of another one are not used
ERROR_FACTOR = 1.6  # bench/roofline.py: nine in ten of the zoo lie within
_LONG, _SHORT = 200, 40  # steps


@dataclass(frozen=True)
class _Chain:
    """A file to time: `length` equal layers of `macs` each, moving `moved` bytes each."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    length: int = 1
    macs: int = 0
    moved: int = 0


class _Repeat(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.length):
            x = torch.tanh(x)
        return x


class _Steps(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


def _convolutions(channels: int, side: int, kernel: int, groups: int = 1, length: int = 4) -> _Chain:
    def build() -> nn.Module:
        layers = (nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups) for _ in range(length))
        return nn.Sequential(*layers)

    return _Chain(build, (1, channels, side, side), length, channels * (channels // groups) * kernel**2 * side**2)


def _convolutions_1d(channels: int, steps: int, kernel: int, dilation: int = 1, length: int = 4) -> _Chain:
    def build() -> nn.Module:
        padding = dilation * (kernel - 1) // 2
        return nn.Sequential(*(nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation) for _ in range(length)))

    return _Chain(build, (1, channels, steps), length, channels * channels * kernel * steps)


def _products(width: int, rows: int, length: int = 3) -> _Chain:
    def build() -> nn.Module:
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(length)))

    return _Chain(build, (rows, width), length, rows * width * width, 4 * width * width)


def _recurrent(hidden: int, steps: int) -> _Chain:
    return _Chain(partial(_Steps, hidden), (1, steps, hidden), 1, steps * 6 * hidden * hidden)


_FAMILIES: Mapping[str, tuple[_Chain, ...]] = {
    "conv": (_convolutions(16, 32, 3), _convolutions(64, 28, 3), _convolutions(256, 14, 3)),
    "conv1d": (_convolutions_1d(32, 64, 3, 4), _convolutions_1d(64, 512, 3, 8), _convolutions_1d(128, 2048, 1)),
    "pointwise": (_convolutions(32, 28, 1), _convolutions(128, 28, 1), _convolutions(512, 7, 1)),
    "depthwise": (_convolutions(32, 56, 3, 32), _convolutions(192, 28, 3, 192), _convolutions(576, 14, 3, 576)),
    "matmul": (_products(128, 64), _products(384, 128), _products(768, 128)),
    "recurrent": (_recurrent(32, 100), _recurrent(96, 100), _recurrent(256, 50)),
}
_NEAR, _FAR = _products(256, 1), _products(3072, 1)  # 0.26 MB and 38 MB of weights per layer, each read once
_OTHERS: Mapping[str, _Chain] = {
    "near": _NEAR,
    "far": _FAR,
    "many": _Chain(partial(_Repeat, 33), (1, 16)),
    "few": _Chain(partial(_Repeat, 1), (1, 16)),
    "long": _recurrent(4, _LONG),
    "short": _recurrent(4, _SHORT),
}


def calibrated(device: Device, runtime: Runtime, progress: Progress | None = None, folder: Path | None = None) -> Device:
    """The device with its rates: declared ones as they are, the local one's from the cache, else measured now and kept.

    Kept figures that nothing can be predicted from are measured anew.

    Args:
        device: any; one that is not measured brings its rates.
        runtime: whose kernels count.
        progress: told when the micro-benchmark runs.
        folder: of the cache; `cache_folder()` by default.

    Raises:
        UsageError: a device elsewhere without rates, about which nothing can be predicted.
    """
    if device.rates is not None:
        return device
    if device.how != "measured":
        raise UsageError("nothing to predict from", where=f"device {device.name!r}", wanted="Device(..., rates=Rates(...))")
    facts = repr((VERSION, runtime.name, sorted(runtime.versions().items()), device.threads, sorted(device.machine.items())))
    path = (folder or cache_folder()) / f"rates-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    try:
        rates = _checked(from_json(Rates, path.read_bytes(), where=str(path)))
    except (OSError, UsageError):
        (progress or Silent()).note("measuring how fast this machine is, once: about half a minute")
        rates = calibrate(runtime, device.threads)
        try:
            write_bytes(path, to_json(rates))
        except OSError as error:
            (progress or Silent()).note(
                f"the figures cannot be kept in {path.parent} ({error.strerror}); SIZEWISE_CACHE names another folder"
            )
    return replace(device, rates=rates)


def _checked(rates: Rates) -> Rates:
    """The kept rates, where a prediction can be made of them."""
    divisors = (*rates.efficiency.values(), rates.bandwidth_bytes_per_s, rates.cache_bandwidth_bytes_per_s, rates.error_factor)
    if "float32" not in rates.peak_macs_per_s or not set(rates.efficiency) >= set(_FAMILIES) or min(divisors) <= 0:
        raise UsageError("rates that nothing can be predicted from")
    return rates


def calibrate(runtime: Runtime, threads: int, *, rounds: int = 7) -> Rates:
    """Measure the rates of this machine with `runtime` and that many threads, float32."""
    chains = {f"{name} {i}": chain for name, group in _FAMILIES.items() for i, chain in enumerate(group)} | dict(_OTHERS)
    seconds = _time(chains, runtime, threads, rounds)
    overhead = max(seconds["many"] - seconds["few"], 0.0) / 32
    step = max(seconds["long"] - seconds["short"], 0.0) / (_LONG - _SHORT)

    def rate(name: str, index: int, chain: _Chain) -> float:
        waiting = chain.shape[1] * step if name == "recurrent" else 0.0
        alone = seconds[f"{name} {index}"] / chain.length
        return chain.macs / max(alone - overhead - waiting, 0.1 * alone)

    found = {name: [rate(name, i, chain) for i, chain in enumerate(group)] for name, group in _FAMILIES.items()}
    peak = max(max(values) for values in found.values())
    return Rates(
        peak_macs_per_s={"float32": peak},
        efficiency={name: math.exp(sum(map(math.log, values)) / len(values)) / peak for name, values in found.items()},
        bandwidth_bytes_per_s=_bandwidth(_FAR, seconds["far"], overhead),
        cache_bytes=_cache_bytes(),
        cache_bandwidth_bytes_per_s=_bandwidth(_NEAR, seconds["near"], overhead),
        operator_overhead_s=overhead,
        step_overhead_s=step,
        error_factor=ERROR_FACTOR,
    )


def _time(chains: Mapping[str, _Chain], runtime: Runtime, threads: int, rounds: int) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {name: (chain.build().eval(), Inputs((torch.randn(chain.shape),))) for name, chain in chains.items()}
        timed = time_files(models, runtime, threads, rounds=rounds, block_s=0.01, warmup_s=0.02)
    return {name: timed.latency(name).value for name in chains}


def _bandwidth(chain: _Chain, seconds: float, overhead: float) -> float:
    alone = seconds / chain.length
    return chain.moved / max(alone - overhead, 0.1 * alone)


def _cache_bytes() -> float:
    """The last cache's size where the system tells it, else 8 MB."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        if text[:-1].isdigit():
            sizes.append(int(text[:-1]) * {"K": 1024, "M": 1024**2}.get(text[-1], 1))
    return float(max(sizes, default=8_000_000))
