"""The front door of pruning: a module in, a pruned module out."""

from collections.abc import Collection, Iterable
from typing import Any, Literal

from torch import nn

from sizewise.data.batches import CalibrationSample, as_inputs
from sizewise.errors import PreconditionError, UsageError
from sizewise.graph.trace import eval_copy, is_graph
from sizewise.pipeline.apply import make_technique, run_technique
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.setup import CALIBRATION_EXAMPLES
from sizewise.protocols import Context, Inputs, Runtime

__all__ = ["prune_model"]


def prune_model(
    model: nn.Module,
    pruning_rate: float = 0.5,
    *,
    granularity: str | None = None,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    method: str = "auto",
    target: Literal["macs", "params"] = "macs",
    runtime: str | Runtime = "onnxruntime",
    multiple: int | None = None,
    skip: Collection[str] = (),
    in_place: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Remove a share of a model.

    With example inputs, whole channels go and the layers are really smaller: every runtime is faster. Without them, single
    weights become zero: the file compresses better, dense runtimes run it no faster. With calibration data both make what is
    left do the work of what is gone, in closed form, without labels or training; a few hundred examples suffice.

    Args:
        model: any float module; left as it is unless `in_place`.
        pruning_rate: share that goes, in (0, 1): of the target's MACs or parameters over the whole model for channels, of the
            weights of linear layers and convolutions otherwise.
        granularity: "channel"; or "weight", "N:M" such as "2:4", "RxC" such as "4x1" for zeros. By default "channel" with
            example inputs and "weight" without.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs.
        calibration: a loader of inputs, as a task's; targets in it are ignored.
        method: of choosing single weights: "magnitude", "global", "wanda", "surgeon", or "auto". Channels have but "auto".
        target: what `pruning_rate` counts when channels go.
        runtime: where the model will run.
        multiple: channel counts are multiples of this, where a group has at least twice as many; what the runtime likes by
            default. 1 keeps more accuracy at the same MACs, and is often slower.
        skip: module paths that are left alone.
        in_place: change `model` itself; where anything fails it stays as it was.
        seed: of everything random.

    Returns:
        The pruned module, in inference mode. Its attribute `pruning` says what was touched, what was left alone and why, and
        what was reached (`sizewise.types.Change`).

    Raises:
        UsageError: a rate, granularity or method that cannot be meant.
        PreconditionError: the model or the data cannot be used, or the rate cannot be reached.
        UnsupportedModel: nothing can be pruned.
    """
    chosen = granularity or ("weight" if example_inputs is None else "channel")
    technique = make_technique(*_settings(chosen, pruning_rate, method, target, multiple, tuple(skip)))
    if is_graph(model):
        raise PreconditionError("an exported graph cannot be pruned", where="model", hint="prune the module that it was exported from")
    if chosen == "channel" and example_inputs is None:
        raise UsageError("channels cannot be followed without example inputs", where="prune_model", wanted="example_inputs=...")
    found = find_runtime(runtime)
    data = CalibrationSample(calibration, CALIBRATION_EXAMPLES) if calibration is not None else None
    example = as_inputs(example_inputs) if example_inputs is not None else next(iter(data or ()), Inputs(()))
    context = Context(example, data, found.scheme, found.channel_multiple, seed)
    pruned, change = run_technique(technique, eval_copy(model), context)
    _restore_gradients(model, pruned)
    if in_place:
        _transplant(pruned, model)
        pruned = model
    pruned.pruning = change  # type: ignore[assignment]
    return pruned


def _settings(
    granularity: str, rate: float, method: str, target: str, multiple: int | None, skip: tuple[str, ...]
) -> tuple[str, dict[str, Any]]:
    if granularity != "channel":
        return "weight_pruning", {"rate": rate, "pattern": granularity, "method": method, "skip": skip}
    if method != "auto":
        raise UsageError("channels are chosen by one method", where="method", got=repr(method), wanted='"auto"')
    return "channel_pruning", {"rate": rate, "target": target, "multiple": multiple or 0, "skip": skip}


def _restore_gradients(model: nn.Module, pruned: nn.Module) -> None:
    """Parameters that were frozen stay frozen; tracing wanted all of them to require gradients."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(wanted.get(name, True))


def _transplant(source: nn.Module, target: nn.Module) -> None:
    """Give every module of `target` what its counterpart holds; both have the same modules."""
    held = dict(source.named_modules())
    for path, module in list(target.named_modules()):
        other = held[path]
        vars(module).update({name: value for name, value in vars(other).items() if name != "_modules"})
