"""Recovery of the published ResNet-56 for CIFAR-10 after half of its MACs were pruned: one epoch of distillation.

    python bench/recover_resnet56.py [share of the training pictures, 1 by default] [test pictures, 10000 by default]

Pruning is calibrated on 1,024 training pictures without their labels; training shifts the pictures by up to 4 pixels and flips
them, and its labels only show that the outputs are class scores. Batches are small, since many short steps won more than few long ones
in the same time (88.46 % with 64). Printed: accuracy on the test pictures of the whole, the pruned
and the recovered model, and the seconds that pruning and recovery took. Target, for all pictures: at least 88.5 %.
"""

import io
import sys
import time
from collections.abc import Iterator

import cifar_task
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sizewise
from sizewise.profile.static import static_cost
from sizewise.protocols import Inputs

EXAMPLE = Inputs((torch.zeros(1, 3, 32, 32),))
WANTED, BATCH, CALIBRATION, SHIFT = 0.885, 32, 1024, 4


class Pictures:
    """Shuffled batches of training pictures, each shifted and flipped at random, by torch's global generator."""

    def __init__(self, archive: np.lib.npyio.NpzFile, share: float, batch: int = BATCH) -> None:
        self.batch = batch
        jpg, offsets = archive["jpg_train"].tobytes(), archive["off_train"]
        count = int(share * len(archive["y_train"]))
        images = [np.asarray(Image.open(io.BytesIO(jpg[offsets[i] : offsets[i + 1]]))) for i in range(count)]
        self.pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(archive["y_train"][:count].astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.labels))[: len(self) * self.batch].split(self.batch):
            yield _varied(self.pixels[rows]), self.labels[rows]


def _varied(pixels: Tensor) -> Tensor:
    x = (pixels.float() / 255 - cifar_task.MEAN[:, None, None]) / cifar_task.STD[:, None, None]
    n, size = len(x), x.shape[-1]
    padded = F.pad(x, (SHIFT,) * 4)  # zeros are the mean colour
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, n, 1)) + torch.arange(size)
    cut = padded[torch.arange(n)[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
    return torch.where((torch.rand(n) < 0.5)[:, None, None, None], cut.flip(3), cut).contiguous()


def main() -> int:
    """Prune, recover and score; exit code 1 when all pictures were asked for and the target is missed."""
    share, tests = (float(sys.argv[1]) if len(sys.argv) > 1 else 1.0), (int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
    with np.load(cifar_task.FOLDER / "cifar10_train_test_jpeg.npz") as archive:
        calibration = [x for x, _ in cifar_task.pictures(archive, "train", 0, CALIBRATION)]
        test, train = cifar_task.pictures(archive, "test", 0, tests), Pictures(archive, share)
    whole, begin = cifar_task.published(56), time.perf_counter()
    pruned = sizewise.prune_model(whole, 0.5, example_inputs=EXAMPLE, calibration=calibration)
    between = time.perf_counter()
    recovered = sizewise.recover(pruned, whole, train, progress=True)
    seconds = {"whole": 0.0, "pruned": between - begin, "recovered": time.perf_counter() - between}
    for name, model in (("whole", whole), ("pruned", pruned), ("recovered", recovered)):
        accuracy, macs = _accuracy(model, test), static_cost(model, EXAMPLE).macs
        print(f"{name:10} {100 * accuracy:6.2f} %  {macs / 1e6:6.1f} M MACs  {seconds[name]:6.1f} s", flush=True)
    print("; ".join(recovered.recovery.notes))
    print(f"{'ok  ' if accuracy >= WANTED else 'FAIL'} wanted {100 * WANTED} % with all pictures")
    return int(accuracy < WANTED and share == 1)


def _accuracy(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in test]
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    sys.exit(main())
