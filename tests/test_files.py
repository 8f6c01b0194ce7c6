"""Files that are whole or not there."""

import hashlib
from pathlib import Path

import pytest

from sizewise.files import TEMPORARY, replacing, sha256_of, write_bytes, write_text


def test_a_file_is_written_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "plan.json"
    write_bytes(path, b"\x00\xff{}")
    assert path.read_bytes() == b"\x00\xff{}"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8_with_line_ends_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "尺寸\r\nµs\n")
    assert (tmp_path / "a.txt").read_bytes() == "尺寸\r\nµs\n".encode()


def test_writing_again_replaces_even_by_less(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"a long first version")
    write_bytes(path, b"short")
    assert path.read_bytes() == b"short"


def test_the_old_file_stays_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with replacing(path) as draft:
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert draft.parent == path.parent  # renaming is atomic only within one file system
        assert draft.name.startswith(TEMPORARY)
        assert draft.name.endswith(path.name)  # writers that look at the suffix still see it
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_file_and_no_draft(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as draft:  # noqa: PT012
        draft.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_bytes() == b"old"


def test_two_writers_at_once_do_not_share_a_draft(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"  # the one that ends last
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()
