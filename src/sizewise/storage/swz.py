"""The container `weights.swz`: tensors by name, each in its form, each checked by itself. `docs/swz.md` describes it byte by byte.

Parts follow one another in the header's order, so that there are no offsets that could overlap or point elsewhere. Every byte of a
file is checked: the header by its own CRC-32, tensors by theirs, gaps are zeros. CRC-32 is for damage by accident, which it misses once in
four billion times, takes four bytes and keeps up with memory; a file's origin is a matter for a signature over all of it.

A tensor takes, decoded, at most 64 MiB and 1,024 times its bytes in the file; what would take more is written as it is. So a forged
file cannot make a reader allocate much.
"""

import mmap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import msgspec
import torch
import zstandard
from torch import Tensor

from sizewise.errors import SizewiseError, UsageError
from sizewise.files import replacing
from sizewise.storage.entropy import Coded, Wanted, decode_all, raw
from sizewise.storage.forms import Form, Raw, coded_parts
from sizewise.storage.header import Head, Header, Part, TensorHead, arrays_of, described, formed, parts_of, plain_bytes

__all__ = ["Stored", "file_bytes", "open_swz", "write_swz"]

MAGIC = b"\x89SWZ\r\n\x1a\n"  # as PNG's: damage by transfer as text shows at once
VERSION = 1
PREAMBLE = 20  # magic, then version, header's length and header's CRC-32, four bytes each
MOST_HEADER = 64 << 20
LEAST_HEADER_SPACE = 1 << 20
HEADER_GROWTH = 64  # decoded header per byte of its frame, beyond the first MiB
FREE, GROWTH = 64 << 20, 1024  # decoded bytes of a tensor, and per byte of its parts
ALIGNED, ALIGNMENT = 4096, 64  # raw parts of so many bytes begin at multiples of this, to be mapped
LEVEL = 19  # of the header
TOGETHER, MOST_TOGETHER = 32 << 20, 1024  # bytes of codes and the like, and tensors, that are read at once
_IMPOSSIBLE = (RuntimeError, ValueError, MemoryError)  # shapes that torch or the machine cannot have

Tensors = Iterable[tuple[Sequence[str], Form]]


