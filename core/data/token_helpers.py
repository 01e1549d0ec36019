"""Processes that tokenise the last rows of a large dataset, while this one begins with the first.

They share nothing but the files of the cache, so nobody waits for anybody: whoever comes to a part second finds it
done. Hence also the worst that can befall a helper, to stand still or to die, costs no more than its help. They are
forked, as torch's DataLoader does it, since to start anew takes as long as to tokenise 20,000 rows; they touch no
device, and only Linux has them.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ROWS_WORTH_ONE = 10_000  # a second of work, about
MOST = 7


@contextmanager
def helping(work: Callable[[int, int, Callable[[], bool]], None], rows: int) -> Iterator[None]:
    """Inside, others run `work(number, count, is_over)` with numbers from 0, as many as `rows` are worth.

    `is_over` tells a helper that the process it helps has died.
    """
    count = helpers_for(rows)
    children = [child for number in range(count) if (child := _started(work, number, count))]
    try:
        yield
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def helpers_for(rows: int) -> int:
    """How many helpers there will be."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, min(MOST, len(os.sched_getaffinity(0)) - 1, rows // ROWS_WORTH_ONE))


def _started(work: Callable[[int, int, Callable[[], bool]], None], number: int, count: int) -> int:
    """The new process, 0 where the system gives none."""
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that hold locks, for which nobody waits here
        try:
            child = os.fork()
        except OSError:
            return 0
    if child:
        return child
    try:
        for known in (signal.SIGTERM, signal.SIGINT):
            signal.signal(known, signal.SIG_DFL)
        work(number, count, lambda: os.getppid() != parent)
    finally:
        os._exit(0)  # nothing of the process that was forked is to be closed or told again
