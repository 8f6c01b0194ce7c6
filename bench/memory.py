"""Peak memory of the front door's jobs, as a multiple of the model they are given.

    python bench/memory.py [job ...]

Every job runs in a fresh process: the model is made and its calibration data drawn, then the peak is reset and the job is done.
The row says the model's float32 bytes, how much the process grew at most while the job ran, their ratio, and what growth would
remain without one tenth of a gigabyte for what is loaded on the way (torch's exporter and compiled operators). Weights are random,
which changes no shape. What the design asks for: three times the model and one layer's statistics; a model of 100 million parameters
within 24 GiB.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sizewise
from sizewise.zoo.catalog import bert
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet_imagenet import resnet_imagenet

EXAMPLES, BATCH, TOKENS, VOCABULARY = 128, 16, 128, 30522
LOADED = 100_000_000

Job = tuple[Callable[[], nn.Module], Callable[[], Tensor], Callable[[nn.Module, Tensor, list[Tensor]], Any]]


def _bert() -> nn.Module:
    return bert(classes=2)


def _resnet50() -> nn.Module:
    return resnet_imagenet(50)


def _pictures() -> Tensor:
    return torch.randn(EXAMPLES, 3, 224, 224)


def _sentences() -> Tensor:
    return torch.randint(1, VOCABULARY, (EXAMPLES, TOKENS))


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
    """Run the named jobs, or all."""
    for name in sys.argv[1:] or JOBS:
        answers: Any = multiprocessing.get_context("spawn").Queue()
        process = multiprocessing.get_context("spawn").Process(target=_measured, args=(name, answers))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{name:22} failed with exit code {process.exitcode}", flush=True)
            continue
        held, grown, seconds = answers.get()
        print(
            f"{name:22} {held / 1e6:6.0f} MB  grew by {grown / 1e6:6.0f} MB  {grown / held:5.2f} times the model, "
            f"{max(0, grown - LOADED) / held:5.2f} without what is loaded  {seconds:5.0f} s",
            flush=True,
        )
    return 0


def _measured(name: str, answers: Any) -> None:
    make, draw, work = JOBS[name]
    torch.manual_seed(0)
    model, data = make().eval(), draw()
    held = sum(tensor.numel() * 4 for tensor in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begin = _status("VmRSS"), time.perf_counter()
    work(model, data[:1], [*torch.split(data, BATCH)])
    answers.put((held, _status("VmHWM") - before, time.perf_counter() - begin))


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main())
