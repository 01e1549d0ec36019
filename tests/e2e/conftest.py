"""A real studio on a fresh workspace with the real starter model, and a real Chromium in front of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHROMIUM_FLAGS

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here drives a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class RunningStudio:
    """A served workspace, and the means to hurt it."""

    workspace: Path
    url: str
    process: subprocess.Popen[bytes]

    def cli(self, *arguments: str) -> Any:
        """Run a command of the CLI and return its JSON."""
        command = [sys.executable, "-P", "-m", "ui.main", *arguments, "--workspace", str(self.workspace), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment())
        return json.loads(done.stdout)

    def kill(self) -> None:
        """SIGKILL for the web process."""
        self.process.kill()
        self.process.wait()

    def serve_again(self) -> None:
        """Start the web process anew, on the same port."""
        self.process = serve(self.workspace, int(self.url.rstrip("/").rpartition(":")[2]))
        wait_for_server(self.workspace, self.process)


def environment() -> dict[str, str]:
    """The tests' environment, with this checkout found first and no network looked for."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


def serve(workspace: Path, port: int) -> subprocess.Popen[bytes]:
    """Start `lora-studio serve`."""
    command = [sys.executable, "-P", "-m", "ui.main", "serve", "--no-browser", "--port", str(port)]
    with (workspace.parent / "server.out").open("ab") as log:
        return subprocess.Popen(
            [*command, "--workspace", str(workspace)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY, env=environment(), start_new_session=True,
        )  # fmt: skip


def wait_for_server(workspace: Path, process: subprocess.Popen[bytes]) -> str:
    """The URL of the page, once it answers."""
    from studio.server import running_server
    from studio.workspace import Workspace

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        server = running_server(Workspace(workspace))
        if server is not None and process.poll() is None:
            return str(server.url)
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise AssertionError((workspace.parent / "server.out").read_text(encoding="utf-8")[-3000:])


@contextmanager
def serving(workspace: Path) -> Iterator[RunningStudio]:
    """A studio on a free port above the usual one, so that one of the developer's own is left alone."""
    workspace.mkdir(parents=True)
    process = serve(workspace, 7960)
    running = RunningStudio(workspace, wait_for_server(workspace, process), process)
    yield running
    running.process.send_signal(signal.SIGINT)
    try:
        running.process.wait(60)
    except subprocess.TimeoutExpired:
        running.process.kill()
    subprocess.run(
        [sys.executable, "-P", "-m", "ui.main", "stop", "--workspace", str(workspace)],
        cwd=REPOSITORY, env=environment(), capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, starter_folder: Path) -> Iterator[RunningStudio]:
    """A studio with the starter model and one dataset in its library."""
    with serving(tmp_path_factory.mktemp("e2e") / "workspace") as running:
        running.cli("models", "add", str(starter_folder), "--name", "SmolLM2-135M-Instruct")
        running.cli("datasets", "add", str(REPOSITORY / "assets" / "datasets" / "sentiment.csv"))
        yield running


@pytest.fixture(scope="session")
def browser(playwright: Any, chromium: str) -> Iterator[Any]:
    """The system's Chromium as a user starts it."""
    launched = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
    yield launched
    launched.close()


@pytest.fixture
def page(browser: Any, studio: RunningStudio) -> Iterator[Any]:
    """A page that fails its test when it asks another host for anything, or when its script throws."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    foreign: list[str] = []
    broken: list[str] = []
    own = tuple(studio.url.replace("127.0.0.1", host).rstrip("/") for host in ("127.0.0.1", "localhost"))
    page = context.new_page()
    page.set_default_timeout(30_000)

    def note(request: Any) -> None:
        if not request.url.startswith((*own, "data:", "blob:")):
            foreign.append(request.url)

    page.on("request", note)
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    context.close()
    assert foreign == [], "the page asked another host"
    assert broken == [], "a script of the page threw"
