"""Rows of a quantization bench: files of one model in several precisions, by us and by others, scored and timed side by side."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sizewise.pipeline.export import find_runtime
from sizewise.profile.timing import time_interleaved
from sizewise.protocols import Inputs, Runner
from sizewise.types import Interval

__all__ = ["File", "by_nncf", "by_ort_dynamic", "by_ort_static", "lowered", "speeds", "table"]

ROUNDS, BLOCK_S = 21, 0.05


@dataclass(frozen=True)
class File:
    """An ONNX file, loaded back from disk."""

    path: Path
    runner: Runner

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    @staticmethod
    def at(path: Path) -> "File":
        """Load it with as many threads as torch uses."""
        return File(path, find_runtime("onnxruntime").load(path, threads=torch.get_num_threads()))


def lowered(module: nn.Module, example: Inputs, path: Path) -> File:
    """A module's file as Sizewise ships it."""
    find_runtime("onnxruntime").lower(module, example, path)
    return File.at(path)


def by_ort_static(plain: File, batches: Sequence[Inputs], path: Path, method: str = "MinMax") -> File:
    """ONNX Runtime's own static quantization: QDQ, unsigned activations, int8 weights per channel."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_suffix(".pre.onnx")
    with _Silent():
        quant_pre_process(str(plain.path), str(ready), skip_symbolic_shape=True)
        q.quantize_static(
            str(ready),
            str(path),
            _Reader(plain, batches),
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=getattr(q.CalibrationMethod, method),
        )
    return File.at(path)


def by_ort_dynamic(plain: File, path: Path) -> File:
    """ONNX Runtime's own dynamic quantization, per channel."""
    from onnxruntime import quantization as q

    with _Silent():
        q.quantize_dynamic(str(plain.path), str(path), per_channel=True, weight_type=q.QuantType.QInt8)
    return File.at(path)


def by_nncf(plain: File, batches: Sequence[Inputs], path: Path, *, transformer: bool = False) -> File | None:
    """NNCF's post-training quantization of the ONNX file; None where it cannot do it, or its file does not run."""
    import nncf
    import onnx

    feeds = [_feed(plain, inputs) for inputs in batches]
    with _Silent():
        try:
            kind = nncf.ModelType.TRANSFORMER if transformer else None
            done = nncf.quantize(onnx.load(plain.path), nncf.Dataset(feeds), subset_size=len(feeds), model_type=kind)
            onnx.save(done, path)
            file = File.at(path)
            file.runner(batches[0])  # MobileNetV2's: "input zero point must be a scalar"
        except Exception as error:  # noqa: BLE001  # a peer that fails is a row without figures
            print(f"nncf failed: {type(error).__name__}: {str(error)[:200]}")
            return None
    return file


class _Reader:
    """Batches as ONNX Runtime's calibration reads them."""

    def __init__(self, plain: File, batches: Sequence[Inputs]) -> None:
        self._feeds = iter([_feed(plain, inputs) for inputs in batches])

    def get_next(self) -> dict[str, Any] | None:
        """The next one."""
        return next(self._feeds, None)


def _feed(plain: File, inputs: Inputs) -> dict[str, Any]:
    return plain.runner._feed(inputs)  # type: ignore[attr-defined]


def speeds(files: Mapping[str, File], example: Inputs) -> Callable[[str, str], Interval]:
    """Latency of one file over that of another, all timed in the same rounds."""
    timed = time_interleaved({name: file.runner.prepare(example) for name, file in files.items()}, rounds=ROUNDS, block_s=BLOCK_S)
    return timed.ratio


def table(
    files: Mapping[str, File], scores: Mapping[str, str], example: Inputs, seconds: Mapping[str, float]
) -> Callable[[str, str], Interval]:
    """Print a row per file: scores, size, latency over that of the first, share of MACs in integer kernels; gives the ratios."""
    ratio, first = speeds(files, example), next(iter(files))
    runtime = find_runtime("onnxruntime")
    for name, file in files.items():
        faster = ratio(first, name)
        found = runtime.executed(file.path, example, threads=torch.get_num_threads())
        share = f"{100 * found.share:3.0f} % of MACs as integers" if found is not None else ""
        took = f"{seconds[name]:5.1f} s" if name in seconds else ""
        print(
            f"{name:28} {scores.get(name, ''):28} {file.size / 1e6:7.3f} MB  {faster.value:.2f} x "
            f"[{faster.low:.2f}, {faster.high:.2f}] faster  {share}  {took}"
        )
    return ratio


class _Silent:
    """Peers talk; here only rows are wanted."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)

    def __exit__(self, *details: object) -> None:
        logging.disable(logging.NOTSET)
        self._warnings.__exit__(None, None, None)
