"""Opening and ending the studio, as real processes: ports, a second start, signals, and a login beyond loopback."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from core.errors import StudioError
from studio.locks import is_held
from studio.scheduler import scheduler_is_running
from studio.server import LOCK_NAME, running_server
from studio.workspace import Workspace
from tests.scenarios.plugin import Say
from ui.main import with_default_command
from ui.server import bind

SERVE = [sys.executable, "-P", "-m", "ui.main", "serve", "--no-browser"]
TIMEOUT_S = 90.0


class Opened:
    """A studio in a process of its own."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.workspace = Workspace.open(root)
        self.process = subprocess.Popen(
            [*SERVE, "--workspace", str(root), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + TIMEOUT_S
        while (server := running_server(self.workspace)) is None:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.url = server.url

    def end(self, *signals: int) -> tuple[str, str]:
        """Send signals, a moment between them, and return what it wrote."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.3)
        return self.process.communicate(timeout=TIMEOUT_S)

    def clean_up(self) -> None:
        """Leave nothing running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        subprocess.run([*SERVE[:4], "stop", "--workspace", str(self.workspace.root)], capture_output=True, check=True)


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, taken_port: int) -> Iterator[Opened]:
    """A studio that found its port taken."""
    made = Opened(tmp_path_factory.mktemp("serve") / "a folder # with é%20", "--port", str(taken_port))
    yield made
    made.clean_up()


def _get(url: str, **options: Any) -> httpx.Response:
    return httpx.get(url, timeout=30, trust_env=False, **options)


@pytest.mark.scenario(48)
def test_the_next_free_port_is_taken_and_every_loopback_name_answers(
    opened: Opened, taken_port: int, figure: Say
) -> None:
    port = httpx.URL(opened.url).port
    assert port is not None and port > taken_port
    for host in ("127.0.0.1", "localhost", *(["[::1]"] if socket.has_ipv6 else [])):
        assert _get(f"http://{host}:{port}/").status_code == 200, host
    assert _get(opened.url, headers={"Host": f"evil.example:{port}"}).status_code == 403
    assert _get(f"{opened.url}files/model/unknown.zip").status_code == 404
    assert _get(f"{opened.url}zh").headers["location"] == "/zh/"  # the last stroke left out
    figure("port taken: the next free one, said aloud; 127.0.0.1, localhost and [::1] answer, other names get 403")


@pytest.mark.scenario(46)
def test_the_address_is_for_its_owner_alone(opened: Opened, figure: Say) -> None:
    assert opened.workspace.server_file.stat().st_mode & 0o077 == 0
    assert opened.workspace.root.stat().st_mode & 0o077 == 0
    figure("the file with the page's address and token: 0600")


def test_the_web_process_has_not_loaded_torch(opened: Opened) -> None:
    maps = Path(f"/proc/{opened.process.pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not show what a process has loaded")
    _get(opened.url)
    assert "libtorch" not in maps.read_text(encoding="utf-8")


@pytest.mark.scenario(8)
def test_a_second_studio_says_where_the_first_is(opened: Opened, figure: Say) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    second = subprocess.run(
        [*SERVE, "--workspace", str(opened.workspace.root)], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert second.returncode == 2 and opened.url in second.stderr and "Traceback" not in second.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 2
    figure("the second start: the address of the first and exit code 2, within 2 s of the processor")


def test_the_scheduler_comes_back_when_it_dies(opened: Opened) -> None:
    pid = int(opened.workspace.scheduler_lock.read_text(encoding="utf-8").split()[0])
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        note = opened.workspace.scheduler_lock.read_text(encoding="utf-8").split()
        if scheduler_is_running(opened.workspace) and note and int(note[0]) != pid:
            return
        time.sleep(0.1)
    pytest.fail("no scheduler after 40 s")


@pytest.mark.scenario(14)
def test_ctrl_c_ends_everything_and_says_so(opened: Opened, figure: Say) -> None:
    """The last one on this studio."""
    children = [psutil.Process(opened.process.pid), *psutil.Process(opened.process.pid).children(recursive=True)]
    scheduler = psutil.Process(int(opened.workspace.scheduler_lock.read_text(encoding="utf-8").split()[0]))
    out, said = opened.end(signal.SIGINT)
    assert opened.process.returncode == 0, said
    assert "is taken, so the studio uses" in said and "The studio is open at" in out
    assert "Saving running jobs" in said and "Goodbye" in said and "Traceback" not in said
    assert not any(process.is_running() for process in [*children, scheduler])
    assert not is_held(opened.workspace.root / LOCK_NAME) and not opened.workspace.server_file.exists()
    figure("Ctrl-C: exit code 0, says so, 0 processes left")


def test_a_closed_terminal_and_stop_leave_cleanly(tmp_path: Path) -> None:
    opened = Opened(tmp_path, "--port", "17860")
    try:
        opened.end(signal.SIGHUP)
        assert scheduler_is_running(opened.workspace)  # jobs go on without the page
        stopped = subprocess.run(
            [*SERVE[:4], "stop", "--workspace", str(tmp_path), "--json"], capture_output=True, check=True
        )
        assert json.loads(stopped.stdout) == {"server": False, "scheduler": True}
        assert not scheduler_is_running(opened.workspace)
    finally:
        opened.clean_up()


@pytest.mark.scenario(29)
def test_beyond_loopback_there_is_a_login(tmp_path: Path, figure: Say) -> None:
    opened = Opened(tmp_path, "--host", "0.0.0.0", "--port", "17860")
    try:
        url, token = httpx.URL(opened.url), httpx.URL(opened.url).params["token"]
        assert len(token) >= 43
        with httpx.Client(base_url=f"http://127.0.0.1:{url.port}", trust_env=False, timeout=30) as browser:
            assert browser.get("/").status_code == 401
            assert browser.get("/config").status_code == 401
            assert browser.get("/files/model/x.zip").status_code == 401
            cookie = browser.get("/", params={"token": token}).headers["set-cookie"].lower()
            assert "httponly" in cookie and "samesite=strict" in cookie and token.lower() not in cookie
            assert browser.get("/").status_code == 200
        command = " ".join(psutil.Process(opened.process.pid).cmdline())
        out, said = opened.end(signal.SIGTERM)
        assert token in out and token not in said and token not in command
        logs = [path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.glob("*.log")]
        assert not any(token in log for log in logs)
        figure(f"0.0.0.0: a token of {len(token) * 6} bits, HttpOnly and SameSite=Strict; in no log or process list")
    finally:
        opened.clean_up()


# -- small pieces


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["serve"]),
        (["--no-browser"], ["serve", "--no-browser"]),
        (["--workspace", "x"], ["serve", "--workspace", "x"]),
        (["--workspace", "x", "jobs", "list"], ["--workspace", "x", "jobs", "list"]),
        (["train", "--rank", "8"], ["train", "--rank", "8"]),
        (["--help"], ["--help"]),
        (["--version"], ["--version"]),
        (["trian"], ["trian"]),
    ],
)
def test_serve_is_the_default_command(given: list[str], expected: list[str]) -> None:
    assert with_default_command(given) == expected


def test_binding_beyond_loopback_makes_a_token_and_loopback_does_not() -> None:
    for host, has_token in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        address = bind(host, 17_900)
        assert bool(address.token) is has_token and ("?token=" in address.login_url) is has_token
        for made in address.sockets:
            made.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(StudioError, match="not an address of this machine"):
        bind(host, 17_900)
