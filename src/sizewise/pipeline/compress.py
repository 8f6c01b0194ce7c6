"""The front door of compression: a module in, a module out whose stored form has a stated size."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import nn

from sizewise.data.batches import check_loader, examples_in, first_batches
from sizewise.data.model_size import float_bytes
from sizewise.data.outputs import OutputChange
from sizewise.data.shared_forms import METADATA
from sizewise.errors import PreconditionError, SizeUnreachable, UnknownName, UnsupportedModel, UsageError
from sizewise.graph.trace import eval_copy
from sizewise.pipeline.apply import Applier
from sizewise.pipeline.compressed import compressed_bytes, plan_bytes
from sizewise.pipeline.contributions import SHARING, judged, leave_one_out
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.front import make_context, restore_gradients
from sizewise.pipeline.progress import Within, shown
from sizewise.pipeline.recover import RECOVERY, length_of
from sizewise.pipeline.saving import remember
from sizewise.pipeline.setup import CALIBRATION_EXAMPLES
from sizewise.pipeline.small_weights import small_bytes
from sizewise.protocols import Context, Inputs, Progress, Runtime
from sizewise.types import Change, Plan, Step
from sizewise.units import format_bytes

__all__ = ["METHODS", "compress_model", "compression_ways"]

Method = Literal["pruning", "low_rank", "sharing"]
METHODS = get_args(Method)
SHARES = (0.25, 0.5, 0.7)  # of the parameters that go before weights are shared
SPARE = 32  # bytes, since a plan is compressed together with names and shapes
JUDGED = 128  # examples on which ways are compared
SMALL = 0.005  # of the outputs' variance: a change that leaves other ways nothing to gain
SLOWER = 1.02  # of the whole model's latency: what timing can tell


def compress_model(
    model: nn.Module,
    compression_rate: float = 0.1,
    *,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    methods: Literal["auto"] | Collection[Method] = "auto",
    runtime: str | Runtime | None = None,
    train: Iterable[Any] | None = None,
    recovery: str = "1epoch",
    skip: Collection[str] = (),
    seed: int = 0,
    progress: bool | Progress = False,
) -> nn.Module:
    """Store a model in a stated share of its float32 bytes, with the least change of what it computes.

    Weights become few shared values whose codes are entropy coded; before that, channels may be pruned and layers factorized, if the
    outputs change less with fewer weights of more bits. Which is better is told by examples that nothing was fitted to.

    Args:
        model: any float module; left as it is.
        compression_rate: what the file that `sizewise.save_compressed` writes takes at most of the bytes of all parameters and buffers
            in float32. Where coding without loss keeps it, as often at 1, no value changes.
        example_inputs: one tensor, a tuple of positional inputs, or a dict of keyword inputs; the first calibration batch by default.
        calibration: a loader of inputs, as a task's; some hundred examples suffice, targets are ignored. Without it much is lost.
        methods: "auto" tries what may help; or some of "pruning" (of channels), "low_rank" and "sharing", which are then tried alone. One
            without "sharing" leaves float weights, fewer of them.
        runtime: where the model will run, such as "onnxruntime", if it must not get slower there; ways that do are left out.
        train: a loader of batches to train on, with targets or without: what was pruned or factorized is then recovered by distillation,
            before weights are shared.
        recovery: how long, such as "1epoch" or "10m".
        skip: module paths that are left alone, with all that they hold.
        seed: of everything random.
        progress: whether to show on stderr what is being done, or where to report it.

    Returns:
        The compressed module, in inference mode, with ordinary float layers. `sizewise.save_compressed` writes its small file. Its
        attribute `compression` says what was done, what else was tried, what was left alone, and what the file would take without each
        method (`sizewise.types.Change`).

    Raises:
        UsageError: a rate outside (0, 1], or settings that cannot be meant.
        UnknownName: no such method, runtime or module to skip.
        PreconditionError: the model or the data cannot be used, or the rate cannot be reached; says which can.
        UnsupportedModel: torch cannot export the model, or it has no weights.
    """
    if not 0 < compression_rate <= 1:
        raise UsageError("the rate must be more than 0 and at most 1", where="compression_rate", got=str(compression_rate))
    if train is not None:
        check_loader(train, "train")
    ways = compression_ways(compression_rate, methods, recovery if train is not None else None, skip)
    where = runtime if runtime is not None else "onnxruntime"
    context = make_context(model, example_inputs, calibration, where, seed, timed=runtime is not None)
    limit = int(compression_rate * float_bytes(model))
    with shown(progress) as display:
        display.start(sum(len(family) for family in ways))
        search = _Search(model, replace(context, train=train, progress=display, tables=_Kept()), limit)
        best = search.accounted(search.best(ways))
    for step in best.plan.steps:
        remember(best.module, model if step is best.plan.steps[0] else best.module, step, context, find_runtime(where).name)
    restore_gradients(model, best.module)
    best.module.compression = best.told(model)  # type: ignore[assignment]
    return best.module


def compression_ways(
    rate: float, methods: Literal["auto"] | Collection[Method], recovery: str | None, skip: Collection[str] = ()
) -> list[list[tuple[Step, ...]]]:
    """Families of ways to one size: each begins with the mildest, and the next is worth a look only if that was the best so far.

    Args:
        rate: of bytes.
        methods: as for `compress_model`.
        recovery: length of the training behind pruning and factorizing, or None.
        skip: module paths that are left alone.

    Raises:
        UnknownName: no such method.
        UsageError: none, or no such length.
    """
    chosen = METHODS if methods == "auto" else tuple(dict.fromkeys(methods))
    for name in chosen:
        if name not in METHODS:
            raise UnknownName("method", str(name), METHODS)
    left = {"skip": list(skip)} if skip else {}
    if not chosen or ("sharing" not in chosen and len(chosen) > 1):
        raise UsageError("methods that go together end with sharing", where="methods", got=str(chosen), hint='add "sharing", or name one')
    after = (Step(technique=RECOVERY, settings=length_of(recovery)),) if recovery is not None else ()
    if "sharing" not in chosen and rate < 1:  # at 1 no weight has to go, and coding without loss is all there is to do
        return [[(_reduction(chosen[0], 1 - rate, left), *after)]]
    last = Step(technique=SHARING, settings={"rate": rate, **left})
    found: list[list[tuple[Step, ...]]] = [[(last,)]]
    for name in chosen if "sharing" in chosen else ():
        if name != "sharing":
            found.append([(_reduction(name, share, left), *after, last) for share in SHARES])
    return found


def _reduction(method: str, share: float, left: dict[str, Any]) -> Step:
    technique = {"pruning": "channel_pruning", "low_rank": "low_rank"}[method]
    return Step(technique=technique, settings={"rate": share, "target": "params", **left})


@dataclass(frozen=True)
class _Way:
    """One way that was gone to its end.

    Attributes:
        change: of the outputs, as a share of their variance; 0 where there was nothing to compare on.
        before: the same before weights shared values.
        others: remarks on the ways that were tried besides.
    """

    module: nn.Module
    plan: Plan
    changes: tuple[Change, ...]
    change: float
    size: int
    before: float = 0.0
    others: tuple[str, ...] = ()

    def told(self, model: nn.Module) -> Change:
        """For the module's attribute."""
        notes = [note for change in self.changes for note in change.notes if not note.startswith("stored in")]  # the plan takes bytes too
        size = f"stored in {format_bytes(self.size)}, {self.size / float_bytes(model):.4f} of {format_bytes(float_bytes(model))} in float32"
        fewer = float_bytes(self.module) / float_bytes(model)
        without = [f"without shared values it would take {format_bytes(float_bytes(self.module))}"] if 0 < fewer < 1 else []
        touched = tuple(dict.fromkeys(path for change in self.changes for path in change.touched))
        skipped = tuple(dict.fromkeys(skip for change in self.changes for skip in change.skipped))
        contributions = tuple(saved for change in self.changes for saved in change.contributions)
        return Change(touched=touched, skipped=skipped, notes=(size, *notes, *without, *self.others), contributions=contributions)


