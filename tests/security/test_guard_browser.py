"""Another web site attacks the studio in a real Chromium: forms, uploads, reads, frames, sockets and a rebound name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from studio.guard import Guard
from studio.service import Studio
from tests.conftest import CHROMIUM_FLAGS
from tests.scenarios.plugin import Say
from tests.security.served import Served, studio_app

pytestmark = pytest.mark.browser
NAMES = [
    "../../evil.py", "..\\evil.py", "/etc/cron.d/x", "C:\\x.bat", "%2e%2e%2fx", "a\0b", "CON", "x" * 300,
    "<b>", "~/.ssh/x",
]  # fmt: skip
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
    "await new Promise(r => setTimeout(r, 500))",
    "form": "const f = document.createElement('form'); f.method = 'post'; f.action = T + '/run'; f.target = 'x';"
    "const i = document.createElement('iframe'); i.name = 'x'; document.body.append(i, f); f.submit();"
    "await new Promise(r => setTimeout(r, 500))",
    "form with a file": "const f = document.createElement('form'); f.method = 'post';"
    "f.enctype = 'multipart/form-data'; f.action = T + '/gradio_api/upload'; f.target = 'y';"
    "const i = document.createElement('iframe'); i.name = 'y';"
    "const n = document.createElement('input'); n.type = 'file'; n.name = 'files'; const d = new DataTransfer();"
    "d.items.add(new File(['x'], '../../../evil.py')); n.files = d.files; f.append(n); document.body.append(i, f);"
    "f.submit(); await new Promise(r => setTimeout(r, 500))",
    "hostile file names": "for (const name of NAMES) {"
    "const f = new FormData(); f.append('files', new Blob(['x']), name);"
    "await fetch(T + '/gradio_api/upload', {method: 'POST', mode: 'no-cors', body: f}).catch(() => 0) }",
    "socket": "const s = new WebSocket(T.replace('http', 'ws') + '/socket');"
    "await new Promise(r => {s.onopen = () => {stolen = 'open'; r()}; s.onerror = r})",
}


class Victim:
    """A web app that notes every request which reaches it."""

    def __init__(self, uploads: Path) -> None:
        self.uploads = uploads
        self.reached: list[str] = []

    def noting(self, inner: ASGIApp) -> ASGIApp:
        """`inner`, watched."""

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                self.reached.append(scope["path"])
            await inner(scope, receive, send)

        return noted

    def bare(self, port: int) -> ASGIApp:
        """A plain Gradio page, as any program serves it."""
        with gradio.Blocks() as blocks:
            gradio.Textbox(elem_id="box")
        return self.noting(gradio.mount_gradio_app(FastAPI(), blocks, path="/"))

    def studio(self, studio: Studio, port: int) -> ASGIApp:
        """The studio's own app; what its guard lets through is noted."""
        guarded = studio_app(studio, port)
        assert isinstance(guarded, Guard)
        guarded.app = self.noting(guarded.app)
        return guarded


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    made = Studio(tmp_path_factory.mktemp("victim") / "workspace")
    yield made
    made.close()


@pytest.fixture(scope="module")
def victim(workspace: Studio) -> Victim:
    return Victim(workspace.workspace.uploads)


@pytest.fixture(scope="module")
def studio(victim: Victim, workspace: Studio) -> Iterator[Served]:
    served = Served(partial(victim.studio, workspace))
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


def test_without_the_guard_the_same_attacks_come_through(browser: Any, attacker: Served, tmp_path: Path) -> None:
    """The control: attacks that never work would prove nothing."""
    open_victim = Victim(tmp_path)
    served = Served(open_victim.bare)
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
    assert len(through) >= 10


def _script(attack: str, target: str) -> str:
    constants = f"const NAMES = {json.dumps(NAMES)}; const T = '{target}'; let stolen = '';"
    body = f"{constants} try {{ {ATTACKS[attack]} }} catch (e) {{}} return stolen"
    return f"async () => {{ {body} }}"


@pytest.mark.scenario(26, 27)
def test_no_attack_of_another_site_comes_through(
    browser: Any, studio: Served, attacker: Served, victim: Victim, tmp_path: Path, figure: Say
) -> None:
    origins = [f"http://{host}:{attacker.port}" for host in ("evil.example", "127.0.0.1")]
    targets = [f"http://{host}:{studio.port}" for host in ("127.0.0.1", "rebound.example")]
    through = {}
    for origin in origins:
        for target in targets:
            page = browser.new_page()
            page.goto(origin)
            for attack in ATTACKS:
                victim.reached.clear()
                stolen = page.evaluate(_script(attack, target))
                if stolen or victim.reached:
                    through[attack, origin, target] = (stolen, list(victim.reached))
            page.close()
    assert through == {}
    assert [path for path in victim.uploads.rglob("*") if path.is_file()] == []
    tried = len(ATTACKS) * len(origins) * len(targets)
    figure(f"{tried} attacks of other sites from Chromium, {len(NAMES)} hostile file names among them: 0 accepted")


@pytest.mark.scenario(26)
def test_a_rebound_name_reads_nothing(browser: Any, studio: Served, victim: Victim, figure: Say) -> None:
    page = browser.new_page()
    victim.reached.clear()
    answer = page.goto(f"http://rebound.example:{studio.port}/config")
    assert answer.status == 403 and victim.reached == []
    assert page.evaluate("async () => (await fetch('/config')).status") == 403
    page.close()
    figure("a name rebound to 127.0.0.1 in Chromium: 403 for the page and for what it fetches")
