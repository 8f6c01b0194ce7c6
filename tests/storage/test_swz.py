"""Files of tensors: they come back, they are small, and damaged or forged ones end in an error and nothing else."""

import tracemalloc
import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sizewise.errors import UsageError
from sizewise.storage import swz
from sizewise.storage.forms import Codebook, Constant, Form, Integers, Product, Raw, Sparse, same_bits, shortest
from sizewise.storage.swz import file_bytes, open_swz, write_swz


def tensors() -> dict[str, Form]:
    generator = torch.Generator().manual_seed(0)
    codes = (torch.randn(30, 80, generator=generator) * 1.2).round().to(torch.int8)
    floats = torch.randn(30, 80, generator=generator)
    return {
        "codes": Integers(codes, torch.rand(30, 2, generator=generator), (30, 80), 0, 50),
        "levels": Codebook(codes.abs().byte(), torch.arange(8.0)[None], (30, 4, 20)),
        "sparse": Sparse(codes.flatten() > 1, floats.flatten()[codes.flatten() > 1], (30, 80)),
        "product": Product(Raw(floats[:, :4].contiguous()), Raw(floats[:4].contiguous()), (30, 80)),
        "ones": Constant(torch.tensor(1.0), (30,)),
        "noise": Raw(torch.randint(0, 256, (5000,), generator=generator).byte()),
        "flags": Raw(floats > 0),
        "scalar": Raw(torch.tensor(5)),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("swz") / "a.swz"
    write_swz(path, [([name], form) for name, form in tensors().items()])
    return path.read_bytes()


def test_tensors_come_back_by_name_and_one_by_one(tmp_path: Path) -> None:
    forms = tensors()
    written = [(["codes", "tied"] if name == "codes" else [name], form) for name, form in forms.items()]
    size = write_swz(tmp_path / "a.swz", written, {"é": "text"})
    assert size == (tmp_path / "a.swz").stat().st_size == file_bytes(written, {"é": "text"})
    stored = open_swz(tmp_path / "a.swz")
    assert stored.metadata == {"é": "text"}
    assert stored.names == ("codes", "tied", *list(forms)[1:])
    assert stored.tied[0] == ("codes", "tied")
    assert stored.shape("levels") == (30, 4, 20)
    found = dict(stored.items())
    assert found["tied"] is found["codes"]
    for name, form in forms.items():
        assert same_bits(found[name], form.decode())
        assert same_bits(stored.decode(name), form.decode())
        assert type(stored.form(name)) is type(form)
    with pytest.raises(UsageError, match="no tensor of that name"):
        stored.decode("other")


def test_groups_of_any_size_give_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_swz(tmp_path / "a.swz", [([f"{name}{turn}"], form) for turn in range(3) for name, form in tensors().items()])
    stored = open_swz(tmp_path / "a.swz")
    expected = {name: stored.decode(name) for name in stored.names}
    for together, most in ((16 << 20, 1024), (20_000, 1024), (16 << 20, 5), (1, 1)):
        monkeypatch.setattr(swz, "TOGETHER", together)
        monkeypatch.setattr(swz, "MOST_TOGETHER", most)
        found = dict(stored.items())
        assert list(found) == list(expected)
        assert all(same_bits(found[name], value) for name, value in expected.items())


def test_a_damaged_tensor_is_named_among_those_that_are_read_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_swz(tmp_path / "a.swz", [([name], form) for name, form in tensors().items()])
    stored = open_swz(tmp_path / "a.swz")
    position = stored.names.index("levels")
    data = bytearray((tmp_path / "a.swz").read_bytes())
    data[stored.starts[position] + 60] ^= 255
    (tmp_path / "b.swz").write_bytes(data)
    with pytest.raises(UsageError, match="levels does not match its checksum"):
        dict(open_swz(tmp_path / "b.swz").items())
    monkeypatch.setattr(swz, "_check_sum", lambda *_: None)
    with pytest.raises(UsageError, match="levels: the coded symbols are damaged"):
        dict(open_swz(tmp_path / "b.swz").items())


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_swz(tmp_path / "a.swz", [])
    assert dict(open_swz(tmp_path / "a.swz").items()) == {}


def test_large_raw_tensors_are_the_file_but_writing_to_them_does_not_change_it(tmp_path: Path) -> None:
    write_swz(tmp_path / "a.swz", [(["noise"], tensors()["noise"])])
    before = (tmp_path / "a.swz").read_bytes()
    stored = open_swz(tmp_path / "a.swz")
    value = stored.decode("noise")
    assert value.data_ptr() % 64 == 0
    assert value.data_ptr() == stored.decode("noise").data_ptr()
    value += 1
    assert (tmp_path / "a.swz").read_bytes() == before


def test_many_small_tensors_pay_little_for_the_header(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    forms: list[tuple[list[str], Form]] = []
    for layer in range(3):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            for direction in ("", "_reverse")[: 2 if layer < 2 else 1]:
                codes = torch.randn(60, 32 if "weight" in kind else 1, generator=generator).round().to(torch.int8)
                forms.append(
                    ([f"gru.{kind}_l{layer}{direction}"], Integers(codes, torch.rand(1, 1, generator=generator), tuple(codes.shape)))
                )
    assert len(forms) == 20
    write_swz(tmp_path / "a.swz", forms)
    data = (tmp_path / "a.swz").read_bytes()
    assert int.from_bytes(data[12:16], "little") + 20 <= 600


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.swz"
    path.write_bytes(b"before")
    one = Constant(torch.tensor(1.0), (2,))
    bad: list[Any] = [
        [(["a"], one), (["a"], one)],
        [(["a", "a"], one)],
        [([], one)],
        [(["\ud800"], one)],
        [(["a"], Raw(torch.zeros(2, dtype=torch.uint16)))],
    ]
    for each in bad:
        with pytest.raises(UsageError):
            write_swz(path, each)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"short", b"PK\x03\x04" + bytes(100), swz.MAGIC + bytes(4), swz.MAGIC + (2).to_bytes(4, "little") + bytes(8)):
        (tmp_path / "a.swz").write_bytes(data)
        with pytest.raises(UsageError) as caught:
            open_swz(tmp_path / "a.swz")
        assert caught.value.where == str(tmp_path / "a.swz")
    with pytest.raises(UsageError, match="no such file"):
        open_swz(tmp_path / "b.swz")


def read_all(path: Path) -> dict[str, Tensor] | None:
    try:
        return dict(open_swz(path).items())
    except UsageError as error:
        where = error.where
    assert where == str(path)
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(data: st.DataObject, whole: bytes, tmp_path: Path) -> None:
    broken = bytearray(whole)
    at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(whole) - 1)))
    broken[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "a.swz").write_bytes(broken)
    assert read_all(tmp_path / "a.swz") is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_cut_short_or_too_long_are_refused(data: st.DataObject, whole: bytes, tmp_path: Path) -> None:
    end = data.draw(st.integers(0, len(whole) - 1))
    (tmp_path / "a.swz").write_bytes(data.draw(st.sampled_from([whole[:end], whole + whole[end:], whole[:end] + b"\0" + whole[end:]])))
    assert read_all(tmp_path / "a.swz") is None


