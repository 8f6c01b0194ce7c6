"""How one tensor can be stored: as it is, as codes of few values, as what is not zero, or as a product of matrices.

A form of codes sees the tensor as a matrix: `value.movedim(axis, 0)` with all further dimensions in one. A form is never changed, so
copies of a module share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8, Shaped, UInt8
from torch import Tensor

from sizewise.errors import UsageError
from sizewise.storage.entropy import Coded, encode

__all__ = [
    "Codebook",
    "Constant",
    "Form",
    "Integers",
    "Product",
    "Raw",
    "Sparse",
    "attach_forms",
    "attached_forms",
    "coded_parts",
    "held_form",
    "holds",
    "matrix_shape",
    "same_bits",
    "shortest",
    "stored_bytes",
]

_HELD = "stored_forms"
MOST_LEVELS = 256
_LOOK = 4096  # elements that tell whether there can be few levels
_HALVES = (torch.float32, torch.float16)


class Form(ABC):
    """How a tensor is stored.

    Attributes:
        kind: as it is written in files.
        shape: of the tensor.
        dtype: of the tensor.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def decode(self) -> Tensor:
        """The tensor, the same bits each time and on each machine; it must not be written to."""

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """The arrays that hold it, in the order in which they are written."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Form":
        return self


@dataclass(frozen=True, eq=False)
class Raw(Form):
    """A tensor as it is, of any type and shape."""

    value: Shaped[Tensor, "*any"]
    kind = "raw"

    def __post_init__(self) -> None:
        if self.value.is_quantized or self.value.layout != torch.strided or self.value.is_meta:
            raise UsageError("this tensor cannot be stored", got=f"{self.value.layout} of {self.value.dtype} on {self.value.device}")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]  # an attribute of the others
        """Of the tensor."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the tensor."""
        return self.value.dtype

    def decode(self) -> Tensor:
        """The tensor itself."""
        return self.value

    def parts(self) -> dict[str, Tensor]:
        """The tensor."""
        return {"value": self.value}


