"""ONNX Runtime on the CPU: the default. One `.onnx` file; int8 as QDQ pairs that the runtime fuses to integer kernels."""

import itertools
import json
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sizewise.data.batches import examples_in
from sizewise.errors import InternalError, MissingExtra, UnsupportedModel, UsageError
from sizewise.files import replacing, sha256_of
from sizewise.graph.recurrent import recurrent_shapes
from sizewise.graph.trace import quiet, tensors_in, trace
from sizewise.protocols import Inputs
from sizewise.runtimes._onnx_coded import expand, translations
from sizewise.runtimes._onnx_registry import kept_registry
from sizewise.runtimes._onnx_static import integer_biases, pack_narrow
from sizewise.runtimes._onnx_tidy import drop_defaults, fold_pads, join_repeated
from sizewise.runtimes._onnxruntime_integers import executed
from sizewise.runtimes._onnxruntime_kernels import IDLE, YARDSTICK, file_of, parts
from sizewise.runtimes._onnxruntime_layers import layer_seconds, name_by_module, rename, with_inner
from sizewise.runtimes._schemes import U8S8
from sizewise.types import Artefact, Executed, LayerShape, Scheme

__all__ = ["RUNTIME", "OnnxRunner", "OnnxRuntime"]

_LARGEST = 2_000_000_000  # one protobuf message holds at most 2 GiB
PROFILE_S = 0.5
ROUNDS = 3  # of timing kernels: other work comes and goes, and no layer should have met it where another has not
KERNEL_RUNS = 20  # per round
QUIET = 0.25  # the share of a kernel's times below the one that counts: other work only ever adds to them
_LETTERS = string.ascii_letters
_SHORTEST_S = 5e-7  # of a kernel: below what the profiler's clock can tell


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnxruntime") from error
    return onnxruntime