def forged(header: Any, rest: bytes, text: bytes | None = None) -> bytes:
    """A file with every checksum right, so that only the checks behind these can find what is wrong."""
    frame = zstandard.ZstdCompressor().compress(msgspec.json.encode(header) if text is None else text)
    numbers = (1).to_bytes(4, "little") + len(frame).to_bytes(4, "little")
    return swz.MAGIC + numbers + zlib.crc32(numbers + frame).to_bytes(4, "little") + frame + rest


def header_of(data: bytes) -> tuple[Any, bytes]:
    end = 20 + int.from_bytes(data[12:16], "little")
    return msgspec.json.decode(zstandard.ZstdDecompressor().decompress(data[20:end])), data[end:]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


WRONG: st.SearchStrategy[Any] = st.one_of(
    st.integers(-2, 300),
    st.sampled_from([10**12, 2**40, 2**53, 2**64, -1, 1.5, None, True, "", "raw", "zstd", "rans", "product", "int64", "bool", [], {}, [0]]),
    st.lists(st.integers(0, 10**12), max_size=5),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_headers_end_in_an_error_or_in_tensors_of_few_bytes(data: st.DataObject, whole: bytes, tmp_path: Path) -> None:
    header, rest = header_of(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(header)[1:]))
        target = header
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = deepcopy(data.draw(WRONG))  # sampled lists are the same objects every time
    for tensor in header["tensors"] if isinstance(header.get("tensors"), list) else ():  # let the sums of what is there be right
        if isinstance(tensor, list) and len(tensor) == 3:
            tensor[1] = 0
    (tmp_path / "a.swz").write_bytes(forged(header, rest))
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swz, "_check_sum", lambda *_: None)
        read_all(tmp_path / "a.swz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


RAW = ["raw", 4]
MILLION_MILLIONS = 10**12


@pytest.mark.parametrize(
    "form",
    [
        ["raw", "float32", [MILLION_MILLIONS], RAW],
        ["raw", "float32", [MILLION_MILLIONS, 0], RAW],
        ["raw", "uint8", [MILLION_MILLIONS], ["rans", 4]],
        ["raw", "uint8", [1 << 26], ["rans", 4]],
        ["raw", "float32", [MILLION_MILLIONS], ["zstd", 4]],
        ["raw", "float32", [1 << 20, 1 << 20, 1 << 20, 1 << 20], RAW],
        ["constant", "float32", [MILLION_MILLIONS], "00000000"],
        ["constant", "float32", [2], "0000"],
        ["constant", "bool", [2], "02"],
        ["constant", "float32", [2], "no"],
        ["constant", "quint8", [2], "00"],
        ["sparse", "float32", [MILLION_MILLIONS], "float32", 1, ["rans", 2], ["raw", 2]],
        ["sparse", "float32", [4], "float32", MILLION_MILLIONS, ["raw", 4], ["zstd", 0]],
        ["integers", "float32", [1, 1], 0, 0, "float32", MILLION_MILLIONS, ["raw", 0], RAW],
        ["integers", "float32", [2, 1], 7, 0, "float32", 1, ["raw", 0], RAW],
        ["integers", "float32", [0, 1], 0, 0, "float32", 1, ["raw", 0], RAW],
        ["codebook", "float32", [2, 2], 0, "float32", 1, MILLION_MILLIONS, RAW, ["raw", 0]],
        ["codebook", "float32", [2, 2], 0, "float32", 1, 0, RAW, ["raw", 0]],
        ["product", "float32", [2, 2], 0, ["constant", "float32", [2, MILLION_MILLIONS], "00" * 4], ["raw", "float32", [1], RAW]],
        ["product", "float32", [2, 2], 0, ["constant", "float32", [2, 10**7], "00" * 4], ["constant", "float32", [10**7, 2], "00" * 4]],
        ["raw", "bool", [4], RAW],
        ["raw", "float32", [-1], RAW],
        ["raw", "float32", [1] * 17, RAW],
        ["raw", "float32", [1], RAW, RAW],
        ["raw", "float32", [1], ["lzma", 4]],
        ["unknown", "float32", [1], RAW],
    ],
)
def test_forged_forms_are_refused(form: Any, tmp_path: Path) -> None:
    payload = b"\x07\x00\x00\x00"
    (tmp_path / "a.swz").write_bytes(forged({"tensors": [[["a"], zlib.crc32(payload), form]], "metadata": {}}, payload))
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swz, "_check_sum", lambda *_: None)
        assert read_all(tmp_path / "a.swz") is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_headers_that_would_unfold_are_refused(tmp_path: Path) -> None:
    for text in (b" " * (40 << 20) + b"{}", b"[" * 500_000, b"\xff\xfe", b"{}", b'{"tensors": [], "metadata": {}, "more": 1}'):
        (tmp_path / "a.swz").write_bytes(forged(None, b"", text))
        assert read_all(tmp_path / "a.swz") is None
    names = forged({"tensors": [[["a"], 0, ["constant", "uint8", [1], "00"]]] * 2, "metadata": {}}, b"")
    (tmp_path / "a.swz").write_bytes(names)
    assert read_all(tmp_path / "a.swz") is None


def test_what_would_unfold_too_far_is_written_as_it_is(tmp_path: Path) -> None:
    huge = torch.zeros((64 << 20) + 1, dtype=torch.int8)
    size = write_swz(tmp_path / "a.swz", [(["zeros"], shortest(huge))])
    assert size > huge.numel()
    assert torch.equal(open_swz(tmp_path / "a.swz").decode("zeros"), huge)
