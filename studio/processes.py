"""Processes by identity, never by name, and never by number alone: numbers are used again."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # of this container, of the machine
CLOCK_TOLERANCE_S = 1.0  # the creation time is computed from the wall clock, which may be nudged


@dataclass(frozen=True)
class Identity:
    """A process, told apart from every later one with the same number by when it began."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Identity:
        """The identity of a living process."""
        return cls(pid, psutil.Process(pid).create_time())

    @classmethod
    def mine(cls) -> Identity:
        """The identity of this process."""
        return cls.of(os.getpid())

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """Read what `str` wrote; None for anything else."""
        pid, _, created = text.partition(" ")
        try:
            return cls(int(pid), float(created))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.pid} {self.created!r}"

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < CLOCK_TOLERANCE_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False when it is gone."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def memory_kills() -> int:
    """How many processes the kernel has killed so far for want of memory; 0 where it does not tell."""
    total = 0
    for path in OOM_COUNTERS:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total
