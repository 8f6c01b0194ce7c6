"""What a form would take without entropy coding: what the coder is worth is told against that."""

from math import prod

from torch import Tensor

from sizewise.storage.forms import Codebook, Constant, Form, Integers, Product, Sparse

__all__ = ["packed_bytes"]


def packed_bytes(form: Form) -> int:
    """Bytes with every code in as many whole bits as the number of different codes wants, masks in single bits and floats as they are."""
    match form:
        case Product():
            return packed_bytes(form.left) + packed_bytes(form.right)
        case Integers():
            low, high = int(form.codes.min()), int(form.codes.max())
            return _codes(form.codes, high - low + 1) + _plain(form.scales)
        case Codebook():
            return _codes(form.codes, form.levels.shape[1]) + _plain(form.levels)
        case Sparse():
            return -(-len(form.mask) // 8) + _plain(form.values)
        case Constant():
            return 0
    return prod(form.shape) * form.dtype.itemsize


def _codes(codes: Tensor, different: int) -> int:
    return -(-codes.numel() * max(0, different - 1).bit_length() // 8)


def _plain(value: Tensor) -> int:
    return value.numel() * value.element_size()
