"""The scheduler: one process a workspace that gives queued jobs to workers and notices when a worker is gone.

Run as `python -P -m studio.scheduler --workspace DIR`. It stays until it is told to leave (SIGTERM, SIGINT, SIGHUP);
then its workers save at the next step, and their jobs wait in the queue for the next scheduler.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from core.errors import StudioError
from studio.db import Database
from studio.failures import CRASHED, DISK_FULL, Failure, kind_of
from studio.gpus import CPU, memory_of, slots
from studio.jobs import RESTART, JobStore
from studio.kinds import kinds
from studio.launch import Child, Orphan, start_detached
from studio.locks import ProcessLock, is_held
from studio.log import MAX_LOG_BYTES, log_to_stderr, tail
from studio.processes import Identity
from studio.queue import Queue
from studio.reserve import Reserve
from studio.tables import JobRow
from studio.workspace import Workspace, WorkspaceError

POLL_S = 0.3
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 120.0
LEAVE = "leave"  # what is asked of a worker that holds no job any more
# Seconds after a request until SIGTERM and until SIGKILL. Nothing is lost by a kill but the steps since the last save.
LADDERS = {
    "cancel": (3.0, 6.0), RESTART: (3.0, 6.0), "pause": (30.0, 120.0), "stop": (300.0, 900.0),
    LEAVE: (30.0, STOP_TIMEOUT_S),
}  # fmt: skip
HOST_SLOT = "host"  # beside the devices: for jobs that need none, such as a download
SHARED_MEMORY = 0.9  # of a device that jobs beside each other may be planned to fill
LOG_TAIL_BYTES = 4000
REFUSED = 2  # the exit code for what the user has to put right

logger = logging.getLogger(__name__)
Worker = Child | Orphan


class Watched:
    """A worker, and since when it has been asked to do something other than run."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._asked = ""
        self._since = 0.0
        self._terminated = False

    def urge(self, wish: str) -> None:
        """Climb the ladder for `wish`: wait, then SIGTERM, then SIGKILL."""
        if wish != self._asked:
            self._asked, self._since, self._terminated = wish, time.monotonic(), False
        if wish not in LADDERS:
            return
        patience, limit = LADDERS[wish]
        waited = time.monotonic() - self._since
        if waited > limit:
            logger.warning("job %s: no answer to %r for %.0f s, killed", self.worker.job_id, wish, waited)
            self.worker.send(signal.SIGKILL)
        elif waited > patience and not self._terminated:
            self._terminated = True
            self.worker.send(signal.SIGTERM)


class Scheduler:
    """Gives jobs to workers: one a slot, or several on a device where its memory allows and the user wants it."""

    def __init__(self, workspace: Workspace, database: Database, devices: Sequence[str]) -> None:
        self.workspace = workspace
        self.store = JobStore(database)
        self.queue = Queue(database)
        self.reserve = Reserve(workspace)
        self.slots = (*dict.fromkeys((*devices, CPU)), HOST_SLOT)  # the processor also where there are GPUs: by choice
        self.watched: list[Watched] = []
        self._leaving = False
        self._had_disk = True

    def leave(self, *signal_and_frame: object) -> None:
        """Ask the scheduler to end: it lets its workers save first."""
        self._leaving = True

    def run(self) -> None:
        """Work until told to leave, or until the workspace is deleted."""
        self.adopt()
        while not self._leaving and self.workspace.scheduler_lock.exists():
            self._safely_tick()
            time.sleep(POLL_S)
        self.dismiss()

    def adopt(self) -> None:
        """Take over the jobs that an earlier scheduler left in the state running."""
        for job in self.store.list(["running"]):
            self.watched.append(Watched(Orphan(self.workspace, job)))

    def tick(self) -> None:
        """Look after every worker once, then fill the free slots."""
        running = {job.id: job for job in self.store.list(["running"])} if self.watched else {}
        for watched in list(self.watched):
            self._look_after(watched, running.get(watched.worker.job_id))
        if self.store.count("queued") and not self.queue.is_paused and self._has_disk():  # an idle one takes no lock
            for slot in self.slots:
                while self._start_next(slot):
                    pass

    def dismiss(self) -> None:
        """Let every worker save and leave; kill those that do not."""
        for watched in self.watched:
            watched.worker.let_go()
        while self.watched:
            for watched in list(self.watched):
                self._look_after(watched, None)
            time.sleep(POLL_S)

    def _has_disk(self) -> bool:
        """True while the disk has room for the reserve; without it, nothing is started that could only fail."""
        has_disk = self.reserve.keep()
        if has_disk != self._had_disk:
            logger.warning("jobs are started again" if has_disk else "the disk is full: no job is started")
        self._had_disk = has_disk
        return has_disk

    def _safely_tick(self) -> None:
        try:
            self.tick()
        except (SQLAlchemyError, StudioError, OSError) as error:  # it passes: try again, do not die
            logger.exception("the scheduler goes on after an error")
            if kind_of(error) == DISK_FULL:
                self.reserve.release()
            time.sleep(2.0)

    def _look_after(self, watched: Watched, job: JobRow | None) -> None:
        worker = watched.worker
        if worker.has_ended():
            self.watched.remove(watched)
            self._bury(worker)
        elif job is None or job.attempt != worker.attempt or isinstance(worker, Orphan):
            watched.urge(LEAVE)
        else:
            watched.urge(job.desired)

    def _bury(self, worker: Worker) -> None:
        log = tail(self.workspace.worker_log(worker.job_id), LOG_TAIL_BYTES)
        job = self.store.bury(worker.job_id, worker.attempt, replace(worker.death(), detail=log))
        logger.info("job %s: attempt %d ended, the job is %s", job.id, worker.attempt, job.state)
        if job.state in ("succeeded", "failed", "cancelled"):
            self.workspace.discard(self.workspace.scratch(job.id))

    def _start_next(self, slot: str) -> bool:
        """Start the next job of a slot; False when there is none, or no room."""
        sharing = [watched.worker for watched in self.watched if watched.worker.slot == slot]
        if sharing and (slot == HOST_SLOT or len(sharing) >= self.queue.jobs_per_device):
            return False
        job = self._claim(slot, sharing)
        if job is None:
            return False
        try:
            child = Child(self.workspace, job, slot, network=kinds.get(job.kind).needs_network)
        except OSError as error:
            what = f"The worker could not be started: {error.strerror}."
            self.store.bury(job.id, job.attempt, Failure(CRASHED, what, "Resume the job once the cause is gone."))
            raise
        logger.info("job %s: attempt %d starts on %s", job.id, job.attempt, slot)
        self.watched.append(Watched(child))
        return True

    def _claim(self, slot: str, sharing: Sequence[Worker]) -> JobRow | None:
        if slot == HOST_SLOT:
            return self.store.claim(HOST_SLOT, [name for name in kinds.names() if not kinds.get(name).needs_device])
        wanted = [name for name in kinds.names() if kinds.get(name).needs_device]
        on_cpu = None if CPU in self.slots[:1] else slot == CPU  # without a GPU the wish makes no difference
        room = _room_beside(slot, sharing)
        return None if room == 0 else self.store.claim(slot, wanted, on_cpu=on_cpu, room_bytes=room)