def write_swz(path: str | Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> int:
    """Write a file, whole or not at all.

    Args:
        path: of the file, which is replaced.
        tensors: names of each (several of a tied one) and its form.
        metadata: text.

    Returns:
        its size in bytes.

    Raises:
        UsageError: no name or a name twice, elements of a type that files do not have, or text that is not Unicode.
    """
    pieces = _pieces(tensors, metadata or {})
    with replacing(Path(path)) as draft, draft.open("wb") as file:
        file.writelines(pieces)
    return sum(map(len, pieces))


def file_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> int:
    """The size of the file that `write_swz` would write."""
    return sum(map(len, _pieces(tensors, metadata or {})))


def open_swz(path: str | Path) -> "Stored":
    """A file to be read tensor by tensor; its header is read and checked.

    Raises:
        UsageError: no such file, or a damaged or forged one.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such file of weights", where=str(path))
    if path.stat().st_size < PREAMBLE:
        raise UsageError("not a .swz file", where=str(path), got=f"{path.stat().st_size} bytes")
    with path.open("rb") as file:
        # private pages: tensors of the map may be written to without harm to the file
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return Stored(path, mapped, *_header(memoryview(mapped), str(path)))


@dataclass(frozen=True, eq=False)
class Stored:
    """An open file. Tensors are decoded when they are asked for and not kept.

    Attributes:
        path: of the file.
        header: what it says.
        starts: where the parts of every tensor begin, before gaps.
    """

    path: Path
    _mapped: mmap.mmap
    header: Header
    starts: tuple[int, ...]

    @property
    def metadata(self) -> dict[str, str]:
        """The text that was written with the tensors."""
        return dict(self.header.metadata)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors, in the order of the file; a tied one has several."""
        return tuple(self._index)

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """The names of every tensor, all together for a tied one."""
        return tuple(head.names for head in self.header.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without decoding it.

        Raises:
            UsageError: no tensor of that name.
        """
        return self.header.tensors[self._position(name)].form.shape

    def kind(self, name: str) -> str:
        """Of a tensor's form.

        Raises:
            UsageError: no tensor of that name.
        """
        return str(self.header.tensors[self._position(name)].form.__struct_config__.tag)

    def size_bytes(self, name: str) -> int:
        """That a tensor's parts take, without gaps and what the header says of it.

        Raises:
            UsageError: no tensor of that name.
        """
        return sum(part.size for part in parts_of(self.header.tensors[self._position(name)].form))

    def form(self, name: str) -> Form:
        """A tensor's form. Large raw tensors are the mapped file itself.

        Raises:
            UsageError: no tensor of that name, or a damaged or forged file.
        """
        position = self._position(name)
        return next(self._formed([position], [self._wanted(position)]))

    def forms(self) -> Iterator[tuple[tuple[str, ...], Form]]:
        """The names and the form of every tensor, in less time than one by one.

        As many tensors are read together as decode to `TOGETHER` bytes, or one that is larger.

        Raises:
            UsageError: as `form`.
        """
        for group, wanted in self._groups():
            yield from zip((self.header.tensors[position].names for position in group), self._formed(group, wanted), strict=True)

    def decode(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            UsageError: as `form`.
        """
        form = self.form(name)
        with self._blaming(name):
            return form.decode()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Every name and tensor. In memory are one tensor and what `forms` has read.

        Raises:
            UsageError: as `form`.
        """
        for names, form in self.forms():
            with self._blaming(names[0]):
                value = form.decode()
            yield from ((name, value) for name in names)

    def _groups(self) -> Iterator[tuple[list[int], list[list[Wanted]]]]:
        group: list[int] = []
        wanted: list[list[Wanted]] = []
        size = 0
        for position in range(len(self.header.tensors)):
            arrays = self._wanted(position)
            more = sum(each.count * each.dtype.itemsize for each in arrays)
            if group and (size + more > TOGETHER or len(group) == MOST_TOGETHER):
                yield group, wanted
                group, wanted, size = [], [], 0
            group.append(position)
            wanted.append(arrays)
            size += more
        if group:
            yield group, wanted

    def _wanted(self, position: int) -> list[Wanted]:
        """The parts of a tensor, one after another, none larger than its bytes may stand for."""
        head, at = self.header.tensors[position], self.starts[position]
        most, view, wanted = _allowed(head.form), memoryview(self._mapped), []
        with self._blaming(head.names[0]):
            for part, dtype, count in arrays_of(head.form):
                begin = _begin(part.coder, part.size, at)
                at = begin + part.size
                if count * dtype.itemsize > most:
                    raise UsageError("more elements than so few bytes may stand for", got=f"{count} of {dtype}")
                wanted.append(Wanted(part.coder, view[begin:at], dtype, count))
        return wanted

    def _formed(self, positions: Sequence[int], wanted: Sequence[Sequence[Wanted]]) -> Iterator[Form]:
        heads = [self.header.tensors[position] for position in positions]
        for head, position in zip(heads, positions, strict=True):
            _check_sum(memoryview(self._mapped), head, self.starts[position], str(self.path))
        arrays = iter(self._arrays(heads, wanted))
        for head in heads:
            with self._blaming(head.names[0]):
                form = formed(head.form, arrays)
            yield form

    def _arrays(self, heads: Sequence[TensorHead], wanted: Sequence[Sequence[Wanted]]) -> list[Tensor]:
        """All of them together; where one is damaged, tensor by tensor, to tell which."""
        try:
            return _read([each for some in wanted for each in some])
        except (SizewiseError, *_IMPOSSIBLE):
            found = []
            for head, some in zip(heads, wanted, strict=True):
                with self._blaming(head.names[0]):
                    found += _read(some)
            return found

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        try:
            yield
        except SizewiseError as error:
            raise _refused(str(self.path), f"{name}: {error.what}", error.got) from error
        except _IMPOSSIBLE as error:
            raise _refused(str(self.path), f"{name} cannot be decoded", str(error)) from error

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: position for position, head in enumerate(self.header.tensors) for name in head.names}

    def _position(self, name: str) -> int:
        if name not in self._index:
            raise UsageError("no tensor of that name", where=str(self.path), got=name)
        return self._index[name]


def _read(wanted: Sequence[Wanted]) -> list[Tensor]:
    """Arrays of parts; those of large raw ones are the file itself."""
    mapped = [_is_mapped(each) for each in wanted]
    plain = [each if each.dtype != torch.bool else replace(each, dtype=torch.uint8) for each in wanted]
    decoded = iter(decode_all([each for each, there in zip(plain, mapped, strict=True) if not there]))
    return [
        torch.frombuffer(each.data, dtype=torch.uint8).view(each.dtype) if there else _flags(next(decoded), each.dtype)
        for each, there in zip(wanted, mapped, strict=True)
    ]


def _is_mapped(wanted: Wanted) -> bool:
    """Whether the file itself can be the array: raw, aligned, and as long as it should be."""
    return wanted.coder == "raw" and wanted.dtype != torch.bool and len(wanted.data) == wanted.count * wanted.dtype.itemsize >= ALIGNED


def _flags(array: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype != torch.bool:
        return array
    if len(array) and int(array.max()) > 1:
        raise UsageError("neither true nor false", got=str(int(array.max())))
    return array.view(torch.bool)


def _pieces(tensors: Tensors, metadata: Mapping[str, str]) -> list[bytes]:
    heads, coded = [], []
    for names, form in tensors:
        head, parts = _coded(form)
        crc = 0
        for part in parts:
            crc = zlib.crc32(part.data, crc)
        heads.append(TensorHead(tuple(names), crc, head))
        coded += parts
    header = Header(tuple(heads), dict(metadata))
    _check_names(header, "write_swz")
    pieces = [_preamble(header)]
    at = len(pieces[0])
    for part in coded:
        gap = _begin(part.coder, len(part.data), at) - at
        pieces += [bytes(gap), part.data]
        at += gap + len(part.data)
    return pieces


def _coded(form: Form) -> tuple[Head, list[Coded]]:
    """The head and the parts, as short as they may be."""
    parts = coded_parts(form)
    left = iter(parts)

    def write(_: Tensor) -> Part:
        part = next(left)
        return Part(part.coder, len(part.data))

    head = described(form, write)
    largest = max((part.numel() * part.element_size() for part in form.parts().values()), default=0)
    if max(plain_bytes(head), largest) <= _allowed(head):
        return head, parts
    whole = raw(form.decode())
    return described(Raw(form.decode()), lambda _: Part("raw", len(whole.data))), [whole]


def _preamble(header: Header) -> bytes:
    try:
        text = msgspec.json.encode(header)
    except UnicodeEncodeError as error:
        raise UsageError("names and metadata must be Unicode text", where="write_swz", got=str(error)) from error
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(text)
    if len(frame) > MOST_HEADER or len(text) > _header_space(len(frame)):
        raise UsageError("too many names or too long metadata", where="write_swz", got=f"{len(text)} bytes", wanted=f"{MOST_HEADER}")
    numbers = VERSION.to_bytes(4, "little") + len(frame).to_bytes(4, "little")
    return MAGIC + numbers + zlib.crc32(numbers + frame).to_bytes(4, "little") + frame


def _header_space(frame: int) -> int:
    return min(MOST_HEADER, LEAST_HEADER_SPACE + HEADER_GROWTH * frame)


def _header(view: memoryview, where: str) -> tuple[Header, tuple[int, ...]]:
    if view[:8] != MAGIC:
        raise UsageError("not a .swz file", where=where, got=bytes(view[:8]).hex(" "), wanted=MAGIC.hex(" "))
    version, length, crc = (int.from_bytes(view[at : at + 4], "little") for at in (8, 12, 16))
    if version != VERSION:
        raise UsageError("a version that this release cannot read", where=where, got=str(version), wanted=str(VERSION))
    if length > min(MOST_HEADER, len(view) - PREAMBLE):
        raise _refused(where, "the header is longer than the file, or too long", str(length))
    frame = view[PREAMBLE : PREAMBLE + length]
    if zlib.crc32(frame, zlib.crc32(view[8:16])) != crc:
        raise _refused(where, "the header does not match its checksum")
    header = _parsed(frame, where)
    _check_names(header, where)
    return header, _starts(header, PREAMBLE + length, len(view), where)


def _parsed(frame: memoryview, where: str) -> Header:
    try:
        if not 0 <= zstandard.frame_content_size(frame) <= _header_space(len(frame)):
            raise _refused(where, "the header would be too long")
        text = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        return msgspec.json.decode(text, type=Header)
    except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(where, "the header cannot be read", str(error)) from error


def _starts(header: Header, begin: int, end: int, where: str) -> tuple[int, ...]:
    """Where each tensor's parts begin; they must fill the file, and none may grow beyond what is allowed."""
    starts, at = [], begin
    for tensor in header.tensors:
        starts.append(at)
        for part in parts_of(tensor.form):
            at = _begin(part.coder, part.size, at) + part.size
        if at > end:
            raise _refused(where, "the file ends before its tensors do", f"{end} bytes")
        _check_growth(tensor, where)
    if at != end:
        raise _refused(where, "the file does not end with its last tensor", f"{end} bytes", f"{at} bytes")
    return tuple(starts)


def _check_growth(tensor: TensorHead, where: str) -> None:
    try:
        size = plain_bytes(tensor.form)
    except UsageError as error:
        raise _refused(where, f"{tensor.names[0]}: {error.what}", error.got) from error
    if size > _allowed(tensor.form):
        raise _refused(where, f"{tensor.names[0]} claims more elements than its bytes may stand for", str(prod(tensor.form.shape)))


def _allowed(head: Head) -> int:
    return FREE + GROWTH * sum(part.size for part in parts_of(head))


def _begin(coder: str, size: int, at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT if coder == "raw" and size >= ALIGNED else at


def _check_sum(view: memoryview, tensor: TensorHead, at: int, where: str) -> None:
    crc = 0
    for part in parts_of(tensor.form):
        begin = _begin(part.coder, part.size, at)
        if any(view[at:begin]):
            raise _refused(where, f"{tensor.names[0]}: a gap is not empty")
        at = begin + part.size
        crc = zlib.crc32(view[begin:at], crc)
    if crc != tensor.crc:
        raise _refused(where, f"{tensor.names[0]} does not match its checksum")


def _check_names(header: Header, where: str) -> None:
    seen: set[str] = set()
    for head in header.tensors:
        if not head.names:
            raise UsageError("a tensor without a name", where=where)
        for name in head.names:
            if name in seen:
                raise UsageError("two tensors of one name", where=where, got=name)
            seen.add(name)


def _refused(where: str, what: str, got: str | None = None, wanted: str | None = None) -> UsageError:
    return UsageError(what, where=where, got=got, wanted=wanted, hint="the file is damaged; copy or write it again")
