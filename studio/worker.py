"""A worker: one process for one attempt at one job.

Run by the scheduler as `python -P -m studio.worker --workspace DIR --job ID --attempt N --lifeline FD`. It leaves with
0 when the job has its new state, and with 75 when it was interrupted and its job waits in the queue again.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import StudioError
from studio.attempt import Attempt, Superseded
from studio.context import CANCEL, INTERRUPT, PAUSE, STOP, JobContext, Leave
from studio.db import Database
from studio.failures import DISK_FULL, explain
from studio.kinds import kinds
from studio.locks import ProcessLock
from studio.log import log_to_stderr
from studio.processes import Identity
from studio.reserve import Reserve
from studio.workspace import Workspace

DONE, INTERRUPTED = 0, 75  # 75 is EX_TEMPFAIL of sysexits.h: try again later
HEARTBEAT_S = 2.0
LOCK_TIMEOUT_S = 60.0  # for the worker of the attempt before, which may still be saving
LINGER_S = 300.0  # a worker that hangs after its life-line is gone ends itself after this

logger = logging.getLogger(__name__)


def work(workspace: Workspace, attempt: Attempt, interrupted: threading.Event) -> int:
    """Do the job and write its new state; returns the exit code."""
    try:
        return _dispatch(JobContext(workspace, attempt, interrupted))
    except Superseded:
        logger.warning("superseded: attempt %d no longer owns job %s", attempt.number, attempt.job_id)
        return DONE


def _dispatch(context: JobContext) -> int:
    attempt = context.attempt
    try:
        outcome = kinds.get(context.job.kind).run(context)
        context.flush()
        attempt.succeed(outcome.result, *outcome.rows)
    except Leave as leave:
        context.flush()
        return _give_way(attempt, leave.wish)
    except Superseded:
        raise
    except Exception as error:  # whatever it is: the user is told, and the log gets the traceback
        logger.exception("job %s failed", attempt.job_id)
        failure = explain(error)
        if failure.kind == DISK_FULL:
            Reserve(context.workspace).release()  # room for the words below
        context.flush()  # the steps up to the failure are what its reader wants to see
        attempt.fail(failure)
    return DONE


def _give_way(attempt: Attempt, wish: str) -> int:
    """Write the state that follows from `wish`. To stop a kind that has no partial result is to cancel it."""
    logger.info("job %s gives way: %s", attempt.job_id, wish)
    {PAUSE: attempt.pause, STOP: attempt.cancel, CANCEL: attempt.cancel, INTERRUPT: attempt.release}[wish]()
    return INTERRUPTED if wish == INTERRUPT else DONE


def watch_lifeline(descriptor: int, interrupted: threading.Event) -> None:
    """Set `interrupted` when the scheduler closes the pipe or dies; end the process if it does not follow."""
    os.read(descriptor, 1)  # nothing is ever written: it returns at end of file
    interrupted.set()
    time.sleep(LINGER_S)
    logger.error("hung since its life-line was cut: ends itself")
    os._exit(INTERRUPTED)


def beat(attempt: Attempt) -> None:
    """Show now and then that the process is alive; ends when the attempt no longer owns the job."""
    while True:
        time.sleep(HEARTBEAT_S)
        try:
            attempt.update()
        except Superseded:
            return
        except StudioError as error:  # a busy database or a full disk: a missed beat decides nothing
            logger.warning("no heartbeat: %s", error.what)


def _run(workspace: Workspace, job_id: str, number: int, interrupted: threading.Event) -> int:
    attempt = Attempt(Database.open(workspace), job_id, number)
    mine = Identity.mine()
    try:
        lock = ProcessLock(workspace.worker_lock(job_id))
        if not lock.acquire(LOCK_TIMEOUT_S, note=str(mine)):
            logger.error("the worker of an earlier attempt still holds job %s", job_id)
            attempt.release()
            return INTERRUPTED
        attempt.update(pid=mine.pid, pid_created=mine.created)
    except Superseded:
        return DONE
    threading.Thread(target=beat, args=[attempt], daemon=True).start()
    return work(workspace, attempt, interrupted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, watch the life-line and work; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    options = parser.parse_args(arguments)
    os.umask(0o077)
    log_to_stderr()
    interrupted = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *signal_and_frame: interrupted.set())
    threading.Thread(target=watch_lifeline, args=[options.lifeline, interrupted], daemon=True).start()
    return _run(Workspace.open(options.workspace), options.job, options.attempt, interrupted)


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    os._exit(exit_code)  # the state is written; side threads and torch's exit handlers must not hold the device longer
