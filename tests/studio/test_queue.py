"""The queue by hand: its order, its pause, several jobs a device, and jobs that wait for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from core.errors import ConfigError, JobError
from studio import scheduler as module
from studio.attempt import Attempt
from studio.db import Database
from studio.failures import KILLED, Failure
from studio.gpus import CPU
from studio.jobs import JobStore
from studio.queue import Queue
from studio.scheduler import Scheduler
from studio.tables import JobRow
from studio.views import DeviceView
from studio.workspace import Workspace
from tests.live import LiveStudio
from tests.scenarios.plugin import Say

GIB = 2**30
Scheduled = Callable[..., dict[str, str]]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def store(workspace: Workspace) -> JobStore:
    return JobStore(Database.open(workspace))


@pytest.fixture
def queue(store: JobStore) -> Queue:
    return Queue(store.database)


def submit(store: JobStore, *names: str) -> dict[str, str]:
    return {name: store.submit("selftest", name, {}).id for name in names}


def names(store: JobStore, queue: Queue) -> list[str]:
    return [store.get(job_id).name for job_id in queue.order()]


def claim(store: JobStore) -> Attempt:
    job = store.claim(CPU, ["selftest"])
    assert job is not None
    return Attempt(store.database, job.id, job.attempt)


@pytest.mark.parametrize(
    ("name", "places", "after"),
    [("c", -1, "acbd"), ("c", -99, "cabd"), ("a", 1, "bacd"), ("a", 99, "bcda"), ("b", 0, "abcd"), ("a", -1, "abcd")],
)
def test_a_job_moves_as_far_as_the_queue_goes(
    store: JobStore, queue: Queue, name: str, places: int, after: str
) -> None:
    ids = submit(store, *"abcd")
    queue.move(ids[name], places)
    assert names(store, queue) == list(after)
    assert store.get(claim(store).job_id).name == after[0]


def test_later_jobs_come_last_and_an_interrupted_one_first(store: JobStore, queue: Queue) -> None:
    ids = submit(store, *"abc")
    running = claim(store)
    queue.move(ids["c"], -1)
    submit(store, "d")
    assert names(store, queue) == ["c", "b", "d"]
    running.release()
    assert names(store, queue) == ["a", "c", "b", "d"]


def test_only_a_waiting_job_has_a_place(store: JobStore, queue: Queue) -> None:
    ids = submit(store, "a")
    claim(store)
    for job_id in (ids["a"], "nothing"):
        with pytest.raises(JobError, match="Only a waiting job"):
            queue.move(job_id, 1)


def test_settings_outlive_the_process(store: JobStore, queue: Queue) -> None:
    assert (queue.is_paused, queue.jobs_per_device) == (False, 1)
    queue.pause(True)
    queue.share_devices(3)
    queue.share_devices(2)
    again = Queue(Database(store.database.path))
    assert (again.is_paused, again.jobs_per_device) == (True, 2)
    for jobs in (0, 17):
        with pytest.raises(ConfigError, match="cannot share"):
            queue.share_devices(jobs)


# -- jobs that wait for others


def follower(store: JobStore, before: str, name: str = "follower") -> str:
    return store.submit("selftest", name, {"adapter_id": before}, after_id=before).id


def test_a_follower_is_passed_over_until_its_forerunner_has_succeeded(store: JobStore) -> None:
    first = submit(store, "first")["first"]
    second = follower(store, first)
    other = submit(store, "other")["other"]
    running = claim(store)
    assert (running.job_id, claim(store).job_id) == (first, other)
    assert store.claim(CPU, ["selftest"]) is None
    running.fail(Failure(KILLED, "It broke.", ""))
    assert store.claim(CPU, ["selftest"]) is None and store.get(second).state == "queued", "it can still be retried"
    store.resume(first)
    claim(store).succeed({})
    assert claim(store).job_id == second


@pytest.mark.parametrize("end", ["cancel waiting", "cancel running", "die cancelled", "delete"])
def test_followers_of_a_job_that_will_never_succeed_are_cancelled(store: JobStore, end: str) -> None:
    first = submit(store, "first")["first"]
    second = follower(store, first)
    third = follower(store, second)
    if end == "cancel waiting":
        store.cancel(first)
    elif end == "delete":
        claim(store).fail(Failure(KILLED, "It broke.", ""))
        store.delete(first)
    else:
        attempt = claim(store)
        store.cancel(first)
        if end == "cancel running":
            attempt.cancel()
        else:
            store.bury(first, 1, Failure(KILLED, "Killed.", ""))
    assert {store.get(job_id).state for job_id in (second, third)} == {"cancelled"}
    assert store.get(second).message == "first was cancelled."


def test_a_copy_takes_over_what_waits_for_the_failed_one(store: JobStore, queue: Queue) -> None:
    first = submit(store, "first")["first"]
    second = follower(store, first)
    claim(store).fail(Failure(KILLED, "It broke.", ""))
    copy = submit(store, "copy")["copy"]
    queue.hand_over(first, copy)
    assert (store.get(second).after_id, store.get(second).spec) == (copy, {"adapter_id": copy})
    claim(store).succeed({})
    assert claim(store).job_id == second


# -- who runs where


class FakeChild:
    """A worker that only holds its place."""

    def __init__(self, workspace: Workspace, job: JobRow, slot: str, *, network: bool) -> None:
        self.job_id, self.attempt, self.slot, self.memory_bytes = job.id, job.attempt, slot, job.memory_bytes

    def has_ended(self) -> bool:
        return False


@pytest.fixture
def scheduled(workspace: Workspace, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Scheduled:
    """Submit jobs, tick once on some devices of 10 GiB, and tell which job got which slot."""
    monkeypatch.setattr(module, "Child", FakeChild)

    def run(devices: Sequence[str], *jobs: dict[str, object], lost: Sequence[str] = ()) -> dict[str, str]:
        gpu = DeviceView("GPU", "cuda", 10 * GIB, 1 * GIB, 0.0)
        monkeypatch.setattr(module, "memory_of", lambda slot: None if slot in lost else gpu)
        for number, job in enumerate(jobs):
            columns = {"spec": {}, "memory_bytes": 0, "kind": "selftest", **job}
            spec, kind = columns.pop("spec"), str(columns.pop("kind"))
            store.submit(kind, f"job {number}", spec, **columns)  # type: ignore[arg-type]
        scheduler = Scheduler(workspace, store.database, devices)
        scheduler.tick()
        return {store.get(watched.worker.job_id).name: watched.worker.slot for watched in scheduler.watched}

    return run


def test_one_job_a_device_unless_they_may_share(scheduled: Scheduled, queue: Queue) -> None:
    assert scheduled(["cuda:0"], {}, {}, {"kind": "add_model"}) == {"job 0": "cuda:0", "job 2": "host"}


@pytest.mark.parametrize(
    ("needs", "sharing", "running"),
    [((4, 4, 4), 3, 2),  # 4 + 4 are planned; the third would take it past nine tenths
     ((2, 2, 2), 3, 3), ((2, 2, 2), 2, 2),
     ((2, 0, 2), 3, 1),  # the next one's need is not known, so it waits for an idle device
     ((0, 2, 2), 3, 1)],
)  # fmt: skip
def test_several_jobs_share_a_device_where_its_memory_allows(
    scheduled: Scheduled, queue: Queue, needs: Sequence[int], sharing: int, running: int
) -> None:
    queue.share_devices(sharing)
    jobs = [{"memory_bytes": need * GIB} for need in needs]
    assert scheduled(["cuda:0"], *jobs) == {f"job {number}": "cuda:0" for number in range(running)}


@pytest.mark.scenario(20)
def test_a_lost_gpu_keeps_its_jobs_waiting_and_others_go_on(scheduled: Scheduled, figure: Say) -> None:
    jobs: list[dict[str, object]] = [{}, {}, {"spec": {"device": "cpu"}}]
    placed = scheduled(["cuda:0", "cuda:1"], *jobs, lost=["cuda:0"])
    assert placed == {"job 0": "cuda:1", "job 2": "cpu"}, "the processor takes only what asks for it"
    figure("1 of 2 GPUs lost: its queue waits, the other GPU's job and the one that asks for the CPU start")


def test_without_a_gpu_the_processor_takes_every_job(scheduled: Scheduled) -> None:
    assert scheduled(["cpu"], {"spec": {"device": "cpu"}}) == {"job 0": "cpu"}


def test_a_paused_queue_starts_nothing(scheduled: Scheduled, queue: Queue) -> None:
    queue.pause(True)
    assert scheduled(["cpu"], {}) == {}
    queue.pause(False)
    assert scheduled(["cpu"]) == {"job 0": "cpu"}


def test_a_real_queue_is_paused_reordered_shared_and_restarted(tmp_path: Path) -> None:
    with LiveStudio(tmp_path) as live:
        queue = Queue(live.database)
        queue.pause(True)
        first, second = (live.selftest(steps=10**6, seconds_per_step=0.02, save_every=10**6) for _ in range(2))
        with live.database.writing() as session:
            for job_id in (first, second):
                session.get_one(JobRow, job_id).memory_bytes = 1
        queue.move(second, -1)
        live.start()
        queue.pause(False)
        live.until_step(second, 1)
        assert live.job(first).state == "queued"
        queue.share_devices(2)
        live.until_step(first, 1)
        assert live.job(second).state == "running"
        live.store.restart(second)
        live.until(lambda: live.job(second).attempt == 2)
        assert live.job(second).desired == "run" and live.job(second).fruitless_attempts <= 1
