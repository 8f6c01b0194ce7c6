"""What every weight costs in bytes and in loss at every fineness, and which fineness each gets so that all fit a size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sizewise.arith.allocation import SeparateCost, allocate
from sizewise.arith.rate_rounding import rate_rounded, uniform_levels
from sizewise.arith.rounding import output_errors
from sizewise.arith.shared_codes import Shared, finest_step, on_codebook, on_grid
from sizewise.data.outputs import OutputChange
from sizewise.graph.share_layers import Aim
from sizewise.protocols import Inputs
from sizewise.storage.entropy import estimated_bytes

__all__ = ["Budget", "Fineness", "Judge", "Kind", "Table", "finenesses", "fixed_bits", "judged", "share", "table", "table_at"]

Kind = Literal["grid", "codebook"]
STEPS = 2 ** (1 / 3)  # between two steps that are looked at
COARSEST = 4.0  # step, in root mean squares of the weights: nearly all are zero
COUNTS = (2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
ROWS = 64  # of every group whose codes tell those of all
FEWEST = 2**14  # weights whose codes tell those of all
PER_WEIGHT = 24  # bytes that scale, table and names of a weight take
SIGNIFICANT = 1e-12


@dataclass(frozen=True)
class Fineness:
    """A weight at several finenesses, the finest first.

    Attributes:
        name: in the lockstep.
        sizes: steps of a grid, rising, or numbers of values, falling.
        bytes: of the codes and what goes with them, falling.
        losses: rising: what the model's outputs change by.
        count: of weights.
    """

    name: str
    sizes: tuple[float, ...]
    bytes: tuple[float, ...]
    losses: tuple[float, ...]
    count: int


class Judge:
    """What replacing one weight does to a model's outputs, on some of the calibration data.

    Args:
        model: in inference mode, with tensors of the graph's names.
        probe: inputs to compare on; none are good, too: then a weight's change is that of its own outputs.
    """

    def __init__(self, model: nn.Module, probe: Sequence[Inputs]) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._change = OutputChange(model, probe) if probe else None

    def loss(self, aim: Aim, values: Tensor) -> float:
        """The mean squared change of the outputs as a share of their variance, with the constant part taken up where it can be."""
        if self._change is None:
            return float(output_errors(aim.weight, values, aim.moments).sum() / self._whole(aim))
        values = values.reshape(aim.slot.matrix.shape)
        new = {aim.slot.name: aim.slot.shaped(values)}
        if aim.slot.sinks and aim.inputs is not None:
            new |= aim.slot.lifted(aim.lacking(values))
        old = {name: self._tensors[name].detach().clone() for name in new}
        try:
            self._put(new)
            return self._change(self._model)
        finally:
            self._put(old)

    @staticmethod
    def _whole(aim: Aim) -> float:
        return max(float(output_errors(aim.weight, torch.zeros_like(aim.weight), aim.moments).sum()), SIGNIFICANT)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(value)


def share(aim: Aim, kind: Kind, size: float, *, single: bool = False) -> Shared:
    """Codes and values at one fineness."""
    if kind == "codebook":
        return on_codebook(aim.weight, aim.moments, max(1, round(size)))
    return on_grid(aim.weight, aim.moments, max(size, finest_step(aim.weight)), single=single)


def finenesses(aim: Aim, kind: Kind, bits: float, judge: Judge, seed: int) -> Fineness:
    """What a weight costs at all finenesses, and what it then loses.

    Codes of some rows tell those of all. Losses in the moments' norm are scaled so that with about `bits` per weight the loss is that of
    the model's outputs on held-out examples, as in `data/channel_losses.py`: the moments alone do not tell what the next layers
    make of a change.

    Args:
        aim: of the weight; nothing is settled.
        kind: of values.
        bits: per weight, about what there will be.
        judge: of changes.
        seed: of the choice of rows.
    """
    found = table(aim.weight, aim.moments, kind, seed)
    return judged(aim, found, lambda size: share(aim, kind, size).values, bits, judge, aim.weight.numel())


@dataclass(frozen=True)
class Table:
    """Sizes of steps or numbers of values, the bytes of all codes and the output errors, side by side."""

    sizes: tuple[float, ...]
    bytes: tuple[float, ...]
    errors: tuple[float, ...]


def judged(aim: Aim, found: Table, values: Callable[[float], Tensor], bits: float, judge: Judge, count: int) -> Fineness:
    """Finenesses of a table, with losses of the model's outputs instead of errors of a weight's.

    Args:
        aim: of the weight.
        found: what it costs.
        values: of the weight, at one size.
        bits: per stored number, about what there will be.
        judge: of changes.
        count: of stored numbers.
    """
    knot = min(range(len(found.sizes)), key=lambda place: abs(8 * found.bytes[place] / count - bits))
    tried = values(found.sizes[knot])
    error = float(output_errors(aim.weight, tried, aim.moments).sum())
    factor = judge.loss(aim, tried) / error if error > 0 else 0.0
    factor = factor if math.isfinite(factor) else 1 / SIGNIFICANT
    falling = torch.tensor(found.bytes, dtype=torch.float64).cummin(0).values
    rising = (torch.tensor(found.errors, dtype=torch.float64) * factor).cummax(0).values
    return Fineness(aim.slot.name, found.sizes, tuple(falling.tolist()), tuple(rising.tolist()), count)


def table(weight: Tensor, moments: Tensor, kind: Kind, seed: int) -> Table:
    """What a weight costs at all finenesses, told from some of its rows.

    Args:
        weight: [groups, out, in].
        moments: of its inputs, damped.
        kind: of values.
        seed: of the choice of rows.
    """
    if kind == "codebook":
        return _on_codebooks(weight, moments, seed)
    largest, rms = float(weight.abs().max()), float(weight.double().square().mean().sqrt())
    if not largest:
        return Table((1.0,), (float(PER_WEIGHT),), (0.0,))
    finest = finest_step(weight)
    turns = max(1, math.ceil(math.log(COARSEST * rms / finest) / math.log(STEPS)))
    return table_at(weight, moments, [finest * STEPS**turn for turn in range(turns + 1)], seed)


def table_at(weight: Tensor, moments: Tensor, sizes: Sequence[float], seed: int) -> Table:
    """The same at stated steps of a grid, rising."""
    some = _some_rows(weight, seed)
    times = weight.numel() / some.numel()
    steps = torch.tensor(sizes, dtype=torch.float64)
    most = max(1, math.ceil(float(weight.abs().max()) / sizes[0]))
    found = rate_rounded(some, moments, uniform_levels(steps, most), steps, rounds=1)
    return Table(tuple(sizes), tuple((found.bits / 8 * times + PER_WEIGHT).tolist()), tuple((found.errors * times).tolist()))


def _on_codebooks(weight: Tensor, moments: Tensor, seed: int) -> Table:
    some = _some_rows(weight, seed)
    times = weight.numel() / some.numel()
    sizes, size_bytes, errors = [], [], []
    for count in reversed(COUNTS):
        found = on_codebook(some, moments, count)
        sizes.append(float(count))
        size_bytes.append(times * estimated_bytes(found.codes.to(torch.uint8)) + 2 * len(found.levels) + PER_WEIGHT)
        errors.append(times * float(output_errors(some, found.values, moments).sum()))
    return Table(tuple(sizes), tuple(size_bytes), tuple(errors))


def _some_rows(weight: Tensor, seed: int) -> Tensor:
    most = max(ROWS, -(-FEWEST // weight.shape[2]))
    if weight.shape[1] <= most:
        return weight
    chosen = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return weight[:, chosen]


class Budget:
    """Finenesses that fit a size, moved a little while weights are settled, so that what came out larger is made up for.

    A step that is twice as large takes a bit off every weight: what the weights settled so far have taken beyond their shares is
    taken off those to come.

    Args:
        options: of every weight.
        size: bytes that all of them may take.
    """

    def __init__(self, options: Sequence[Fineness], size: float) -> None:
        cost = SeparateCost([option.bytes for option in options])
        self.places = allocate([o.losses for o in options], cost, size, [list(range(len(o.sizes))) for o in options])
        self.planned = cost(self.places)
        self.loss = sum(o.losses[place] for o, place in zip(options, self.places, strict=True))
        self._chosen = {o.name: (o.sizes[place], o.bytes[place]) for o, place in zip(options, self.places, strict=True)}
        self._counts = {o.name: o.count for o in options}
        self._over = self.planned - size
        self._drift, self._done = 0.0, 0

    def bits(self) -> float:
        """How many bits per weight more or less the weights to come get than planned."""
        left = sum(self._counts.values())
        return -(8 * self._over / max(left, 1) + (8 * self._drift / self._done if self._done else 0.0))

    def size(self, name: str, kind: Kind) -> float:
        """Step or number of values of a weight that comes next."""
        chosen = self._chosen[name][0]
        more = max(-1.0, min(1.0, self.bits()))
        return float(chosen * 2**-more) if kind == "grid" else min(256.0, max(2.0, float(chosen * 2**more)))

    def settled(self, name: str, taken: float) -> None:
        """A weight has taken so many bytes."""
        over = taken - self._chosen[name][1]
        self._over += over
        self._drift += over
        self._done += self._counts.pop(name)


def fixed_bits(aim: Aim, bits: int, values: str, seed: int) -> Shared:
    """At most 2^bits values of least output error, whatever their entropy."""
    some = _some_rows(aim.weight, seed)
    most = 2 ** (bits - 1) - 1
    found: list[Shared] = []
    if values != "codebook":
        steps = [float(aim.weight.abs().max()) / most * 2 ** (-turn / 4) for turn in range(2 * bits)] if bool(aim.weight.any()) else [1.0]
        errors = [output_errors(some, on_grid(some, aim.moments, step, most, 0.0).values, aim.moments).sum() for step in steps]
        found.append(on_grid(aim.weight, aim.moments, steps[int(torch.stack(errors).argmin())], most, 0.0))
    if values != "uniform":
        found.append(on_codebook(aim.weight, aim.moments, 2**bits, 0.0))
    return min(found, key=lambda one: float(output_errors(aim.weight, one.values, aim.moments).sum()))
