"""Files written past the cache: every byte, in every size, also where a file system does not take part."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from core import direct_file
from core.direct_file import BUFFER_BYTES, DIRECT, PAGE_BYTES, DirectFile


@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES, PAGE_BYTES + 1, BUFFER_BYTES, 2 * BUFFER_BYTES + PAGE_BYTES + 3])
def test_every_byte_arrives(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    with DirectFile(tmp_path / "x") as file:
        file.write(content)
    assert (tmp_path / "x").read_bytes() == content


def test_pieces_follow_each_other_and_may_be_changed_once_written(tmp_path: Path) -> None:
    expected, piece = bytearray(), bytearray(3_000_001)
    with DirectFile(tmp_path / "x") as file:
        for number in range(9):
            piece[:] = bytes([number]) * len(piece)
            file.write(memoryview(piece))
            expected += piece
    assert (tmp_path / "x").read_bytes() == expected


def test_an_older_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old" * 10_000)
    with DirectFile(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.skipif(not DIRECT, reason="this system writes every file through its cache")
@pytest.mark.parametrize("refused", ["open", "write"])
def test_a_file_system_that_refuses_gets_the_file_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    import fcntl

    really_open, really_write = os.open, os.write

    def open_usually(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & DIRECT:
            raise OSError(errno.EINVAL, "no such flag")
        return really_open(path, flags, mode)

    def write_usually(descriptor: int, data: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT:
            raise OSError(errno.EINVAL, "not aligned")
        return really_write(descriptor, data[:1_000_003])  # and not all at once

    monkeypatch.setattr(direct_file.os, refused, {"open": open_usually, "write": write_usually}[refused])
    content = os.urandom(2 * BUFFER_BYTES + 77)
    with DirectFile(tmp_path / "x") as file:
        file.write(content)
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == content


def test_a_full_disk_is_told_while_writing_or_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_file.os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught, DirectFile(tmp_path / "x") as file:
        file.write(bytes(3 * BUFFER_BYTES))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"), DirectFile(tmp_path / "y") as file:
        file.write(b"little")


def test_an_error_in_between_is_the_one_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a tensor"), DirectFile(tmp_path / "x") as file:
        file.write(b"some")
        raise ValueError("a tensor of another shape")
    with pytest.raises(OSError, match="No such file"):
        DirectFile(tmp_path / "none" / "x")
