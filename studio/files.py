"""Moving finished files and folders to their place: there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

from core.durable import sync_file, sync_folder, write_file


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file: beside its place first, synced, then renamed onto it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_file(temporary, text.encode())
    temporary.replace(path)
    sync_folder(path.parent)


def move_folder(source: Path, target: Path) -> None:
    """Sync everything in a finished folder and rename it to its place, on the same disk."""
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(source)
    source.rename(target)
    sync_folder(target.parent)


def size_bytes(folder: Path) -> int:
    """The size of every file under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
