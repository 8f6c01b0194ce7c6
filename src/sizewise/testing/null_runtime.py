"""A runtime without a runtime: the whole pipeline runs, but nothing is exported and the torch module itself is executed.

The file holds a name; the module stays in this process. It keeps tests of the pipeline fast, and tells whether a failure
is the pipeline's or a real runtime's.
"""

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sizewise.errors import UsageError
from sizewise.files import sha256_of, write_text
from sizewise.graph.trace import eval_copy
from sizewise.protocols import Inputs
from sizewise.runtimes._schemes import U8S8
from sizewise.types import Artefact, Executed, LayerShape, Scheme

__all__ = ["NullRunner", "NullRuntime"]

_MODULES: dict[str, nn.Module] = {}


class NullRunner:
    """Calls the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """All output tensors in order."""
        with torch.inference_mode():
            return tuple(leaf for leaf in pytree.tree_leaves(inputs.call(self.module)) if isinstance(leaf, Tensor))

    def prepare(self, inputs: Inputs) -> Callable[[], object]:
        """A function that runs once on these inputs."""
        return lambda: self(inputs)


class NullRuntime:
    """Executes torch modules under the integer scheme of the default runtime; weights' bytes stand for the file's size."""

    name: ClassVar[str] = "null"
    file_name: ClassVar[str] = "model.null"
    channel_multiple: ClassVar[int] = 4
    scheme: ClassVar[Scheme | None] = U8S8

    def lower(self, model: nn.Module, example: Inputs, path: Path, *, named: bool = False) -> Artefact:
        """Keep a copy of the module and write a file that names it."""
        token = uuid4().hex
        _MODULES[token] = eval_copy(model)
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        write_text(path, json.dumps({"token": token, "bytes": size}))
        outputs = len(NullRunner(model)(example))
        return Artefact(
            runtime=self.name,
            path=path.name,
            sha256=sha256_of(path),
            size_bytes=size,
            inputs=tuple(f"input_{i}" for i in range(len(example.args) + len(example.kwargs or {}))),
            outputs=tuple(f"output_{i}" for i in range(outputs)),
            batch="dynamic",
        )

    def load(self, path: Path, *, threads: int) -> NullRunner:
        """The module that the file names.

        Raises:
            UsageError: it was made by another process.
        """
        token = json.loads(path.read_text(encoding="utf-8"))["token"]
        if token not in _MODULES:
            raise UsageError("the null runtime's file was made by another process", where=str(path))
        return NullRunner(_MODULES[token])

    def peak_memory(self, path: Path, example: Inputs, *, threads: int) -> int:
        """The bytes of the weights; no process is started."""
        size: int = json.loads(path.read_text(encoding="utf-8"))["bytes"]
        return size

    def layer_seconds(self, path: Path, example: Inputs, *, threads: int) -> dict[tuple[str, int], float]:
        """Nothing: it has no profiler."""
        return {}

    def kernel_seconds(self, shapes: Sequence[LayerShape], *, threads: int) -> list[float]:
        """A nanosecond for every product per row, position or step: nothing is run."""
        return [1e-9 * _products(shape) for shape in shapes]

    def executed(self, path: Path, example: Inputs, *, threads: int) -> Executed | None:
        """It cannot tell: torch simulates integers."""
        return None

    def tolerance(self, *, quantized: bool) -> float:
        """The same module: nothing but rounding."""
        return 1e-6

    def versions(self) -> dict[str, str]:
        """Nothing besides torch."""
        return {}

    def snippet(self, artefact: Artefact, inputs: Sequence[tuple[tuple[int, ...], str]]) -> str:
        """A comment."""
        return f"# {artefact.path} runs only inside the process that made it\n"


def _products(shape: LayerShape) -> int:
    weights = shape.out_channels * (shape.in_channels // shape.groups) * prod(shape.kernel)
    state = shape.out_channels**2 if shape.kind in ("gru", "lstm", "rnn") else 0
    return shape.batch * prod(shape.sides) * shape.directions * (weights + state)
