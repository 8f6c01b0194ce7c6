"""Rows of a compression bench: what a model takes on disk in the ways that people know, and in ours, loaded back from there."""

import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import sizewise
from sizewise.data.model_size import float_bytes
from sizewise.pipeline.export import find_runtime
from sizewise.protocols import Inputs

__all__ = ["Stored", "compressed", "known_sizes", "table"]


@dataclass(frozen=True)
class Stored:
    """A model as it came back from its file."""

    module: nn.Module
    size: int
    seconds: float


def compressed(make: Callable[[], nn.Module], whole: nn.Module, example: Inputs, path: Path) -> Stored:
    """Make a compressed module, save it, and load it back from disk."""
    begin = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - begin
    for note in made.compression.notes:
        print(f"  {note}")
    sizewise.save_compressed(made, path)
    back = sizewise.load_compressed(path, whole, example.args[0] if example.args else dict(example.kwargs or {}))
    return Stored(back, path.stat().st_size, seconds)


def known_sizes(whole: nn.Module, quantized: nn.Module, example: Inputs, folder: Path) -> dict[str, int]:
    """Bytes of the model in float32, as float16 in a zip, and as an int8 ONNX file, plain and in a zip."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in whole.state_dict().items()}
    save_file({name: value.contiguous().clone() for name, value in half.items()}, folder / "half.safetensors")
    find_runtime("onnxruntime").lower(quantized, example, folder / "int8.onnx")
    return {
        "float32": float_bytes(whole),
        "float16 + zip": _zipped(folder / "half.safetensors"),
        "int8 ONNX": (folder / "int8.onnx").stat().st_size,
        "int8 ONNX + zip": _zipped(folder / "int8.onnx"),
    }


def _zipped(path: Path) -> int:
    packed = path.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(path, path.name)
    return packed.stat().st_size


def table(sizes: Mapping[str, int], scores: Mapping[str, str], seconds: Mapping[str, float]) -> None:
    """Print a row per form: score, bytes, and their share of those in float32."""
    whole = sizes["float32"]
    for name, size in sizes.items():
        took = f"{seconds[name]:6.1f} s" if name in seconds else ""
        print(f"{name:26} {scores.get(name, ''):28} {size / 1e3:10.1f} kB  {size / whole:.4f} of float32  {took}")
    print(f"{torch.get_num_threads()} threads")