class OnnxRunner:
    """One session with a fixed number of threads; files with a fixed batch are fed in pieces."""

    def __init__(self, path: Path, threads: int, profile_to: Path | None = None) -> None:
        ort = _ort()
        options = ort.SessionOptions()
        if profile_to is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise UnsupportedModel("onnxruntime cannot load the file", where=str(path), got=str(error)[:300]) from error
        self.inputs = [i.name for i in self.session.get_inputs()]
        shapes = [i.shape for i in self.session.get_inputs() if i.shape]
        self.batch: int | None = shapes[0][0] if shapes and isinstance(shapes[0][0], int) else None

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Run once; all outputs in order."""
        feed, n = self._feed(inputs), examples_in(inputs)
        if self.batch is None or self.batch == n:
            return tuple(torch.from_numpy(np.asarray(out)) for out in self.session.run(None, feed))
        pieces = [self._piece(feed, start, n) for start in range(0, n, self.batch)]
        return tuple(torch.from_numpy(np.concatenate(parts)[:n]) for parts in zip(*pieces, strict=True))

    def prepare(self, inputs: Inputs) -> Callable[[], object]:
        """A function that runs once on these inputs."""
        feed, run = self._feed(inputs), self.session.run
        return lambda: run(None, feed)

    def _piece(self, feed: dict[str, Any], start: int, n: int) -> list[Any]:
        assert self.batch is not None
        rows = [min(i, n - 1) for i in range(start, start + self.batch)]  # the last piece repeats the last example
        outputs: list[Any] = self.session.run(None, {name: value[rows] for name, value in feed.items()})
        return outputs

    def _feed(self, inputs: Inputs) -> dict[str, Any]:
        return _named_arrays(inputs, self.inputs)


def _named_arrays(inputs: Inputs, names: list[str]) -> dict[str, Any]:
    keywords = dict(inputs.kwargs or {})
    if keywords and not inputs.args and set(keywords) == set(names):
        return {name: np.ascontiguousarray(keywords[name].detach().cpu().numpy()) for name in names}
    leaves = tensors_in(inputs)
    if len(leaves) != len(names):
        raise UsageError("the file wants other inputs", got=f"{len(leaves)} tensors", wanted=f"{len(names)}: {', '.join(names)}")
    arrays = (np.ascontiguousarray(leaf.detach().cpu().numpy()) for leaf in leaves)
    return dict(zip(names, arrays, strict=True))


class OnnxRuntime:
    """Lower through torch's exporter, strip what only debugging needs, load with fixed threads."""

    name: ClassVar[str] = "onnxruntime"
    file_name: ClassVar[str] = "model.onnx"
    channel_multiple: ClassVar[int] = 8
    scheme: ClassVar[Scheme | None] = U8S8

    def lower(self, model: nn.Module, example: Inputs, path: Path, *, named: bool = False) -> Artefact:
        """Write one self-contained `.onnx` file.

        Args:
            model: in inference mode.
            example: inputs of one call.
            path: the file to write.
            named: keep in the file which module every node came from, for `layer_seconds`; half of a small int8 file is names.

        Raises:
            UnsupportedModel: torch cannot export it, an operator has no ONNX form, or it is too large for one file.
        """
        traced = trace(model, example)
        proto = _export(traced.program)
        _simplify(proto, named)
        if proto.ByteSize() > _LARGEST:
            raise UnsupportedModel("the model is too large for one ONNX file", got=f"{proto.ByteSize()} bytes", wanted="at most 2 GB")
        with replacing(path) as draft:
            draft.write_bytes(proto.SerializeToString(deterministic=True))
        return Artefact(
            runtime=self.name,
            path=path.name,
            sha256=sha256_of(path),
            size_bytes=path.stat().st_size,
            inputs=tuple(i.name for i in proto.graph.input),
            outputs=tuple(o.name for o in proto.graph.output),
            batch=traced.batch,
            notes=() if traced.batch == "dynamic" else (f"the model fixes its batch at {traced.batch}",),
        )

    def load(self, path: Path, *, threads: int) -> OnnxRunner:
        """Load the file from disk. The file itself says whether its batch is fixed."""
        return OnnxRunner(path, threads)

    def peak_memory(self, path: Path, example: Inputs, *, threads: int) -> int:
        """Peak growth of resident memory, in bytes, of a fresh process that loads the file and runs it five times.

        What Python, numpy and onnxruntime take before loading is not counted.
        """
        names = [i.name for i in _ort().InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()]
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "inputs.npz"
            np.savez(arrays, **_named_arrays(example, names))
            command = [sys.executable, "-m", "sizewise.runtimes._onnxruntime_memory", str(path), str(arrays), str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InternalError("the memory probe failed", where=str(path), got=done.stderr.strip()[-300:])
        return int(json.loads(done.stdout)["peak_growth_bytes"])

    def layer_seconds(self, path: Path, example: Inputs, *, threads: int) -> dict[tuple[str, int], float]:
        """Median seconds per call by module path and how-manieth operator of that module, by the runtime's own profiler.

        The profiler slows small kernels down, so the shares are to be trusted more than the seconds. The file must have been
        lowered with `named`; in another one nothing belongs to any module.
        """
        with tempfile.TemporaryDirectory() as folder:
            runner = OnnxRunner(path, threads, profile_to=Path(folder) / "layers")
            return _profiled(runner, runner._feed(example))

    def kernel_seconds(self, shapes: Sequence[LayerShape], *, threads: int) -> list[float]:
        """Seconds of every layer's kernel by itself, by the runtime's own profiler.

        What changes of memory layout around it take is not counted, nor what the profiler takes, which a kernel that does nothing
        tells. Agrees with the kernels of whole models within a few percent. Layers that do not fit one file are timed in turn, in
        rounds, each beside the same yardstick, so that other work on the machine does not make some look slower than others.

        Raises:
            UnsupportedModel: onnxruntime has no kernel for a layer.
        """
        split = list(parts(shapes))
        with tempfile.TemporaryDirectory() as folder:
            files = [_kernel_file([shapes[index] for index in part], Path(folder) / f"{place}.onnx") for place, part in enumerate(split)]
            rounds = [
                [_kernels(path, feed, threads, len(part)) for (path, feed), part in zip(files, split, strict=True)] for _ in range(ROUNDS)
            ]
        return _undisturbed(rounds)

    def executed(self, path: Path, example: Inputs, *, threads: int) -> Executed | None:
        """Which part of the file's arithmetic runs as integers, on the graph that the optimizer leaves; see `_onnxruntime_integers`."""
        return executed(_ort(), path, partial(_named_arrays, example), threads=threads)

    def tolerance(self, *, quantized: bool) -> float:
        """Mean difference to the torch module, as a share of the outputs' scale.

        Float differs by rounding only. Integer kernels round ties and accumulate differently from torch's simulation;
        one step of 1/255 per layer adds up.
        """
        return 0.1 if quantized else 1e-3

    def versions(self) -> dict[str, str]:
        """Versions of onnxruntime and onnx."""
        import onnx

        return {"onnxruntime": _ort().__version__, "onnx": onnx.__version__}

    def snippet(self, artefact: Artefact, inputs: Sequence[tuple[tuple[int, ...], str]]) -> str:
        """Five lines that run the file with onnxruntime and numpy alone."""
        pairs = zip(artefact.inputs, inputs, strict=True)
        feed = ", ".join(f'"{name}": np.zeros({shape!r}, "{dtype}")' for name, (shape, dtype) in pairs)
        return (
            "import numpy as np\n"
            "import onnxruntime as ort\n"
            f'session = ort.InferenceSession("{artefact.path}", providers=["CPUExecutionProvider"])\n'
            f"inputs = {{{feed}}}  # put your data here\n"
            "print(session.run(None, inputs)[0])\n"
        )


def _kernel_file(shapes: Sequence[LayerShape], path: Path) -> tuple[Path, dict[str, Any]]:
    """Layers and the yardstick, written as a file, and its inputs."""
    proto, feed = file_of([*shapes, YARDSTICK])
    path.write_bytes(proto.SerializeToString())
    return path, feed


def _kernels(path: Path, feed: dict[str, Any], threads: int, layers: int) -> list[float]:
    """Seconds of every layer of a file, and of the yardstick."""
    runner = OnnxRunner(path, threads, profile_to=path.with_suffix(""))
    found = layer_seconds(runner.session, feed, KERNEL_RUNS, warmup=3, quantile=QUIET)
    return [max(found[str(turn), 0] - found[IDLE, 0], _SHORTEST_S) for turn in range(layers + 1)]


def _undisturbed(rounds: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Seconds of all layers, from those by round and file, whose last is the yardstick's: medians of what they take beside it."""
    yardstick = float(np.median([part[-1] for found in rounds for part in found])) if rounds[0] else 0.0
    beside = [[seconds / part[-1] for part in found for seconds in part[:-1]] for found in rounds]
    return [yardstick * float(ratio) for ratio in np.median(beside, axis=0)]


def _profiled(runner: OnnxRunner, feed: dict[str, Any]) -> dict[tuple[str, int], float]:
    """Median seconds by module path and how-manieth operator, over as many calls as the time for it allows."""
    begin = time.perf_counter()
    runner.session.run(None, feed)
    runs = max(5, min(50, round(PROFILE_S / max(time.perf_counter() - begin, 1e-6))))
    return layer_seconds(runner.session, feed, runs, warmup=3)


def _export(program: Any) -> Any:
    try:
        with quiet(), recurrent_shapes(), kept_registry():
            exported = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=translations())
    except torch.onnx.errors.OnnxExporterError as error:
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise UnsupportedModel("the model has no ONNX form", got=lines[0][:300] if lines else None) from error
    assert exported is not None
    return exported.model_proto


def _simplify(proto: Any, named: bool) -> None:
    """Remove what only debugging needs (stack traces with local paths among it), and pool the way integer kernels do."""
    graph = proto.graph
    expand(proto)
    if named:
        name_by_module(graph)
    _means_to_pools(graph)
    fold_pads(graph)
    join_repeated(graph)
    integer_biases(graph)
    drop_defaults(graph)
    pack_narrow(graph)
    proto.doc_string = ""
    del proto.metadata_props[:]
    for part in with_inner(graph):
        _strip(part)
    if not named:
        for node in graph.node:
            node.name = ""
        _shorten_names(graph)


def _strip(graph: Any) -> None:
    for item in [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.value_info[:]


def _name(index: int) -> str:
    """A name of its own for every index, of as few letters and digits as it takes; the first is a letter."""
    name = _LETTERS[index % len(_LETTERS)]
    index //= len(_LETTERS)
    while index:
        index, digit = divmod(index - 1, len(_LETTERS) + 10)
        name += (_LETTERS + string.digits)[digit]
    return name


def _shorten_names(graph: Any) -> None:
    """Short names for all but the inputs, "output" or "output_0", … for the outputs: half of a small int8 file is names."""
    fixed = {item.name for item in graph.input}
    made = [item.name for item in graph.initializer] + [name for node in graph.node for name in node.output]
    read = Counter(name for part in with_inner(graph) for node in part.node for name in node.input)
    names = (name for name in map(_name, itertools.count()) if name not in fixed and not name.startswith("output"))
    often = sorted((name for name in dict.fromkeys(made) if name and name not in fixed), key=lambda name: -read[name])
    short = {name: next(names) for name in often}
    outputs = [o for o in graph.output if o.name in short]
    for index, output in enumerate(outputs):
        short[output.name] = "output" if len(outputs) == 1 else f"output_{index}"
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    rename(graph, short)


def _means_to_pools(graph: Any) -> None:
    """A mean over height and width that keeps both is a global average pool, which has an integer kernel; a mean has none."""
    from onnx import numpy_helper

    values = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in values:
            continue
        axes = sorted(numpy_helper.to_array(values[node.input[1]]).tolist())
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if keeps and axes in ([-2, -1], [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


RUNTIME = OnnxRuntime