@dataclass(frozen=True, eq=False)
class Constant(Form):
    """Elements that are all the same; they take no room but in the header."""

    element: Shaped[Tensor, ""]
    shape: tuple[int, ...]
    kind = "constant"

    def __post_init__(self) -> None:
        if self.element.ndim:
            raise UsageError("a constant has one element", where="Constant", got=str(tuple(self.element.shape)))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the tensor."""
        return self.element.dtype

    def decode(self) -> Tensor:
        """A tensor full of it."""
        return self.element.expand(self.shape).clone(memory_format=torch.contiguous_format)

    def parts(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True, eq=False)
class Integers(Form):
    """Codes times scales, computed in single precision. Code 0 is exactly 0 (so scales are finite), and many of them cost next to nothing.

    Attributes:
        codes: of the matrix.
        scales: of one row for all or of every row, one per block; float32 or float16.
        shape: of the tensor.
        axis: of the tensor, that has the rows.
        block: columns that share a scale; the last block may be shorter.
        dtype: of the tensor, to which the products are rounded.
    """

    codes: Int8[Tensor, "rows columns"]
    scales: Float[Tensor, "#rows blocks"]
    shape: tuple[int, ...]
    axis: int = 0
    block: int | None = None
    dtype: torch.dtype = torch.float32
    kind = "integers"

    def __post_init__(self) -> None:
        _check_codes(self, self.codes, torch.int8)
        rows, columns = self.codes.shape
        wanted = blocks(columns, self.block)
        if self.scales.dtype not in _HALVES or self.scales.ndim != 2 or self.scales.shape[0] not in (1, rows):
            raise UsageError(
                "not scales", where="Integers", got=_brief(self.scales), wanted=f"float32 or float16 of [1 or {rows}, {wanted}]"
            )
        if self.scales.shape[1] != wanted:
            raise UsageError("not a scale for every block", where="Integers", got=_brief(self.scales), wanted=f"{wanted} columns")
        if not bool(self.scales.isfinite().all()) or not self.dtype.is_floating_point:
            raise UsageError("scales are not finite, or values no floats", where="Integers", got=str(self.dtype))

    def decode(self) -> Tensor:
        """Codes times scales."""
        columns = self.codes.shape[1]
        value = self.codes.to(torch.float32)
        if self.scales.shape[1] == 1:
            value *= self.scales
        else:
            size = self.block or columns
            for at in range(self.scales.shape[1]):
                value[:, at * size : (at + 1) * size] *= self.scales[:, at : at + 1]
        return _unfolded(value, self)

    def parts(self) -> dict[str, Tensor]:
        """Codes and scales."""
        return {"codes": self.codes, "scales": self.scales}


@dataclass(frozen=True, eq=False)
class Codebook(Form):
    """Positions in lists of at most 256 values.

    Attributes:
        codes: of the matrix; a position in the row's list.
        levels: one list for all rows, or one for every row. Any values of any type, infinite ones and such too.
        shape: of the tensor.
        axis: of the tensor, that has the rows.
        dtype: of the tensor, to which levels are converted.
    """

    codes: UInt8[Tensor, "rows columns"]
    levels: Shaped[Tensor, "#rows levels"]
    shape: tuple[int, ...]
    axis: int = 0
    dtype: torch.dtype = torch.float32
    kind = "codebook"

    def __post_init__(self) -> None:
        _check_codes(self, self.codes, torch.uint8)
        if self.levels.ndim != 2 or self.levels.shape[0] not in (1, self.codes.shape[0]) or not 1 <= self.levels.shape[1] <= MOST_LEVELS:
            raise UsageError("not lists of values", where="Codebook", got=_brief(self.levels), wanted=f"[1 or rows, 1 to {MOST_LEVELS}]")
        _check_values(self, self.levels)
        if int(self.codes.max()) >= self.levels.shape[1]:
            raise UsageError("a code without a value", where="Codebook", got=str(int(self.codes.max())), wanted=f"< {self.levels.shape[1]}")

    def decode(self) -> Tensor:
        """The values that codes stand for."""
        levels = self.levels.to(self.dtype)
        if levels.shape[0] == 1:
            return _unfolded(levels[0].index_select(0, self.codes.flatten().int()).view(self.codes.shape), self)
        return _unfolded(levels.gather(1, self.codes.long()), self)

    def parts(self) -> dict[str, Tensor]:
        """Codes and levels."""
        return {"codes": self.codes, "levels": self.levels}


@dataclass(frozen=True, eq=False)
class Sparse(Form):
    """What is not zero, and where.

    Attributes:
        mask: of the flattened tensor.
        values: where the mask holds, in order.
        shape: of the tensor.
        dtype: of the tensor, to which values are converted.
    """

    mask: Bool[Tensor, " elements"]
    values: Shaped[Tensor, " count"]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    kind = "sparse"

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.shape != (prod(self.shape),):
            raise UsageError(
                "not a mask of the flattened tensor", where="Sparse", got=_brief(self.mask), wanted=f"{prod(self.shape)} elements"
            )
        if self.values.shape != (int(self.mask.sum()),):
            raise UsageError(
                "not a value wherever the mask holds", where="Sparse", got=_brief(self.values), wanted=f"{int(self.mask.sum())}"
            )

    def decode(self) -> Tensor:
        """The values among zeros."""
        flat = torch.zeros(len(self.mask), dtype=self.dtype)
        flat[self.mask] = self.values.to(self.dtype)
        return flat.view(self.shape)

    def parts(self) -> dict[str, Tensor]:
        """Mask and values."""
        return {"mask": self.mask, "values": self.values}


@dataclass(frozen=True, eq=False)
class Product(Form):
    """Two matrices whose product is the matrix.

    Products of two floats are exact in double precision. They are added up there rank by rank and rounded to single precision in the
    end, so that neither threads nor the order in which a library adds change a bit.

    Attributes:
        left, right: [rows, rank] and [rank, columns], of single precision.
        shape: of the tensor.
        axis: of the tensor, that has the rows.
        dtype: of the tensor.
    """

    left: Form
    right: Form
    shape: tuple[int, ...]
    axis: int = 0
    dtype: torch.dtype = torch.float32
    kind = "product"

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.shape, self.axis)
        left, right = self.left.shape, self.right.shape
        if len(left) != 2 or len(right) != 2 or left[0] != rows or right[1] != columns or left[1] != right[0] or not left[1]:
            raise UsageError(
                "factors of another matrix", where="Product", got=f"{left} and {right}", wanted=f"product of {rows} x {columns}"
            )
        if left[1] > min(rows, columns) or not self.dtype.is_floating_point:
            raise UsageError(
                "not a product worth storing", where="Product", got=f"rank {left[1]}", wanted=f"at most {min(rows, columns)}, floats"
            )
        for factor in (self.left, self.right):
            if isinstance(factor, Product) or factor.dtype != torch.float32:
                raise UsageError(
                    "not a factor", where="Product", got=f"{factor.kind} of {factor.dtype}", wanted="float32, no product itself"
                )

    def decode(self) -> Tensor:
        """The product."""
        left, right = self.left.decode().double(), self.right.decode().double()
        total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float32)
        for rows, part in zip(torch.split(total, _ROWS), torch.split(left, _ROWS), strict=True):
            wide = torch.zeros(rows.shape, dtype=torch.float64)
            for at in range(right.shape[0]):
                wide += part[:, at : at + 1] * right[at]
            rows.copy_(wide)
        return _unfolded(total, self)

    def parts(self) -> dict[str, Tensor]:
        """Those of the factors."""
        return {f"{name}.{key}": part for name in ("left", "right") for key, part in getattr(self, name).parts().items()}


_ROWS = 64  # of a product at a time: what is added up stays in the cache


def blocks(columns: int, block: int | None) -> int:
    """How many blocks so many columns have."""
    return 1 if block is None else -(-columns // block)


def matrix_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of the matrix that a tensor is seen as.

    Raises:
        UsageError: a tensor of no dimension or without elements, or no such axis.
    """
    if not shape or not 0 <= axis < len(shape) or not prod(shape):
        raise UsageError("the tensor is no matrix with elements", got=f"axis {axis} of {shape}", wanted="an axis from 0, and elements")
    return shape[axis], prod(shape) // shape[axis]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits: -0 is not 0, and NaN is itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bits(one), _bits(other))


