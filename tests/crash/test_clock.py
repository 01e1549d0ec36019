"""The wall clock jumps by days, back and forth: nothing is decided by it."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest

from studio import processes
from studio.attempt import Attempt
from studio.processes import Identity
from studio.scheduler import Scheduler
from studio.show import job_view
from studio.worker import DONE, work
from tests.live import LiveStudio
from tests.scenarios.plugin import Say
from ui.job_card import _elapsed

DAY_S = 86_400.0


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the wall clock is a day before or after the one before, or an hour off."""
    real = time.time
    jumps = itertools.cycle((0.0, DAY_S, -DAY_S, 3600.0, -3600.0))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))


@pytest.mark.scenario(13)
@pytest.mark.usefixtures("jumping_clock")
def test_a_jumping_clock_requeues_nothing(tmp_path: Path, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        jobs = [live.selftest(steps=40, seconds_per_step=0.01, save_every=5) for _ in range(2)]
        scheduler = Scheduler(live.workspace, live.database, ["cpu"])
        deadline = time.monotonic() + 60
        while any(live.job(job).state != "succeeded" for job in jobs) and time.monotonic() < deadline:
            scheduler.tick()
            for job in jobs:
                view = job_view(live.job(job))
                assert (_elapsed(view) or 0.0) >= 0.0 and (view.idle_s or 0.0) >= 0.0
            time.sleep(0.1)
        assert [(live.job(job).state, live.job(job).attempt) for job in jobs] == [("succeeded", 1)] * 2
    figure("scheduler under a clock that jumps by days: 0 false requeues, no negative time")


@pytest.mark.scenario(13)
@pytest.mark.usefixtures("jumping_clock")
def test_a_worker_under_a_jumping_clock_draws_its_curve_in_order(tmp_path: Path, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        job = live.store.submit("selftest", "count", {"steps": 50, "seconds_per_step": 0})
        live.store.claim("cpu", ["selftest"])
        for folder in (live.workspace.run_folder(job.id), live.workspace.scratch(job.id)):
            folder.mkdir()
        assert work(live.workspace, Attempt(live.database, job.id, 1), threading.Event()) == DONE
        assert [step for step, _ in live.store.metrics(job.id)["loss"]] == list(range(1, 51))
    figure("worker under a clock that jumps by days: 50 of 50 points in order")


@pytest.mark.scenario(13)
def test_who_a_process_is_does_not_hang_on_the_clock(monkeypatch: pytest.MonkeyPatch, figure: Say) -> None:
    """psutil computes when a process began from the wall clock; a jump would make us strangers to ourselves."""
    if not processes.sys.platform.startswith("linux"):
        pytest.skip("Linux alone tells it without the wall clock")
    mine = Identity.mine()
    created = processes.psutil.Process.create_time
    monkeypatch.setattr(processes.psutil.Process, "create_time", lambda self: created(self) + DAY_S)
    assert mine.is_alive() and Identity.mine() == mine
    figure("a process is known by when it began since boot: the same after a jump by a day")
