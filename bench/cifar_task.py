"""A task on real models: published ResNet-56 and ResNet-20 for CIFAR-10, for `sizewise fit bench/cifar_task.py ...`.

Needs the benchmark data (environment variable SIZEWISE_DATA, default ../shared/data) and `pip install "sizewise[bench]"`.
Validation is the first 3,000 of the test pictures, test the other 7,000; calibration is 512 of the training pictures.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sizewise
from sizewise.zoo.resnet import ResNet, resnet_cifar

FOLDER = Path(os.environ.get("SIZEWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def pictures(data: Any, part: str, start: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Decode some pictures of one part into normalized batches of 100."""
    jpg, offsets, labels = data[f"jpg_{part}"].tobytes(), data[f"off_{part}"], data[f"y_{part}"]
    images = [np.asarray(Image.open(io.BytesIO(jpg[offsets[i] : offsets[i + 1]]))) for i in range(start, start + count)]
    x = (torch.from_numpy(np.stack(images)).float() / 255 - MEAN) / STD
    x, y = x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[start : start + count].astype(np.int64))
    return [(x[i : i + 100], y[i : i + 100]) for i in range(0, count, 100)]


def published(depth: int) -> ResNet:
    """The checkpoint of one depth."""
    model = resnet_cifar(depth)
    model.load_state_dict(torch.load(FOLDER / f"resnet{depth}_cifar10_jpeg.pt", weights_only=True))
    return model.eval()


if not FOLDER.is_dir():
    raise FileNotFoundError(f"no benchmark data in {FOLDER}; set SIZEWISE_DATA")
with np.load(FOLDER / "cifar10_train_test_jpeg.npz") as archive:
    task = sizewise.Task(
        models={"resnet56": published(56), "resnet20": published(20)},
        example_inputs=torch.zeros(1, 3, 32, 32),
        calibration=pictures(archive, "train", 0, 512),
        validation=pictures(archive, "test", 0, 3000),
        test=pictures(archive, "test", 3000, 7000),
        reference="resnet56",
        name="cifar10",
    )
