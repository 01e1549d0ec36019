"""Processes by identity, never by name, and never by number alone: numbers are used again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))  # of this container, of the machine
TOLERANCE_S = 1.0
BACKGROUND = 5  # a third of the share of what a person waits for; at 10 a busy neighbour would all but stop a run


@dataclass(frozen=True)
class Identity:
    """A process, told apart from every later one with the same number by when it began."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Identity:
        """The identity of a living process."""
        return cls(pid, _started(pid))

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
            same = abs(_started(self.pid) - self.created) < TOLERANCE_S
            return same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
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


def _started(pid: int) -> float:
    """When a process began. On Linux since the start of the machine, so that setting the clock changes nothing."""
    if not sys.platform.startswith("linux"):
        return psutil.Process(pid).create_time()
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise psutil.NoSuchProcess(pid) from error
    ticks = int(about.rpartition(")")[2].split()[19])  # field 22 of proc(5); a name may hold spaces and brackets
    return ticks / os.sysconf("SC_CLK_TCK")


def lower_priority(pid: int) -> None:
    """Let a process that has just started compute where nobody else needs the core: the page answers first.

    Linux shares cores among sessions before it looks at processes (sched(7), autogroup), so that the session is lowered
    too. A system that knows neither runs it as any other.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, BACKGROUND)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(BACKGROUND), encoding="ascii")


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
