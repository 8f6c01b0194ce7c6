"""The published ResNet-56 for CIFAR-10 in a tenth and a twentieth of its bytes.

    python bench/compress_resnet56.py [test pictures, 10000 by default] [share of the training pictures, 1 by default]

Every row: accuracy on the test pictures, bytes on disk and their share of those in float32. Ours are loaded back from their files.
Calibration is 1,024 training pictures without their labels. A twentieth is made with one epoch of distillation, between pruning and
sharing, on all training pictures (0 leaves it out). Targets: a tenth without training at least 86 %; a twentieth after one epoch at
least 87 %.
"""

import sys
import tempfile
from pathlib import Path

import cifar_task
import numpy as np
import torch
from compression_rows import Stored, compressed, known_sizes, table
from recover_resnet56 import Pictures
from torch import Tensor, nn

import sizewise
from sizewise.protocols import Inputs

EXAMPLE = Inputs((torch.zeros(1, 3, 32, 32),))
CALIBRATION = 1024
WANTED = {0.1: 0.86, 0.05: 0.87}


def main() -> int:
    """Compress, load back and score; exit code 1 when a target is missed."""
    tests, share = (int(sys.argv[1]) if len(sys.argv) > 1 else 10_000), (float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
    with np.load(cifar_task.FOLDER / "cifar10_train_test_jpeg.npz") as archive:
        calibration = [x for x, _ in cifar_task.pictures(archive, "train", 0, CALIBRATION)]
        test = cifar_task.pictures(archive, "test", 0, tests)
        train = Pictures(archive, share) if share else None
    whole, folder = cifar_task.published(56), Path(tempfile.mkdtemp())
    common = {"example_inputs": EXAMPLE, "calibration": calibration, "progress": True}
    int8 = sizewise.quantize_model(whole, example_inputs=EXAMPLE, calibration=calibration[:5])
    ours: dict[str, Stored] = {}
    ours["sizewise 0.1"] = compressed(lambda: sizewise.compress_model(whole, 0.1, **common), whole, EXAMPLE, folder / "tenth.swz")
    if train is not None:
        methods = ("pruning", "sharing")
        ours["sizewise 0.05, recovered"] = compressed(
            lambda: sizewise.compress_model(whole, 0.05, methods=methods, train=train, **common), whole, EXAMPLE, folder / "twentieth.swz"
        )
    right = {"float32": _accuracy(whole, test), "int8 ONNX": _accuracy(int8, test)}
    right |= {name: _accuracy(row.module, test) for name, row in ours.items()}
    sizes = {**known_sizes(whole, int8, EXAMPLE, folder), **{name: row.size for name, row in ours.items()}}
    table(sizes, {name: f"{100 * value:.2f} %" for name, value in right.items()}, {name: row.seconds for name, row in ours.items()})
    met = [right[name] >= wanted for (name, wanted) in zip(ours, WANTED.values(), strict=False)]
    print(f"{'ok  ' if all(met) else 'FAIL'} wanted {', '.join(f'{100 * value:.0f} % at {rate}' for rate, value in WANTED.items())}")
    return int(not all(met))


def _accuracy(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in test]
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    sys.exit(main())
