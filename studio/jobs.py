"""The job store: what states a job can be in, which moves are legal, and every change to it as one transaction.

The page asks (submit, pause, stop, cancel, resume), the scheduler claims and buries, and the worker writes through
`studio.attempt`, fenced by its attempt number. Nothing is ever decided by a clock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from core.errors import JobError
from studio.db import Database
from studio.tables import JobRow, MetricRow

MAX_FRUITLESS_ATTEMPTS = 3
MOVES: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"running", "paused", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "queued", "paused"}),
    "paused": frozenset({"queued", "cancelled"}),
    "failed": frozenset({"queued"}),
    "succeeded": frozenset(),
    "cancelled": frozenset(),
}
STATES = tuple(MOVES)
Curve = list[tuple[int, float]]  # (step, value)
IDLE = {"pid": None, "pid_created": None, "eta_s": None, "tokens_per_second": None}  # what no worker means


def move(job: JobRow, state: str, **changes: Any) -> None:
    """Move `job` to `state` and set further columns; JobError when MOVES does not allow it."""
    if state not in MOVES[job.state]:
        raise JobError(f"{job.name} is {job.state}, so it cannot become {state}.", "Reload the list of jobs.")
    for name, value in {"state": state, **changes}.items():
        setattr(job, name, value)


class JobStore:
    """Jobs and their curves. Rows that it returns are snapshots: changing one changes nothing."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # -- asking

    def submit(
        self, kind: str, name: str, spec: Mapping[str, Any], *, idempotency_key: str = "", priority: int = 0
    ) -> JobRow:
        """Queue a job and return it; the job that `idempotency_key` made before, when there is one."""
        key = idempotency_key or None
        row = JobRow(kind=kind, name=name, spec=dict(spec), idempotency_key=key, priority=priority, message="Waiting")
        with self.database.writing() as session:
            known = session.scalar(select(JobRow).where(JobRow.idempotency_key == key)) if key else None
            if known is None:
                session.add(row)
        return known or row

    def pause(self, job_id: str) -> JobRow:
        """Ask a job to save and wait until it is resumed."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state == "queued":
                move(job, "paused", desired="run", message="Paused")
            elif job.state == "running":
                _ask(job, "pause")
            elif job.state != "paused":
                raise _over(job, "paused")
        return job

    def stop(self, job_id: str) -> JobRow:
        """Ask a job to finish now and keep the best it has; a job that never saved anything has nothing to keep."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state == "running":
                _ask(job, "stop")
            elif job.state not in ("queued", "paused"):
                raise _over(job, "stopped")
            elif job.checkpoint_step is None:
                raise JobError(f"{job.name} has not trained yet, so there is nothing to keep.", "Cancel it instead.")
            else:
                if job.state == "paused":
                    move(job, "queued")
                job.desired, job.message = "stop", "Waiting to finish"
        return job

    def cancel(self, job_id: str) -> JobRow:
        """Ask a job to end without a result; its checkpoints stay until the job is deleted."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state in ("queued", "paused"):
                move(job, "cancelled", desired="run", message="Cancelled", finished_at=time.time())
            elif job.state == "running":
                job.desired, job.message = "cancel", "Cancelling"
            elif job.state != "cancelled":
                raise _over(job, "cancelled")
        return job

    def resume(self, job_id: str) -> JobRow:
        """Queue a paused job again, retry a failed one, or take back a pause that has not happened yet."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state in ("paused", "failed"):
                move(job, "queued", desired="run", message="Waiting", fruitless_attempts=0, finished_at=None)
                job.error_what = job.error_fix = job.error_detail = ""
            elif job.state == "running" and job.desired != "cancel":
                job.desired = "run"
            elif job.state != "queued":
                raise _over(job, "resumed")
        return job

    def prioritise(self, job_id: str, priority: int) -> JobRow:
        """Change a job's place in the queue: the highest priority is claimed first, then the oldest."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            job.priority = priority
        return job

    def delete(self, job_id: str) -> None:
        """Forget a job and its curves; its adapter or model stays. JobError while it runs or waits."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state in ("queued", "running"):
                raise JobError(f"{job.name} is {job.state}.", "Cancel it first, then delete it.")
            session.execute(delete(JobRow).where(JobRow.id == job_id))

    # -- reading

    def get(self, job_id: str) -> JobRow:
        """One job; JobError when there is none with this id."""
        with self.database.reading() as session:
            return _get(session, job_id)

    def list(self, states: Sequence[str] = (), limit: int = 200) -> Sequence[JobRow]:
        """The newest jobs first; all states unless some are named."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        with self.database.reading() as session:
            return session.scalars(query.where(JobRow.state.in_(states)) if states else query).all()

    def count(self, state: str) -> int:
        """How many jobs are in one state."""
        with self.database.reading() as session:
            return session.scalar(select(func.count()).select_from(JobRow).where(JobRow.state == state)) or 0

    def metrics(self, job_id: str) -> dict[str, Curve]:
        """Every curve of a job as (step, value), by name, in the order of steps; a missing value is NaN."""
        query = select(MetricRow.name, MetricRow.step, MetricRow.value).where(MetricRow.job_id == job_id)
        curves: dict[str, Curve] = {}
        with self.database.reading() as session:
            for name, step, value in session.execute(query.order_by(MetricRow.name, MetricRow.step)):
                curves.setdefault(name, []).append((step, float("nan") if value is None else value))
        return curves

    # -- scheduling

    def claim(self, device: str, kinds: Collection[str]) -> JobRow | None:
        """Take the next queued job of these kinds for a worker on `device`, in one statement; None when there is none.

        The attempt is counted as fruitless until the worker reports a checkpoint.
        """
        queue = select(JobRow.id).where(JobRow.state == "queued", JobRow.kind.in_(kinds))
        first = queue.order_by(JobRow.priority.desc(), JobRow.id).limit(1).scalar_subquery()
        changes = {
            "state": "running",
            "device": device,
            "message": "Starting",
            "attempt": JobRow.attempt + 1,
            "fruitless_attempts": JobRow.fruitless_attempts + 1,
            "heartbeat_at": time.time(),
            "started_at": func.coalesce(JobRow.started_at, time.time()),
        }
        statement = update(JobRow).where(JobRow.id == first).values(changes).returning(JobRow)
        with self.database.writing() as session:
            return session.scalar(statement, execution_options={"synchronize_session": False})

    def bury(self, job_id: str, attempt: int, reason: str, detail: str = "") -> JobRow:
        """Settle a job whose worker is gone without having moved it: queue it again, or fail it after too many tries.

        `reason` is a sentence such as "The worker was killed by signal 9."; nothing happens when the job moved on.
        """
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state == "running" and job.attempt == attempt:
                _settle(job, reason, detail)
        return job


def _settle(job: JobRow, reason: str, detail: str) -> None:
    if job.desired == "cancel":
        move(job, "cancelled", desired="run", message="Cancelled", finished_at=time.time(), **IDLE)
    elif job.desired == "pause":
        move(job, "paused", desired="run", message="Paused", fruitless_attempts=0, **IDLE)
    elif job.fruitless_attempts < MAX_FRUITLESS_ATTEMPTS:
        move(job, "queued", message=f"{reason} Waiting to continue.", error_detail=detail, **IDLE)
    else:
        move(
            job,
            "failed",
            desired="run",
            message="Failed",
            finished_at=time.time(),
            error_what=f"{reason} It was tried {job.fruitless_attempts} times without reaching a new checkpoint.",
            error_fix="Read the end of the log below; resume the job once the cause is gone.",
            error_detail=detail,
            **IDLE,
        )


def _get(session: Session, job_id: str) -> JobRow:
    job = session.get(JobRow, job_id)
    if job is None:
        raise JobError(f"There is no job {job_id!r}.", "Take the id from the list of jobs.")
    return job


def _ask(job: JobRow, desired: str) -> None:
    if job.desired == "cancel":
        raise JobError(f"{job.name} is being cancelled.", "Wait a moment.")
    job.desired = desired


def _over(job: JobRow, wish: str) -> JobError:
    return JobError(f"{job.name} is {job.state}, so it cannot be {wish}.", "Reload the list of jobs.")


def upsert_metrics(session: Session, job_id: str, points: Sequence[tuple[int, str, float | None]]) -> None:
    """Write (step, name, value) points; a point that exists takes the new value."""
    if not points:
        return
    rows = [{"job_id": job_id, "step": step, "name": name, "value": value} for step, name, value in points]
    statement = insert(MetricRow)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "name", "step"], set_={"value": statement.excluded.value}
        ),
        rows,
    )
