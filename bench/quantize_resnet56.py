"""Int8, and 4-bit weights with 8-bit activations, of the published ResNet-56 for CIFAR-10, beside ONNX Runtime's quantizer and NNCF.

    python bench/quantize_resnet56.py [test pictures, 10000 by default]

Calibration is 512 training pictures without their labels. Accuracy is that of the ONNX files. The row "4 bits, nearest" is what
rounding to nearest with plain ranges gives. Targets: int8 loses at most 0.2 points, 4-bit weights at most 1.0.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cifar_task
import numpy as np
import torch
from quantization_rows import File, by_nncf, by_ort_static, lowered, table
from torch import Tensor, nn

import sizewise
from sizewise.graph.trace import eval_copy
from sizewise.pipeline.apply import make_technique, run_technique
from sizewise.pipeline.export import find_runtime
from sizewise.protocols import Context, Inputs

EXAMPLE = Inputs((torch.zeros(1, 3, 32, 32),))
WANTED = {"sizewise int8": 0.002, "sizewise 4-bit weights": 0.01}


def main() -> int:
    """Quantize, score and time; exit code 1 when ours misses a target."""
    with np.load(cifar_task.FOLDER / "cifar10_train_test_jpeg.npz") as archive:
        calibration = [Inputs((x,)) for x, _ in cifar_task.pictures(archive, "train", 0, 512)]
        test = cifar_task.pictures(archive, "test", 0, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    whole, folder = cifar_task.published(56), Path(tempfile.mkdtemp())
    files, seconds = {"float": lowered(whole, EXAMPLE, folder / "float.onnx")}, {}
    for name, make in _ours(whole, calibration).items():
        begin = time.perf_counter()
        module = make()
        seconds[name] = time.perf_counter() - begin
        files[name] = lowered(module, EXAMPLE, folder / f"{len(files)}.onnx")
    singles = [Inputs((row[None],)) for inputs in calibration for row in inputs.args[0]]
    files["onnxruntime int8"] = by_ort_static(files["float"], singles, folder / "ort.onnx")
    nncf = by_nncf(files["float"], singles[:300], folder / "nncf.onnx")
    files |= {"nncf int8": nncf} if nncf is not None else {}
    right = {name: _accuracy(file, test) for name, file in files.items()}
    table(files, {name: f"{100 * value:.2f} %" for name, value in right.items()}, EXAMPLE, seconds)
    lost = {name: right["float"] - right[name] for name in WANTED}
    met = all(lost[name] <= allowed + 1e-9 for name, allowed in WANTED.items())
    said = [f"{name} lost {100 * value:.2f} points (at most {100 * WANTED[name]:.1f})" for name, value in lost.items()]
    print(f"{'ok  ' if met else 'FAIL'} {', '.join(said)}")
    return int(not met)


def _ours(whole: nn.Module, calibration: list[Inputs]) -> dict[str, Callable[[], nn.Module]]:
    batches = [inputs.args[0] for inputs in calibration]
    runtime = find_runtime("onnxruntime")
    context = Context(EXAMPLE, calibration, runtime.scheme)
    plain = make_technique("int8_static", {"weight_bits": 4, "ranges": "minmax", "rounding": "nearest", "equalize": False})
    return {
        "sizewise int8": lambda: sizewise.quantize_model(whole, example_inputs=EXAMPLE, calibration=batches),
        "sizewise 4-bit weights": lambda: sizewise.quantize_model(
            whole, "int4", scheme="static", example_inputs=EXAMPLE, calibration=batches
        ),
        "4-bit weights, nearest": lambda: run_technique(plain, eval_copy(whole), context)[0],
    }


def _accuracy(file: File, test: list[tuple[Tensor, Tensor]]) -> float:
    return float(torch.cat([(file.runner(Inputs((x,)))[0].argmax(1) == y).float() for x, y in test]).mean())


if __name__ == "__main__":
    sys.exit(main())
