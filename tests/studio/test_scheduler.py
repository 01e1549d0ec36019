"""The scheduler with real workers: one at a time, every request answered, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studio import scheduler as module
from studio.failures import KILLED, Failure
from studio.scheduler import (
    LEAVE,
    Watched,
    ensure_scheduler,
    scheduler_is_running,
    stop_scheduler,
)
from studio.workspace import Workspace, WorkspaceError
from tests.live import LiveStudio, gone
from tests.scenarios.plugin import Say

ENDLESS = {"steps": 100_000, "seconds_per_step": 0.02}


def test_jobs_run_in_order_one_at_a_time(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        first = live.selftest(steps=12, seconds_per_step=0.02, save_every=5)
        second = live.selftest(steps=3, seconds_per_step=0.02)
        live.start()
        live.until_state(second, "succeeded")
        one, two = live.job(first), live.job(second)
        assert one.finished_at is not None
        assert two.started_at is not None
        assert one.finished_at <= two.started_at
        assert (one.state, one.step, one.checkpoint_step, one.attempt) == ("succeeded", 12, 12, 1)
        assert one.result == {"step": 12}
        assert one.pid is None
        assert live.store.metrics(first)["loss"] == [(step, 1 / step) for step in range(1, 13)]
        live.until(lambda: not live.workspace.scratch(first).exists())


def test_pause_resume_stop_and_cancel(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        live.start()
        job = live.selftest(**ENDLESS)
        live.until_step(job, 3)
        worker = live.worker(job)
        live.store.pause(job)
        paused = live.until_state(job, "paused")
        live.until(lambda: gone(worker))
        assert paused.checkpoint_step == paused.step >= 3
        time.sleep(0.5)
        assert live.job(job).state == "paused", "a paused job waits for its user"

        live.store.resume(job)
        live.until_step(job, paused.step + 2)
        live.store.stop(job)
        stopped = live.until_state(job, "succeeded")
        assert stopped.result["step"] == stopped.checkpoint_step > paused.step
        assert [step for step, _ in live.store.metrics(job)["loss"]] == list(range(1, stopped.result["step"] + 1))

        job = live.selftest(**ENDLESS, save_every=10**6)
        live.until_step(job, 3)
        live.store.cancel(job)
        cancelled = live.until_state(job, "cancelled", timeout_s=4)
        assert (cancelled.result, cancelled.checkpoint_step) == ({}, None)


def test_a_second_scheduler_leaves_at_once(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        first = live.start()
        live.until(lambda: scheduler_is_running(live.workspace))
        second = live.start()
        assert second.wait(timeout=10) == 0
        assert first.poll() is None
        assert "another scheduler" in live.workspace.scheduler_log.read_text()


@pytest.mark.scenario(16)
def test_a_hung_worker_is_cancelled_by_the_ladder(tmp_path: Path, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        live.start()
        job = live.selftest(**ENDLESS)
        live.until_step(job, 1)
        worker = live.worker(job)
        live.freeze(worker)
        live.store.cancel(job)
        next_job = live.selftest(steps=1, seconds_per_step=0)
        assert live.until(lambda: live.job(job).state == "cancelled") <= 10
        live.until(lambda: gone(worker))
        live.until_state(next_job, "succeeded")
        figure("a hung worker is cancelled within 10 s, and the next job runs")


@pytest.mark.scenario(12)
def test_a_job_that_dies_before_it_saves_fails_and_the_next_one_runs(tmp_path: Path, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        live.start()
        poison = live.selftest(**ENDLESS, save_every=10**6)
        after = live.selftest(steps=1, seconds_per_step=0)
        for attempt in (1, 2, 3):
            live.until(lambda attempt=attempt: live.job(poison).attempt == attempt and live.job(poison).pid)
            live.until(lambda: live.job(poison).message == "Counting")  # it is in its log, too
            live.worker(poison).kill()
            live.until(lambda: live.job(poison).pid is None)
        failed = live.until_state(poison, "failed")
        assert failed.attempt == 3
        assert "killed (SIGKILL)" in failed.error_what
        assert "3 times without reaching a new checkpoint" in failed.error_what
        assert failed.failure["kind"] in ("killed", "host_memory") and failed.error_detail
        assert live.until_state(after, "succeeded").attempt == 1
        figure(f"failed after {failed.attempt} attempts, with signal and log; the next job succeeds")


@pytest.mark.scenario(15)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_worker_whose_scheduler_is_killed_saves_and_leaves(tmp_path: Path, kills: int, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        job = live.selftest(**ENDLESS, save_every=10**6)
        step = 0
        for kill in range(1, kills + 1):
            scheduler = live.start()
            live.until(lambda kill=kill: live.job(job).attempt == kill and live.job(job).pid)
            live.until_step(job, step + 3)
            worker = live.worker(job)
            scheduler.kill()
            scheduler.wait()
            assert live.until(lambda worker=worker: gone(worker)) < 5
            left = live.job(job)
            assert (left.state, left.fruitless_attempts) == ("queued", 0)
            assert left.checkpoint_step == left.step >= step + 3
            step = left.step
        figure(f"{kills} of {kills} kills of the scheduler: its worker saves and leaves, the job goes on, 0 orphans")
        assert [step for step, _ in live.store.metrics(job)["loss"]][: left.step] == list(range(1, left.step + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_orderly_end_puts_the_jobs_back(tmp_path: Path, number: signal.Signals) -> None:
    with LiveStudio(tmp_path) as live:
        scheduler = live.start()
        job = live.selftest(**ENDLESS, save_every=10**6)
        live.until_step(job, 3)
        worker = live.worker(job)
        scheduler.send_signal(number)
        assert scheduler.wait(timeout=20) == 0
        assert gone(worker)
        assert (live.job(job).state, live.job(job).desired) == ("queued", "run")
        assert not scheduler_is_running(live.workspace)


def test_a_hung_orphan_is_found_by_the_next_scheduler(tmp_path: Path) -> None:
    """Its life-line is cut but it does not react, so its lock stays held and its job is not started twice."""
    with LiveStudio(tmp_path) as live:
        scheduler = live.start()
        job = live.selftest(**ENDLESS, save_every=10**6)
        live.until_step(job, 1)
        worker = live.worker(job)
        live.freeze(worker)
        scheduler.kill()
        scheduler.wait()
        live.start()
        time.sleep(1.5)
        assert (live.job(job).state, live.job(job).attempt) == ("running", 1)
        worker.kill()
        live.until(lambda: live.job(job).attempt == 2)


@pytest.mark.scenario(11)
def test_a_zombie_that_wakes_up_is_superseded(tmp_path: Path, figure: Say) -> None:
    with LiveStudio(tmp_path) as live:
        live.start()
        job = live.selftest(**ENDLESS, save_every=1)
        live.until_step(job, 2)
        zombie = live.worker(job)
        live.freeze(zombie)
        live.store.bury(job, 1, Failure(KILLED, "Thought dead.", ""))
        frozen = live.job(job).step
        before = live.store.metrics(job)
        zombie.resume()
        live.until(lambda: gone(zombie))
        assert "superseded" in live.workspace.worker_log(job).read_text()
        after = live.store.metrics(job)["loss"][: len(before["loss"])]
        assert after == before["loss"]
        figure("0 rows written by the old attempt; it leaves as superseded, and the new one goes on")
        live.until(lambda: live.job(job).attempt == 2 and live.job(job).step > frozen)


def test_a_stranger_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    """Folders called core and studio, and PYTHONPATH, would shadow ours without -P and the allow-list."""
    with LiveStudio(tmp_path / "w") as live:
        canary = tmp_path / "canary"
        for name in ("core", "studio", "sqlalchemy"):
            folder = live.workspace.root / name
            folder.mkdir()
            (folder / "__init__.py").write_text(f"open({str(canary)!r}, 'w')")
        job = live.selftest(steps=1, seconds_per_step=0)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "studio.scheduler", "--workspace", str(live.workspace.root)],
            cwd=live.workspace.root, env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        live.schedulers.append(process)  # type: ignore[arg-type]
        live.until_state(job, "succeeded")
        assert not canary.exists()


def test_ensure_and_stop(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        assert ensure_scheduler(live.workspace)
        try:
            assert scheduler_is_running(live.workspace)
            assert not ensure_scheduler(live.workspace)
            job = live.selftest(**ENDLESS)
            live.until_step(job, 1)
        finally:
            assert stop_scheduler(live.workspace)
        assert not scheduler_is_running(live.workspace)
        assert not stop_scheduler(live.workspace)
        assert live.job(job).state == "queued"


def test_a_scheduler_leaves_with_its_workspace(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        scheduler = live.start()
        live.until(lambda: scheduler_is_running(live.workspace))
        live.workspace.scheduler_lock.unlink()
        assert scheduler.wait(timeout=20) == 0


def test_a_scheduler_that_cannot_start_says_why(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    workspace.database.write_text("no database at all, but some text that is long enough to be read" * 9)
    with pytest.raises(WorkspaceError, match=r"did not start.*not a database"):
        ensure_scheduler(workspace)


class FakeWorker:
    job_id = "job"

    def __init__(self) -> None:
        self.sent: list[signal.Signals] = []

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)


@pytest.mark.parametrize("wish", ["cancel", "pause", "stop", LEAVE])
def test_the_ladder_waits_then_asks_then_kills(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    worker = FakeWorker()
    watched = Watched(worker)  # type: ignore[arg-type]
    patience, limit = module.LADDERS[wish]
    sent = []
    for waited in (0, patience - 1, patience + 1, limit - 1, limit + 1):
        clock[0] = 1000 + waited
        watched.urge(wish)
        sent.append(list(worker.sent))
    assert sent == [[], [], [signal.SIGTERM], [signal.SIGTERM], [signal.SIGTERM, signal.SIGKILL]]


def test_a_new_wish_starts_the_ladder_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    worker = FakeWorker()
    watched = Watched(worker)  # type: ignore[arg-type]
    for now, wish in ((0, "pause"), (29, "run"), (500, "run"), (501, "pause"), (530, "pause"), (531, "cancel")):
        clock[0] = now
        watched.urge(wish)
    assert worker.sent == []
