"""`sizewise fit` of EfficientNet-Lite0 with smaller inputs allowed, beside ONNX Runtime's int8, NNCF, and Torch-Pruning before int8.

    python bench/fit_efficientnet.py [folder of the run]

Every third of the 600 photos calibrates, without labels; what is shrunk, or sees smaller pictures, learns from the whole model on
random parts of these 200, without labels, too. The other 400 judge, with labels, both while searching and in the end: there are no
others, so that the chosen file's drop is one that was looked for (a test split would say more). Target: at least 1.3 times as fast as
ONNX Runtime's fastest int8 file within 1.5 points.
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from prune_efficientnet import BATCH, CALIBRATION, EXAMPLE, _cut, _reestimated, photos_and_labels, pixels_and_labels, published
from quantization_rows import by_nncf, by_ort_static, lowered
from searched_rows import Peer, chosen_file, compare, folder, racing, score, searched
from torch import Tensor
from torch.nn import functional as F

import sizewise
from sizewise.protocols import Inputs
from sizewise.types import Budget

SIZES = (192,)
DROP, WANTED, TIME, RECOVERY = 1.5, 1.3, "30m", "4m"
TRAINED, SMALLEST = 20, 0.35  # photos of a batch; share of a photo's area that a random part has at least


class Parts:
    """Shuffled batches of random parts of the photos that calibrate, at the model's size, some flipped, by torch's global generator."""

    def __init__(self) -> None:
        self.pixels = pixels_and_labels()[0][:CALIBRATION]

    def __len__(self) -> int:
        return len(self.pixels) // TRAINED

    def __iter__(self) -> Iterator[Tensor]:
        for rows in torch.randperm(len(self.pixels)).split(TRAINED):
            yield (torch.cat([_part(photo) for photo in self.pixels[rows]]) - 127) / 128


def _part(photo: Tensor) -> Tensor:
    side = int(photo.shape[-1] * math.sqrt(float(torch.empty(1).uniform_(SMALLEST, 1))))
    down, right = torch.randint(0, photo.shape[-1] - side + 1, (2,)).tolist()
    size = EXAMPLE.args[0].shape[-1]
    cut = F.interpolate(photo[None, :, down : down + side, right : right + side].float(), (size, size), mode="bilinear", antialias=True)
    return cut.flip(3) if float(torch.rand(1)) < 0.5 else cut


def main() -> int:
    """Search, make the peers' files, compare; exit code 1 when the target is missed."""
    photos, labels = photos_and_labels()
    judging = list(zip(photos[CALIBRATION:].split(BATCH), labels[CALIBRATION:].split(BATCH), strict=True))
    calibration = list(photos[:CALIBRATION].split(BATCH))
    task = sizewise.Task(
        {"lite0": published()},
        EXAMPLE,
        train=Parts(),
        calibration=calibration,
        validation=judging,
        resize=SIZES,
        reference="lite0",
        name="photos",
    )
    result = searched(task, Budget(max_drop=f"{DROP} %"), folder("fit-efficientnet"), recover=RECOVERY, time_limit=TIME)
    data = [(Inputs((x,)), y) for x, y in judging]
    where = Path(tempfile.mkdtemp())
    plain = lowered(published(), EXAMPLE, where / "float.onnx")
    singles = [Inputs((row[None],)) for x in calibration for row in x]
    files = {
        f"onnxruntime {method}": by_ort_static(plain, singles, where / f"{method}.onnx", method) for method in ("MinMax", "Percentile")
    }
    if (nncf := by_nncf(plain, singles, where / "nncf.onnx")) is not None:
        files["nncf"] = nncf
    for share in (0.05, 0.1):
        cut = lowered(_reestimated(_cut(published(), share), calibration), EXAMPLE, where / f"cut{share}.onnx")
        files[f"torch-pruning {100 * share:.0f} %, onnxruntime"] = by_ort_static(cut, singles, where / f"cut{share}.int8.onnx")
    peers = {name: Peer(file, score(file, data)) for name, file in files.items()}
    chosen = chosen_file(result)
    print(f"{result.chosen.plan.scale}: {result.chosen.plan.label}; {racing(result)}")
    return int(not compare(Peer(plain, score(plain, data)), Peer(chosen, score(chosen, data)), peers, EXAMPLE, DROP, WANTED))


if __name__ == "__main__":
    sys.exit(main())
