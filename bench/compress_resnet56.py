"""The published ResNet-56 for CIFAR-10 in a tenth and a twentieth of its bytes, without training.

    python bench/compress_resnet56.py [test pictures, 10000 by default]

Every row: accuracy on the test pictures, bytes on disk and their share of those in float32. Ours are loaded back from their files.
Calibration is 1,024 training pictures without their labels. Targets: a tenth at least 86 %, a twentieth at least 87 % (which was
asked for after one epoch of distillation).
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import cifar_task
import numpy as np
import torch
from compression_rows import compressed, known_sizes, table
from torch import Tensor, nn

import sizewise
from sizewise.protocols import Inputs

EXAMPLE = Inputs((torch.zeros(1, 3, 32, 32),))
CALIBRATION = 1024
WANTED = {0.1: 0.86, 0.05: 0.87}


def main() -> int:
    """Compress, load back and score; exit code 1 when a target is missed."""
    with np.load(cifar_task.FOLDER / "cifar10_train_test_jpeg.npz") as archive:
        calibration = [x for x, _ in cifar_task.pictures(archive, "train", 0, CALIBRATION)]
        test = cifar_task.pictures(archive, "test", 0, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    whole, folder = cifar_task.published(56), Path(tempfile.mkdtemp())
    common = {"example_inputs": EXAMPLE, "calibration": calibration, "progress": True}
    int8 = sizewise.quantize_model(whole, example_inputs=EXAMPLE, calibration=calibration[:5])
    right = {"float32": _accuracy(whole, test), "int8 ONNX": _accuracy(int8, test)}
    sizes, seconds, met = known_sizes(whole, int8, EXAMPLE, folder), {}, []
    for rate, wanted in WANTED.items():
        made = compressed(partial(sizewise.compress_model, whole, rate, **common), whole, EXAMPLE, folder / f"{rate}.swz")
        name = f"sizewise {rate}"
        right[name], sizes[name], seconds[name] = _accuracy(made.module, test), made.size, made.seconds
        met.append(right[name] >= wanted and made.size <= rate * sizes["float32"])
    table(sizes, {name: f"{100 * value:.2f} %" for name, value in right.items()}, seconds)
    print(f"{'ok  ' if all(met) else 'FAIL'} wanted {', '.join(f'{100 * value:.0f} % at {rate}' for rate, value in WANTED.items())}")
    return int(not all(met))


def _accuracy(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in test]
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    sys.exit(main())
