"""How the tensors of a model whose weights share values are stored, and how large its file is."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sizewise.arith.shared_codes import Shared
from sizewise.data.model_state import distinct_tensors
from sizewise.graph.coded import Weight
from sizewise.storage.forms import (
    Codebook,
    Constant,
    Form,
    Integers,
    attached_forms,
    held_form,
    matrix_shape,
    shortest,
    stored_bytes,
)
from sizewise.storage.packed import packed_bytes
from sizewise.storage.swz import file_bytes
from sizewise.types import Contribution

__all__ = ["METADATA", "contributions", "exact_forms", "matrix_form", "model_bytes", "plain_form", "shared_form", "vector_form"]

MOST = 127  # codes of one byte reach from -127 to 127
METADATA = 256  # bytes left for the plan that may be saved beside the tensors
EXACT = 2.0**-10  # relative error of half precision that is harmless


def shared_form(shared: Shared, weight: Weight) -> Form:
    """Codes and their values."""
    return matrix_form(shared, tuple(weight.value.shape), weight.axis)


def matrix_form(shared: Shared, shape: tuple[int, ...], axis: int = 0) -> Form:
    """The same of any tensor that is seen as a matrix with one row per place along an axis."""
    codes = shared.codes.reshape(matrix_shape(shape, axis))
    if shared.scale is not None:
        scales = torch.tensor([[shared.scale]], dtype=torch.float32)
        return Integers(codes.to(torch.int8).contiguous(), scales, shape, axis)
    used, places = torch.unique(codes - shared.low, return_inverse=True)
    levels = shared.levels[used]
    half = levels.half()
    stored = half if torch.equal(half.float(), levels) else levels
    return Codebook(places.to(torch.uint8).contiguous(), stored.unsqueeze(0), shape, axis)


def vector_form(value: Tensor, step: float | None) -> Form:
    """A vector as multiples of a step, where that is shorter, or in half precision; exactly, where that would not be harmless.

    Args:
        value: of the model.
        step: that changes outputs no more than a step of a weight does; None where it is not known.
    """
    plain = plain_form(value)
    if step is None or not value.ndim or not value.numel() or isinstance(plain, Constant):
        return plain
    scale = torch.tensor([[step]], dtype=torch.float32)
    codes = torch.round(value.detach().double() / float(scale))
    if not bool((codes.abs() <= MOST).all()) or not float(scale) > 0:
        return plain
    matrix = codes.to(torch.int8).reshape(value.shape[0], -1)
    found = Integers(matrix, scale, tuple(value.shape), dtype=value.dtype)
    return min(plain, found, key=stored_bytes)


def plain_form(value: Tensor) -> Form:
    """In half precision, where that is harmless."""
    value = value.detach()
    if value.dtype == torch.float32:
        half = value.half().float()
        value = half if bool(((half - value).abs() <= EXACT * value.abs()).all()) else value
    return shortest(value)


def exact_forms(model: nn.Module) -> dict[str, Form]:
    """Forms that lose nothing, by name in the state: those that an earlier step attached, where they hold, or the shortest."""
    attached = attached_forms(model)
    return {
        name: form
        for names, value in distinct_tensors(model)
        for form in (held_form(value, [attached[name] for name in names if name in attached]),)
        for name in names
    }


def contributions(model: nn.Module, forms: Mapping[str, Form], taken: int, exact: int | None) -> tuple[Contribution, ...]:
    """What shared values and what entropy coding save.

    Args:
        model: whose tensors have these forms.
        forms: by name in the state.
        taken: `model_bytes` of it.
        exact: the same of its weights before they shared values, coded without loss; None where they never did.
    """
    distinct = [forms[names[0]] for names, _ in distinct_tensors(model)]
    size = taken - METADATA
    packed = size + sum(packed_bytes(form) - stored_bytes(form) for form in distinct)
    coding = Contribution(method="entropy coding", size_bytes=size, bytes_without=packed)
    return (coding,) if exact is None else (Contribution(method="shared values", size_bytes=size, bytes_without=exact - METADATA), coding)


def model_bytes(model: nn.Module, forms: Mapping[str, Form]) -> int:
    """The size of the file of a model whose tensors have these forms, by name in its state."""
    return file_bytes([(names, forms[names[0]]) for names, _ in distinct_tensors(model)]) + METADATA
