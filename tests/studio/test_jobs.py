"""The job store: every move against a table written down here by hand, and what concurrent hands do to it."""

import math
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from core.errors import JobError
from studio.attempt import Attempt, Superseded
from studio.db import Database
from studio.failures import HOST_MEMORY, KILLED, Failure, explain_exit
from studio.jobs import MAX_FRUITLESS_ATTEMPTS, MOVES, STATES, JobStore, move
from studio.tables import AdapterRow, JobRow, ModelRow
from studio.workspace import Workspace

LEGAL = {
    ("queued", "running"), ("queued", "paused"), ("queued", "cancelled"),
    ("running", "succeeded"), ("running", "failed"), ("running", "cancelled"), ("running", "queued"),
    ("running", "paused"),
    ("paused", "queued"), ("paused", "cancelled"),
    ("failed", "queued"),
}  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database.open(Workspace.open(tmp_path))


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


def job_in(store: JobStore, state: str, *, desired: str = "run", checkpoint: int | None = None) -> str:
    """A job brought into `state` by direct writing, so that these tests do not lean on the moves they test."""
    job = store.submit("selftest", "job", {})
    with store.database.writing() as session:
        row = session.get_one(JobRow, job.id)
        row.state, row.desired, row.checkpoint_step = state, desired, checkpoint
        row.attempt = 1 if state == "running" else 0
        row.fruitless_attempts = row.attempt
    return job.id


def death(what: str, log: str = "") -> Failure:
    return Failure(KILLED, what, "Resume it.", "signal 9", log)


def claim(store: JobStore) -> Attempt:
    job = store.claim("cpu", ["selftest"])
    assert job is not None
    return Attempt(store.database, job.id, job.attempt)


@pytest.mark.parametrize(("old", "new"), list(product(STATES, STATES)))
def test_every_pair_of_states(old: str, new: str) -> None:
    job = JobRow(kind="selftest", name="job", state=old)
    if (old, new) in LEGAL:
        move(job, new, message="moved")
        assert (job.state, job.message) == (new, "moved")
    else:
        with pytest.raises(JobError):
            move(job, new, message="moved")
        assert (job.state, job.message) == (old, "")


def test_the_table_has_no_other_state() -> None:
    assert set(STATES) == {state for pair in LEGAL for state in pair}
    assert all(target in STATES for targets in MOVES.values() for target in targets)


ERROR = "error"
ASKED = [  # what the user asks of a job in a state: the state and the wish that follow
    ("pause", "queued", "paused", "run"), ("pause", "running", "running", "pause"),
    ("pause", "paused", "paused", "run"),
    ("pause", "succeeded", ERROR, ""), ("pause", "failed", ERROR, ""), ("pause", "cancelled", ERROR, ""),
    ("stop", "queued", ERROR, ""), ("stop", "running", "running", "stop"), ("stop", "paused", ERROR, ""),
    ("stop", "succeeded", ERROR, ""), ("stop", "failed", ERROR, ""), ("stop", "cancelled", ERROR, ""),
    ("cancel", "queued", "cancelled", "run"), ("cancel", "running", "running", "cancel"),
    ("cancel", "paused", "cancelled", "run"), ("cancel", "succeeded", ERROR, ""), ("cancel", "failed", ERROR, ""),
    ("cancel", "cancelled", "cancelled", "run"),
    ("resume", "queued", "queued", "run"), ("resume", "running", "running", "run"),
    ("resume", "paused", "queued", "run"),
    ("resume", "failed", "queued", "run"), ("resume", "succeeded", ERROR, ""), ("resume", "cancelled", ERROR, ""),
    ("restart", "queued", ERROR, ""), ("restart", "running", "running", "restart"), ("restart", "paused", ERROR, ""),
    ("restart", "succeeded", ERROR, ""), ("restart", "failed", ERROR, ""), ("restart", "cancelled", ERROR, ""),
]  # fmt: skip


