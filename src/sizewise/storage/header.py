"""What a file of tensors says about each of them, as JSON arrays, and how forms become that and come back.

The order of a form's parts here is their order in the file. Types and ranges are checked when the JSON is read; what numbers mean
together is checked here, before anything is allocated for it.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Annotated

import torch
from msgspec import Meta, Struct
from torch import Tensor

from sizewise.errors import UsageError
from sizewise.storage.entropy import Coder
from sizewise.storage.forms import Codebook, Constant, Form, Integers, Product, Raw, Sparse, blocks, matrix_shape

__all__ = ["DTYPES", "Head", "Header", "Part", "TensorHead", "arrays_of", "described", "formed", "parts_of", "plain_bytes"]

_BYTES = [torch.bool, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]
_WIDE = [
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.int64,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_BYTES, *_WIDE)}
_HALVES = ("float16", "float32")

Size = Annotated[int, Meta(ge=0, le=1 << 53)]
Dtype = Annotated[str, Meta(max_length=32)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=16)]


class Part(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An array of the file: what coded it, and its bytes there."""

    coder: Coder
    size: Size


class _Head(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What all forms begin with."""

    dtype: Dtype
    shape: Shape


class RawHead(_Head, tag="raw", frozen=True):
    """Of a tensor as it is."""

    value: Part


class ConstantHead(_Head, tag="constant", frozen=True):
    """Of equal elements; the element's bytes in hexadecimal."""

    element: Annotated[str, Meta(max_length=32)]


class IntegersHead(_Head, tag="integers", frozen=True):
    """Of codes and scales; a block of 0 columns is a whole row."""

    axis: Size
    block: Size
    scale_dtype: Dtype
    scale_rows: Size
    codes: Part
    scales: Part


class CodebookHead(_Head, tag="codebook", frozen=True):
    """Of codes and lists of levels."""

    axis: Size
    level_dtype: Dtype
    level_rows: Size
    level_count: Size
    codes: Part
    levels: Part


class SparseHead(_Head, tag="sparse", frozen=True):
    """Of what is not zero."""

    value_dtype: Dtype
    count: Size
    mask: Part
    values: Part


Factor = RawHead | ConstantHead | IntegersHead | CodebookHead | SparseHead


class ProductHead(_Head, tag="product", frozen=True):
    """Of two matrices."""

    axis: Size
    left: Factor
    right: Factor


Head = Factor | ProductHead


class TensorHead(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A tensor: its names, the CRC-32 of its parts' bytes one after another, and its form."""

    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    crc: Annotated[int, Meta(ge=0, lt=1 << 32)]
    form: Head


class Header(Struct, forbid_unknown_fields=True, frozen=True):
    """All tensors in the order in which their parts follow one another, and text."""

    tensors: tuple[TensorHead, ...]
    metadata: dict[str, str]


def parts_of(head: Head) -> Iterator[Part]:
    """The parts, in the order of the file."""
    for name in head.__struct_fields__:
        value = getattr(head, name)
        if isinstance(value, Part):
            yield value
        elif isinstance(value, Struct):
            yield from parts_of(value)  # type: ignore[arg-type]  # the only other ones are factors


def plain_bytes(head: Head) -> int:
    """What the decoded tensor takes.

    Raises:
        UsageError: an unknown type.
    """
    return prod(max(1, side) for side in head.shape) * _dtype(head.dtype).itemsize


def described(form: Form, write: Callable[[Tensor], Part]) -> Head:
    """The form's head; its arrays are given to `write` in their order.

    Raises:
        UsageError: a type of elements that files do not have.
    """
    dtype, shape = _name(form.dtype), form.shape
    match form:
        case Raw():
            return RawHead(dtype, shape, write(form.value))
        case Constant():
            plain = form.element.detach().cpu().reshape(1).view(torch.uint8)
            return ConstantHead(dtype, shape, bytes(plain.tolist()).hex())
        case Integers():
            scales = (_name(form.scales.dtype), form.scales.shape[0])
            return IntegersHead(dtype, shape, form.axis, form.block or 0, *scales, write(form.codes), write(form.scales))
        case Codebook():
            levels = (_name(form.levels.dtype), form.levels.shape[0], form.levels.shape[1])
            return CodebookHead(dtype, shape, form.axis, *levels, write(form.codes), write(form.levels))
        case Sparse():
            return SparseHead(dtype, shape, _name(form.values.dtype), len(form.values), write(form.mask), write(form.values))
        case Product():
            left, right = described(form.left, write), described(form.right, write)
            return ProductHead(dtype, shape, form.axis, left, right)  # type: ignore[arg-type]  # factors are no products
    raise UsageError("no such form", got=type(form).__name__)


def arrays_of(head: Head) -> Iterator[tuple[Part, torch.dtype, int]]:
    """The parts in the order of the file, and the type and number of the elements that each should hold.

    Raises:
        UsageError: an unknown type of elements, or numbers that do not fit one another.
    """
    dtype, shape = _dtype(head.dtype), head.shape
    match head:
        case RawHead():
            yield head.value, dtype, prod(shape)
        case SparseHead():
            yield head.mask, torch.bool, prod(shape)
            yield head.values, _dtype(head.value_dtype), head.count
        case IntegersHead():
            rows, columns = matrix_shape(shape, head.axis)
            if head.scale_rows not in (1, rows) or head.scale_dtype not in _HALVES:
                raise UsageError("not scales", got=f"{head.scale_rows} rows of {head.scale_dtype}")
            yield head.codes, torch.int8, rows * columns
            yield head.scales, _dtype(head.scale_dtype), head.scale_rows * blocks(columns, head.block or None)
        case CodebookHead():
            rows, columns = matrix_shape(shape, head.axis)
            if head.level_rows not in (1, rows):
                raise UsageError("not lists of values", got=f"{head.level_rows} rows")
            yield head.codes, torch.uint8, rows * columns
            yield head.levels, _dtype(head.level_dtype), head.level_rows * head.level_count
        case ProductHead():
            matrix_shape(shape, head.axis)
            yield from arrays_of(head.left)
            yield from arrays_of(head.right)


def formed(head: Head, arrays: Iterator[Tensor]) -> Form:
    """The form again, of what `arrays_of` says, flat.

    Raises:
        UsageError: an unknown type of elements, or arrays that do not fit one another.
    """
    dtype, shape = _dtype(head.dtype), head.shape
    match head:
        case RawHead():
            return Raw(next(arrays).view(shape))
        case ConstantHead():
            return Constant(_element(head.element, dtype), shape)
        case SparseHead():
            return Sparse(next(arrays), next(arrays), shape, dtype)
        case IntegersHead():
            codes, scales = next(arrays).view(matrix_shape(shape, head.axis)), next(arrays).view(head.scale_rows, -1)
            return Integers(codes, scales, shape, head.axis, head.block or None, dtype)
        case CodebookHead():
            codes, levels = next(arrays).view(matrix_shape(shape, head.axis)), next(arrays).view(head.level_rows, head.level_count)
            return Codebook(codes, levels, shape, head.axis, dtype)
        case ProductHead():
            return Product(formed(head.left, arrays), formed(head.right, arrays), shape, head.axis, dtype)


def _element(text: str, dtype: torch.dtype) -> Tensor:
    try:
        plain = bytes.fromhex(text)
    except ValueError as error:
        raise UsageError("not bytes in hexadecimal", got=text) from error
    if len(plain) != dtype.itemsize or (dtype == torch.bool and plain[0] > 1):
        raise UsageError("not an element of this type", got=text, wanted=str(dtype))
    return torch.frombuffer(bytearray(plain), dtype=torch.uint8).view(dtype)[0]


def _name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError("tensors of this type cannot be stored", got=name, wanted=f"one of {', '.join(DTYPES)}")
    return name


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UsageError("an unknown type of elements", got=name)
    return DTYPES[name]
