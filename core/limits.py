"""What a stranger's template may use: seconds of the processor and bytes of memory, held by the kernel."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from types import FrameType, TracebackType

CPU_S = 4.0
KILLED_AFTER_S = 5.0  # of the processor: one operation in C, such as 9 ** 9 ** 9, cannot be interrupted, only killed
MEMORY_BYTES = 1 << 30
MOMENT_S = 0.05
_PAGE_BYTES = resource.getpagesize()


class LimitError(Exception):
    """Code within Limits took too long."""


class Limits:
    """`with Limits() as limits:` raises LimitError or MemoryError in what takes more, counted from each `renew()`.

    What cannot be interrupted is killed with the whole process (SIGPROF). Only the main thread can be interrupted; in
    others the kill alone is left. The memory is what the process may take on top of what it has; it is not limited
    where the system does not tell (macOS). Not to be nested.
    """

    def __enter__(self) -> Limits:
        """Begin to count."""
        self._is_main = threading.current_thread() is threading.main_thread()
        self._handler = signal.signal(signal.SIGVTALRM, _interrupt) if self._is_main else None
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_AS)
        self._allowed = [limit for limit in (self._soft, self._hard) if limit != resource.RLIM_INFINITY]
        self._statm = os.open("/proc/self/statm", os.O_RDONLY) if os.path.exists("/proc/self/statm") else -1
        self.renew()
        return self

    def renew_now_and_then(self) -> None:
        """Count from here on, unless the count began a moment ago: for loops that turn many times in it."""
        if time.monotonic() - self._renewed_at >= MOMENT_S:
            self.renew()

    def renew(self) -> None:
        """Count from here on."""
        self._renewed_at = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, KILLED_AFTER_S)
        if self._is_main:
            signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        if self._statm >= 0:
            used = int(os.pread(self._statm, 64, 0).split()[0]) * _PAGE_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (min([used + MEMORY_BYTES, *self._allowed]), self._hard))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lift all limits."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self._is_main:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._handler)
        if self._statm >= 0:
            resource.setrlimit(resource.RLIMIT_AS, (self._soft, self._hard))
            os.close(self._statm)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise LimitError
