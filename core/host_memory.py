"""The host's memory: what is left of it, and an arena for what waits there while a device computes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

MACHINE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")
SHARE = 0.5  # of the available memory that may be taken at once
CHUNK_BYTES = 2**28
ALIGNMENT = 512


class Arena:
    """Places in the host's memory, one behind the other, and from the start again after `reset`.

    Equal passes get equal places, so that a recorded one can be replayed. It never shrinks.
    """

    def __init__(self) -> None:
        self.chunks: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Give all places away anew; whoever has one must have ordered its copies before those that follow."""
        self._chunk = self._used = 0

    def take(self, size_bytes: int, pinned: bool) -> Tensor | None:
        """A place of (size_bytes,) uint8, page-locked if `pinned`; None where the host has not so much left."""
        while self._chunk < len(self.chunks) or self._grow(max(size_bytes, CHUNK_BYTES), pinned):
            chunk, start = self.chunks[self._chunk], self._used
            if start + size_bytes <= chunk.numel():
                self._used += -(-size_bytes // ALIGNMENT) * ALIGNMENT
                return chunk[start : start + size_bytes]
            self._chunk, self._used = self._chunk + 1, 0
        return None

    def _grow(self, size_bytes: int, pinned: bool) -> bool:
        if size_bytes > SHARE * available_bytes():
            return False
        try:
            self.chunks.append(torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned))
        except RuntimeError:  # the host gives no more, as it may after another process took it
            return False
        return True


def available_bytes() -> int:
    """Bytes that can be had without swapping; 0 where the system does not tell."""
    machine = _numbers(MACHINE).get("MemAvailable:", 0) * 1024
    most = _text(CONTAINER / "memory.max").strip()  # "max" where there is no limit
    if not most.isdigit():
        return machine
    used = int(_text(CONTAINER / "memory.current") or 0)
    cached = _numbers(CONTAINER / "memory.stat").get("inactive_file", 0)  # files' pages, given back when needed
    return max(0, min(machine, int(most) - used + cached))


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
