"""The built-in task: scikit-learn's 1797 handwritten digits, three scales of a small ResNet and of a small MobileNet.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (the copy inside scikit-learn).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sizewise.errors import MissingExtra
from sizewise.tasks.task import Task, Untrained, untrained
from sizewise.zoo.mobilenet import MobileNetV2
from sizewise.zoo.resnet import ResNet

__all__ = ["make_task"]

SPLIT_SEED = 0
TRAIN, VALIDATION = 897, 400  # the remaining 500 are the test split


class ShiftedBatches:
    """Training batches, reshuffled at every reading, each batch moved by up to one pixel.

    Draws from torch's global generator, as a shuffling DataLoader does, so that whoever seeds it repeats the sequence.

    Attributes:
        labels: class of every picture, in the order that `subset` counts in.
    """

    def __init__(self, pictures: Tensor, labels: Tensor, batch: int) -> None:
        self.pictures, self.labels, self.batch = pictures, labels, batch

    def subset(self, indices: Sequence[int]) -> "ShiftedBatches":
        """The same batches of some of the pictures, as many in one batch as leaves few of them out of a reading."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        batches = max(1, round(len(rows) / self.batch))
        return ShiftedBatches(self.pictures[rows], self.labels[rows], len(rows) // batches)

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        for start in range(0, len(self) * self.batch, self.batch):
            chosen = order[start : start + self.batch]
            padded = F.pad(self.pictures[chosen], (1, 1, 1, 1))
            top, left = (int(v) for v in torch.randint(0, 3, (2,)))
            yield padded[:, :, top : top + 8, left : left + 8], self.labels[chosen]


def _resnet(width: int) -> nn.Module:
    return ResNet((1, 1, 1), (width, 2 * width, 4 * width), classes=10, in_channels=1)


def _mobilenet(width: float) -> nn.Module:
    setting = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 48, 2, 2))
    return MobileNetV2(width, 10, 1, setting, stem=24, stem_stride=1, last=128, dropout=0.1)


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", where="task 'digits'") from error
    raw = load_digits()
    pictures = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    return pictures, torch.tensor(raw.target, dtype=torch.long)


def _fixed_batches(pictures: Tensor, labels: Tensor, batch: int = 100) -> list[tuple[Tensor, Tensor]]:
    return [(pictures[i : i + batch], labels[i : i + batch]) for i in range(0, len(labels), batch)]


def make_task(epochs: int = 20) -> Task:
    """Digits as a task: 897 training, 400 validation and 500 test pictures of 8x8, seconds of training per scale.

    Args:
        epochs: passes over the training pictures per scale.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    pictures, labels = _digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    first, second, third = torch.tensor_split(order, (TRAIN, TRAIN + VALIDATION))
    models: dict[str, Untrained] = {}
    for name, width in (("resnet-l", 32), ("resnet-m", 16), ("resnet-s", 8)):
        models[name] = untrained(partial(_resnet, width), epochs=epochs, lr=4e-3)
    for name, scale in (("mobilenet-l", 1.5), ("mobilenet-m", 1.0), ("mobilenet-s", 0.5)):
        models[name] = untrained(partial(_mobilenet, scale), epochs=epochs, lr=4e-3)
    return Task(
        models=models,
        example_inputs=pictures[:1],
        train=ShiftedBatches(pictures[first], labels[first], 64),
        calibration=_fixed_batches(pictures[first][:256], labels[first][:256]),
        validation=_fixed_batches(pictures[second], labels[second]),
        test=_fixed_batches(pictures[third], labels[third]),
        metric="accuracy",
        reference="resnet-l",  # fixed beforehand: the model one would ship without asking how large it must be
        name="digits",
    )
