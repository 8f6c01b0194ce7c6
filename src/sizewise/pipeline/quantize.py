"""The front door of quantization: a module in, a module of fewer bits out."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sizewise.data.batches import check_loader
from sizewise.errors import UnknownName, UsageError
from sizewise.evaluate.metrics import Metric, find_metric
from sizewise.evaluate.scoring import Split, signed_quality
from sizewise.graph.trace import eval_copy
from sizewise.pipeline.apply import make_technique
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.front import make_context, run_shown
from sizewise.pipeline.saving import remember
from sizewise.profile.static import static_cost
from sizewise.protocols import Context, Progress, Runtime
from sizewise.tasks.task import Task
from sizewise.training.schedule import Length
from sizewise.types import Cost, Step
from sizewise.units import parse_bytes, parse_points, parse_seconds, parse_training

__all__ = ["DTYPES", "SCHEMES", "pick_scheme", "quantization_step", "quantize_model", "scheme_by_work", "scheme_for"]

Scheme = Literal["auto", "static", "dynamic", "weight_only"]
SCHEMES = get_args(Scheme)
_CONVOLUTIONS = ("conv", "conv1d", "pointwise", "depthwise")
DTYPES = ("int8", "int4", "mixed", "float16", "bfloat16")


def quantize_model(
    model: nn.Module,
    dtype: torch.dtype | str = torch.int8,
    *,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    scheme: Scheme = "auto",
    runtime: str | Runtime = "onnxruntime",
    group: int | None = None,
    size: str | int | None = None,
    latency: str | float | None = None,
    max_drop: str | float | None = None,
    validation: Iterable[Any] | None = None,
    metric: str | Metric | Callable[..., Tensor] = "accuracy",
    skip: Collection[str] = (),
    train: Iterable[Any] | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    learn: Literal["scales", "codes"] = "scales",
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool | Progress = False,
) -> nn.Module:
    """Give a model's weights, and where it helps its activations, fewer bits, without training unless train data are given.

    "static" makes convolutions and linear layers integers from input to output, with ranges from calibration data: for
    convolutional nets. "dynamic" makes linear layers integers and takes the range of their inputs at every call: for transformers; it
    needs no data. "weight_only" stores weights in fewer bits and computes in float: for any model, without data. "auto" takes static
    with calibration data where convolutions do most of the work, dynamic where linear layers do, and weight_only otherwise; recurrent
    layers and embeddings get int8 weights in all of them.

    With `train`, which is of static alone and makes "auto" take it, the integers are then trained for a while to do what the float model
    does: its outputs and what its blocks pass on are what is wanted, so that data need no targets.

    Args:
        model: any float module that torch can export; left as it is.
        dtype: `torch.int8`, `torch.float16`, `torch.bfloat16`, "int4", or "mixed": 8 and 4 bits, as `size` asks, or 8 bits
            and float, as `latency` allows.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs; the first calibration batch by default.
        calibration: a loader of inputs, as a task's; 128 to 512 examples suffice, targets are ignored.
        scheme: see above.
        runtime: where the model will run.
        group: inputs that share a scale; of weight_only "int4" alone, 64 by default.
        size: of "mixed": the weights of layers may take so many bytes, such as "200 kB".
        latency: of "mixed": as many layers stay float as it allows, those first whose integers change the outputs most per second that they
            save. A share of the latency of the float model's file, such as 0.6 or "60 %", or a time per call, such as "2 ms"; measured
            here, with the runtime, on the example inputs.
        max_drop: of static: layers that change the outputs most stay float until the metric on validation data drops by no more, such
            as "0.5 %". They are chosen before the training, where there is one.
        validation: a loader of batches with targets, for `max_drop`; in a training, what keeps the best of the states at every quarter
            and at the start. Without it these are judged by the outputs on calibration examples that were held back.
        metric: for `validation`, as for `sizewise.Task`.
        skip: module paths that stay float, with all that they hold.
        train: loader of batches: inputs, or (input, target); random augmentation is welcome here. It is calibration too where
            there is no other.
        epochs: passes over the train data, not necessarily whole; one where no length is given.
        minutes: of training, instead.
        learn: what is trained: "scales", of weights and activations, and biases, leaves the codes of weights as calibration chose them;
            "codes" trains weights too, which short trainings make worse.
        checkpoint: file that the training writes about once a minute and at its end; where it exists, training goes on from it.
        seed: of everything random.
        progress: whether to show on stderr what is being done, or where to report it.

    Returns:
        The quantized module, in inference mode: an exported graph that computes what the file will. `sizewise.export_model` writes
        that file, `sizewise.save_model` saves the module. Its attribute `quantization` says what was touched, what stayed float
        and why (`sizewise.types.Change`).

    Raises:
        UsageError: settings that cannot be meant together.
        UnknownName: no such dtype, scheme, metric or module to skip.
        PreconditionError: the model or the data cannot be used, or a limit cannot be kept.
        UnsupportedModel: torch cannot export the model, or nothing in it gains.
    """
    unused = validation is not None and max_drop is None and train is None
    if unused or (max_drop is not None and validation is None):
        raise UsageError("max_drop and validation go together", where="quantize_model", wanted="both or neither, unless train is given")
    kind, recovery = _dtype(dtype), _length(train, epochs, minutes, checkpoint)
    data = train if calibration is None else calibration
    context = make_context(model, example_inputs, data, runtime, seed, timed=latency is not None)
    chosen = scheme if scheme != "auto" else "static" if train is not None else pick_scheme(model, kind, context)
    step = quantization_step(
        kind, chosen, group=group, size=size, latency=latency, max_drop=max_drop, skip=skip, recovery=recovery, learn=learn
    )
    judge = _judge(model, validation, metric) if validation is not None else None
    context = replace(context, judge=judge, train=train)
    # where a training is written to is no part of the plan
    unrecorded = {"checkpoint": str(checkpoint)} if checkpoint is not None else {}
    technique = make_technique(step.technique, {**step.settings, **unrecorded})
    quantized, change = run_shown(technique, model, context, progress, "quantizing", reads=True)
    remember(quantized, model, replace(step, record=change.record), context, find_runtime(runtime).name)
    quantized.quantization = change  # type: ignore[assignment]
    return quantized


def quantization_step(
    dtype: torch.dtype | str,
    scheme: str,
    *,
    group: int | None = None,
    size: str | int | None = None,
    latency: str | float | None = None,
    max_drop: str | float | None = None,
    skip: Collection[str] = (),
    recovery: str | None = None,
    learn: str = "scales",
) -> Step:
    """The step of a plan that quantizes, with the settings that were asked for and no others.

    Args:
        dtype: as for `quantize_model`.
        scheme: "static", "dynamic" or "weight_only".
        group, size, latency, max_drop, skip: as for `quantize_model`.
        recovery: how long integers are trained, such as "1epoch" or "10m".
        learn: what of them, as for `quantize_model`.

    Raises:
        UsageError: settings that cannot be meant together.
        UnknownName: no such dtype or scheme.
    """
    kind = _dtype(dtype)
    if scheme not in SCHEMES[1:]:
        raise UnknownName("scheme", scheme, SCHEMES)
    _check(kind, scheme, group, max_drop)
    _check_mixed(kind, size, latency)
    _check_recovery(scheme, recovery, learn)
    settings: dict[str, Any] = {}
    if scheme == "weight_only":
        settings["dtype"] = kind
    elif scheme == "static" and kind == "int4":
        settings["weight_bits"] = 4
    given = {
        "group": group,
        "weight_bytes": None if size is None else int(parse_bytes(size, "size")),
        "max_drop": None if max_drop is None else parse_points(max_drop, "max_drop"),
        **_latency_settings(latency),
        "skip": list(skip) or None,
        "recovery": recovery,
        "learn": None if learn == "scales" else learn,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    technique = {"static": "int8_static", "dynamic": "int8_dynamic", "weight_only": "weight_only"}[scheme]
    return Step(technique=technique, settings=settings)


def pick_scheme(model: nn.Module, dtype: str, context: Context) -> str:
    """The scheme that "auto" means for a model: by what does most of its work, and whether there are data.

    Args:
        model: float.
        dtype: a name of `DTYPES`.
        context: with the example, and calibration data where there are any.
    """
    if dtype == "mixed":
        return "static"
    if dtype != "int8" or context.scheme is None:
        return "weight_only"
    return scheme_by_work(static_cost(eval_copy(model, shared=True), context.example), data=context.calibration is not None)


def scheme_by_work(cost: Cost, *, data: bool) -> str:
    """The int8 scheme that suits what a model computes, on a runtime with integer kernels.

    Args:
        cost: of the model.
        data: whether there are calibration data.
    """
    of = {family: sum(layer.macs for layer in cost.layers if layer.family == family) for family in (*_CONVOLUTIONS, "matmul")}
    convolutions = sum(of[family] for family in _CONVOLUTIONS)
    if convolutions >= of["matmul"]:
        return "static" if convolutions and data else "weight_only"
    return "dynamic"


def _dtype(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnknownName("dtype", name, DTYPES)
    return name


def _check(dtype: str, scheme: str, group: int | None, max_drop: object) -> None:
    """Refuse settings that mean nothing together.

    Raises:
        UsageError: says which.
    """
    wants = {"dynamic": ("int8",), "static": ("int8", "int4", "mixed"), "weight_only": ("int8", "int4", "float16", "bfloat16")}[scheme]
    if dtype not in wants:
        raise UsageError(f"{scheme} quantization has no {dtype}", where="dtype", got=dtype, wanted=" or ".join(wants))
    if group is not None and (scheme, dtype) != ("weight_only", "int4"):
        raise UsageError("groups are of weight_only int4", where="group", got=f"{group} with {scheme} {dtype}", hint="leave it out")
    if max_drop is not None and scheme != "static":
        raise UsageError("max_drop lets layers of static quantization stay float", where="max_drop", got=f"{max_drop} with {scheme}")


def _check_mixed(dtype: str, size: object, latency: object) -> None:
    """Refuse mixed without a limit or with two that pull apart, and limits of mixed with anything else.

    Raises:
        UsageError: says which.
    """
    tells = {"size": "size says how many weights of mixed get 4 bits", "latency": "latency says how many layers of mixed stay float"}
    given = {name: value for name, value in (("size", size), ("latency", latency)) if value is not None}
    if dtype != "mixed":
        for name, value in given.items():
            raise UsageError(tells[name], where=name, got=f"{value} with {dtype}", wanted="dtype mixed, or leave it out")
    elif len(given) != 1:
        got = "both" if given else "neither"
        hint = "layers that stay float take four times the room, so that one would undo the other" if given else None
        raise UsageError("; ".join(tells.values()), where="mixed", got=got, wanted="one of them", hint=hint)


def _latency_settings(latency: str | float | None) -> dict[str, float | None]:
    """The setting of int8_static that a limit of the latency means: a share such as 0.6 or "60 %", or a time such as "2 ms".

    Raises:
        UsageError: neither, or a share that leaves nothing or everything.
    """
    if latency is None:
        return {}
    text = latency.strip() if isinstance(latency, str) else ""
    if text[-1:].isalpha():
        return {"max_seconds": parse_seconds(text, "latency")}
    share = parse_points(latency, "latency")
    if not 0 < share < 1:
        raise UsageError(
            "latency is a share of the float model's, or a time",
            where="latency",
            got=repr(latency),
            wanted='a share between 0 and 1 such as 0.6 or "60 %", or a time with its unit such as "2 ms"',
        )
    return {"max_latency": share}


def _check_recovery(scheme: str, recovery: str | None, learn: str) -> None:
    if recovery is None:
        if learn != "scales":
            raise UsageError("nothing is learned without train data", where="learn", got=learn, wanted="train=...")
        return
    if scheme != "static":
        raise UsageError("only static quantization trains", where="recovery", got=scheme, wanted="scheme static")
    parse_training(recovery, "recovery")


def _length(train: Iterable[Any] | None, epochs: float | None, minutes: float | None, checkpoint: str | Path | None) -> str | None:
    """How long to train, as a setting; None where nothing is to be trained on."""
    if train is None:
        given = {"epochs": epochs, "minutes": minutes, "checkpoint": checkpoint}
        for name, value in given.items():
            if value is not None:
                raise UsageError("nothing is trained without train data", where=name, got=str(value), wanted="train=...")
        return None
    check_loader(train, "train")
    length = Length(1.0 if epochs is None and minutes is None else epochs, None if minutes is None else 60 * minutes)
    return f"{length.epochs!r} epochs" if length.epochs is not None else f"{length.seconds!r} s"


def _judge(model: nn.Module, validation: Iterable[Any], metric: str | Metric | Callable[..., Tensor]) -> Callable[[nn.Module], float]:
    check_loader(validation, "validation")
    return partial(signed_quality, eval_copy(model, shared=True), find_metric(metric), Split("validation", validation))


def scheme_for(task: Task, scale: str, dtype: str, scheme: str, runtime: str | Runtime, seed: int, *, trained: bool = False) -> str:
    """The scheme that "auto" means for one scale of a task; any other is itself. What is `trained` is static.

    Raises:
        UnknownName: no such dtype.
    """
    if scheme != "auto":
        return scheme
    if trained:
        return "static"
    context = Context(task.example, task.calibration, find_runtime(runtime).scheme)
    return pick_scheme(task.build(scale, seed), _dtype(dtype), context)
