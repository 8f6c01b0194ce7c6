"""A GRU on spoken digits in a tenth of its bytes.

    python bench/compress_speech.py

Every row: accuracy on the 1,000 validation and 300 test clips together, bytes on disk and their share of those in float32. Ours is
loaded back from its file. Target: at most 1 point lost.
"""

import sys
import tempfile
from pathlib import Path

import torch
from compression_rows import compressed, known_sizes, table
from spoken_digits_task import task
from torch import nn

import sizewise
from sizewise.data.batches import batches
from sizewise.pipeline.train import train_scale

SCALE, RATE, WANTED_DROP = "gru-m", 0.1, 0.01


def main() -> int:
    """Train, compress, load back and score; exit code 1 when the target is missed."""
    whole, folder = train_scale(task, SCALE, 0).eval(), Path(tempfile.mkdtemp())
    common = {"example_inputs": task.example, "calibration": task.calibration}
    int8 = sizewise.quantize_model(whole, **common)
    ours = compressed(lambda: sizewise.compress_model(whole, RATE, progress=True, **common), whole, task.example, folder / "ours.swz")
    right = {"float32": _accuracy(whole), "int8 ONNX": _accuracy(int8), f"sizewise {RATE}": _accuracy(ours.module)}
    sizes = {**known_sizes(whole, int8, task.example, folder), f"sizewise {RATE}": ours.size}
    table(sizes, {name: f"{100 * value:.2f} %" for name, value in right.items()}, {f"sizewise {RATE}": ours.seconds})
    lost = right["float32"] - right[f"sizewise {RATE}"]
    met = lost <= WANTED_DROP and ours.size <= RATE * sizes["float32"]
    print(f"{'ok  ' if met else 'FAIL'} lost {100 * lost:.2f} points")
    return int(not met)


def _accuracy(module: nn.Module) -> float:
    right = []
    with torch.no_grad():
        for loader in (task.validation, task.test):
            for inputs, target in batches(loader or (), "clips"):
                right.append((inputs.call(module).argmax(1) == target).float())
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    sys.exit(main())
