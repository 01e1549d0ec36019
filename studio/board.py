"""The jobs as their owner steers them: order and pace of the queue, copies with a change, remedies, what follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.config import TrainConfig, from_dict
from core.errors import AdapterError, ConfigError, JobError, StudioError
from core.methods import methods
from studio.failures import GPU_MEMORY, HOST_MEMORY
from studio.jobs import JobStore
from studio.queue import Queue
from studio.remedies import AGAIN, Case, changed, remedies
from studio.show import job_view
from studio.tables import JobRow
from studio.views import JobView, QueueView, RemedyView

if TYPE_CHECKING:
    from studio.service import Studio


class JobBoard:
    """What can be done to the queue as a whole and to the jobs in it, beside pausing, stopping and cancelling one."""

    def __init__(self, studio: Studio, jobs: JobStore) -> None:
        self._studio = studio
        self._jobs = jobs
        self._queue = Queue(jobs.database)
        self._worked_out: dict[tuple[str, int], tuple[RemedyView, ...]] = {}

    # -- the queue

    def queue(self) -> QueueView:
        """The order of the waiting jobs, whether it is paused, and how many may share a device."""
        return QueueView(tuple(self._queue.order()), self._queue.is_paused, self._queue.jobs_per_device)

    def move(self, job_id: str, places: int) -> QueueView:
        """Move a waiting job up (negative) or down, as far as the queue goes."""
        self._queue.move(job_id, places)
        return self.queue()

    def pause_queue(self) -> QueueView:
        """Start no further job; those that run go on."""
        self._queue.pause(True)
        return self.queue()

    def resume_queue(self) -> QueueView:
        """Start jobs again."""
        self._queue.pause(False)
        self._studio.start()
        return self.queue()

    def share_devices(self, jobs: int) -> QueueView:
        """Let up to `jobs` run on one device, where its memory allows."""
        self._queue.share_devices(jobs)
        return self.queue()

    # -- one job

    def restart(self, job_id: str) -> JobView:
        """End the attempt at a running job, by force when it hangs, and go on from its last checkpoint."""
        return job_view(self._jobs.restart(job_id))

    def duplicate(
        self, job_id: str, changes: Mapping[str, Any] | None = None, *, name: str = "", idempotency_key: str = ""
    ) -> JobView:
        """Queue a copy of a job with some settings changed, such as {"optim.learning_rate": 1e-4}.

        `device` "cpu" makes it train on the processor. Raises ConfigError for a change that does not fit.
        """
        job, changes = self._jobs.get(job_id), dict(changes or {})
        name = name.strip() or job.name
        if job.kind != "train":
            if changes:
                raise ConfigError(f"{job.name} is no training job, so it has no settings.", "Copy it as it is.")
            return self._studio.submit(job.kind, name, job.spec, idempotency_key)
        device = str(changes.pop("device", job.spec.get("device", "")))
        config = changed(from_dict(TrainConfig, job.spec["train"]), changes)
        ids = job.spec["model_id"], job.spec["dataset_id"]
        return self._studio.train(*ids, config, name=name, idempotency_key=idempotency_key, device=device)

    def merge_after(self, job_id: str, *, name: str = "", dtype: str = "base", idempotency_key: str = "") -> JobView:
        """Queue the merge of the adapter that an unfinished training job will make; it waits for its success."""
        job = self._jobs.get(job_id)
        if job.kind != "train" or job.state in ("succeeded", "cancelled"):
            raise JobError(f"Nothing can wait for {job.name}.", "Pick a training job that is not over.")
        reason = methods.get(from_dict(TrainConfig, job.spec["train"]).adapter.method).why_unmergeable()
        if reason:
            raise AdapterError(reason, "Use it as an adapter.")
        name = name.strip() or f"{job.name} merged"
        spec = {"adapter_id": job_id, "name": name, "dtype": dtype}  # an adapter has the id of the job that makes it
        return self._studio.submit(
            "merge", name, spec, idempotency_key, after_id=job_id, message=f"Waits for {job.name}"
        )

    # -- after a failure

    def remedies(self, job_id: str) -> tuple[RemedyView, ...]:
        """What can be done about a failed job, the most promising first; () for any other job."""
        job = self._jobs.get(job_id)
        if job.state != "failed":
            return ()
        found = self._worked_out.get((job_id, job.attempt)) or self._work_out(job)
        if job.failure.get("kind") not in (GPU_MEMORY, HOST_MEMORY) or any(remedy.changes for remedy in found):
            self._worked_out[job_id, job.attempt] = found  # else its worker may hold its memory still: look again
        return found

    def retry(self, job_id: str, remedy: str = "", *, idempotency_key: str = "") -> JobView:
        """Apply a remedy of a failed job by its name, the first one unless named: a changed copy, or the same again.

        What waited for the failed job waits for the copy then.
        """
        offered = self.remedies(job_id)
        chosen = next((item for item in offered if remedy in ("", item.name)), None)
        if chosen is None:
            known = ", ".join(item.name for item in offered)
            fix = f"Pick one of: {known}." if known else "Only a failed job has remedies."
            raise JobError(f"There is no remedy {remedy!r} for this job." if remedy else "There is no remedy.", fix)
        if chosen.name == AGAIN:
            return self._studio.resume_job(job_id)
        copy = self.duplicate(job_id, chosen.changes, idempotency_key=idempotency_key)
        self._queue.hand_over(job_id, copy.id)
        return copy

    def _work_out(self, job: JobRow) -> tuple[RemedyView, ...]:
        kind = str(job.failure.get("kind", ""))
        return tuple(remedies(kind, self._case(job) if job.kind == "train" else None))

    def _case(self, job: JobRow) -> Case | None:
        """The facts of a failed training; None when its model or dataset is gone, so that nothing can be planned."""
        model_id, dataset_id = job.spec["model_id"], job.spec["dataset_id"]
        try:
            config = from_dict(TrainConfig, job.spec["train"])
            rate = self._studio.plan(model_id, dataset_id, config).learning_rate
        except StudioError:
            return None
        return Case(config, lambda changed: self._studio.plan(model_id, dataset_id, changed), rate)
