"""What a technique may ask about speed, answered by a runtime on this machine."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from sizewise.files import cache_folder
from sizewise.profile.attribution import with_measured
from sizewise.profile.static import analyse
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Inputs, Runtime
from sizewise.types import Cost, Device, LayerShape

__all__ = ["RuntimeTimer", "timer_for"]

ROUNDS = 11
BLOCK_S = 0.02


class RuntimeTimer:
    """Times files of models, and kernels of lone layers.

    Args:
        runtime: what lowers and runs them.
        device: this machine; its threads are used.
        folder: of kept figures; `cache_folder()` by default.
    """

    def __init__(self, runtime: Runtime, device: Device, folder: Path | None = None) -> None:
        self.name = runtime.name
        self.folder = folder or cache_folder()
        self._runtime, self._device, self._threads = runtime, device, device.threads

    @property
    def facts(self) -> str:
        """What its figures hold for: runtime, versions, threads, machine."""
        versions = sorted(self._runtime.versions().items())
        return repr((self.name, versions, self._threads, sorted(self._device.machine.items())))

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        """Seconds of every layer by itself, in order."""
        return self._runtime.kernel_seconds(shapes, threads=self._threads)

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        """What one call costs, with its measured latency, split over layers where the runtime can tell.

        Raises:
            UnsupportedModel: a model that the runtime cannot lower.
        """
        analysis = analyse(model, example)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._runtime.file_name
            self._runtime.lower(model, example, path, named=True)
            call = self._runtime.load(path, threads=self._threads).prepare(example)
            whole = time_interleaved({"whole": call}, rounds=ROUNDS, block_s=BLOCK_S).latency("whole")
            kernels = self._runtime.layer_seconds(path, example, threads=self._threads)
        return with_measured(analysis.cost, analysis.operators, whole, kernels)

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        """A function that tells which share of the model's latency another one takes, timed side by side.

        The fastest round of each counts: whatever else the machine does only slows down.

        Raises:
            UnsupportedModel: a model that the runtime cannot lower; the function raises it too.
        """
        whole = self._call(model, example)

        def share(other: nn.Module) -> float:
            calls = {"whole": whole, "other": self._call(other, example)}
            timed = time_interleaved(calls, rounds=ROUNDS, block_s=BLOCK_S)
            return float(timed.samples["other"].min() / timed.samples["whole"].min())

        return share

    def _call(self, model: nn.Module, example: Inputs) -> Callable[[], object]:
        """Runs the model's file once; the file itself is not needed any more."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._runtime.file_name
            self._runtime.lower(model, example, path)
            return self._runtime.load(path, threads=self._threads).prepare(example)


def timer_for(runtime: Runtime, device: Device) -> RuntimeTimer | None:
    """A timer where the device is this machine; nothing can be timed elsewhere."""
    return RuntimeTimer(runtime, device) if device.how == "measured" else None
