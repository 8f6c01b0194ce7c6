"""What a technique may ask about speed, answered by a runtime on this machine."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from sizewise.data.batches import digest, digest_state
from sizewise.files import cache_folder
from sizewise.profile.attribution import with_measured
from sizewise.profile.static import analyse
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Inputs, Runtime
from sizewise.types import Cost, Device, Interval, LayerShape

__all__ = ["RuntimeTimer", "timer_for"]

ROUNDS = 11
BLOCK_S = 0.02


class RuntimeTimer:
    """Times files of models, and kernels of lone layers.

    What a model costs, and the file that others are timed beside, are kept: a search asks for those of one model at every rate.

    Args:
        runtime: what lowers and runs them.
        device: this machine; its threads are used.
        folder: of kept figures; `cache_folder()` by default.
    """

    def __init__(self, runtime: Runtime, device: Device, folder: Path | None = None) -> None:
        self.name = runtime.name
        self.folder = folder or cache_folder()
        self.runtime, self.device = runtime, device
        self._costs: dict[str, Cost] = {}
        self._whole: tuple[str, Callable[[], object]] | None = None

    @property
    def facts(self) -> str:
        """What its figures hold for: runtime, versions, threads, machine."""
        versions = sorted(self.runtime.versions().items())
        return repr((self.name, versions, self.device.threads, sorted(self.device.machine.items())))

    def kernel_seconds(self, shapes: Sequence[LayerShape]) -> list[float]:
        """Seconds of every layer by itself, in order."""
        return self.runtime.kernel_seconds(shapes, threads=self.device.threads)

    def profile(self, model: nn.Module, example: Inputs) -> Cost:
        """What one call costs, with its measured latency, split over layers where the runtime can tell.

        Raises:
            UnsupportedModel: a model that the runtime cannot lower.
        """
        key = _content(model, example)
        if key not in self._costs:
            self._costs[key] = self._profile(model, example)
        return self._costs[key]

    def _profile(self, model: nn.Module, example: Inputs) -> Cost:
        analysis = analyse(model, example)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.runtime.file_name
            self.runtime.lower(model, example, path, named=True)
            whole, kernels = self.file_seconds(path, example)
        return with_measured(analysis.cost, analysis.operators, whole, kernels)

    def file_seconds(self, path: Path, example: Inputs) -> tuple[Interval, dict[tuple[str, int], float]]:
        """Of a file that was lowered with names: what one call takes, and what its operators take (`Runtime.layer_seconds`)."""
        call = self.runtime.load(path, threads=self.device.threads).prepare(example)
        whole = time_interleaved({"whole": call}, rounds=ROUNDS, block_s=BLOCK_S).latency("whole")
        return whole, self.runtime.layer_seconds(path, example, threads=self.device.threads)

    def beside(self, model: nn.Module, example: Inputs) -> Callable[[nn.Module], float]:
        """A function that tells which share of the model's latency another one takes, timed side by side.

        The fastest round of each counts: whatever else the machine does only slows down.

        Raises:
            UnsupportedModel: a model that the runtime cannot lower; the function raises it too.
        """
        key = _content(model, example)
        whole = self._whole[1] if self._whole is not None and self._whole[0] == key else self._call(model, example)
        self._whole = (key, whole)
        return lambda other: _share(whole, self._call(other, example))

    def file_share(self, whole: Path, other: Path, example: Inputs) -> float:
        """As `beside` of two files that are lowered already."""
        whole_call, other_call = (self.runtime.load(path, threads=self.device.threads).prepare(example) for path in (whole, other))
        return _share(whole_call, other_call)

    def _call(self, model: nn.Module, example: Inputs) -> Callable[[], object]:
        """Runs the model's file once; the file itself is not needed any more."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.runtime.file_name
            self.runtime.lower(model, example, path)
            return self.runtime.load(path, threads=self.device.threads).prepare(example)


def _content(model: nn.Module, example: Inputs) -> str:
    """A hash of a model's code, as far as it shows, its tensors, and the example."""
    code = model.code if isinstance(model, GraphModule) else repr(model)
    hashed = hashlib.sha256(f"{type(model)} {code}".encode())
    digest_state(model, hashed)
    digest(example, None, hashed)
    return hashed.hexdigest()


def _share(whole: Callable[[], object], other: Callable[[], object]) -> float:
    timed = time_interleaved({"whole": whole, "other": other}, rounds=ROUNDS, block_s=BLOCK_S)
    return float(timed.samples["other"].min() / timed.samples["whole"].min())


def timer_for(runtime: Runtime, device: Device) -> RuntimeTimer | None:
    """A timer where the device is this machine; nothing can be timed elsewhere."""
    return RuntimeTimer(runtime, device) if device.how == "measured" else None