@pytest.mark.parametrize(("action", "state", "after", "desired"), ASKED)
def test_every_request_in_every_state(store: JobStore, action: str, state: str, after: str, desired: str) -> None:
    job_id = job_in(store, state)
    ask: Callable[[str], JobRow] = getattr(store, action)
    if after == ERROR:
        with pytest.raises(JobError) as caught:
            ask(job_id)
        assert caught.value.fix
        assert store.get(job_id).state == state
        return
    for _ in range(2):  # a double click changes nothing more
        ask(job_id)
        assert (store.get(job_id).state, store.get(job_id).desired) == (after, desired)


def test_the_requests_above_are_all_there_are() -> None:
    assert {(action, state) for action, state, *_ in ASKED} == set(
        product(("pause", "stop", "cancel", "resume", "restart"), STATES)
    )


@pytest.mark.parametrize("state", ["queued", "paused"])
def test_stopping_a_job_with_a_checkpoint_queues_it_to_finish(store: JobStore, state: str) -> None:
    job_id = job_in(store, state, checkpoint=5)
    store.stop(job_id)
    assert (store.get(job_id).state, store.get(job_id).desired) == ("queued", "stop")
    assert claim(store).desired() == "stop"


@pytest.mark.parametrize("action", ["pause", "stop", "resume"])
def test_a_cancellation_is_not_taken_back(store: JobStore, action: str) -> None:
    job_id = job_in(store, "running", desired="cancel")
    with pytest.raises(JobError):
        getattr(store, action)(job_id)
    assert store.get(job_id).desired == "cancel"


def test_resume_takes_back_a_pause_in_time(store: JobStore) -> None:
    job_id = job_in(store, "running", desired="pause")
    store.resume(job_id)
    assert store.get(job_id).desired == "run"


def test_a_retry_forgets_the_failure(store: JobStore) -> None:
    store.submit("selftest", "job", {})
    attempt = claim(store)
    attempt.fail(Failure(KILLED, "It broke.", "Mend it.", "signal 9", "trace"))
    failed = store.get(attempt.job_id)
    assert (failed.error_what, failed.error_fix, failed.error_detail) == ("It broke.", "Mend it.", "trace")
    assert failed.finished_at is not None
    store.resume(attempt.job_id)
    job = store.get(attempt.job_id)
    assert (job.error_what, job.error_fix, job.error_detail, job.finished_at) == ("", "", "", None)
    assert job.fruitless_attempts == 0


def test_a_job_that_ran_out_of_memory_is_not_tried_again_as_it_is(store: JobStore) -> None:
    killed = explain_exit(-signal.SIGKILL, out_of_memory=True)
    store.submit("selftest", "job", {})
    attempt = claim(store)
    attempt.update(checkpoint_step=5, fruitless_attempts=0)  # a neighbour took the memory: it goes on from there
    assert store.bury(attempt.job_id, attempt.number, killed).state == "queued"
    attempt = claim(store)
    job = store.bury(attempt.job_id, attempt.number, killed)
    assert (job.state, job.error_what, job.failure["kind"]) == ("failed", killed.what, HOST_MEMORY)
    assert job.error_fix.startswith("Lower the micro-batch size or the longest example")


def test_an_idempotency_key_makes_one_job(store: JobStore) -> None:
    first = store.submit("selftest", "a", {"steps": 1}, idempotency_key="form-1")
    assert store.submit("selftest", "b", {}, idempotency_key="form-1").id == first.id
    assert store.submit("selftest", "c", {}, idempotency_key="form-2").id != first.id
    assert store.submit("selftest", "d", {}).id != store.submit("selftest", "e", {}).id
    assert [job.name for job in store.list()] == ["e", "d", "c", "a"]


