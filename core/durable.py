"""Folders that are on the disk whole or not at all, whatever the moment of a crash or a power cut. Torch-free.

The files are written into a hidden folder beside the target and synced, then the folder is renamed, then the parent is
synced. A manifest with the SHA-256 of every file tells later damage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import CheckpointError, DiskFullError

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
MARGIN = 1.2  # of the bytes needed that must be free
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_folder(target: Path, needed_bytes: int, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Give an empty folder to fill; on leaving, it becomes `target`, or, after any error, nothing.

    An older `target` is replaced. `facts` are kept in the manifest. Raises DiskFullError with the free and the needed
    bytes, before or while writing, and CheckpointError when the disk fails in another way.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        check_free(target.parent, needed_bytes)
        temporary.mkdir()
        yield temporary
        _write_manifest(temporary, facts)
        sync_folder(temporary)
        _rename(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise _explained(error, target, needed_bytes) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    aside = temporary.with_name(f"{temporary.name}-old")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until the disk has a file that was written by other means."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left; only one process may write into a folder at a time."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def check_free(folder: Path, needed_bytes: int) -> None:
    """Raise DiskFullError unless `needed_bytes` and a margin are free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes * MARGIN:
        raise _disk_full(folder, free, needed_bytes)


def _disk_full(folder: Path, free: int, needed_bytes: int) -> DiskFullError:
    return DiskFullError(
        f"The disk is full: {free:,} bytes are free and {int(needed_bytes * MARGIN):,} are needed in {folder}.",
        "Free some space, then resume; the last checkpoint is kept.",
    )


def _explained(error: OSError, target: Path, needed_bytes: int) -> DiskFullError | CheckpointError:
    if error.errno in _FULL:
        return _disk_full(target.parent, shutil.disk_usage(target.parent).free, needed_bytes)
    return CheckpointError(
        f"{target.name} could not be written: {error}.", "Check the disk, then resume from the checkpoint before it."
    )


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in _files(folder)}
    text = json.dumps({**facts, "files": files}, indent=2, sort_keys=True)
    write_file(folder / MANIFEST, text.encode())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; CheckpointError when it is missing or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{folder.name} has no readable {MANIFEST}.", "Use the checkpoint before it.") from None
    return dict(manifest)


def verify_folder(folder: Path) -> dict[str, Any]:
    """Return the manifest after checking every file against it; CheckpointError names the first that differs."""
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or file_sha256(path) != facts["sha256"]:
            raise CheckpointError(f"{name} of {folder.name} is damaged or missing.", "Use the checkpoint before it.")
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
