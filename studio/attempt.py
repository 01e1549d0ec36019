"""What one attempt at a job may write: every statement says which attempt it comes from, and a newer one wins.

A worker that was thought dead and comes back (SIGSTOP, a suspended laptop) finds its attempt number outdated: nothing
of what it writes reaches the database, and it is told by `Superseded`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from studio.db import Database
from studio.failures import Failure
from studio.jobs import IDLE, MOVES, RESTART, drop_followers, note_failure, upsert_metrics
from studio.tables import JobRow, Row

Point = tuple[int, str, float]  # step, name of the curve, value


class Superseded(Exception):
    """The job has moved on without this attempt: stop, and write nothing more."""


class Attempt:
    """The store as the worker of one attempt sees it. Safe to use from several threads."""

    def __init__(self, database: Database, job_id: str, attempt: int) -> None:
        self.database = database
        self.job_id = job_id
        self.number = attempt

    def job(self) -> JobRow:
        """The job as it stands; Superseded when this attempt no longer owns it."""
        with self.database.reading() as session:
            return self._owned(session)

    def desired(self) -> str:
        """What the user wants of the job: run, pause, stop or cancel."""
        with self.database.reading() as session:
            value = session.scalar(select(JobRow.desired).where(*self._fence()))
        if value is None:
            raise Superseded
        return value

    def update(self, **changes: Any) -> None:
        """Set columns of the job, such as its message or its progress; counts as a heartbeat."""
        with self.database.writing() as session:
            self._write(session, changes)

    def record(self, points: Sequence[Point], **changes: Any) -> None:
        """Write points of curves and columns of the job in one transaction."""
        with self.database.writing() as session:
            self._write(session, changes)
            kept = [(step, name, None if math.isnan(value) else value) for step, name, value in points]
            upsert_metrics(session, self.job_id, kept)

    def checkpoint(self, step: int, **changes: Any) -> None:
        """Report that the state after `step` is safe on disk: the attempt was not fruitless."""
        self.update(checkpoint_step=step, fruitless_attempts=0, **changes)

    def succeed(self, result: Mapping[str, Any], *rows: Row) -> None:
        """End the job and file what it made, in one transaction."""
        with self.database.writing() as session:
            made = {"result": dict(result), "message": "Done", "finished_at": time.time()}
            self._leave(session, "succeeded", desired="run", **made)
            for row in rows:
                session.add(row)
                session.flush()  # in the order given: a later row may refer to an earlier one

    def fail(self, failure: Failure) -> None:
        """End the job with a reason for the user."""
        with self.database.writing() as session:
            job = self._leave(session, "failed", desired="run", message="Failed", finished_at=time.time())
            note_failure(job, failure.what, failure)

    def cancel(self) -> None:
        """End the job as the user asked, and those that wait for it."""
        with self.database.writing() as session:
            ended = {"desired": "run", "message": "Cancelled", "finished_at": time.time()}
            drop_followers(session, self._leave(session, "cancelled", **ended))

    def pause(self) -> None:
        """Set the job aside until the user resumes it."""
        with self.database.writing() as session:
            self._leave(session, "paused", desired="run", message="Paused", fruitless_attempts=0)

    def release(self) -> None:
        """Give the job back to the queue, through no fault of its own; what the user asked for still stands."""
        with self.database.writing() as session:
            job = self._leave(session, "queued", message="Waiting to continue", fruitless_attempts=0)
            job.desired = "run" if job.desired == RESTART else job.desired

    def _leave(self, session: Session, state: str, **changes: Any) -> JobRow:
        if state not in MOVES["running"]:
            raise ValueError(f"a running job cannot become {state}")
        self._write(session, {"state": state, **IDLE, **changes})
        return session.get_one(JobRow, self.job_id)

    def _write(self, session: Session, changes: dict[str, Any]) -> None:
        statement = update(JobRow).where(*self._fence()).values(heartbeat_at=time.time(), **changes)
        done = session.connection().execute(statement)
        if done.rowcount != 1:
            raise Superseded

    def _owned(self, session: Session) -> JobRow:
        job = session.scalar(select(JobRow).where(*self._fence()))
        if job is None:
            raise Superseded
        return job

    def _fence(self) -> tuple[Any, ...]:
        return (JobRow.id == self.job_id, JobRow.attempt == self.number, JobRow.state == "running")
