"""A whole studio in real processes, for tests that kill parts of it: scheduler, workers, one workspace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from studio.db import Database
from studio.jobs import JobStore
from studio.log import tail
from studio.tables import JobRow
from studio.workspace import Workspace

TIMEOUT_S = 50.0


class LiveStudio:
    """A workspace with its job store, and schedulers started as real processes; leaves no process behind."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.open(root)
        self.database = Database.open(self.workspace)
        self.store = JobStore(self.database)
        self.schedulers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LiveStudio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pids = [job.pid for job in self.store.list(["running"]) if job.pid]
        for scheduler in self.schedulers:
            scheduler.kill()
            scheduler.wait()
        for pid in pids:
            if psutil.pid_exists(pid) and "studio.worker" in " ".join(psutil.Process(pid).cmdline()):
                os.kill(pid, signal.SIGKILL)
        self.database.close()

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a scheduler and return it once its lock is taken or it has left."""
        with self.workspace.scheduler_log.open("ab") as log:
            scheduler = subprocess.Popen(
                [sys.executable, "-P", "-m", "studio.scheduler", "--workspace", str(self.workspace.root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True,
            )  # fmt: skip
        self.schedulers.append(scheduler)
        self.until(lambda: self.workspace.scheduler_lock.exists() or scheduler.poll() is not None)
        return scheduler

    def job(self, job_id: str) -> JobRow:
        return self.store.get(job_id)

    def selftest(self, **spec: Any) -> str:
        """Queue a job that counts; quick and torch-free."""
        return self.store.submit("selftest", "count", spec).id

    def until(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> float:
        """Wait until `condition` holds and return how long it took; fail with the logs when it does not."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < timeout_s, self.report()
            time.sleep(0.02)
        return time.monotonic() - started

    def until_state(self, job_id: str, *states: str, timeout_s: float = TIMEOUT_S) -> JobRow:
        """Wait until a job is in one of `states`."""
        self.until(lambda: self.job(job_id).state in states, timeout_s)
        return self.job(job_id)

    def until_step(self, job_id: str, step: int) -> JobRow:
        """Wait until a running job has reported `step`."""
        self.until(lambda: self.job(job_id).step >= step)
        return self.job(job_id)

    def worker(self, job_id: str) -> psutil.Process:
        """The living worker of a job."""
        self.until(lambda: self.job(job_id).pid)
        pid = self.job(job_id).pid
        assert pid is not None
        return psutil.Process(pid)

    def freeze(self, process: psutil.Process) -> None:
        """Stop a process as a hang in its computation would: between two transactions, not inside one."""
        with self.database.writing():  # while we hold the write lock, nobody else does
            process.suspend()

    def report(self) -> str:
        """The state of every job and the ends of the logs."""
        jobs = [f"{job.id} {job.kind} {job.state} step {job.step} {job.error_what}" for job in self.store.list()]
        logs = [tail(job_log, 3000) for job_log in self.workspace.runs.glob("*/worker.log")]
        return "\n".join(["timed out", *jobs, tail(self.workspace.scheduler_log, 3000), *logs])


def figure(text: str) -> None:
    """Show what a test measured; pytest prints it with -s or -rP."""
    sys.stdout.write(f"\n{text}\n")


def gone(process: psutil.Process) -> bool:
    """True once a process has ended, whoever its parent is."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
