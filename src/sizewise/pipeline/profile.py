"""What a model costs on a device: counted, and timed here or predicted for elsewhere."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sizewise.data.batches import as_inputs
from sizewise.devices.loader import load_device
from sizewise.errors import SizewiseError, UnsupportedModel
from sizewise.evaluate.scoring import module_call
from sizewise.graph.trace import eval_copy, is_graph, tensors_in
from sizewise.pipeline.calibrate import calibrated
from sizewise.pipeline.export import find_runtime
from sizewise.profile.attribution import with_measured, with_predicted
from sizewise.profile.fitting import misfits
from sizewise.profile.roofline import Prediction, predict
from sizewise.profile.static import Analysis, analyse
from sizewise.profile.timing import threads, time_interleaved
from sizewise.protocols import Inputs, Runtime
from sizewise.types import Cost, Device, ModelProfile

__all__ = ["profile_model", "profile_models"]

ROUNDS = 11


def profile_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    device: str | Device | None = "local",
    runtime: str | Runtime = "onnxruntime",
    name: str = "model",
) -> ModelProfile:
    """What one forward pass on the example inputs costs, in total and per layer.

    Parameters, MACs (one MAC is one multiply-accumulate, two FLOPs), bytes of weights and activations, and peak memory are
    counted on the exported graph (see `Cost`). Latency is that of the float file: measured with `runtime` on the local
    device, predicted by a roofline for any other. The model is not changed.

    Args:
        model: any module.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs; its batch is the one counted.
        device: a device's name, a `.toml` file of your own, or None for counts alone, which is faster.
        runtime: what executes the file.
        name: for reports.

    Returns:
        A `Cost` with the name, the roofline's prediction, and why the device cannot run the model if it cannot.

    Raises:
        PreconditionError: the model fails on the example inputs.
        UnknownName: no such device or runtime.
        UsageError: a device file that cannot be read.
    """
    found = find_runtime(runtime)
    place = load_device(device) if isinstance(device, str) else device
    return profile_models({name: (model, as_inputs(example_inputs))}, place, found)[0]


def profile_models(models: Mapping[str, tuple[nn.Module, Inputs]], device: Device | None, runtime: Runtime) -> tuple[ModelProfile, ...]:
    """Several models on one device, in order; on the local one their files are timed side by side in the same rounds.

    Raises:
        PreconditionError: a model fails on its inputs; says which.
    """
    analyses = {}
    for name, (model, inputs) in models.items():
        try:
            analyses[name] = analyse(model, inputs)
        except SizewiseError as error:
            error.where = name if error.where is None else f"{name}, {error.where}"
            raise
    if device is None:
        return tuple(_named(analyses[name].cost, name, inputs) for name, (_, inputs) in models.items())
    device = calibrated(device, runtime)
    predictions = {name: _prediction(found, device) for name, found in analyses.items()}
    if device.how == "measured":
        costs = _measured(models, analyses, device, runtime)
    else:
        costs = {name: _with_prediction(analyses[name].cost, found) for name, found in predictions.items()}
    return tuple(_placed(costs[name], analyses[name], predictions[name], name, models[name][1], device) for name in models)


def _with_prediction(cost: Cost, prediction: Prediction | None) -> Cost:
    if prediction is not None:
        return with_predicted(cost, prediction)
    return replace(cost, notes=(*cost.notes, "no prediction without the exported graph"))


def _prediction(analysis: Analysis, device: Device) -> Prediction | None:
    assert device.rates is not None
    return predict(analysis.operators, device.rates) if analysis.operators else None


def _placed(cost: Cost, analysis: Analysis, prediction: Prediction | None, name: str, inputs: Inputs, device: Device) -> ModelProfile:
    total = prediction.total if prediction is not None else None
    return replace(_named(cost, name, inputs), predicted_s=total, misfits=misfits(cost, analysis.operators, device))


def _named(cost: Cost, name: str, inputs: Inputs) -> ModelProfile:
    shapes = tuple(f"{'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}" for t in tensors_in(inputs))
    return ModelProfile(**{f.name: getattr(cost, f.name) for f in fields(Cost)}, name=name, inputs=shapes)


def _measured(
    models: Mapping[str, tuple[nn.Module, Inputs]], analyses: Mapping[str, Analysis], device: Device, runtime: Runtime
) -> dict[str, Cost]:
    """Latency of the files on the runtime, split by its profiler; of the torch module where there is no such file."""
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    kernels: dict[str, dict[tuple[str, int], float]] = {}
    with tempfile.TemporaryDirectory() as folder, threads(device.threads):
        for index, (name, (model, inputs)) in enumerate(models.items()):
            path, twin = Path(folder) / f"{index}-{runtime.file_name}", model if is_graph(model) else eval_copy(model)
            try:
                runtime.lower(twin, inputs, path, named=True)
                calls[name] = runtime.load(path, threads=device.threads).prepare(inputs)
                kernels[name] = runtime.layer_seconds(path, inputs, threads=device.threads) if analyses[name].operators else {}
            except UnsupportedModel as error:
                failed[name] = f"{runtime.name} cannot run it ({error.what}): the latency is the torch module's, not split over layers"
                calls[name] = partial(module_call(twin), inputs)
        timed = time_interleaved(calls, rounds=ROUNDS, block_s=0.02)
    costs = {}
    for name, analysis in analyses.items():
        if name in failed:
            costs[name] = replace(analysis.cost, latency_s=timed.latency(name), notes=(*analysis.cost.notes, failed[name]))
        else:
            costs[name] = with_measured(analysis.cost, analysis.operators, timed.latency(name), kernels[name])
    return costs