def test_the_queue_is_by_priority_then_age_and_by_kind(store: JobStore) -> None:
    late, early = store.submit("selftest", "late", {}), store.submit("selftest", "early", {}, priority=-1)
    last = store.submit("selftest", "last", {})
    other = store.submit("add_model", "other", {}, priority=9)
    order = [claim(store).job_id for _ in range(3)]
    assert order == [early.id, late.id, last.id]
    assert store.claim("cpu", ["selftest"]) is None
    assert store.claim("cpu", []) is None
    claimed = store.claim("cuda:1", ["add_model"])
    assert claimed is not None
    assert (claimed.id, claimed.device, claimed.attempt, claimed.priority) == (other.id, "cuda:1", 1, 9)


def test_started_at_is_when_the_job_first_ran(store: JobStore) -> None:
    store.submit("selftest", "job", {})
    first = claim(store)
    started = store.get(first.job_id).started_at
    first.release()
    claim(store)
    assert started is not None
    assert store.get(first.job_id).started_at == started


def test_unknown_ids_and_busy_jobs(store: JobStore) -> None:
    for action in (store.get, store.pause, store.stop, store.cancel, store.resume, store.delete):
        with pytest.raises(JobError, match="no job"):
            action("nothing")
    for state in ("queued", "running"):
        with pytest.raises(JobError, match="Cancel it first"):
            store.delete(job_in(store, state))


def test_deleting_a_job_takes_its_curves_and_leaves_its_adapter(store: JobStore) -> None:
    store.submit("selftest", "job", {})
    attempt = claim(store)
    attempt.record([(1, "loss", 1.0)])
    model = ModelRow(name="m", source="s", architecture="a", model_type="t", parameters=1, dtype="float32",
                     context_length=1, hidden_size=1, layers=1, vocab_size=1, has_chat_template=True,
                     tied_embeddings=False, licence="", size_bytes=1)  # fmt: skip
    adapter = AdapterRow(name="x", model_id=model.id, job_id=attempt.job_id, method="lora", r=1, lora_alpha=1.0,
                         parameters=1, size_bytes=1, sha256="0", step=1)  # fmt: skip
    attempt.succeed({"adapter_id": adapter.id}, model, adapter)
    store.delete(attempt.job_id)
    assert store.metrics(attempt.job_id) == {}
    with store.database.reading() as session:
        assert session.get_one(AdapterRow, adapter.id).job_id is None


# -- what a worker writes


def test_curves_are_upserted_and_keep_nan(store: JobStore) -> None:
    store.submit("selftest", "job", {})
    attempt = claim(store)
    attempt.record([(2, "loss", 2.0), (1, "loss", 3.0), (1, "eval_loss", math.nan)], step=2, loss=2.0)
    attempt.record([(2, "loss", 2.5), (3, "loss", math.inf)], step=3)
    curves = store.metrics(attempt.job_id)
    assert curves["loss"] == [(1, 3.0), (2, 2.5), (3, math.inf)]
    assert math.isnan(curves["eval_loss"][0][1])
    assert (store.get(attempt.job_id).step, store.get(attempt.job_id).loss) == (3, 2.0)


