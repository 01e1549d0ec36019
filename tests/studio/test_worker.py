"""The worker from the inside: how every end of a kind becomes a state, a sentence and an exit code."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import DatasetError
from studio import context as context_module
from studio.attempt import Attempt
from studio.context import JobContext, Leave
from studio.failures import KILLED, Failure
from studio.kinds import Kind, Outcome, kinds
from studio.worker import DONE, INTERRUPTED, watch_lifeline, work
from tests.live import LiveStudio


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveStudio]:
    with LiveStudio(tmp_path) as live:
        yield live


def claimed(live: LiveStudio, kind: str = "selftest", **spec: object) -> Attempt:
    job = live.store.submit(kind, "job", spec)
    live.store.claim("cpu", [kind])
    live.workspace.run_folder(job.id).mkdir()
    live.workspace.scratch(job.id).mkdir()
    return Attempt(live.database, job.id, 1)


def run(live: LiveStudio, attempt: Attempt, interrupted: bool = False) -> int:
    event = threading.Event()
    if interrupted:
        event.set()
    return work(live.workspace, attempt, event)


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[JobContext], Outcome]], None]:
    """Put a function in the place of the self-test."""

    def put(function: Callable[[JobContext], Outcome]) -> None:
        monkeypatch.setitem(kinds._items, "selftest", Kind(function, needs_device=True, needs_network=False))

    return put


def raising(error: Exception) -> Callable[[JobContext], Outcome]:
    def function(context: JobContext) -> Outcome:
        raise error

    return function


Put = Callable[[Callable[[JobContext], Outcome]], None]


def test_success_writes_result_and_the_last_metrics(live: LiveStudio, kind: Put) -> None:
    def function(context: JobContext) -> Outcome:
        context.say("Working")
        context.record(1, {"loss": 2.0}, loss=2.0)
        return Outcome({"answer": 42})

    kind(function)
    attempt = claimed(live)
    assert run(live, attempt) == DONE
    job = live.job(attempt.job_id)
    assert (job.state, job.result, job.loss, job.message) == ("succeeded", {"answer": 42}, 2.0, "Done")
    assert live.store.metrics(job.id) == {"loss": [(1, 2.0)]}


@pytest.mark.parametrize(
    ("wish", "state", "code"),
    [("pause", "paused", DONE), ("cancel", "cancelled", DONE), ("stop", "cancelled", DONE),
     ("interrupt", "queued", INTERRUPTED)],
)  # fmt: skip
def test_giving_way(live: LiveStudio, kind: Put, wish: str, state: str, code: int) -> None:
    kind(raising(Leave(wish)))
    attempt = claimed(live)
    assert run(live, attempt) == code
    assert live.job(attempt.job_id).state == state


def test_a_known_error_is_shown_and_an_unknown_one_explained(live: LiveStudio, kind: Put) -> None:
    kind(raising(DatasetError("Line 3 is broken.", "Mend it.")))
    attempt = claimed(live)
    assert run(live, attempt) == DONE
    job = live.job(attempt.job_id)
    assert (job.state, job.error_what, job.error_fix, job.error_detail) == (
        "failed",
        "Line 3 is broken.",
        "Mend it.",
        "",
    )

    kind(raising(ZeroDivisionError("oh")))
    attempt = claimed(live)
    assert run(live, attempt) == DONE
    job = live.job(attempt.job_id)
    assert job.error_what == "The worker stopped with an unexpected error: ZeroDivisionError: oh"
    assert "Traceback" in job.error_detail


def test_an_unknown_kind_fails_with_a_sentence(live: LiveStudio) -> None:
    attempt = claimed(live, "trian")
    assert run(live, attempt) == DONE
    assert "Did you mean 'train'?" in live.job(attempt.job_id).error_fix


def test_a_superseded_worker_leaves_quietly(live: LiveStudio, kind: Put) -> None:
    def function(context: JobContext) -> Outcome:
        live.store.bury(context.job.id, 1, Failure(KILLED, "Thought dead.", ""))
        return Outcome({"answer": 42})

    kind(function)
    attempt = claimed(live)
    assert run(live, attempt) == DONE
    assert (live.job(attempt.job_id).state, live.job(attempt.job_id).result) == ("queued", {})
    assert run(live, attempt) == DONE


def test_an_interruption_saves_and_returns_to_the_queue(live: LiveStudio) -> None:
    attempt = claimed(live, steps=100, seconds_per_step=0)
    assert run(live, attempt, interrupted=True) == INTERRUPTED
    job = live.job(attempt.job_id)
    assert (job.state, job.checkpoint_step, job.fruitless_attempts) == ("queued", 1, 0)
    live.store.claim("cpu", ["selftest"])
    assert run(live, Attempt(live.database, job.id, 2)) == DONE
    assert live.job(job.id).result == {"step": 100}
    assert len(live.store.metrics(job.id)["loss"]) == 100


@pytest.mark.parametrize(
    ("desired", "interrupted", "wish"),
    [("run", False, "run"), ("run", True, "interrupt"), ("stop", False, "stop"), ("stop", True, "interrupt"),
     ("pause", True, "pause"), ("cancel", True, "cancel")],
)  # fmt: skip
def test_what_the_user_wants_and_what_the_studio_needs(
    live: LiveStudio, desired: str, interrupted: bool, wish: str
) -> None:
    attempt = claimed(live)
    event = threading.Event()
    if interrupted:
        event.set()
    attempt.update(desired=desired)
    context = JobContext(live.workspace, attempt, event)
    assert context.request() == wish
    if wish == "run":
        context.check()
    else:
        with pytest.raises(Leave, match=wish):
            context.check()
    context.can_finish = True
    if wish in ("run", "stop"):
        context.check()


def test_the_lifeline_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("studio.worker.LINGER_S", 0.1)
    monkeypatch.setattr("studio.worker.os._exit", left.append)
    reader, writer = os.pipe()
    interrupted = threading.Event()
    thread = threading.Thread(target=watch_lifeline, args=[reader, interrupted])
    thread.start()
    assert not interrupted.wait(0.1)
    os.close(writer)
    assert interrupted.wait(2)
    thread.join(2)
    os.close(reader)
    assert left == [INTERRUPTED], "a worker that hangs after that ends itself"


def test_metrics_are_written_about_once_a_second(live: LiveStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(context_module.time, "monotonic", lambda: clock[0])
    attempt = claimed(live)
    context = JobContext(live.workspace, attempt, threading.Event())
    written = []
    for step in range(1, 31):
        clock[0] += 0.125
        context.record(step, {"loss": float(step)}, loss=float(step))
        written.append(len(live.store.metrics(attempt.job_id).get("loss", [])))
    assert sorted(set(written)) == [1, 9, 17, 25]
    context.flush()
    assert [step for step, _ in live.store.metrics(attempt.job_id)["loss"]] == list(range(1, 31))
    assert live.job(attempt.job_id).loss == 30.0


def test_work_that_cannot_be_interrupted_is_left_behind(live: LiveStudio) -> None:
    attempt = claimed(live)
    context = JobContext(live.workspace, attempt, threading.Event())
    assert context.wait_for(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        context.wait_for(lambda: 1 // 0)

    def slow_network() -> int:
        raise TimeoutError("the network, not us")

    with pytest.raises(TimeoutError, match="the network"):
        context.wait_for(slow_network)
    release = threading.Event()
    live.store.cancel(attempt.job_id)
    started = time.monotonic()
    with pytest.raises(Leave, match="cancel"):
        context.wait_for(lambda: release.wait(30))
    assert time.monotonic() - started < 5
    release.set()
