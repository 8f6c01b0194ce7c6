"""The front door of pruning: a module in, a pruned module out."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from sizewise.arith.sparsity import parse_pattern
from sizewise.errors import UnknownName, UsageError
from sizewise.pipeline.apply import make_technique
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.front import make_context, restore_gradients, run_shown
from sizewise.pipeline.saving import remember
from sizewise.protocols import Progress, Runtime
from sizewise.types import TIMED_TARGETS, Step

__all__ = ["prune_model", "pruning_step"]

DEFAULT_RATE = 0.5
CUTS = ("channel", "block")  # granularities that make layers smaller or fewer


def prune_model(
    model: nn.Module,
    pruning_rate: float = DEFAULT_RATE,
    *,
    granularity: str | None = None,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    method: str = "auto",
    target: Literal["macs", "params", "latency", "int8_latency"] = "macs",
    runtime: str | Runtime = "onnxruntime",
    multiple: int | None = None,
    skip: Collection[str] = (),
    in_place: bool = False,
    seed: int = 0,
    progress: bool | Progress = False,
) -> nn.Module:
    """Remove a share of a model.

    With example inputs, whole channels go and the layers are really smaller: every runtime is faster. Without them, single
    weights become zero: the file compresses better, dense runtimes run it no faster. With calibration data both make what is
    left do the work of what is gone, in closed form, without labels or training; a few hundred examples suffice.

    Args:
        model: any float module; left as it is unless `in_place`.
        pruning_rate: share that goes, in (0, 1): of the whole model's MACs, parameters or latency for channels, of the
            weights of linear layers and convolutions otherwise. N:M says the share itself.
        granularity: "channel", which leaves out whole residual blocks too where that loses less, or "block", which leaves out nothing
            else; or "weight", "N:M" such as "2:4", "RxC" such as "4x1" for zeros. By default "channel" with example inputs and
            "weight" without.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs.
        calibration: a loader of inputs, as a task's; no method but "fisher" looks at targets in it.
        method: of choosing channels: "surgeon", "fisher" (which looks at class labels where calibration data have them) or
            "magnitude"; of choosing single weights: "surgeon", "wanda", "magnitude" or "global"; "auto" is the surgeon with data.
        target: what `pruning_rate` counts when channels go; the latency is that of the model's file with the runtime, measured here;
            "int8_latency" that of its file in integers, for a model that will be quantized.
        runtime: where the model will run.
        multiple: channel counts are multiples of this, where a group has at least twice as many; what the runtime likes by
            default. 1 keeps more accuracy at the same MACs, and is often slower.
        skip: module paths that are left alone.
        in_place: change `model` itself; where anything fails it stays as it was.
        seed: of everything random.
        progress: whether to show on stderr what is being done, or where to report it.

    Returns:
        The pruned module, in inference mode. Its attribute `pruning` says what was touched, what was left alone and why, and
        what was reached (`sizewise.types.Change`).

    Raises:
        UsageError: a rate, granularity or method that cannot be meant.
        PreconditionError: the model or the data cannot be used, or the rate cannot be reached.
        UnsupportedModel: nothing can be pruned.
    """
    chosen = granularity or ("weight" if example_inputs is None else "channel")
    # rate and target have values of their own here, which say nothing where a pattern fixes the share and no channels go
    rate = None if pruning_rate == DEFAULT_RATE else pruning_rate
    step = pruning_step(rate, granularity=chosen, method=method, target=None if target == "macs" else target, multiple=multiple, skip=skip)
    technique = make_technique(step.technique, step.settings)
    if chosen in CUTS and example_inputs is None:
        raise UsageError("channels cannot be followed without example inputs", where="prune_model", wanted="example_inputs=...")
    context = make_context(model, example_inputs, calibration, runtime, seed, timed=target in TIMED_TARGETS, needs_example=False)
    pruned, change = run_shown(technique, model, context, progress, "pruning")
    restore_gradients(model, pruned)
    done = replace(step, record=change.record)
    remember(pruned, model, done, context, find_runtime(runtime).name)
    if in_place:
        remember(model, model, done, context, find_runtime(runtime).name)
        _transplant(pruned, model)
        pruned = model
    pruned.pruning = change  # type: ignore[assignment]
    return pruned


def pruning_step(
    rate: float | None = None,
    *,
    granularity: str = "channel",
    method: str = "auto",
    target: str | None = None,
    multiple: int | None = None,
    skip: Collection[str] = (),
) -> Step:
    """The step of a plan that prunes, with the settings that were asked for and no others.

    Args:
        rate: share that goes; half by default, and what the pattern says for N:M.
        granularity: "channel", "block", "weight", "N:M" such as "2:4", or "RxC" such as "4x1".
        method: of choosing what goes.
        target: what the rate counts when channels go; MACs by default.
        multiple: of which channel counts are.
        skip: module paths that are left alone.

    Raises:
        UsageError: settings that cannot be meant together.
        UnknownName: no such granularity.
    """
    left = {"skip": list(skip)} if skip else {}
    share = DEFAULT_RATE if rate is None else rate
    if granularity in CUTS:
        asked = {
            "parts": "blocks" if granularity == "block" else None,
            "target": target,
            "multiple": multiple,
            "method": None if method == "auto" else method,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        return Step(technique="channel_pruning", settings={"rate": share, **given, **left})
    for name, value in (("target", target), ("multiple", multiple)):
        if value is not None:
            got = f"{value} with granularity {granularity}"
            raise UsageError("means something only where channels go", where=name, got=got, hint="leave it out")
    kinds = {} if granularity == "weight" else {"pattern": granularity}
    how = {} if method == "auto" else {"method": method}
    return Step(technique="weight_pruning", settings={**_rate_setting(granularity, rate, share), **kinds, **how, **left})


def _rate_setting(granularity: str, rate: float | None, share: float) -> dict[str, float]:
    """The rate of weights; nothing for N:M, which fixes it."""
    if not re.fullmatch(r"weight|\d+[:x]\d+", granularity):
        raise UnknownName("granularity", granularity, (*CUTS, "weight", "N:M such as 2:4", "RxC such as 4x1"))
    pattern = parse_pattern(granularity, share)
    if pattern.kept is None:
        return {"rate": share}
    if rate is not None and abs(rate - pattern.rate) > 1e-9:
        raise UsageError(
            f"{granularity} removes {pattern.rate:.0%} of the weights and no other share",
            where="rate",
            got=f"{rate:g}",
            hint="leave it out",
        )
    return {}


def _transplant(source: nn.Module, target: nn.Module) -> None:
    """Give every module of `target` what its counterpart holds; modules that were replaced or left out are handed over."""
    held = dict(source.named_modules())
    for path, module in list(target.named_modules()):
        other = held.get(path)
        if type(other) is type(module):
            vars(module).update({name: value for name, value in vars(other).items() if name != "_modules"})
        elif other is not None:
            target.set_submodule(path, other)