WRITES: list[Callable[[Attempt], object]] = [
    lambda attempt: attempt.update(step=99),
    lambda attempt: attempt.record([(1, "loss", 99.0)], step=99),
    lambda attempt: attempt.checkpoint(99),
    lambda attempt: attempt.succeed({"adapter_id": "zombie"}),
    lambda attempt: attempt.fail(Failure(KILLED, "zombie", "")),
    lambda attempt: attempt.cancel(),
    lambda attempt: attempt.pause(),
    lambda attempt: attempt.release(),
    lambda attempt: attempt.desired(),
    lambda attempt: attempt.job(),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("moved_on", ["queued", "claimed again", "succeeded", "deleted"])
def test_a_zombie_writes_nothing(store: JobStore, write: Callable[[Attempt], object], moved_on: str) -> None:
    store.submit("selftest", "job", {})
    zombie = claim(store)
    store.bury(zombie.job_id, 1, death("It seemed dead."))
    if moved_on in ("claimed again", "succeeded"):
        heir = claim(store)
        heir.record([(1, "loss", 1.0)], step=1)
        if moved_on == "succeeded":
            heir.succeed({"adapter_id": "heir"})
    if moved_on == "deleted":
        store.cancel(zombie.job_id)
        store.delete(zombie.job_id)
    before = [repr(job) for job in store.list()], store.metrics(zombie.job_id)
    with pytest.raises(Superseded):
        write(zombie)
    assert ([repr(job) for job in store.list()], store.metrics(zombie.job_id)) == before


def test_a_result_and_its_rows_come_together_or_not_at_all(store: JobStore) -> None:
    store.submit("selftest", "job", {})
    attempt = claim(store)
    orphan = AdapterRow(name="x", model_id="no such model", job_id=attempt.job_id, method="lora", r=1, lora_alpha=1.0,
                        parameters=1, size_bytes=1, sha256="0", step=1)  # fmt: skip
    with pytest.raises(Exception, match="FOREIGN KEY"):
        attempt.succeed({"adapter_id": orphan.id}, orphan)
    assert store.get(attempt.job_id).state == "running"


# -- what follows a death


@pytest.mark.parametrize(
    ("desired", "after"),
    [("run", "queued"), ("stop", "queued"), ("pause", "paused"), ("cancel", "cancelled"), ("restart", "queued")],
)
def test_a_death_ends_as_the_user_last_asked(store: JobStore, desired: str, after: str) -> None:
    job_id = job_in(store, "running", desired=desired)
    job = store.bury(job_id, 1, death("The worker was killed.", "log"))
    assert job.state == after
    assert job.desired == ("stop" if desired == "stop" else "run")
    assert job.pid is None


def test_a_job_that_never_saves_fails_after_three_attempts(store: JobStore) -> None:
    job_id = store.submit("selftest", "poison", {}).id
    states = []
    for _ in range(MAX_FRUITLESS_ATTEMPTS):
        attempt = claim(store)
        states.append(store.bury(job_id, attempt.number, death("The worker was killed.", "last words")).state)
    assert states == ["queued", "queued", "failed"]
    job = store.get(job_id)
    assert "tried 3 times" in job.error_what
    assert job.error_what.startswith("The worker was killed.")
    assert job.error_fix
    assert job.error_detail == "last words"
    store.resume(job_id)
    attempt = claim(store)
    assert store.bury(job_id, attempt.number, death("The worker was killed.")).state == "queued"


def test_a_checkpoint_gives_three_more_attempts(store: JobStore) -> None:
    job_id = store.submit("selftest", "slow", {}).id
    for step in (None, None, 5, None, None):
        attempt = claim(store)
        if step is not None:
            attempt.checkpoint(step)
        assert store.bury(job_id, attempt.number, death("Killed.")).state == "queued"
    attempt = claim(store)
    assert store.bury(job_id, attempt.number, death("Killed.")).state == "failed"


def test_an_interruption_is_not_held_against_a_job(store: JobStore) -> None:
    job_id = store.submit("selftest", "often interrupted", {}).id
    for _ in range(5):
        claim(store).release()
    assert (store.get(job_id).state, store.get(job_id).fruitless_attempts) == ("queued", 0)


def test_a_death_is_buried_once(store: JobStore) -> None:
    job_id = store.submit("selftest", "job", {}).id
    old = claim(store)
    store.bury(job_id, old.number, death("Killed."))
    new = claim(store)
    assert store.bury(job_id, old.number, death("Killed.")).state == "running"
    new.succeed({})
    assert store.bury(job_id, new.number, death("Killed.")).state == "succeeded"


def test_lists_and_counts(store: JobStore) -> None:
    for state in STATES:
        job_in(store, state)
    assert {job.state for job in store.list(["failed", "paused"])} == {"failed", "paused"}
    assert store.list(["no such state"]) == []
    assert len(store.list(limit=2)) == 2
    assert [store.count(state) for state in STATES] == [1] * len(STATES)
