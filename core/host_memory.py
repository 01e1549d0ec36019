"""What the host has left in memory, of the machine and of the container that this process runs in."""

from __future__ import annotations

from pathlib import Path

MACHINE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


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
