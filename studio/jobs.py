"""The job store: what states a job can be in, which moves are legal, and every change to it as one transaction.

The page asks (submit, pause, stop, cancel, resume), the scheduler claims and buries, and the worker writes through
`studio.attempt`, fenced by its attempt number. Nothing is ever decided by a clock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session, aliased

from core.errors import JobError
from studio.db import Database
from studio.failures import HOST_MEMORY, Failure
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
RESTART = "restart"  # a wish: end this attempt, by force where it does not answer, and begin the next one
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
        self, kind: str, name: str, spec: Mapping[str, Any], *, idempotency_key: str = "", **columns: Any
    ) -> JobRow:
        """Queue a job and return it; the job that `idempotency_key` made before, when there is one."""
        key = idempotency_key or None
        columns = {"message": "Waiting", **columns}
        row = JobRow(kind=kind, name=name, spec=dict(spec), idempotency_key=key, **columns)
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
                drop_followers(session, job)
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
                job.failure = {}
            elif job.state == "running" and job.desired != "cancel":
                job.desired = "run"
            elif job.state != "queued":
                raise _over(job, "resumed")
        return job

    def restart(self, job_id: str) -> JobRow:
        """End the attempt at a running job, by force when it hangs, and go on from the last checkpoint."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state != "running":
                raise _over(job, "restarted")
            _ask(job, RESTART)
        return job

    def delete(self, job_id: str) -> None:
        """Forget a job and its curves; its adapter or model stays. JobError while it runs or waits."""
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state in ("queued", "running"):
                raise JobError(f"{job.name} is {job.state}.", "Cancel it first, then delete it.")
            drop_followers(session, job)
            session.execute(update(JobRow).where(JobRow.after_id == job_id).values(after_id=None))
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

    def claim(
        self, device: str, kinds: Collection[str], *, on_cpu: bool | None = None, room_bytes: int | None = None
    ) -> JobRow | None:
        """Take the next queued job of these kinds for a worker on `device`, in one statement; None when there is none.

        A job whose forerunner has not succeeded is passed over. `on_cpu` takes only jobs that do, or do not, ask for
        the processor; with `room_bytes` the next job must be known to need no more memory than that. The attempt is
        counted as fruitless until the worker reports a checkpoint.
        """
        queue = select(JobRow.id).where(JobRow.state == "queued", JobRow.kind.in_(kinds), _is_free())
        if on_cpu is not None:
            queue = queue.where((func.json_extract(JobRow.spec, "$.device").is_(None)) != on_cpu)
        first = queue.order_by(*QUEUE_ORDER).limit(1).scalar_subquery()
        changes = {
            "state": "running",
            "device": device,
            "message": "Starting",
            "attempt": JobRow.attempt + 1,
            "fruitless_attempts": JobRow.fruitless_attempts + 1,
            "heartbeat_at": time.time(),
            "progress_at": time.time(),
            "started_at": func.coalesce(JobRow.started_at, time.time()),
        }
        statement = update(JobRow).where(JobRow.id == first)
        if room_bytes is not None:
            statement = statement.where(JobRow.memory_bytes.between(1, room_bytes))
        with self.database.writing() as session:
            taken = statement.values(changes).returning(JobRow)
            return session.scalar(taken, execution_options={"synchronize_session": False})

    def bury(self, job_id: str, attempt: int, death: Failure) -> JobRow:
        """Settle a job whose worker is gone without having moved it: queue it again, or fail it after too many tries.

        Nothing happens when the job moved on.
        """
        with self.database.writing() as session:
            job = _get(session, job_id)
            if job.state == "running" and job.attempt == attempt:
                _settle(session, job, death)
        return job


QUEUE_ORDER = (JobRow.priority, JobRow.id)  # as the index has it, so that a claim does not sort a long queue


def _is_free() -> Any:
    """A job that waits for no other, or whose forerunner has succeeded."""
    before = aliased(JobRow)
    succeeded = exists().where(before.id == JobRow.after_id, before.state == "succeeded")
    return or_(JobRow.after_id.is_(None), succeeded)


def drop_followers(session: Session, job: JobRow) -> None:
    """Cancel the jobs that wait for one that will never succeed, and those that wait for them."""
    waiting = select(JobRow).where(JobRow.after_id == job.id, JobRow.state.in_(("queued", "paused")))
    for follower in session.scalars(waiting).all():
        message = f"{job.name} was cancelled."
        move(follower, "cancelled", desired="run", message=message, finished_at=time.time())
        drop_followers(session, follower)


def _settle(session: Session, job: JobRow, death: Failure) -> None:
    if job.desired == "cancel":
        move(job, "cancelled", desired="run", message="Cancelled", finished_at=time.time(), **IDLE)
        drop_followers(session, job)
    elif job.desired == "pause":
        move(job, "paused", desired="run", message="Paused", fruitless_attempts=0, **IDLE)
    elif job.desired == RESTART:
        move(job, "queued", desired="run", message="Waiting to continue", fruitless_attempts=0, **IDLE)
    elif job.fruitless_attempts < _tries(death):
        move(job, "queued", message=f"{death.what} Waiting to continue.", error_detail=death.detail, **IDLE)
    else:
        move(job, "failed", desired="run", message="Failed", finished_at=time.time(), **IDLE)
        note_failure(job, _with_tries(death.what, job.fruitless_attempts), death)


def _tries(death: Failure) -> int:
    """Attempts that may pass without a new checkpoint: one where memory ran out, as the next would need as much."""
    return 1 if death.kind == HOST_MEMORY else MAX_FRUITLESS_ATTEMPTS


def _with_tries(what: str, tries: int) -> str:
    return f"{what} It was tried {tries} times without reaching a new checkpoint." if tries > 1 else what


def note_failure(job: JobRow, what: str, failure: Failure) -> None:
    """Write down why a job failed."""
    job.error_what, job.error_fix, job.error_detail = what, failure.fix, failure.detail
    job.failure = {"kind": failure.kind, "evidence": failure.evidence}


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
