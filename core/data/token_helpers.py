"""Processes that tokenise the last rows of a large dataset, while this one begins with the first.

They share nothing but the files of the cache, so nobody waits for anybody: whoever comes to a part second finds it
done. Hence also the worst that can befall a helper, to stand still or to die, costs no more than its help. They are
forked, as torch's DataLoader does it, since to start anew takes as long as to tokenise 20,000 rows; they touch no
device, the kernel ends them with the process they help, and only Linux has them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ROWS_WORTH_ONE = 10_000  # a second of work, about
MOST = 7
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent dies

Work = Callable[[int, int], None]  # called with the helper's number from 0, and how many there are


@contextmanager
def helping(work: Work, rows: int) -> Iterator[None]:
    """Inside, others run `work`, as many as `rows` are worth."""
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


def _started(work: Work, number: int, count: int) -> int:
    """The new process, 0 where the system gives none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that hold locks, for which nobody waits here
        try:
            child = os.fork()
        except OSError:
            return 0
    if child:
        return child
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for known in (signal.SIGTERM, signal.SIGINT):
            signal.signal(known, signal.SIG_DFL)
        work(number, count)
    finally:
        os._exit(0)  # nothing of the process that was forked is to be closed or told again
