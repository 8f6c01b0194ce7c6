"""Peak memory of the front door's jobs, as a multiple of the model they are given.

    python bench/memory.py [examples] [job ...]

Every job runs in a fresh process: the model is made and its calibration data drawn, then the peak is reset and the job is done.
The row says the model's float32 bytes, how much the process grew at most while the job ran, and their ratio. Statistics of layers are
told apart: activations of all examples at one place, which are held while a model is walked layer by layer (at most `HELD_BYTES` are
meant for them, however large the model is), and moments of layers' inputs. "Without them" is the largest growth beyond what of them was
held at that moment; one tenth of a gigabyte for what is loaded on the way (torch's exporter and compiled operators) is taken off too.
Weights are random, which changes no shape. What the design asks for: three times the model and one layer's statistics; a model of 100
million parameters within 24 GiB.
"""

import multiprocessing
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

import sizewise
from sizewise.arith.moments import Gram
from sizewise.graph.lockstep import Lockstep
from sizewise.zoo.catalog import bert
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet_imagenet import resnet_imagenet

EXAMPLES, BATCH, TOKENS, VOCABULARY = 128, 16, 128, 30522
LOADED = 100_000_000

Job = tuple[Callable[[], nn.Module], Callable[[int], Tensor], Callable[[nn.Module, Tensor, list[Tensor]], Any]]


def _bert() -> nn.Module:
    return bert(classes=2)


def _resnet50() -> nn.Module:
    return resnet_imagenet(50)


def _pictures(examples: int) -> Tensor:
    return torch.randn(examples, 3, 224, 224)


def _sentences(examples: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (examples, TOKENS))


def _quantize(model: nn.Module, example: Tensor, calibration: list[Tensor]) -> None:
    sizewise.quantize_model(model, example_inputs=example, calibration=calibration)


def _int4(model: nn.Module, example: Tensor, calibration: list[Tensor]) -> None:
    sizewise.quantize_model(model, "int4", example_inputs=example, calibration=calibration)


def _prune(model: nn.Module, example: Tensor, calibration: list[Tensor]) -> None:
    sizewise.prune_model(model, 0.3, example_inputs=example, calibration=calibration)


def _zeros(model: nn.Module, example: Tensor, calibration: list[Tensor]) -> None:
    sizewise.prune_model(model, 0.5, granularity="weight", example_inputs=example, calibration=calibration)


JOBS: Mapping[str, Job] = {
    "BERT-base, int8": (_bert, _sentences, _quantize),
    "BERT-base, int4": (_bert, _sentences, _int4),
    "BERT-base, channels": (_bert, _sentences, _prune),
    "BERT-base, weights": (_bert, _sentences, _zeros),
    "ResNet-50, int8": (_resnet50, _pictures, _quantize),
    "ResNet-50, channels": (_resnet50, _pictures, _prune),
    "MobileNetV2, int8": (MobileNetV2, _pictures, _quantize),
}


def main() -> int:
    """Run the named jobs, or all, with so many calibration examples."""
    given = sys.argv[1:]
    examples = int(given.pop(0)) if given and given[0].isdigit() else EXAMPLES
    for name in given or JOBS:
        answers: Any = multiprocessing.get_context("spawn").Queue()
        process = multiprocessing.get_context("spawn").Process(target=_measured, args=(name, examples, answers))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{name:22} failed with exit code {process.exitcode}", flush=True)
            continue
        whole, grown, rest, most, seconds = answers.get()
        print(
            f"{name:22} {whole / 1e6:6.0f} MB  grew by {grown / 1e6:6.0f} MB, {grown / whole:5.2f} times the model; held at most "
            f"{most['activations'] / 1e6:5.0f} MB of activations, {most['moments'] / 1e6:4.0f} MB of moments; "
            f"{max(0, rest - LOADED) / whole:5.2f} times the model without them and what is loaded  {seconds:5.0f} s",
            flush=True,
        )
    return 0


class _Meter:
    """The largest growth of this process, and the largest beyond the statistics that it holds.

    The peak begins anew whenever these change, so that every peak belongs to what was held before or after it, of which the less counts.
    """

    def __init__(self) -> None:
        self.grown = self.rest = 0
        self.held = {"activations": 0, "moments": 0}
        self.most = dict(self.held)
        _forget_peak()
        self._before = _status("VmRSS")

    def change(self, kind: str, held: int) -> None:
        """Statistics of one kind now take so many bytes."""
        peak, before = _status("VmHWM") - self._before, sum(self.held.values())
        self.held[kind], self.most[kind] = held, max(held, self.most[kind])
        self.grown = max(self.grown, peak)
        self.rest = max(self.rest, peak - min(before, sum(self.held.values())))
        _forget_peak()

    def watch(self) -> None:
        """Look at every walk and at all moments from now on."""
        walk, empty = Lockstep.walk, Gram.empty

        def watched_walk(lockstep: Lockstep) -> Iterator[Node]:
            for node in walk(lockstep):
                self.change("activations", _activations(lockstep))
                yield node
            self.change("activations", 0)

        def watched_empty(*args: Any, **kwargs: Any) -> Gram:
            made = empty(*args, **kwargs)
            size = made.squares.nbytes
            self.change("moments", self.held["moments"] + size)
            weakref.finalize(made, lambda: self.change("moments", self.held["moments"] - size))
            return made

        Lockstep.walk, Gram.empty = watched_walk, staticmethod(watched_empty)  # type: ignore[method-assign,assignment]


def _activations(lockstep: Lockstep) -> int:
    """Bytes that the values of two runs take together."""
    values = (value for run in lockstep._values.values() for batches in run.values() for value in pytree.tree_leaves(batches))
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in values if isinstance(t, Tensor)}.values())


def _measured(name: str, examples: int, answers: Any) -> None:
    make, draw, work = JOBS[name]
    torch.manual_seed(0)
    model, data = make().eval(), draw(examples)
    whole = sum(tensor.numel() * 4 for tensor in model.parameters())
    meter, begin = _Meter(), time.perf_counter()
    meter.watch()
    work(model, data[:1], [*torch.split(data, BATCH)])
    seconds = time.perf_counter() - begin
    meter.change("activations", 0)
    answers.put((whole, meter.grown, meter.rest, meter.most, seconds))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main())
