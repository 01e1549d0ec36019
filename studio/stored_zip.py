"""A folder as an uncompressed zip, made while it is read: exact size first, then the bytes, in bounded memory.

The layout is PKWARE's APPNOTE 6.3: per file a local header, its bytes and a data descriptor (the checksum is known only
after the bytes), then the central directory. ZIP64 fields appear only where a number does not fit in 32 bits. The same
folder always gives the same bytes: names are sorted and dates are the zip epoch.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import StudioError

CHUNK_BYTES = 1024 * 1024
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_FLAGS = 0x0008 | 0x0800  # data descriptor follows, names are UTF-8
_DATE, _TIME = 0x0021, 0  # 1 January 1980
_MADE_BY = 3 << 8 | 45  # Unix, so that the mode bits count
_MODE = (stat.S_IFREG | 0o644) << 16


@dataclass(frozen=True)
class Member:
    """One file of the zip and where its local header starts."""

    name: bytes
    path: Path
    size: int
    offset: int

    @property
    def is_large(self) -> bool:
        """True when its size needs 64 bits."""
        return self.size >= _MAX32

    def local_header(self) -> bytes:
        """The header before the bytes; checksum and sizes are 0 and follow in the descriptor."""
        extra = struct.pack("<HHQQ", 1, 16, 0, 0) if self.is_large else b""
        size = _MAX32 if self.is_large else 0
        fields = (
            b"PK\3\4",
            _version(self.is_large),
            _FLAGS,
            0,
            _TIME,
            _DATE,
            0,
            size,
            size,
            len(self.name),
            len(extra),
        )
        return struct.pack("<4sHHHHHIIIHH", *fields) + self.name + extra

    def descriptor(self, crc: int) -> bytes:
        """Checksum and sizes, after the bytes."""
        return struct.pack("<4sIQQ" if self.is_large else "<4sIII", b"PK\7\10", crc, self.size, self.size)

    def central_entry(self, crc: int) -> bytes:
        """The file's line in the directory at the end."""
        values = [self.size, self.size] if self.is_large else []
        if self.offset >= _MAX32:
            values.append(self.offset)
        extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        size, offset = min(self.size, _MAX32), min(self.offset, _MAX32)
        fields = (
            *(b"PK\1\2", _MADE_BY, _version(bool(values)), _FLAGS, 0, _TIME, _DATE, crc, size, size),
            *(len(self.name), len(extra), 0, 0, 0, _MODE, offset),
        )
        return struct.pack("<4sHHHHHHIIIHHHHHII", *fields) + self.name + extra

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes; StudioError when it became a link or shorter since it was listed."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            _refuse_link(self.path, os.fstat(descriptor))
            left = self.size
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise StudioError(f"{self.path.name} became shorter while it was read.", "Download it again.")
                left -= len(chunk)
                yield chunk


class StoredZip:
    """The zip of `folder`, its files under one top folder named `top`; links in it are refused, not followed."""

    def __init__(self, folder: Path, top: str) -> None:
        self.members: list[Member] = []
        offset = 0
        for path, size in _files(folder):
            name = f"{top}/{path.relative_to(folder).as_posix()}".encode()
            member = Member(name, path, size, offset)
            self.members.append(member)
            offset += len(member.local_header()) + size + len(member.descriptor(0))
        self._directory_offset = offset
        self.size = offset + len(self._directory([0] * len(self.members)))

    def chunks(self) -> Iterator[bytes]:
        """The whole zip in order; together exactly `size` bytes."""
        sums: list[int] = []
        for member in self.members:
            yield member.local_header()
            crc = 0
            for chunk in member.chunks():
                crc = zlib.crc32(chunk, crc)
                yield chunk
            sums.append(crc)
            yield member.descriptor(crc)
        yield self._directory(sums)

    def _directory(self, sums: list[int]) -> bytes:
        entries = b"".join(member.central_entry(crc) for member, crc in zip(self.members, sums, strict=True))
        count, size, offset = len(self.members), len(entries), self._directory_offset
        end64 = b""
        if count >= _MAX16 or size >= _MAX32 or offset >= _MAX32:
            record = (b"PK\6\6", 44, _MADE_BY, 45, 0, 0, count, count, size, offset)
            end64 = struct.pack("<4sQHHIIQQQQ", *record) + struct.pack("<4sIQI", b"PK\6\7", 0, offset + size, 1)
        counts, sizes = min(count, _MAX16), (min(size, _MAX32), min(offset, _MAX32))
        return entries + end64 + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, counts, counts, *sizes, 0)


def _version(is_large: bool) -> int:
    return 45 if is_large else 20


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every visible file under `folder` with its size, in the order of the names."""
    if folder.is_symlink() or not folder.is_dir():
        raise StudioError("Its files are gone.", "Make it again, or add it again.")
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue  # caches of the hub's client and the like
        _refuse_odd_name(entry.name)
        about = entry.lstat()
        if stat.S_ISDIR(about.st_mode):
            yield from _files(entry)
        else:
            _refuse_link(entry, about)
            yield entry, about.st_size


def _refuse_odd_name(name: str) -> None:
    """A backslash is a folder to some unpackers, and a name that is no text has no place in the zip's directory."""
    if "\\" in name or not name.isprintable():
        raise StudioError(f"A file is called {name!a}, which not every system can store.", "Rename it, then try again.")


def _refuse_link(path: Path, about: os.stat_result) -> None:
    """A link (soft or hard) could smuggle any file of this machine into a download."""
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        raise StudioError(f"{path.name} is a link or not a plain file, so it is not served.", "Replace it with a copy.")