def stored_bytes(form: Form) -> int:
    """What the form takes in a file, besides its 15 to 30 bytes in the header. It is encoded to see."""
    return sum(len(part.data) for part in coded_parts(form))


def coded_parts(form: Form) -> list[Coded]:
    """The arrays of a form, encoded, in their order.

    Codes are kept beside their form, since sizes are asked for several times before a file is written. Arrays of other forms may be a
    module's own, which training goes on with, and are encoded each time.
    """
    if isinstance(form, Product):
        return [*coded_parts(form.left), *coded_parts(form.right)]
    if not isinstance(form, Integers | Codebook):
        return [encode(part) for part in form.parts().values()]
    if form not in _CODED:
        _CODED[form] = [encode(part) for part in form.parts().values()]
    return _CODED[form]


_CODED: WeakKeyDictionary[Form, list[Coded]] = WeakKeyDictionary()


def shortest(value: Shaped[Tensor, "*any"]) -> Form:
    """A tensor without loss, in the form of fewest bytes: constant, few values, mostly zeros, or as it is.

    Raises:
        UsageError: a tensor that cannot be stored (quantized, sparse or without data).
    """
    whole = Raw(_laid_out(Raw(value.detach()).value))
    if not value.numel():
        return whole
    bits = _bits(whole.value)
    if bool((bits == bits[0]).all()):
        return Constant(whole.value.reshape(-1)[0].clone(), whole.shape)
    if _kind(whole.dtype) == "tiny":
        return whole
    forms: list[Form] = [whole]
    zero = (bits == 0).all(1)
    if 16 * int(zero.sum()) >= len(zero):
        forms.append(Sparse(~zero, whole.value.reshape(-1)[~zero], whole.shape, whole.dtype))
    if (few := _few_levels(whole.value)) is not None:
        forms.append(few)
    return forms[0] if len(forms) == 1 else min(forms, key=stored_bytes)


