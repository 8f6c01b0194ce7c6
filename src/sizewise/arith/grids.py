"""The values that quantized weights can have: integer codes, and per output channel or block of inputs a step and a zero point.

A weight is worth (code - zero) * scale. Blocks are `Grid.block` consecutive inputs of one output; the last one holds what is left
when they do not divide the inputs, which ONNX's DequantizeLinear allows; a kernel that wants whole blocks is given codes padded
with the zero point, and the same scales.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor
from torch.nn import functional as F

from sizewise.errors import PreconditionError, UnknownName, UsageError

__all__ = ["METHODS", "Grid", "Steps", "dequantize", "find_steps", "hqq", "pack_int4", "per_input", "quantize", "unpack_int4"]

Method = Literal["absmax", "mse"]
METHODS = ("absmax", "mse")
WHERE = "quantization of weights"
FEWEST, MOST = 2, 8  # bits
PART = 2**22  # weights that are looked at at a time: what is computed on the way takes several times their memory
BETA, KAPPA = 4.0, 1.1  # of the half-quadratic splitting, and its growth per turn; errors beyond 0.34 of a step are set aside at first


@dataclass(frozen=True)
class Grid:
    """Which codes there are, and which weights share a scale.

    Attributes:
        bits: 2 to 8. Codes are signed; a runtime that wants unsigned ones adds 2^(bits - 1) to codes and zero points.
        symmetric: the zero point is 0.
        block: inputs that share a scale; all those of an output by default.
        narrow: a symmetric grid has as many codes below zero as above: -127 to 127. Kernels that add up pairs of products in
            16 bits need that at 8 bits; at 4 bits, -8 is one level more of 16.
    """

    bits: int = 8
    symmetric: bool = True
    block: int | None = None
    narrow: bool = True

    def __post_init__(self) -> None:
        if not FEWEST <= self.bits <= MOST:
            raise UsageError("not a number of bits", where=WHERE, got=str(self.bits), wanted=f"{FEWEST} to {MOST}")
        if self.block is not None and self.block < 1:
            raise UsageError("a block holds at least one input", where=WHERE, got=str(self.block))

    @property
    def low(self) -> int:
        """Least code."""
        return int(self.symmetric and self.narrow) - (1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    def blocks(self, inputs: int) -> int:
        """Scales per output of so many inputs."""
        return 1 if self.block is None else max(1, -(-inputs // self.block))


@dataclass(frozen=True)
class Steps:
    """Scales and zero points of a weight matrix, in single precision as they are shipped.

    Attributes:
        scale: positive.
        zero: whole numbers on the grid, 0 where it is symmetric; any number from `hqq(whole_zeros=False)`.
    """

    scale: Float[Tensor, "*groups out blocks"]
    zero: Float[Tensor, "*groups out blocks"]


def find_steps(
    weight: Float[Tensor, "*groups out in"],
    grid: Grid,
    method: Method = "absmax",
    importance: Float[Tensor, "*#groups in"] | None = None,
    least: Float[Tensor, "*groups out"] | None = None,
) -> Steps:
    """A scale and a zero point for every output or block of it; zero is always on the grid.

    "absmax" clips nothing: the largest weight (of an asymmetric grid: the range) reaches the end. "mse" makes the sum of
    importance * (weight - its value)^2 small: the range is clipped by factors, both ends alike and then each alone, after
    which scale and codes are fitted to each other in turns. It never does worse than "absmax".

    Args:
        weight: of the layer; one matrix or one per group.
        grid: what is wanted.
        method: how to choose.
        importance: of every input, such as its mean square (the diagonal of the inputs' moments); equal by default.
        least: the least scale of every output; of symmetric grids.

    Raises:
        UnknownName: another method.
        UsageError: importance that is negative, not finite or of another length.
        PreconditionError: weights that are not finite.

    Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.1; the fit in turns is Lloyd's, whose
    scale for given codes is least squares. Deviation: single ends.
    """
    if method not in METHODS:
        raise UnknownName("method for scales", method, METHODS, where=WHERE)
    if importance is not None:
        _check_importance(importance, weight)

    def found(rows: Tensor) -> Steps:
        search = _Search.of(rows, grid, importance)
        if method == "mse":
            search.clip()
            search.refine()
        return Steps(search.scale, search.zero)

    steps = _in_parts(weight, found)
    return steps if least is None else Steps(torch.maximum(steps.scale, least.unsqueeze(-1)), steps.zero)


def _in_parts(weight: Float[Tensor, "*groups out in"], find: Callable[[Tensor], Steps]) -> Steps:
    """Steps of some outputs at a time; none depends on other outputs."""
    parts = [find(part) for part in torch.split(weight, _rows(weight), dim=-2)]
    return Steps(torch.cat([part.scale for part in parts], -2), torch.cat([part.zero for part in parts], -2))


def _rows(weight: Float[Tensor, "*groups out in"]) -> int:
    """Outputs that are looked at at a time."""
    return max(1, PART * weight.shape[-2] // max(1, weight.numel()))


def hqq(weight: Float[Tensor, "*groups out in"], grid: Grid, *, whole_zeros: bool = True, p: float = 0.7, turns: int = 20) -> Steps:
    """Scales and zero points of least |weight - its value|^p, for p < 1: large weights may be far off, the many others not.

    In turns: the part of the error that counts as outliers is set aside by shrinkage, with a threshold that falls; scale and zero
    point are fitted to the rest for given codes. The best turn of each block counts, and never is worse than "absmax".

    Args:
        weight: of the layer.
        grid: what is wanted. A symmetric one has no zero points; its scales are fitted.
        whole_zeros: zero points that are codes, as ONNX's DequantizeLinear wants them, instead of any number.
        p: power of the error.
        turns: at most.

    Raises:
        PreconditionError: weights that are not finite.

    Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023, where the scale stays, p = 0.7
    and beta = 10 grows by 1.01 per turn. Deviations: errors are measured in steps of "absmax" (of weights of about 0.02, their
    beta sets nothing aside); the scale is fitted too; the best turn of every block instead of one stop for all. On ResNet-56 in
    blocks of 64, 4 bits, the squared error falls by 15 % from "absmax" with zero points of any value, but by 7 % with whole ones
    and 10 % without any, where "mse" takes away 9 % and 14 %: without data that is the better choice there.
    """
    return _in_parts(weight, lambda rows: _split_by_halves(_Search.of(rows, grid, None, power=p), whole_zeros, turns))


def _split_by_halves(search: "_Search", whole_zeros: bool, turns: int) -> Steps:
    """The turns of `hqq`."""
    unit, beta = search.scale.clone(), BETA
    scale, zero = search.scale, search.zero
    for _ in range(turns):
        codes = search.codes(scale, zero)
        residual = (search.weight - (codes - zero.unsqueeze(-1)) * scale.unsqueeze(-1)) / unit.unsqueeze(-1)
        outliers = _shrunk(residual, beta, search.power) * unit.unsqueeze(-1)
        scale, zero = search.fitted(search.weight - outliers, codes, scale, zero, whole_zeros)
        search.offer(scale, zero)
        beta *= KAPPA
    return Steps(search.scale, search.zero)


def quantize(weight: Float[Tensor, "*groups out in"], steps: Steps, grid: Grid) -> Int8[Tensor, "*groups out in"]:
    """The codes nearest to the weights."""
    rows = _rows(weight)
    parts = zip(*(torch.split(tensor, rows, dim=-2) for tensor in (weight.detach(), steps.scale, steps.zero)), strict=True)
    return torch.cat([_nearest(part, Steps(scale, zero), grid) for part, scale, zero in parts], -2)


def _nearest(weight: Tensor, steps: Steps, grid: Grid) -> Tensor:
    scale, zero = per_input(steps, grid, weight.shape[-1])
    value = weight.to(torch.float64, copy=True).div_(scale).add_(zero)
    return value.round_().clamp_(grid.low, grid.high).to(torch.int8)


def dequantize(codes: Int8[Tensor, "*groups out in"], steps: Steps, grid: Grid) -> Float[Tensor, "*groups out in"]:
    """What codes are worth, in single precision as a runtime computes it."""
    scale, zero = (part.float() for part in per_input(steps, grid, codes.shape[-1]))
    return (codes.float() - zero) * scale


def per_input(steps: Steps, grid: Grid, inputs: int) -> tuple[Float[Tensor, "*groups out #in"], Float[Tensor, "*groups out #in"]]:
    """Scale and zero point of every weight, in double precision; one column where an output has one scale."""

    def spread(part: Tensor) -> Tensor:
        part = part.double()
        return part if grid.block is None else part.repeat_interleave(grid.block, -1)[..., :inputs]

    return spread(steps.scale), spread(steps.zero)


def pack_int4(codes: Int8[Tensor, "*any"]) -> UInt8[Tensor, " bytes"]:
    """Two codes per byte, the first in the low half; an odd one out is followed by 0. Signed ones in two's complement.

    Raises:
        UsageError: codes that 4 bits cannot hold.

    Source: layout of ONNX's INT4 and UINT4 tensors.
    """
    flat = codes.flatten().to(torch.int16)
    low, high = (int(flat.min()), int(flat.max())) if flat.numel() else (0, 0)
    if low < -8 or high > (15 if low >= 0 else 7):
        raise UsageError("codes that do not fit 4 bits", where=WHERE, got=f"{low} to {high}", wanted="-8 to 7 or 0 to 15")
    halves = F.pad(flat & 15, (0, flat.numel() % 2)).view(-1, 2)
    return (halves[:, 0] | halves[:, 1] << 4).to(torch.uint8)


def unpack_int4(packed: UInt8[Tensor, " bytes"], count: int, *, signed: bool = True) -> Int8[Tensor, " count"]:
    """The codes that `pack_int4` was given, flat.

    Raises:
        UsageError: bytes that do not hold as many.
    """
    if packed.numel() != (count + 1) // 2:
        raise UsageError("not as many bytes as the codes need", where=WHERE, got=str(packed.numel()), wanted=str((count + 1) // 2))
    halves = torch.stack([packed & 15, packed >> 4], 1).flatten()[:count].to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves) if signed else halves


def _check_importance(importance: Tensor, weight: Tensor) -> None:
    if importance.shape[-1] != weight.shape[-1]:
        got = f"{importance.shape[-1]} for {weight.shape[-1]} inputs"
        raise UsageError("importance is wanted for every input", where=WHERE, got=got)
    if not bool((importance.isfinite() & (importance >= 0)).all()):
        raise UsageError("importance must be finite and not negative", where=WHERE)


def _shrunk(x: Tensor, beta: float, p: float) -> Tensor:
    """Generalized soft threshold: towards zero by |x|^(p - 1) / beta."""
    size = x.abs()
    return x.sign() * (size - size.clamp_min(1e-8) ** (p - 1) / beta).clamp_min(0)


@dataclass
class _Search:
    """The best scale and zero point found so far for every block; blocks are filled up with zeros that do not count.

    Attributes:
        weight: in blocks.
        count: how much every weight counts.
        scale, zero, error: of the best so far.
        power: of the error.
    """

    weight: Float[Tensor, "*groups out blocks size"]
    count: Float[Tensor, "*#groups #out blocks size"]
    grid: Grid
    scale: Float[Tensor, "*groups out blocks"]
    zero: Float[Tensor, "*groups out blocks"]
    error: Float[Tensor, "*groups out blocks"]
    power: float

    @staticmethod
    def of(weight: Tensor, grid: Grid, importance: Tensor | None, power: float = 2.0) -> "_Search":
        """Begin with the whole range.

        Raises:
            PreconditionError: weights that are not finite.
        """
        if not bool(weight.isfinite().all()):
            raise PreconditionError("weights are not finite", where=WHERE)
        inputs = weight.shape[-1]
        count = weight.new_ones(inputs, dtype=torch.float32) if importance is None else importance.detach().unsqueeze(-2)
        count = count / count.amax(-1, keepdim=True).clamp_min(1e-30) if importance is not None else count
        blocks = _blocked(weight.detach().float(), grid)
        none = torch.full_like(blocks[..., 0], torch.inf)
        search = _Search(blocks, _blocked(count.float(), grid), grid, none, none, none, power)
        search.scale, search.zero = search.reaching(*search.ends())
        search.offer(search.scale, search.zero)
        return search

    def ends(self) -> tuple[Tensor, Tensor]:
        """Least and largest weight of every block, zero between them."""
        return self.weight.amin(-1).clamp_max(0), self.weight.amax(-1).clamp_min(0)

    def reaching(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a grid that reaches from low to high; of one without any weight, 1 and 0."""
        smallest = torch.finfo(torch.float32).tiny
        if self.grid.symmetric:
            largest = torch.maximum(-low, high)
            return torch.where(largest > 0, (largest / self.grid.high).clamp_min(smallest), 1.0), torch.zeros_like(low)
        scale = torch.where(high > low, ((high - low) / (self.grid.high - self.grid.low)).clamp_min(smallest), 1.0)
        return scale, torch.round(self.grid.low - low / scale).clamp(self.grid.low, self.grid.high)

    def codes(self, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest ones."""
        return torch.round(self.weight / scale.unsqueeze(-1) + zero.unsqueeze(-1)).clamp_(self.grid.low, self.grid.high)

    def offer(self, scale: Tensor, zero: Tensor) -> None:
        """Keep, block by block, what errs less than the best so far."""
        value = self.codes(scale, zero).sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1))
        far = value.sub_(self.weight).abs_()
        error = ((far.square_() if self.power == 2 else far.pow_(self.power)) * self.count).sum(-1)
        better = error < self.error
        self.scale, self.zero = torch.where(better, scale, self.scale), torch.where(better, zero, self.zero)
        self.error = torch.where(better, error, self.error)

    def clip(self) -> None:
        """Try smaller ranges."""
        low, high = self.ends()
        for factor in _FAR:
            self.offer(*self.reaching(factor * low, factor * high))
        for factors in () if self.grid.symmetric else (_FAR, _NEAR):
            for end in (0, 1):
                low, high = self.reached()
                for factor in factors:
                    self.offer(*self.reaching(low if end else factor * low, factor * high if end else high))

    def reached(self) -> tuple[Tensor, Tensor]:
        """The ends of the best grid."""
        return (self.grid.low - self.zero) * self.scale, (self.grid.high - self.zero) * self.scale

    def refine(self) -> None:
        """Try scales near the best one, then fit scale and codes to each other in turns."""
        for factors in (_NEAR, _FINE):
            scale, zero = self.scale, self.zero
            for factor in factors:
                self.offer(scale * factor, zero)
        for _ in range(4):
            self.offer(*self.fitted(self.weight, self.codes(self.scale, self.zero), self.scale, self.zero, True))

    def fitted(self, target: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, whole_zeros: bool) -> tuple[Tensor, Tensor]:
        """Least squares for given codes: the zero point from the mean first, on an asymmetric grid, then the scale."""
        if not self.grid.symmetric:
            shift = ((codes - target / scale.unsqueeze(-1)) * self.count).sum(-1) / self.count.sum(-1).clamp_min(1e-30)
            zero = torch.where(self.error > 0, torch.round(shift) if whole_zeros else shift, zero)
            zero = zero.clamp(self.grid.low, self.grid.high)
        around = codes - zero.unsqueeze(-1)
        above, below = (target * around * self.count).sum(-1), (around.square() * self.count).sum(-1)
        good = (above > 0) & (below > 0)
        smallest = torch.finfo(torch.float32).tiny
        return torch.where(good, (above / below.clamp_min(1e-30)).clamp_min(smallest), scale), zero


_FAR = [2 ** (-i / 8) for i in range(1, 26)]  # factors of ranges
_NEAR = [2 ** (i / 64) for i in (-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6)]
_FINE = [2 ** (i / 512) for i in (*range(-6, 0), *range(1, 7))]


def _blocked(rows: Float[Tensor, "*any in"], grid: Grid) -> Float[Tensor, "*any blocks size"]:
    inputs = rows.shape[-1]
    size = max(1, inputs) if grid.block is None else grid.block
    return F.pad(rows, (0, grid.blocks(inputs) * size - inputs)).reshape(*rows.shape[:-1], -1, size)
