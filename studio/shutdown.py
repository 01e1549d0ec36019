"""Ending the work of a workspace: politely, so that every job saves and waits, or at once."""

from __future__ import annotations

import signal

from studio.db import Database
from studio.jobs import JobStore
from studio.processes import Identity
from studio.scheduler import stop_scheduler
from studio.workspace import Workspace


def pause_all(workspace: Workspace) -> int:
    """Let every running job save and wait in the queue, and end the scheduler; returns how many there were."""
    running = len(_workers(workspace))
    stop_scheduler(workspace)
    return running


def kill_all(workspace: Workspace) -> None:
    """End scheduler and workers at once. Nothing is lost but the steps since each job's last checkpoint."""
    try:
        scheduler = Identity.parse(workspace.scheduler_lock.read_text(encoding="utf-8"))
    except OSError:
        scheduler = None
    for identity in (scheduler, *_workers(workspace)):
        if identity is not None:
            identity.signal(signal.SIGKILL)


def _workers(workspace: Workspace) -> list[Identity]:
    """The workers of the running jobs. The database is used as it is: nothing is made or migrated on the way out."""
    if not workspace.database.exists():
        return []
    database = Database(workspace.database)
    try:
        jobs = JobStore(database).list(["running"])
    finally:
        database.close()
    return [Identity(job.pid, job.pid_created) for job in jobs if job.pid is not None and job.pid_created is not None]
