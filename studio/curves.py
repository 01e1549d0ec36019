"""The curves of jobs, read with fewer points for the same picture: no spike and no gap disappears.

SQLite does the thinning, so that a run of a million steps is not carried into Python to be drawn 800 pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from studio.db import Database
from studio.tables import JobRow, MetricRow
from studio.views import MetricPoint

KEPT_PER_BUCKET = 4  # the lowest, the highest, the last, and one that is missing
_BUCKET = "FROM metrics WHERE job_id = :job_id AND name = :name AND step >= start AND step < start + :width"
_LANDMARKS = text(f"""
WITH RECURSIVE buckets(start) AS (
    SELECT :first UNION ALL SELECT start + :width FROM buckets WHERE start + :width <= :last
)
SELECT (SELECT step {_BUCKET} AND value IS NOT NULL ORDER BY value LIMIT 1),
       (SELECT step {_BUCKET} AND value IS NOT NULL ORDER BY value DESC LIMIT 1),
       (SELECT max(step) {_BUCKET}),
       (SELECT min(step) {_BUCKET} AND value IS NULL)
FROM buckets""")


class Curves:
    """What jobs have measured, step by step."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def of(self, job_id: str, max_points: int, names: Sequence[str] = ()) -> dict[str, list[MetricPoint]]:
        """The curves of a job by name, each in the order of steps and with at most `max_points` points.

        All of them, unless `names` are given.
        Of every bucket of steps the lowest, the highest and the last value are kept, and a missing one as NaN: a mean
        would hide spikes, and a gap must show.
        """
        about = select(MetricRow.name, func.count(), func.min(MetricRow.step), func.max(MetricRow.step))
        about = about.where(MetricRow.job_id == job_id).group_by(MetricRow.name)
        with self.database.reading() as session:
            found = session.execute(about.where(MetricRow.name.in_(names)) if names else about).all()
            return {
                name: _thinned(session, job_id, name, first, last, max_points)
                if count > max_points
                else _points(session, job_id, name)
                for name, count, first, last in found
            }

    def untrained_loss(self, job_id: str) -> float | None:
        """The validation loss before the first step; None where nothing was held out."""
        point = (MetricRow.job_id == job_id, MetricRow.name == "eval_loss", MetricRow.step == 0)
        with self.database.reading() as session:
            return session.scalar(select(MetricRow.value).where(*point))

    def usual_speed(self, model_id: str) -> float | None:
        """The median speed of the newest finished run of a model, in tokens a second; None before the first."""
        spec = func.json_extract(JobRow.spec, "$.model_id")
        newest = select(JobRow.id).where(JobRow.state == "succeeded", JobRow.kind == "train", spec == model_id)
        with self.database.reading() as session:
            job_id = session.scalar(newest.order_by(JobRow.id.desc()).limit(1))
            if job_id is None:
                return None
            speeds = select(MetricRow.value).where(MetricRow.job_id == job_id, MetricRow.name == "tokens_per_second")
            ordered = sorted(value for value in session.scalars(speeds) if value is not None)
        return ordered[len(ordered) // 2] if ordered else None


def _points(session: Session, job_id: str, name: str) -> list[MetricPoint]:
    query = select(MetricRow.step, MetricRow.value).where(MetricRow.job_id == job_id, MetricRow.name == name)
    return [_point(step, value) for step, value in session.execute(query.order_by(MetricRow.step))]


def _thinned(session: Session, job_id: str, name: str, first: int, last: int, max_points: int) -> list[MetricPoint]:
    """The landmarks of every bucket of steps, each found in the order of the key, so that nothing is sorted."""
    width = math.ceil((last - first + 1) / max(1, max_points // KEPT_PER_BUCKET))
    values = {"job_id": job_id, "name": name, "first": first, "last": last, "width": width}
    steps = {step for row in session.execute(_LANDMARKS, values) for step in row if step is not None}
    query = select(MetricRow.step, MetricRow.value).where(
        MetricRow.job_id == job_id, MetricRow.name == name, MetricRow.step.in_(steps)
    )
    return [_point(step, value) for step, value in session.execute(query.order_by(MetricRow.step))]


def _point(step: int, value: float | None) -> MetricPoint:
    return MetricPoint(step, math.nan if value is None else value)
