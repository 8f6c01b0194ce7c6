"""Files of several models, lowered, loaded back and timed side by side."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sizewise.profile.timing import Timings, time_interleaved
from sizewise.protocols import Inputs, Runtime

__all__ = ["time_files"]


def time_files(models: Mapping[str, tuple[nn.Module, Inputs]], runtime: Runtime, threads: int, **timing: Any) -> Timings:
    """Time every model's file on its inputs, in the same rounds.

    Args:
        models: in inference mode, with the inputs of one call.
        runtime: what lowers and runs them.
        threads: per call.
        timing: options of `time_interleaved`.

    Raises:
        UnsupportedModel: a model that the runtime cannot lower.
    """
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, (model, inputs)) in enumerate(models.items()):
            path = Path(folder) / f"{index}-{runtime.file_name}"
            runtime.lower(model, inputs, path)
            calls[name] = runtime.load(path, threads=threads).prepare(inputs)
        return time_interleaved(calls, **timing)