def held_form(value: Shaped[Tensor, "*any"], attached: Iterable[Form]) -> Form:
    """The first of these forms that still is the tensor, bit by bit, or its shortest one.

    Raises:
        UsageError: as `shortest`.
    """
    for form in attached:
        if holds(form, value):
            return form
    return shortest(value)


def holds(form: Form, value: Shaped[Tensor, "*any"]) -> bool:
    """Whether a form is a tensor, bit by bit."""
    return form.shape == tuple(value.shape) and form.dtype == value.dtype and same_bits(form.decode(), value)


def attach_forms(holder: Any, forms: Mapping[str, Form]) -> None:
    """Let a module know how its tensors are best stored; copies know it too, its state does not change.

    Args:
        holder: the module.
        forms: by the tensors' names in its state.

    Raises:
        UsageError: something that is not a form.
    """
    for name, form in forms.items():
        if not isinstance(form, Form):
            raise UsageError("not a form", where=name, got=type(form).__name__)
    setattr(holder, _HELD, dict(forms))


def attached_forms(holder: Any) -> dict[str, Form]:
    """What `attach_forms` was given, or nothing."""
    return dict(getattr(holder, _HELD, {}))


def _few_levels(value: Tensor) -> Codebook | None:
    """Codes of the different values, if one byte can count them."""
    words = _INTEGERS.get(value.element_size())
    if words is None or value.ndim == 0 or value.element_size() == 1:  # a byte is its own code
        return None
    flat = value.reshape(-1).view(words)
    if len(np.unique(flat[:: max(1, len(flat) // _LOOK)].numpy())) > MOST_LEVELS:
        return None
    levels, codes = np.unique(flat.numpy(), return_inverse=True)
    if len(levels) > MOST_LEVELS:
        return None
    matrix = torch.from_numpy(codes.astype(np.uint8)).view(matrix_shape(tuple(value.shape), 0))
    return Codebook(matrix, torch.from_numpy(levels).view(value.dtype)[None], tuple(value.shape), dtype=value.dtype)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(value: Tensor) -> UInt8[Tensor, "elements bytes"]:
    flat = _laid_out(value.detach()).reshape(-1)
    return flat.view(torch.uint8).view(len(flat), value.element_size())


def _laid_out(value: Tensor) -> Tensor:
    """In main memory, row after row; conjugates and negatives that torch only noted are computed."""
    return value.cpu().resolve_conj().resolve_neg().contiguous()


def _unfolded(matrix: Tensor, form: "Integers | Codebook | Product") -> Tensor:
    shape, axis = form.shape, form.axis
    moved = matrix.view(shape[axis], *shape[:axis], *shape[axis + 1 :])
    return moved.movedim(0, axis).to(form.dtype).contiguous()


def _check_codes(form: "Integers | Codebook", codes: Tensor, dtype: torch.dtype) -> None:
    wanted = matrix_shape(form.shape, form.axis)
    if codes.dtype != dtype or tuple(codes.shape) != wanted:
        raise UsageError("not the codes of this shape", where=type(form).__name__, got=_brief(codes), wanted=f"{dtype} of {wanted}")
    if isinstance(form, Integers) and form.block is not None and form.block < 1:
        raise UsageError("a block holds at least one column", where="Integers", got=str(form.block))


def _check_values(form: "Codebook | Sparse", values: Tensor) -> None:
    """Values are of the tensor's type, or real numbers as it is; torch has no operations on floats of one byte."""
    odd = {_kind(values.dtype), _kind(form.dtype)} - {"real"}
    if odd and (values.dtype != form.dtype or "tiny" in odd):
        raise UsageError("values of another type", where=type(form).__name__, got=str(values.dtype), wanted=str(form.dtype))


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    return "tiny" if dtype.is_floating_point and dtype.itemsize == 1 else "real"


def _brief(tensor: Tensor) -> str:
    return f"{tensor.dtype} of {tuple(tensor.shape)}"