def _room_beside(slot: str, sharing: Sequence[Worker]) -> int | None:
    """Bytes that one more job on a device may need; None for a device that is idle, 0 for one without room."""
    if not sharing and not slot.startswith("cuda:"):
        return None
    device = memory_of(slot)
    if device is None:  # it fell off the bus: its queue waits, other devices go on
        return 0
    if not sharing:
        return None
    if not all(worker.memory_bytes for worker in sharing):
        return 0
    planned = sum(worker.memory_bytes for worker in sharing)
    room = min(
        SHARED_MEMORY * device.memory_total_bytes - planned, device.memory_total_bytes - device.memory_used_bytes
    )
    return max(0, int(room))


def scheduler_is_running(workspace: Workspace) -> bool:
    """True while a scheduler works on this workspace. Not to be asked by that scheduler itself (see locks)."""
    return is_held(workspace.scheduler_lock)


def ensure_scheduler(workspace: Workspace) -> bool:
    """Start a scheduler that outlives this process unless there is one; True when it was started here.

    Raises WorkspaceError with the end of its log when it does not come up.
    """
    if scheduler_is_running(workspace):
        return False
    if workspace.scheduler_log.exists() and workspace.scheduler_log.stat().st_size > MAX_LOG_BYTES:
        workspace.scheduler_log.replace(workspace.scheduler_log.with_suffix(".log.1"))
    arguments = ["--workspace", str(workspace.root)]
    process = start_detached("studio.scheduler", arguments, workspace.scheduler_log, workspace.root)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not scheduler_is_running(workspace):
        if process.returncode not in (None, 0) or time.monotonic() > deadline:
            last = next(iter(tail(workspace.scheduler_log, LOG_TAIL_BYTES).strip().splitlines()[-1:]), "")
            raise WorkspaceError(
                f"The scheduler did not start. {last}", f"The log says more: {workspace.scheduler_log}."
            )
        time.sleep(0.05)
    return True


def stop_scheduler(workspace: Workspace, timeout_s: float = STOP_TIMEOUT_S + 10) -> bool:
    """Tell the scheduler to let its workers save and to leave, and wait for that; False when there was none."""
    if not scheduler_is_running(workspace):
        return False
    identity = Identity.parse(workspace.scheduler_lock.read_text(encoding="utf-8"))
    if identity is not None:
        identity.signal(signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while scheduler_is_running(workspace):
        if time.monotonic() > deadline:
            raise WorkspaceError(f"The scheduler did not leave within {timeout_s:.0f} s.", "Try again in a minute.")
        time.sleep(0.1)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scheduler of one workspace; returns at once when there already is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    os.umask(0o077)
    log_to_stderr()
    try:
        workspace = Workspace.open(parser.parse_args(arguments).workspace)
        database = Database.open(workspace)  # before the lock, which tells the one who started us that all is well
    except StudioError as error:
        logger.error("%s", error)
        return REFUSED
    lock = ProcessLock(workspace.scheduler_lock)
    if not lock.acquire(timeout_s=1.0, note=str(Identity.mine())):  # a probe holds it for an instant
        logger.info("another scheduler works on %s", workspace.root)
        return 0
    scheduler = Scheduler(workspace, database, slots())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, scheduler.leave)
    logger.info("started for %s with %s", workspace.root, ", ".join(scheduler.slots))
    scheduler.run()
    logger.info("left")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
