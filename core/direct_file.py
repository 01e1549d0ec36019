"""A large file, written past the system's cache while its next bytes are being made.

A merged model must be on the disk before its folder gets its name. Through the cache all of it is copied once more,
what others read is pushed out, and the end has to wait for the disk. Here a thread hands full buffers straight to the
disk meanwhile. Where a file system or the operating system cannot do that, the file is written in the usual way.
"""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux alone has it
BINARY: int = getattr(os, "O_BINARY", 0)  # Windows alone
PAGE_BYTES = 4096  # places and sizes of direct writes are multiples of the disk's block, which is this or less
BUFFER_BYTES = 8 << 20


class DirectFile:
    """A new file to write from start to end; leaving the `with` block waits until the disk has it.

    An error of the disk is raised by the write after it, or on leaving: OSError.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor, self._is_direct = _open(path)
        self._filling, self._leaving = (mmap.mmap(-1, BUFFER_BYTES) for _ in range(2))  # whole pages, as it must be
        self._filled = 0
        self._thread = ThreadPoolExecutor(1, "direct-file")
        self._written: Future[None] | None = None  # what the thread is at

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._thread.shutdown()
            os.close(self._descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, in a view of format B if in one; they may be changed as soon as this returns."""
        rest = memoryview(data)
        while rest:
            part = rest[: BUFFER_BYTES - self._filled]
            self._filling[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BUFFER_BYTES:
                self._hand_over()

    def _hand_over(self) -> None:
        self._wait()
        self._filling, self._leaving = self._leaving, self._filling
        self._written = self._thread.submit(self._put, memoryview(self._leaving))
        self._filled = 0

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _finish(self) -> None:
        self._wait()
        last = memoryview(self._filling)[: self._filled]
        whole = self._filled // PAGE_BYTES * PAGE_BYTES
        self._put(last[:whole])
        self._write_as_usual()
        self._put(last[whole:])
        os.fsync(self._descriptor)

    def _put(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._write_as_usual()  # a file system that opens such files and cannot write them, or larger blocks

    def _write_as_usual(self) -> None:
        if self._is_direct:
            import fcntl

            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~DIRECT)
            self._is_direct = False


def _open(path: Path) -> tuple[int, bool]:
    """The descriptor of a new file, and whether what is written goes past the cache."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY
    if DIRECT:
        try:
            return os.open(path, flags | DIRECT, 0o666), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666), False
