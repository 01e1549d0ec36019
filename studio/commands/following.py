"""Waiting for a job in the terminal: a live line with its progress, until it is over or the user lets go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from core.errors import JobError
from studio.commands.terminal import DETACHED, console, duration, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from studio.service import Studio
    from studio.views import JobView

POLL_S = 0.3
TRAINING = "Training"  # what a job says while its steps run


def follow(studio: Studio, job_id: str) -> JobView:
    """Show a job's progress on standard error until it is over; return it when it succeeded.

    Raises JobError when it failed or was cancelled. Ctrl-C leaves the job alone, says so, and exits.
    """
    try:
        job = _watch(studio, job_id)
    except KeyboardInterrupt:
        say(_detached(job_id))
        raise typer.Exit(DETACHED) from None
    if job.state == "failed":
        raise JobError(job.error_what or "The job failed.", job.error_fix)
    if job.state == "cancelled":
        raise JobError(f"The job {job.name} was cancelled.", f"Its log: lora-studio jobs logs {job.id}")
    if job.state == "paused":
        raise JobError(f"The job {job.name} is paused.", f"Go on with: lora-studio jobs resume {job.id}")
    return job


def _watch(studio: Studio, job_id: str) -> JobView:
    with _bar() as progress:
        bar = progress.add_task("", total=None, facts="")
        while True:
            job = studio.job(job_id)
            total = job.total_steps or None
            progress.update(bar, completed=job.step, total=total, description=job.name, facts=_facts(job))
            if job.is_over or job.state == "paused":
                return job
            studio.start()  # whoever stopped the scheduler: this job is being waited for
            time.sleep(POLL_S)


def _bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    return Progress(
        *columns, TextColumn("{task.fields[facts]}", markup=False), TimeElapsedColumn(), console=console(stderr=True)
    )


def _facts(job: JobView) -> str:
    """Step, losses, speed and time left, as far as they are known."""
    count = f"{job.step}/{job.total_steps}" if job.total_steps else ""
    at_work = "" if job.message == TRAINING and count else job.message or job.state  # steps need no word
    parts = [part for part in (at_work, count) if part]
    if job.loss is not None:
        parts.append(f"loss {job.loss:.3f}")
    if job.eval_loss is not None:
        parts.append(f"eval {job.eval_loss:.3f}")
    if job.tokens_per_second:
        parts.append(f"{job.tokens_per_second:,.0f} tokens/s")
    if job.eta_s is not None and not job.is_over:
        parts.append(f"{duration(job.eta_s)} left")
    return " · ".join(parts)


def _detached(job_id: str) -> str:
    return (
        "Detached: the job goes on in the background.\n"
        f"Follow it: lora-studio jobs show {job_id} --wait\nCancel it: lora-studio jobs cancel {job_id}"
    )
