"""The guard in front of every route: who may talk to the studio, how much, and what a browser may do with the answer.

A page on localhost is open to every web site its user visits: a foreign page can send it forms, embed it in a frame,
or rebind its own host name to 127.0.0.1. So each request must name one of our own hosts (Host), come from our own page
(Origin, Sec-Fetch-Site) and stay within a size, before any other code sees it. Pure ASGI, around Gradio and our routes.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_BODY_BYTES = 512 * 1024 * 1024
FREE_FAILURES = 5  # wrong tokens answered at once; every later one waits
FAILURE_DELAY_S = 1.0
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Gradio has inline scripts and compiles event handlers: 'unsafe-inline' and 'unsafe-eval'. No remote host at all.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not no-referrer: that would turn the Origin of our own form posts into "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def new_token() -> str:
    """A fresh login token of 256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """True when a server bound to `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that refuses what is not our own page; with a token, also whoever has not logged in.

    `hosts` are further names the studio may be called by. Without a token only loopback names pass; with one, any
    IP address does too, because a rebound name (the attack that the Host check stops) is never an address.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        port: int,
        token: str = "",
        hosts: Iterable[str] = (),
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.app = app
        self.port = port
        self.token = token
        self.names = {name.lower() for name in (*LOOPBACK_NAMES, *hosts)}
        self.max_body_bytes = max_body_bytes
        self.cookie = f"lora_studio_{port}"  # cookies are shared by all ports of a host
        self.session = secrets.token_urlsafe(32)  # what the cookie holds: useless after a restart, and not the token
        self.failures = 0
        self._slow_answers = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one connection, then hand it on or answer it here."""
        if scope["type"] not in ("http", "websocket"):  # lifespan
            await self.app(scope, receive, send)
            return
        send = _with_security_headers(send)
        headers = Headers(scope=scope)
        refusal = self._refuse(scope, headers) or await self._login(scope, headers)
        if refusal is not None:
            await _answer(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self._call_limited(scope, receive, send)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that is not from our own page, or None."""
        if not self._is_own_host(headers):
            return _plain(403, f"This host name is not the studio's. Open http://127.0.0.1:{self.port}/ instead.")
        if not _is_own_origin(scope, headers):
            return _plain(403, "Refused: the request comes from another web site.")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return _plain(400, "The Content-Length header is not a number.")
        return self._too_large() if int(length) > self.max_body_bytes else None

    def _is_own_host(self, headers: Headers) -> bool:
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return False
        name, port = _split_port(hosts[0].lower())
        if self.token:  # may stand behind a forwarded port or a proxy
            return name in self.names or _is_address(name)
        return name in self.names and port == self.port

    async def _login(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who is logged in; else the cookie for the right token, or the login page."""
        if not self.token or self._has_session(headers):
            return None
        given = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"))).get("token")
        if given is None or scope["type"] == "websocket" or scope["method"] != "GET":
            return _login_page(scope, "Log in with the token that the terminal shows.")
        if not _equal(given, self.token):
            self.failures += 1
            if self.failures > FREE_FAILURES:
                async with self._slow_answers:  # one after the other, however many are tried at once
                    await asyncio.sleep(FAILURE_DELAY_S)
            return _login_page(scope, "That token is wrong.")
        self.failures = 0
        answer = RedirectResponse("/", status_code=303)  # always "/": nothing of the request goes into the address
        answer.set_cookie(self.cookie, self.session, httponly=True, samesite="strict", path="/")
        return answer

    def _has_session(self, headers: Headers) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        return self.cookie in cookies and _equal(cookies[self.cookie].value, self.session)

    def _too_large(self) -> Response:
        return _plain(413, f"The upload is larger than {self.max_body_bytes // 1024**2} MB, the most that is accepted.")

    async def _call_limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; a body without a declared length is counted, and cut off with 413 when it grows too large."""
        seen = 0
        is_cut = has_started = False

        async def counted_receive() -> Message:
            nonlocal seen, is_cut
            message = await receive()
            seen += len(message.get("body", b""))
            if seen <= self.max_body_bytes:
                return message
            if not is_cut:
                is_cut = True
                if not has_started:
                    await self._too_large()(scope, receive, send)
            raise MultiPartException("The upload is too large.")  # at this an upload parser deletes what it has stored

        async def unless_cut(message: Message) -> None:
            nonlocal has_started
            if not is_cut:
                has_started = True
                await send(message)

        try:
            await self.app(scope, counted_receive, unless_cut)
        except Exception:
            if not is_cut:  # what an app says to the cut is no news
                raise


def _plain(status: int, text: str) -> Response:
    return PlainTextResponse(text + "\n", status_code=status)


async def _answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before accept: the handshake fails with 403
    else:
        await response(scope, receive, send)


def _with_security_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers.update(SECURITY_HEADERS)
            message["headers"] = headers.raw
        await send(message)

    return guarded


def _split_port(host: str) -> tuple[str, int]:
    """`name:port` apart; no port is HTTP's 80, and what is not a port is -1."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):  # no port, perhaps a bare [::1]
        return host, 80
    return name, int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True


def _is_own_origin(scope: Scope, headers: Headers) -> bool:
    """True unless a browser says that another site's page sent this.

    The rule of a resource isolation policy: a foreign Origin never passes; a cross-site or same-site (another port)
    request passes only as a plain visit, which is a GET that navigates the whole window.
    """
    host = headers["host"].lower()
    for origin in headers.getlist("origin"):
        if origin.lower() not in (f"http://{host}", f"https://{host}"):
            return False
    site = headers.get("sec-fetch-site", "none")
    if site in ("same-origin", "none"):
        return True
    is_visit = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return scope["type"] == "http" and scope["method"] in _SAFE_METHODS and is_visit


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def _login_page(scope: Scope, text: str) -> Response:
    accepts = Headers(scope=scope).get("accept", "")
    if "text/html" not in accepts:
        return _plain(401, text)
    return HTMLResponse(_LOGIN_HTML.replace("TEXT", text), status_code=401)


_LOGIN_HTML = """<!doctype html><html lang="en"><meta charset="utf-8"><title>LoRA Studio</title>
<meta name="viewport" content="width=device-width">
<style>body{font:16px system-ui;margin:20vh auto;max-width:22em;padding:0 1em;color-scheme:light dark}
input,button{font:inherit;padding:.5em;width:100%;box-sizing:border-box;margin:.3em 0}</style>
<h1>LoRA Studio</h1><form method="get" action="/"><label>TEXT
<input name="token" type="password" autocomplete="off" autofocus required></label>
<button>Log in</button></form></html>"""
