"""Which web process serves a workspace: a lock that says that one does, and a file with its address for the others."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass

from core.errors import StudioError
from studio.files import write_atomically
from studio.locks import ProcessLock, is_held
from studio.processes import Identity
from studio.workspace import Workspace

LOCK_NAME = "server.lock"
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Server:
    """A running web process. `url` carries the login token where there is one, so the file is for its owner alone."""

    url: str
    process: Identity


def running_server(workspace: Workspace) -> Server | None:
    """The web process of a workspace, or None."""
    if not is_held(workspace.root / LOCK_NAME):
        return None
    try:
        about = json.loads(workspace.server_file.read_text(encoding="utf-8"))
        return Server(str(about["url"]), Identity(int(about["pid"]), float(about["created"])))
    except (OSError, ValueError, KeyError):
        return None


class ServerClaim:
    """Being the one web process of a workspace; taken before its port, given up at the end."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = ProcessLock(workspace.root / LOCK_NAME)

    def take(self) -> None:
        """Become it; StudioError with the address of the one that already is."""
        if self._lock.acquire(timeout_s=1.0):  # a probe holds it for an instant
            return
        server = running_server(self.workspace)
        where = f" at {server.url}" if server else ""
        raise StudioError(f"The studio is already open{where}.", "Use that page, or end it with `lora-studio stop`.")

    def announce(self, url: str) -> None:
        """Write down where the page is, readable by this user alone."""
        mine = Identity.mine()
        umask = os.umask(0o077)
        try:
            text = json.dumps({"url": url, "pid": mine.pid, "created": mine.created})
            write_atomically(self.workspace.server_file, text)
        finally:
            os.umask(umask)

    def give_up(self) -> None:
        """Stop being it."""
        self.workspace.server_file.unlink(missing_ok=True)
        self._lock.release()


def stop_server(workspace: Workspace) -> bool:
    """End the web process of a workspace and wait for that; False when there is none."""
    server = running_server(workspace)
    if server is None:
        return False
    server.process.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while server.process.is_alive():
        if time.monotonic() > deadline:
            raise StudioError(f"The studio at {server.url} does not end.", f"End the process {server.process.pid}.")
        time.sleep(0.1)
    return True
