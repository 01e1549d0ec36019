"""Another web site attacks the studio in a real Chromium: forms, uploads, reads, frames, sockets and a rebound name."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from studio.guard import Guard
from tests.conftest import CHROMIUM_FLAGS

pytestmark = pytest.mark.browser
ATTACKS = {
    "no-cors post": "await fetch(T + '/run', {method: 'POST', mode: 'no-cors', body: 'x'})",
    "cors post": "await fetch(T + '/run', {method: 'POST', headers: {'content-type': 'application/json'}, body: '{}'})",
    "upload": "const f = new FormData(); f.append('files', new Blob(['x']), 'x.txt');"
    "await fetch(T + '/gradio_api/upload', {method: 'POST', mode: 'no-cors', body: f})",
    "beacon": "navigator.sendBeacon(T + '/run', 'x')",
    "read": "const r = await fetch(T + '/config'); stolen = await r.text()",
    "blind get": "await fetch(T + '/run', {mode: 'no-cors'})",
    "image": "const i = new Image(); i.src = T + '/run'; await new Promise(r => {i.onerror = r; i.onload = r})",
    "frame": "const i = document.createElement('iframe'); i.src = T + '/run'; document.body.append(i);"
    "await new Promise(r => setTimeout(r, 800))",
    "form": "const f = document.createElement('form'); f.method = 'post'; f.action = T + '/run'; f.target = 'x';"
    "const i = document.createElement('iframe'); i.name = 'x'; document.body.append(i, f); f.submit();"
    "await new Promise(r => setTimeout(r, 800))",
    "socket": "const s = new WebSocket(T.replace('http', 'ws') + '/socket');"
    "await new Promise(r => {s.onopen = () => {stolen = 'open'; r()}; s.onerror = r})",
}


class Served:
    """An app on a port of its own, in a thread."""

    def __init__(self, make: Callable[[int], ASGIApp]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(make(self.port), log_level="error", ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)

    def end(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


class Victim:
    """The studio's stand-in: a Gradio page behind the guard that notes every request which came through."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    def app(self, port: int, guarded: bool = True) -> ASGIApp:
        with gradio.Blocks() as blocks:
            box = gradio.Textbox(elem_id="box")
            said = gradio.Textbox(elem_id="said")
            file = gradio.File(elem_id="file")
            box.submit(lambda text: f"said {text}", box, said)
            file.upload(lambda path: f"got {Path(path).name}", file, said)
        inner = gradio.mount_gradio_app(FastAPI(), blocks, path="/")

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                self.reached.append(scope["path"])
            await inner(scope, receive, send)

        return Guard(noted, port=port) if guarded else noted


@pytest.fixture(scope="module")
def victim() -> Victim:
    return Victim()


@pytest.fixture(scope="module")
def studio(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        served = Served(victim.app)
        yield served
        served.end()


@pytest.fixture(scope="module")
def attacker() -> Iterator[Served]:
    async def page(request: object) -> HTMLResponse:
        return HTMLResponse("<!doctype html><title>evil</title><body>")

    served = Served(lambda port: Starlette(routes=[Route("/", page)]))
    yield served
    served.end()


@pytest.fixture(scope="module")
def browser(playwright: Any, chromium: str) -> Iterator[Any]:
    rules = "MAP evil.example 127.0.0.1, MAP rebound.example 127.0.0.1"
    # The browser's own guard of local networks is switched off: ours must do without it.
    unguarded = "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests"
    launched = playwright.chromium.launch(
        executable_path=chromium, args=[*CHROMIUM_FLAGS, f"--host-resolver-rules={rules}", unguarded]
    )
    yield launched
    launched.close()


def test_without_the_guard_the_same_attacks_come_through(browser: Any, attacker: Served) -> None:
    """The control: attacks that never work would prove nothing."""
    open_victim = Victim()
    served = Served(partial(open_victim.app, guarded=False))
    page = browser.new_page()
    page.goto(f"http://evil.example:{attacker.port}")
    through = []
    for name in ATTACKS:
        open_victim.reached.clear()
        page.evaluate(_script(name, f"http://127.0.0.1:{served.port}"))
        through += [name] * bool(open_victim.reached)
    page.close()
    served.end()
    sys.stdout.write(
        f"without the guard {len(through)} of {len(ATTACKS)} attacks reach the app: {', '.join(through)}\n"
    )
    assert len(through) >= 8


def _script(attack: str, target: str) -> str:
    body = f"const T = '{target}'; let stolen = ''; try {{ {ATTACKS[attack]} }} catch (e) {{}} return stolen"
    return f"async () => {{ {body} }}"


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("origin", ["http://evil.example:{evil}", "http://127.0.0.1:{evil}"])
@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}", "http://localhost:{port}"])
def test_no_attack_of_another_site_comes_through(
    browser: Any, studio: Served, attacker: Served, victim: Victim, attack: str, origin: str, target: str
) -> None:
    page = browser.new_page()
    page.goto(origin.format(evil=attacker.port))
    victim.reached.clear()
    stolen = page.evaluate(_script(attack, target.format(port=studio.port)))
    page.close()
    assert (stolen, victim.reached) == ("", [])


def test_a_rebound_name_reads_nothing(browser: Any, studio: Served, victim: Victim) -> None:
    page = browser.new_page()
    victim.reached.clear()
    answer = page.goto(f"http://rebound.example:{studio.port}/config")
    assert answer.status == 403 and victim.reached == []
    assert page.evaluate("async () => (await fetch('/config')).status") == 403
    page.close()


def test_our_own_page_works_and_asks_no_other_host(browser: Any, studio: Served, tmp_path: Path) -> None:
    page, foreign, refused = browser.new_page(), [], []
    own = f"http://127.0.0.1:{studio.port}"
    page.on(
        "request",
        lambda request: foreign.append(request.url) if not request.url.startswith((own, "data:", "blob:")) else None,
    )
    page.on(
        "console", lambda message: refused.append(message.text) if "Content Security Policy" in message.text else None
    )
    page.goto(own)
    page.locator("#box textarea").fill("hello")
    page.locator("#box textarea").press("Enter")
    page.wait_for_function("document.querySelector('#said textarea').value === 'said hello'")
    (tmp_path / "rows.txt").write_text("x")
    page.locator("#file input[type=file]").set_input_files(tmp_path / "rows.txt")
    page.wait_for_function("document.querySelector('#said textarea').value === 'got rows.txt'")
    page.close()
    sys.stdout.write(f"requests to other hosts: {len(foreign)}, refused by our policy: {refused}\n")
    assert foreign == []
