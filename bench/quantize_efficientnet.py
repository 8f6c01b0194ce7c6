"""Int8 of EfficientNet-Lite0, and of the zoo's ResNet-50 and MobileNetV2, beside ONNX Runtime's own quantizer and NNCF.

    python bench/quantize_efficientnet.py

Every third of the 600 photos calibrates, without labels; top-1 is on the other 400 (probably training pictures: good for comparing a model
with its shrunk self, no ImageNet accuracy). How often the classes agree with the float model's, and the change of the logits as a
share of their variance, tell more than 400 right or wrong answers do. ResNet-50 and MobileNetV2 have random weights, and only their
latency counts. All files of a model are timed in the same rounds, with one picture. Targets: EfficientNet-Lite0 loses at most 0.5
points and takes at most 1.05 times as long as ONNX Runtime's best quantized file; the others take at most 1.05 times as long.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from prune_efficientnet import BATCH, CALIBRATION, EXAMPLE, photos_and_labels, published
from quantization_rows import File, by_nncf, by_ort_static, lowered, table
from torch import Tensor, nn

import sizewise
from sizewise.protocols import Inputs
from sizewise.zoo.catalog import open_entry

WANTED_DROP, WANTED_TIMES = 0.005, 1.05
METHODS = ("MinMax", "Percentile")


def main() -> int:
    """Quantize, score and time; exit code 1 when ours misses a target."""
    photos, labels = photos_and_labels()
    calibration = [Inputs((x,)) for x in photos[:CALIBRATION].split(BATCH)]
    test = photos[CALIBRATION:], labels[CALIBRATION:]
    met = [_model("efficientnet-lite0", published(), calibration, test)]
    few = [Inputs((x,)) for x in photos[:BATCH].split(10)]
    for name in ("resnet50", "mobilenet_v2"):
        met.append(_model(name, open_entry(name)[0].eval(), few, None))
    return int(not all(met))


def _model(name: str, module: nn.Module, calibration: list[Inputs], test: tuple[Tensor, Tensor] | None) -> bool:
    print(name)
    folder = Path(tempfile.mkdtemp())
    begin = time.perf_counter()
    ours = sizewise.quantize_model(module, example_inputs=EXAMPLE, calibration=calibration)
    seconds = {"sizewise": time.perf_counter() - begin}
    files = {"float": lowered(module, EXAMPLE, folder / "float.onnx"), "sizewise": lowered(ours, EXAMPLE, folder / "ours.onnx")}
    singles = [Inputs((row[None],)) for inputs in calibration for row in inputs.args[0]]
    for method in METHODS if test is not None else METHODS[:1]:
        files[f"onnxruntime {method}"] = by_ort_static(files["float"], singles, folder / f"{method}.onnx", method)
    nncf = by_nncf(files["float"], singles, folder / "nncf.onnx")
    files |= {"nncf": nncf} if nncf is not None else {}
    logits = {name: _logits(file, test[0]) for name, file in files.items()} if test is not None else {}
    right = {name: float((found.argmax(1) == test[1]).float().mean()) for name, found in logits.items()} if test is not None else {}
    said = {name: f"{100 * right[name]:.2f} %  {_beside(found, logits['float'])}" for name, found in logits.items()}
    ratio = table(files, said, EXAMPLE, seconds)
    slower = max(ratio("sizewise", name).value for name in files if name.startswith("onnxruntime"))
    met = slower <= WANTED_TIMES and (not right or right["float"] - right["sizewise"] <= WANTED_DROP)
    lost = f"lost {100 * (right['float'] - right['sizewise']):.2f} points; " if right else ""
    print(f"{'ok  ' if met else 'FAIL'} {lost}{slower:.2f} times the latency of ONNX Runtime's fastest\n")
    return met


def _logits(file: File, photos: Tensor) -> Tensor:
    return torch.cat([file.runner(Inputs((x,)))[0] for x in photos.split(BATCH)])


def _beside(found: Tensor, whole: Tensor) -> str:
    """How often the classes agree with float ones, and the squared change of the logits as a share of their variance."""
    agree = float((found.argmax(1) == whole.argmax(1)).float().mean())
    return f"agrees {100 * agree:.2f} %, change {float((found - whole).square().mean() / whole.var(0).mean()):.4f}"


if __name__ == "__main__":
    sys.exit(main())
