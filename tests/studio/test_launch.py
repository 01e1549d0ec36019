"""Locks, identities, environments: what the kernel tells, and what a child gets to see."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studio.launch import Child, environment, worker_environment
from studio.locks import ProcessLock, is_held
from studio.processes import BACKGROUND, Identity
from studio.tables import JobRow
from studio.workspace import Workspace

HOLDER = """
import sys, time
from pathlib import Path
from studio.locks import ProcessLock
print(ProcessLock(Path(sys.argv[1])).acquire(note="hello"), flush=True)
if sys.argv[2:]:
    import os
    if os.fork() == 0:
        time.sleep(60)
time.sleep(60)
"""


def holder(path: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_lock_has_one_holder_and_is_freed_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    process = holder(path)
    assert is_held(path)
    assert path.read_text() == "hello"
    assert is_held(path), "reading the file must not free the lock"
    started = time.monotonic()
    assert not ProcessLock(path).acquire(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - started < 2
    process.kill()
    process.wait()
    assert not is_held(path)
    mine = ProcessLock(path)
    assert mine.acquire(note="x")
    assert path.read_text() == "x"
    mine.release()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", "fork")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    process.kill()
    process.wait()
    assert not is_held(tmp_path / "lock")
    for pid in children.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def test_an_identity_is_more_than_a_number() -> None:
    process = subprocess.Popen(["sleep", "60"])
    identity = Identity.of(process.pid)
    assert Identity.parse(str(identity)) == identity
    assert identity.is_alive()
    stranger = Identity(process.pid, identity.created - 100)
    assert not stranger.is_alive()
    assert not stranger.signal(signal.SIGKILL)
    assert process.poll() is None
    assert identity.signal(signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.01)
    assert not identity.is_alive()
    assert not identity.signal(signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "12", "a b", "12 x"])
def test_what_is_no_identity(text: str) -> None:
    assert Identity.parse(text) is None


def test_the_environment_is_by_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "https_proxy", "PIP_INDEX_URL", "LD_PRELOAD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    offline, online = environment(network=False), environment(network=True)
    assert offline["OMP_NUM_THREADS"] == "3"
    assert "secret" not in offline.values()
    assert (offline["HF_HUB_OFFLINE"], online["HF_HUB_OFFLINE"]) == ("1", "0")
    assert offline["TOKENIZERS_PARALLELISM"] == "false"
    assert {name for name, value in online.items() if value == "secret"} == {"HF_TOKEN", "https_proxy", "PIP_INDEX_URL"}


def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert int(environment(network=False)["GOMP_SPINCOUNT"]) < 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "INFINITY")
    assert environment(network=False)["GOMP_SPINCOUNT"] == "INFINITY"


@pytest.mark.parametrize(("slot", "niceness"), [("cpu", BACKGROUND), ("host", BACKGROUND), ("cuda:0", 0), ("mps", 0)])
def test_what_computes_on_the_processor_lets_the_page_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot: str, niceness: int
) -> None:
    monkeypatch.setattr("studio.launch.worker_command", lambda *_: ["sleep", "60"])
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    job = JobRow(id="0" * 14, kind="train", name="a", attempt=1, memory_bytes=0)
    child = Child(Workspace.open(tmp_path), job, slot, network=False)
    try:
        assert os.getpriority(os.PRIO_PROCESS, child._process.pid) == max(usual, niceness)
        session = Path(f"/proc/{child._process.pid}/autogroup")
        if session.exists():
            assert session.read_text(encoding="ascii").endswith(f"nice {niceness}\n")
    finally:
        child.send(signal.SIGKILL)
        child.let_go()


def test_a_worker_sees_its_device_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = {slot: worker_environment(tmp_path, slot, network=False)["CUDA_VISIBLE_DEVICES"] for slot in
            ("cuda:1", "cuda:GPU-5f", "cpu", "host")}  # fmt: skip
    assert seen == {"cuda:1": "1", "cuda:GPU-5f": "GPU-5f", "cpu": "", "host": ""}
    assert worker_environment(tmp_path, "cpu", network=True)["TMPDIR"] == str(tmp_path)
