"""The queue as its owner steers it: the order, whether it moves on, how many jobs share a device, what follows what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from core.errors import ConfigError, JobError
from studio.db import Database
from studio.jobs import QUEUE_ORDER
from studio.tables import JobRow, SettingRow

PAUSED, PER_DEVICE = "queue.paused", "queue.jobs_per_device"
MOST_PER_DEVICE = 16


class Queue:
    """Choices about the queue as a whole. They outlive every process."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def order(self) -> Sequence[str]:
        """The ids of the waiting jobs, the next one first."""
        with self.database.reading() as session:
            return session.scalars(select(JobRow.id).where(JobRow.state == "queued").order_by(*QUEUE_ORDER)).all()

    def move(self, job_id: str, places: int) -> None:
        """Move a waiting job up (negative) or down by `places`, as far as the queue goes.

        Every job of the queue gets a new priority below 0, those that run the lowest, so that what is interrupted goes
        on first, and what is submitted later comes last.
        """
        with self.database.writing() as session:
            running = session.scalars(_in("running")).all()
            waiting = list(session.scalars(_in("queued")).all())
            place = next((place for place, job in enumerate(waiting) if job.id == job_id), None)
            if place is None:
                raise JobError("Only a waiting job has a place in the queue.", "Reload the list of jobs.")
            job = waiting.pop(place)
            waiting.insert(max(0, place + places), job)
            for place, entry in enumerate(reversed([*running, *waiting]), start=1):
                entry.priority = -place

    @property
    def is_paused(self) -> bool:
        """True while no further job is started; those that run go on."""
        return bool(self._setting(PAUSED, False))

    def pause(self, is_paused: bool) -> None:
        """Start no further job, or go on to."""
        self._set(PAUSED, is_paused)

    @property
    def jobs_per_device(self) -> int:
        """How many jobs may share a device; beyond the first, only jobs that are known to fit into its memory."""
        return int(self._setting(PER_DEVICE, 1))

    def share_devices(self, jobs: int) -> None:
        """Let up to `jobs` run on one device where its memory allows; ConfigError for an impossible number."""
        if not 1 <= jobs <= MOST_PER_DEVICE:
            raise ConfigError(f"{jobs} jobs cannot share a device.", f"Choose 1 to {MOST_PER_DEVICE}.")
        self._set(PER_DEVICE, jobs)

    def hand_over(self, old_id: str, new_id: str) -> None:
        """Let what waits for one job wait for another, of which it then takes the result."""
        with self.database.writing() as session:
            waiting = select(JobRow).where(JobRow.after_id == old_id, JobRow.state.in_(("queued", "paused")))
            for job in session.scalars(waiting).all():
                job.after_id = new_id
                job.spec = {name: new_id if value == old_id else value for name, value in job.spec.items()}

    def _setting(self, name: str, default: Any) -> Any:
        with self.database.reading() as session:
            row = session.get(SettingRow, name)
        return default if row is None else row.value

    def _set(self, name: str, value: Any) -> None:
        statement = insert(SettingRow).values(name=name, value=value)
        changed = {"value": statement.excluded.value}
        with self.database.writing() as session:
            session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changed))


def _in(state: str) -> Any:
    return select(JobRow).where(JobRow.state == state).order_by(*QUEUE_ORDER)
