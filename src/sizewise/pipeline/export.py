"""Write a module as one file for a runtime, and check that the file computes what the module computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sizewise import registry
from sizewise.data.batches import as_inputs
from sizewise.errors import ParityError, UsageError
from sizewise.evaluate.scoring import Split, measure_parity, module_call
from sizewise.files import replacing
from sizewise.graph.trace import eval_copy, is_graph
from sizewise.protocols import Runtime
from sizewise.types import Artefact, Parity

__all__ = ["check_parity", "export_model", "find_runtime"]


def find_runtime(runtime: str | Runtime) -> Runtime:
    """A runtime by name, or the object itself.

    Raises:
        UnknownName: no runtime of that name.
    """
    if isinstance(runtime, str):
        found: Runtime = registry.get("runtimes", runtime)()
        return found
    return runtime


def export_model(model: nn.Module, example_inputs: Any, path: str | Path, runtime: str | Runtime = "onnxruntime") -> Artefact:
    """Write `model` (float, pruned or quantized) as one file and check it against the module on the example inputs.

    Args:
        model: any module that torch can export; it is not changed.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs.
        path: the file to write; it appears only when it is whole and checked. An existing file is replaced.
        runtime: what will execute the file.

    Raises:
        UnsupportedModel: torch or the runtime cannot export it.
        ParityError: the file computes something else.
        PreconditionError: the module's outputs are not finite.
        UsageError: the path cannot be written, or the inputs are none.
    """
    chosen, target = find_runtime(runtime), Path(path)
    inputs, twin = as_inputs(example_inputs), eval_copy(model)
    if target.is_dir():
        raise UsageError("the path is a folder", where=str(target), wanted="a file name")
    try:
        with replacing(target) as draft:
            artefact = chosen.lower(twin, inputs, draft)
            runner = chosen.load(draft, threads=torch.get_num_threads())
            parity = measure_parity(module_call(twin), runner, Split("example_inputs", [(inputs,)]))
            check_parity(parity, chosen, quantized=is_graph(twin), where=str(target))
    except OSError as error:
        raise UsageError("the file cannot be written", where=str(target), got=error.strerror or str(error)) from error
    return replace(artefact, path=target.name)


def check_parity(parity: Parity, runtime: Runtime, *, quantized: bool, where: str) -> None:
    """Refuse a file that is further from its module than the runtime's tolerance.

    Raises:
        ParityError: says how far and how far is allowed.
    """
    allowed = runtime.tolerance(quantized=quantized) * max(parity.output_scale, 1e-6)
    if not parity.mean_abs <= allowed:
        raise ParityError(
            "the file does not compute what the module computes",
            where=where,
            got=f"mean difference {parity.mean_abs:.3g}, largest {parity.max_abs:.3g}",
            wanted=f"a mean difference of at most {allowed:.3g}",
        )
