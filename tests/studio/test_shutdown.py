"""Ending the work of a workspace, with real processes: politely and at once; the job goes on afterwards either way."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from studio.scheduler import scheduler_is_running
from studio.shutdown import kill_all, pause_all
from tests.live import LiveStudio, gone
from tests.scenarios.plugin import Say

COUNT = {"steps": 60, "seconds_per_step": 0.05, "save_every": 5}


def _processes(live: LiveStudio, job_id: str) -> list[psutil.Process]:
    return [live.worker(job_id), psutil.Process(live.schedulers[-1].pid)]


@pytest.mark.scenario(14)
@pytest.mark.parametrize("end", [pause_all, kill_all])
def test_nothing_is_left_and_the_job_goes_on(tmp_path: Path, end: object, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        job_id = live.selftest(**COUNT)
        live.start()
        live.until_step(job_id, 12)
        processes = _processes(live, job_id)
        started = time.monotonic()
        count = end(live.workspace)  # type: ignore[operator]
        live.until(lambda: all(gone(process) for process in processes), timeout_s=10)
        assert time.monotonic() - started < (10 if end is pause_all else 2)
        assert not scheduler_is_running(live.workspace)
        if end is pause_all:
            assert count == 1 and live.job(job_id).state == "queued"
        live.start()
        job = live.until_state(job_id, "succeeded")
        assert job.step == 60
        steps = [step for step, _ in live.store.metrics(job_id)["loss"]]
        assert steps == list(range(1, 61))  # neither a gap nor a double
    how = "once: saved and gone within 10 s" if end is pause_all else "twice: gone within 2 s"
    figure(f"{how}, the job goes on with neither a gap nor a double")


def test_with_nothing_running_there_is_nothing_to_do(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        assert pause_all(live.workspace) == 0
        kill_all(live.workspace)
