"""What a kind of job gets to work with: its job, its folder, what the user wants, and where to report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from studio.artifacts import Library
from studio.attempt import Attempt, Point
from studio.jobs import RESTART
from studio.tables import JobRow
from studio.workspace import Workspace

T = TypeVar("T")
logger = logging.getLogger(__name__)

POLL_S = 0.2
REPORT_EVERY_S = 1.0  # one transaction a second is enough for the eye, and cheap
RUN, PAUSE, STOP, CANCEL, INTERRUPT = "run", "pause", "stop", "cancel", "interrupt"


class Leave(Exception):
    """The job has to give way; `wish` is pause, stop, cancel or interrupt."""

    def __init__(self, wish: str) -> None:
        super().__init__(wish)
        self.wish = wish


class JobContext:
    """One attempt at one job, from the inside."""

    def __init__(self, workspace: Workspace, attempt: Attempt, interrupted: threading.Event) -> None:
        self.workspace = workspace
        self.library = Library(attempt.database, workspace)
        self.attempt = attempt
        self.job: JobRow = attempt.job()  # as it was when the attempt began
        self.can_finish = False  # True once there is something to keep when the user stops the job
        self._interrupted = interrupted
        self._points: list[Point] = []
        self._changes: dict[str, Any] = {}
        self._reported_at = self._glanced_at = 0.0

    @property
    def folder(self) -> Path:
        """The folder of this job's log and checkpoints."""
        return self.workspace.run_folder(self.job.id)

    @property
    def scratch(self) -> Path:
        """Where to build what is moved to its place when whole, and for temporary files; gone when the job is over."""
        return self.workspace.scratch(self.job.id)

    def say(self, message: str, **columns: Any) -> None:
        """Tell the user what is being done, at once, and note it in the job's log."""
        logger.info("%s", message)
        self._report(message=message, **columns)

    def request(self) -> str:
        """What is wanted now: run, or to pause, stop, cancel (by the user) or interrupt (the studio is leaving)."""
        desired = self.attempt.desired()
        if desired == RESTART:
            return INTERRUPT
        if self._interrupted.is_set() and desired in (RUN, STOP):
            return INTERRUPT
        return desired

    def check(self) -> None:
        """Raise Leave unless the job may go on; one that can finish with what it has goes on to do that."""
        wish = self.request()
        if wish != RUN and not (wish == STOP and self.can_finish):
            raise Leave(wish)

    def glance(self) -> None:
        """Like `check`, for loops that turn many times a second: the database is asked now and then."""
        if time.monotonic() - self._glanced_at >= POLL_S:
            self._glanced_at = time.monotonic()
            self.check()

    def wait_for(self, work: Callable[[], T]) -> T:
        """Do work that cannot be interrupted, such as a download, in a side thread, and raise Leave when asked to.

        The thread is then left to die with the process; what it wrote must be in `scratch`.
        """
        pool = ThreadPoolExecutor(1)
        result = pool.submit(work)
        pool.shutdown(wait=False)
        while True:
            try:
                return result.result(timeout=POLL_S)
            except TimeoutError:
                if result.done():  # it was the work that timed out
                    raise
                self.check()

    def advance(self, done: int, total: int) -> None:
        """Report progress of work without curves, and raise Leave when the job has to give way."""
        self.record(done, {}, total_steps=total)
        self.check()

    def record(self, step: int, values: Mapping[str, float], **columns: Any) -> None:
        """Note the values of a step and columns of the job; they are written about once a second."""
        self._points += [(step, name, value) for name, value in values.items()]
        self._changes |= {"step": step, **columns}
        if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write everything that is noted. Before a checkpoint, so that a curve never lacks what is resumed from."""
        if self._points or self._changes:
            self._report()

    def saved(self, step: int, **columns: Any) -> None:
        """Report that a checkpoint of `step` is safe on disk."""
        self.attempt.checkpoint(step, **columns)

    def _report(self, **columns: Any) -> None:
        self.attempt.record(self._points, **{"progress_at": time.time(), **self._changes, **columns})
        self._points, self._changes, self._reported_at = [], {}, time.monotonic()
