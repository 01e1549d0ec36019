"""The jobs of a studio, seen and steered one by one; `studio.board` has what concerns the queue as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.config import TrainConfig
from core.errors import JobError
from studio.curves import Curves
from studio.db import Database
from studio.jobs import JobStore
from studio.log import tail
from studio.scheduler import ensure_scheduler
from studio.score_sheet import read_scores
from studio.show import job_view, score_view
from studio.spec import to_yaml
from studio.tables import JobRow
from studio.views import CheckpointView, JobView, MetricPoint, ScoreView
from studio.workspace import Workspace


class JobDesk:
    """Everything about jobs that needs neither the library nor a plan."""

    def __init__(self, workspace: Workspace, database: Database) -> None:
        self.workspace = workspace
        self._database = database
        self._jobs = JobStore(database)
        self._curves = Curves(database)

    def start(self) -> None:
        """See to it that a scheduler works on the queue."""
        ensure_scheduler(self.workspace)

    def submit(
        self, kind: str, name: str, spec: Mapping[str, Any], idempotency_key: str = "", **columns: Any
    ) -> JobView:
        """Queue a job of any kind, and see to it that a scheduler works on it."""
        return self._scheduled(self._jobs.submit(kind, name, spec, idempotency_key=idempotency_key, **columns))

    def _scheduled(self, row: JobRow) -> JobView:
        self.start()
        return job_view(row)

    def jobs(self, *, states: Sequence[str] = (), limit: int = 200) -> list[JobView]:
        """The newest jobs first."""
        return [job_view(row) for row in self._jobs.list(states, limit)]

    def job(self, job_id: str) -> JobView:
        """One job."""
        return job_view(self._jobs.get(job_id))

    def metrics(
        self, job_id: str, *, max_points: int = 1000, names: Sequence[str] = ()
    ) -> dict[str, list[MetricPoint]]:
        """Curves by name (loss, eval_loss, learning_rate, ...; all unless named), thinned keeping their extremes."""
        return self._curves.of(job_id, max_points, names)

    def untrained_loss(self, job_id: str) -> float | None:
        """The loss on a run's held-out rows before its first step; None where nothing was held out."""
        return self._curves.untrained_loss(job_id)

    def scores(self, job_id: str) -> list[ScoreView]:
        """What a run's held-out rows gave, at the steps where they were measured, the earliest first."""
        self._jobs.get(job_id)
        return [score_view(entry) for entry in read_scores(self.workspace.run_folder(job_id))]

    def log_tail(self, job_id: str, *, max_bytes: int = 65536) -> str:
        """The end of a job's log, progress bars folded to their last state."""
        self._jobs.get(job_id)
        return tail(self.workspace.worker_log(job_id), max_bytes)

    def checkpoints(self, job_id: str) -> list[CheckpointView]:
        """The saved states of a job, the oldest first."""
        from core.checkpoint import checkpoints

        job = self._jobs.get(job_id)
        found = checkpoints(self.workspace.checkpoints_folder(job_id))
        last = max((item.step for item in found), default=0)
        return [
            CheckpointView(item.step, item.eval_loss, item.size_bytes, item.step == job.best_step, item.step == last)
            for item in found
        ]

    def pause_job(self, job_id: str) -> JobView:
        """Save and wait until resumed."""
        return job_view(self._jobs.pause(job_id))

    def resume_job(self, job_id: str) -> JobView:
        """Go on from the last checkpoint, or try a failed job again."""
        return self._scheduled(self._jobs.resume(job_id))

    def stop_job(self, job_id: str) -> JobView:
        """Finish now and keep the best adapter so far."""
        return self._scheduled(self._jobs.stop(job_id))

    def cancel_job(self, job_id: str) -> JobView:
        """End without a result; checkpoints stay until the job is deleted."""
        return job_view(self._jobs.cancel(job_id))

    def delete_job(self, job_id: str) -> None:
        """Forget a job that is over or paused, with its log and checkpoints; its adapter or model stays."""
        self._jobs.delete(job_id)
        self.workspace.discard(self.workspace.run_folder(job_id))

    def job_spec_yaml(self, job_id: str) -> str:
        """A training job as YAML that the CLI runs; JobError for other kinds."""
        job = self._jobs.get(job_id)
        if job.kind != "train":
            raise JobError(f"{job.name} is no training job.", "Only training jobs can be saved as YAML.")
        from core.config import from_dict

        return to_yaml(
            job.name, job.spec["model_id"], job.spec["dataset_id"], from_dict(TrainConfig, job.spec["train"])
        )
