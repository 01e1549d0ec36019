"""Who is alive, asked of the kernel: a record lock is freed the instant its process dies, however it dies.

`flock` (and so the filelock package) would stay held by a forked child that outlives its parent; a record lock does
not pass to children. Its trap: closing *any* descriptor of the file frees the lock, so the process that holds one must
not ask `is_held` about it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


class ProcessLock:
    """A lock file held by at most one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, timeout_s: float = 0.0, note: str = "") -> bool:
        """Take the lock, waiting up to `timeout_s` seconds, and leave `note` in the file; False when another has it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return False
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note.encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Free the lock; the file stays, so that no two processes ever lock different files of the same name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(path: Path) -> bool:
    """True while another process holds the lock. The probe takes it for an instant, so takers should wait a little."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets a system answer EAGAIN or EACCES
        return False
    return True
