"""The web process: the page and the downloads behind the guard, served by uvicorn until a signal ends it."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from core.errors import StudioError
from studio.guard import Guard, is_loopback, new_token
from studio.service import Studio
from studio.workspace import Workspace

TRIED_PORTS = 50
WATCH_EVERY_S = 5.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLOSING_S = 1  # open pages hold a connection each; they reconnect by themselves


@dataclass(frozen=True)
class Address:
    """Where the page is: its bound sockets, and the token that it asks for when others can reach it."""

    host: str
    port: int
    token: str
    sockets: tuple[socket.socket, ...]

    @property
    def url(self) -> str:
        """The page, without a token."""
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        return f"http://[{shown}]:{self.port}/" if ":" in shown else f"http://{shown}:{self.port}/"

    @property
    def login_url(self) -> str:
        """The page, with the token that logs in where one is asked for."""
        return f"{self.url}?token={self.token}" if self.token else self.url


def bind(host: str, port: int) -> Address:
    """Bind the wanted port or the next free one; on 127.0.0.1 also [::1], since `localhost` may mean either."""
    for candidate in range(port, min(port + TRIED_PORTS, 65_536)):
        try:
            first = _socket(host, candidate)
        except socket.gaierror:
            raise StudioError(f"{host} is not an address of this machine.", "Use 127.0.0.1 or 0.0.0.0.") from None
        except PermissionError:
            raise StudioError(f"Port {candidate} is reserved for the system.", "Pick a --port above 1023.") from None
        except OSError as error:
            if error.errno is not None and "assign" in (error.strerror or ""):
                raise StudioError(f"{host} is not an address of this machine.", "Use 127.0.0.1 or 0.0.0.0.") from None
            continue  # taken
        return Address(host, candidate, "" if is_loopback(host) else new_token(), (first, *_twin(host, candidate)))
    raise StudioError(f"No port from {port} on is free.", "Pick another one with --port.")


def _socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        made.bind(address)
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made


def _twin(host: str, port: int) -> tuple[socket.socket, ...]:
    try:
        return (_socket("::1", port),) if host == "127.0.0.1" else ()
    except OSError:
        return ()  # no IPv6 here


def make_app(studio: Studio, address: Address, hosts: Sequence[str] = ()) -> ASGIApp:
    """Downloads and what the page uses of Gradio, behind the guard, each with how long a browser may keep it."""
    studio.workspace.uploads.mkdir(mode=0o700, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(studio.workspace.uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from fastapi import FastAPI

    from studio.downloads import files_route
    from ui.app import create_app
    from ui.caching import Caching
    from ui.surface import Surface

    app = FastAPI(title="LoRA Studio", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes.append(files_route(studio))
    if address.token:
        name = socket.gethostname()
        hosts = (*hosts, name, f"{name}.local", socket.getfqdn())
    made = Guard(Caching(Surface(create_app(studio, app))), port=address.port, token=address.token, hosts=hosts)
    gc.collect()
    gc.freeze()  # all of that stays, and looking through it for what may go would hold up a page for 0.2 s, at times
    return made


class PageServer(uvicorn.Server):
    """uvicorn that says when it answers, and that remembers which signal ended it."""

    def __init__(self, app: ASGIApp, on_start: Callable[[], None]) -> None:
        # No access log: it would hold the login token. No proxy headers: nobody may claim to be somebody else.
        settings = uvicorn.Config(
            app, log_level="warning", log_config=None, access_log=False, server_header=False, proxy_headers=False,
            ws="none", timeout_graceful_shutdown=CLOSING_S,
        )  # fmt: skip
        super().__init__(settings)
        self.on_start = on_start
        self.ended_by: signal.Signals | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self.on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the page; uvicorn would raise them again, before anything is cleaned up."""
        previous = {number: signal.signal(number, self.handle_exit) for number in ENDING_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or end at once at the second Ctrl-C."""
        self.ended_by = self.ended_by or signal.Signals(sig)
        super().handle_exit(sig, frame)


def keep_scheduler(workspace: Workspace, leaving: threading.Event) -> None:
    """Bring a scheduler back whenever there is none, until `leaving` is set; runs in a thread of its own."""
    from studio.scheduler import ensure_scheduler

    def watch() -> None:
        while not leaving.wait(WATCH_EVERY_S):
            try:
                ensure_scheduler(workspace)
            except (StudioError, OSError):
                continue  # its log says why; the next round tries again

    threading.Thread(target=watch, name="scheduler watch", daemon=True).start()
