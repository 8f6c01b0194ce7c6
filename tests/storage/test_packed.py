"""Bytes without entropy coding, by hand."""

import pytest
import torch

from sizewise.storage.forms import Codebook, Constant, Form, Integers, Product, Raw, Sparse, stored_bytes
from sizewise.storage.packed import packed_bytes


def integers(low: int, high: int, rows: int, columns: int) -> Integers:
    codes = torch.randint(low, high + 1, (rows, columns), generator=torch.Generator().manual_seed(0))
    codes[0, :2] = torch.tensor([low, high])
    return Integers(codes.to(torch.int8), torch.ones(1, 1), (rows, columns))


FORMS: list[tuple[Form, int]] = [
    (Raw(torch.zeros(3, 5)), 60),
    (Raw(torch.zeros(3, 5, dtype=torch.int64)), 120),
    (Constant(torch.tensor(2.0), (9, 9)), 0),
    (integers(-1, 1, 10, 10), 25 + 4),
    (integers(-2, 1, 10, 10), 25 + 4),
    (integers(-4, 4, 10, 10), 50 + 4),
    (Codebook(torch.zeros(10, 10, dtype=torch.uint8), torch.ones(1, 1), (10, 10)), 4),
    (Codebook(torch.ones(10, 10, dtype=torch.uint8), torch.ones(1, 5).half(), (10, 10)), 38 + 10),
    (Sparse(torch.tensor([True, False] * 6), torch.ones(6), (3, 4)), 2 + 24),
    (Product(Raw(torch.ones(6, 2)), integers(-1, 1, 2, 10), (6, 10)), 48 + 5 + 4),
]


@pytest.mark.parametrize(("form", "wanted"), FORMS)
def test_whole_bits_for_every_code(form: Form, wanted: int) -> None:
    assert packed_bytes(form) == wanted


def test_coding_saves_where_some_codes_are_frequent() -> None:
    codes = (torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) * 0.6).round().clamp(-7, 7).to(torch.int8)
    form = Integers(codes, torch.ones(1, 1), (200, 200))
    assert stored_bytes(form) < 0.7 * packed_bytes(form)