class _Kept:
    """Figures of this call that ways share: what channels lose does not depend on how many go."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """What was kept."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep it."""
        self._values[key] = value


class _Search:
    """Goes ways to one size and compares them on examples that none of them saw."""

    def __init__(self, model: nn.Module, context: Context, limit: int) -> None:
        self.model, self.context, self.limit, self.applier = model, context, limit, Applier()
        self.share = context.timer.beside(model, context.example) if context.timer is not None else None
        self.change: OutputChange | None = None
        self.found: list[_Way] = []
        self.left: list[str] = []
        self.failed: list[PreconditionError | UnsupportedModel] = []

    def best(self, families: Sequence[Sequence[tuple[Step, ...]]]) -> _Way:
        """The way that changes the outputs least.

        Raises:
            PreconditionError, UnsupportedModel: what the first way raised, where none comes to its end.
        """
        if sum(map(len, families)) > 1:
            self._hold_out()
        for family in families if self.change is not None else families[:1]:
            self._try(family)
            if self.found and min(way.change for way in self.found) < SMALL:
                break
        if not self.found:
            raise self.failed[0] if self.failed else PreconditionError("every way is slower than the whole model", where="compress_model")
        best = min(self.found, key=lambda way: way.change)
        if len(self.found) + len(self.left) == 1:
            return best
        told = [f"{_label(way.plan.steps)}, of that size: outputs change by {_percent(way.change)}" for way in self.found]
        return replace(best, others=(*told, *self.left))

    def accounted(self, way: _Way) -> _Way:
        """With what every method saves."""
        changes = leave_one_out(self.model, way.plan, way.changes, small_bytes(way.module), self.context, self.change)
        if self.change is not None:
            changes = tuple(replace(c, contributions=judged(c.contributions, way.change, way.before)) for c in changes)
        return replace(way, changes=changes)

    def _try(self, family: Sequence[tuple[Step, ...]]) -> None:
        """Go on as long as it gets better than all that was tried."""
        before = min((way.change for way in self.found), default=math.inf)
        for steps in family:
            try:
                way = self._gone(steps)
            except (PreconditionError, UnsupportedModel) as error:
                self.failed.append(error)
                self.left.append(f"{_label(steps)}: {error.what}")
                return
            if way is None:
                self.left.append(f"{_label(steps)}: slower than the whole model")
                return
            self.found.append(way)
            if way.change >= before:
                return
            before = way.change

    def _gone(self, steps: tuple[Step, ...]) -> _Way | None:
        """One way to its end; None where the file would be slower."""
        context = replace(self.context, progress=Within(self.context.progress, _label(steps)))
        *first, last = steps
        start = Plan(scale="model", steps=tuple(first), seed=context.seed)
        begun, applied, _ = self.applier.apply(self.model, start, context)
        if first and self.share is not None and self.share(begun) > SLOWER:
            return None
        beside = 0
        if last.technique == SHARING:
            last, beside = self._sized(last, applied)
        try:
            module, plan, changes = self.applier.apply(self.model, replace(start, steps=(*first, last)), context)
        except SizeUnreachable as error:  # of the weights alone
            least, whole = error.least + beside, float_bytes(self.model)
            raise SizeUnreachable(least, whole, got=self.limit, where=f"compress_model, {_label(steps)}") from error
        size = compressed_bytes(module, plan)
        if size > self.limit:
            raise PreconditionError(
                "the model does not get so small",
                where=f"compress_model, {_label(steps)}",
                got=f"{format_bytes(size)}, a rate of {size / float_bytes(self.model):.3f}",
                wanted=format_bytes(self.limit),
                hint="a higher rate, or other methods",
            )
        lost = self.change(module) if self.change is not None else 0.0
        self.context.progress.advance(f"{_label(steps)}: {format_bytes(size)}, outputs change by {_percent(lost)}")
        before = self.change(begun) if self.change is not None and first else 0.0
        return _Way(module, plan, changes, lost, size, before)

    def _sized(self, last: Step, before: Plan) -> tuple[Step, int]:
        """The step with a size instead of a rate, and bytes that the file takes beyond it: the plan's, which do not wait for metadata."""
        settings = {**{name: value for name, value in last.settings.items() if name != "rate"}, "size": self.limit}
        step = replace(last, settings=settings, record={"bytes": self.limit})
        beside = plan_bytes(replace(before, steps=(*before.steps, step))) + SPARE - METADATA
        return replace(last, settings={**settings, "size": max(1, self.limit - beside)}), beside

    def _hold_out(self) -> None:
        """Take some of the calibration data away from what is fitted."""
        batches = list(first_batches(self.context.calibration or (), CALIBRATION_EXAMPLES))
        most = min(JUDGED, sum(map(examples_in, batches)) // 4)
        held: list[Inputs] = []
        while len(batches) > 1 and sum(map(examples_in, held)) + examples_in(batches[-1]) <= most:
            held.append(batches.pop())
        if held:
            self.context = replace(self.context, calibration=batches, labelled=None)
            self.change = OutputChange(eval_copy(self.model), held)


def _percent(change: float) -> str:
    return f"{100 * change:.2g} % of their variance"


def _label(steps: Sequence[Step]) -> str:
    """ "pruning 50 %, recovery, sharing"."""
    words = {"channel_pruning": "pruning", "low_rank": "low rank", SHARING: "sharing", RECOVERY: "recovery"}
    return ", ".join(words[s.technique] + (f" {100 * s.settings['rate']:g} %" if "target" in s.settings else "") for s in steps)
