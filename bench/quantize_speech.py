"""Int8 of a GRU and a WaveNet on spoken digits, beside ONNX Runtime's own quantizers.

    python bench/quantize_speech.py

Every row: accuracy on the 1,000 validation and 300 test clips together, size, latency of one clip. Targets, for both: a file of at
most 0.3 times the float one's size, at most 0.5 points lost, not slower than float. Sessions of one file differ by some
percent for as long as they live, so that last one is told by five sessions of each file in the same rounds.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from quantization_rows import BLOCK_S, ROUNDS, File, by_ort_dynamic, by_ort_static, lowered, table
from spoken_digits_task import task
from torch import nn

import sizewise
from sizewise.data.batches import batches, split_batch
from sizewise.evaluate.paired import median_interval
from sizewise.pipeline.train import train_scale
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Inputs
from sizewise.types import Interval

SCALES = ("gru-m", "wavenet-l")  # of the three sizes, the recommended GRU and the task's reference
WANTED_SIZE, WANTED_DROP, WANTED_TIMES = 0.3, 0.005, 1.0
SESSIONS = 5


def main() -> int:
    """Train, quantize, score and time; exit code 1 when ours misses a target."""
    met = [_scale(scale, train_scale(task, scale, 0)) for scale in SCALES]
    return int(not all(met))


def _scale(scale: str, module: nn.Module) -> bool:
    print(scale)
    folder = Path(tempfile.mkdtemp())
    begin = time.perf_counter()
    ours = sizewise.quantize_model(module, example_inputs=task.example, calibration=task.calibration)
    seconds = {"sizewise": time.perf_counter() - begin}
    files = {"float": lowered(module, task.example, folder / "float.onnx"), "sizewise": lowered(ours, task.example, folder / "ours.onnx")}
    calibration = [split_batch(batch)[0] for batch in task.calibration or ()]
    singles = [Inputs((row[None],)) for inputs in calibration for row in inputs.args[0]]
    files["onnxruntime static"] = by_ort_static(files["float"], singles, folder / "static.onnx")
    files["onnxruntime dynamic"] = by_ort_dynamic(files["float"], folder / "dynamic.onnx")
    right = {name: _accuracy(file) for name, file in files.items()}
    table(files, {name: f"{100 * value:.2f} %" for name, value in right.items()}, task.example, seconds)
    share, lost = files["sizewise"].size / files["float"].size, right["float"] - right["sizewise"]
    slower = _in_sessions(files["sizewise"].path, files["float"].path)
    met = share <= WANTED_SIZE and lost <= WANTED_DROP and slower.low <= WANTED_TIMES
    times = f"{slower.value:.2f} times the latency [{slower.low:.2f}, {slower.high:.2f}]"
    print(f"{'ok  ' if met else 'FAIL'} {share:.3f} of the size, lost {100 * lost:.2f} points, {times}\n")
    return met


def _in_sessions(path: Path, other: Path) -> Interval:
    """Latency of one file over that of another, each the mean of some sessions, all timed in the same rounds."""
    names = [(place, number) for place in (path, other) for number in range(SESSIONS)]
    calls = {f"{place} {number}": File.at(place).runner.prepare(task.example) for place, number in names}
    samples = time_interleaved(calls, rounds=ROUNDS, block_s=BLOCK_S).samples
    mean = {place: sum(samples[f"{place} {number}"] for number in range(SESSIONS)) for place in (path, other)}
    return median_interval(mean[path] / mean[other])


def _accuracy(file: File) -> float:
    right = []
    for loader in (task.validation, task.test):
        for inputs, target in batches(loader or (), "clips"):
            right.append((file.runner(inputs)[0].argmax(1) == target).float())
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    sys.exit(main())
