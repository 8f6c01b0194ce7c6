"""How the tensors of a model whose weights share values are stored, and how large its file is."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sizewise.arith.shared_codes import Shared
from sizewise.data.model_state import distinct_tensors
from sizewise.graph.coded import Weight
from sizewise.storage.forms import Codebook, Constant, Form, Integers, shortest, stored_bytes
from sizewise.storage.swz import file_bytes

__all__ = ["model_bytes", "plain_form", "shared_form", "vector_form"]

MOST = 127  # codes of one byte reach from -127 to 127
METADATA = 256  # bytes left for the plan that may be saved beside the tensors
EXACT = 2.0**-10  # relative error of half precision that is harmless


def shared_form(shared: Shared, weight: Weight) -> Form:
    """Codes and their values."""
    codes, shape = shared.codes.reshape(weight.shape), tuple(weight.value.shape)
    if shared.scale is not None:
        scales = torch.tensor([[shared.scale]], dtype=torch.float32)
        return Integers(codes.to(torch.int8).contiguous(), scales, shape, weight.axis)
    used, places = torch.unique(codes - shared.low, return_inverse=True)
    levels = shared.levels[used]
    half = levels.half()
    stored = half if torch.equal(half.float(), levels) else levels
    return Codebook(places.to(torch.uint8).contiguous(), stored.unsqueeze(0), shape, weight.axis)


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


def model_bytes(model: nn.Module, forms: Mapping[str, Form]) -> int:
    """The size of the file of a model whose tensors have these forms, by name in its state."""
    return file_bytes([(names, forms[names[0]]) for names, _ in distinct_tensors(model)]) + METADATA
