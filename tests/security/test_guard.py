"""The guard, tried as an attacker would: every route, every method, forged hosts, foreign pages, floods and guesses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import gradio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from studio.guard import SECURITY_HEADERS, Guard, is_loopback, new_token
from tests.scenarios.plugin import Say
from tests.security.served import paths_of

PORT = 7860
OWN = "http://127.0.0.1:7860"
SOCKET = "ws://127.0.0.1:7860/socket"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
EVIL_HOSTS = (
    "evil.example",
    "evil.example:7860",
    "127.0.0.1.evil.example:7860",
    "localhost.evil.example:7860",
    "localhost:7861",
    "localhost",
    "localhost:",
    "localhost:7860:7860",
    "127.0.0.1:7860@evil.example",
    "user@127.0.0.1:7860",
    "[::2]:7860",
    "0.0.0.0:7860",
    "127.1:7860",
    "2130706433:7860",
    "192.168.0.2:7860",
    "localhost:７８６０",
    "",
)
EVIL_ORIGINS = (
    "http://evil.example",
    "null",
    "http://127.0.0.1:7861",
    "http://localhost:7860",
    "file://",
    "http://127.0.0.1",
    "",
)


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())), headers={"X-Frame-Options": "ALLOWALL"})


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("open")
    await socket.close()


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("a refused request reached the app")


@pytest.fixture(scope="module")
def app() -> Starlette:
    """A real Gradio app with an upload, an event and state, beside routes of our own."""
    with gradio.Blocks() as blocks:
        box, file = gradio.Textbox(), gradio.File()
        box.change(lambda text: text, box, box, api_name="shout")
        file.upload(lambda path: None, file, None)
    routes = [Route("/echo", _echo, methods=list(METHODS)), WebSocketRoute("/socket", _socket)]
    outer = Starlette(routes=routes)
    return gradio.mount_gradio_app(outer, blocks, path="/ui")  # type: ignore[arg-type, return-value]


def _client(app: Starlette, **settings: object) -> TestClient:
    return TestClient(Guard(app, port=PORT, **settings), base_url=OWN, follow_redirects=False)  # type: ignore[arg-type]


@pytest.mark.scenario(26)
def test_every_route_refuses_a_rebound_host(app: Starlette, figure: Say) -> None:
    paths = paths_of(app)
    assert len(paths) > 40
    client = _client(_never)  # type: ignore[arg-type]
    answers = [
        client.request(method, path, headers={"Host": "evil.example:7860"}) for path in paths for method in METHODS
    ]
    refused = sum(answer.status_code == 403 for answer in answers)
    assert {answer.status_code for answer in answers} == {403}
    figure(f"all of Gradio: {len(paths)} routes x {len(METHODS)} methods: {refused} of {len(answers)} answered 403")


@pytest.mark.parametrize("host", EVIL_HOSTS)
def test_a_host_that_is_not_ours_is_refused(host: str) -> None:
    assert _client(_never).get("/", headers={"Host": host.encode()}).status_code == 403  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "[::1]:7860"])
def test_our_own_hosts_pass(app: Starlette, host: str) -> None:
    assert _client(app).get("/ui/", headers={"Host": host}).status_code == 200
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert _client(app).post("/echo", content=b"abc", headers=own).text == "3"


def test_port_80_needs_no_port_in_the_host(app: Starlette) -> None:
    client = TestClient(Guard(app, port=80), base_url="http://localhost")
    assert client.get("/echo").status_code == 200
    assert client.get("/echo", headers={"Host": "localhost:7860"}).status_code == 403


def test_every_route_refuses_a_foreign_origin(app: Starlette) -> None:
    client = _client(_never)  # type: ignore[arg-type]
    for path in paths_of(app):
        for method in ("GET", "POST"):
            assert client.request(method, path, headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("origin", EVIL_ORIGINS)
@pytest.mark.parametrize("method", METHODS)
def test_an_origin_that_is_not_ours_is_refused(method: str, origin: str) -> None:
    assert _client(_never).request(method, "/", headers={"Origin": origin}).status_code == 403  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
@pytest.mark.parametrize("method", UNSAFE)
def test_a_browser_that_says_cross_site_is_refused_without_an_origin(site: str, method: str) -> None:
    visit = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert _client(_never).request(method, "/", headers=visit).status_code == 403  # type: ignore[arg-type]


def test_a_link_from_elsewhere_opens_the_page_but_a_frame_or_image_does_not(app: Starlette) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert _client(app).get("/ui/", headers=link).status_code == 200
    for other in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}):
        assert _client(app).get("/ui/", headers=link | other).status_code == 403


def test_the_upload_of_gradio_refuses_other_sites_and_takes_ours(app: Starlette) -> None:
    client, files = _client(app), {"files": ("rows.jsonl", b"{}\n")}
    refused = client.post("/ui/gradio_api/upload", files=files, headers={"Origin": "http://evil.example"})
    taken = client.post("/ui/gradio_api/upload", files=files, headers={"Origin": OWN})
    assert (refused.status_code, taken.status_code) == (403, 200)
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_a_websocket_from_elsewhere_is_refused(app: Starlette, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect), _client(app).websocket_connect(SOCKET, headers=headers):
        pytest.fail("the handshake went through")


def test_our_own_websocket_passes(app: Starlette) -> None:
    with _client(app).websocket_connect(SOCKET, headers={"Host": "127.0.0.1:7860", "Origin": OWN}) as socket:
        assert socket.receive_text() == "open"


def test_every_answer_carries_the_security_headers(app: Starlette) -> None:
    client, token = _client(app), _client(app, token=new_token())
    answers = [client.get(path) for path in ("/ui/", "/echo", "/ui/config", "/missing", "/ui/gradio_api/info")]
    answers += [client.get("/", headers={"Host": "evil.example"}), token.get("/echo")]
    answers.append(client.post("/echo", headers={"Content-Length": "9" * 12}))
    assert [a.status_code for a in answers] == [200, 200, 200, 404, 200, 403, 401, 413]
    for answer in answers:
        assert {name: answer.headers.get_list(name) for name in SECURITY_HEADERS} == {
            name: [value] for name, value in SECURITY_HEADERS.items()
        }


def test_the_policy_names_no_remote_host() -> None:
    words = SECURITY_HEADERS["Content-Security-Policy"].replace(";", " ").split()
    assert not [word for word in words if "." in word or "//" in word or word in ("*", "http:", "https:")]
    assert "frame-ancestors 'none'" in SECURITY_HEADERS["Content-Security-Policy"]
    assert SECURITY_HEADERS["X-Frame-Options"] == "DENY"


def test_a_declared_body_over_the_limit_never_reaches_the_app() -> None:
    answer = _client(_never, max_body_bytes=1000).post("/", content=b"x" * 1001)  # type: ignore[arg-type]
    assert answer.status_code == 413


def test_an_undeclared_body_is_counted_while_it_streams(app: Starlette) -> None:
    sent = 0

    def flood() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b"x" * 1000

    assert _client(app, max_body_bytes=5000).post("/echo", content=flood()).status_code == 413
    sent = 96
    assert _client(app, max_body_bytes=5000).post("/echo", content=flood()).text == "4000"


@pytest.mark.scenario(41)
def test_a_streamed_upload_that_is_cut_leaves_no_file(
    app: Starlette, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Say
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\nContent-Type: text/csv\r\n\r\n'
    body = iter([head] + [b"x" * 1000] * 50)
    answer = _client(app, max_body_bytes=20_000).post(
        "/ui/gradio_api/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    figure("an undeclared body over the limit: 413 while it streams, 0 files left")


@pytest.mark.parametrize("length", ["-1", "abc", "1e9", "+5", "９"])
def test_a_content_length_that_is_no_number_is_refused(length: str) -> None:
    headers = {"Content-Length": length.encode()}
    assert _client(_never).post("/", headers=headers).status_code == 400  # type: ignore[arg-type]


def test_a_token_is_256_bits_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and min(len(token) for token in tokens) >= 43  # 6 bits a character


def test_with_a_token_nothing_answers_before_the_login(app: Starlette) -> None:
    client = TestClient(Guard(_never, port=PORT, token=new_token()), base_url=OWN, follow_redirects=False)
    for path in paths_of(app):
        assert {client.request(method, path).status_code for method in ("GET", "POST")} == {401}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET):
        pytest.fail("the handshake went through")


def test_the_token_logs_in_once_and_the_cookie_does_the_rest(app: Starlette) -> None:
    token = new_token()
    client = _client(app, token=token)
    answer = client.get(f"/ui/?token={token}&next=//evil.example")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and token not in cookie
    assert client.get("/echo").status_code == 200
    client.cookies.clear()
    assert client.get("/echo").status_code == 401


@pytest.mark.parametrize("given", ["", "wrong", "%00", "%ff%fe", "é", "a" * 5000])
def test_a_wrong_token_or_cookie_does_not_log_in(given: str) -> None:
    client = TestClient(Guard(_never, port=PORT, token=new_token()), base_url=OWN)
    answer = client.get(f"/?token={given}", headers={"Accept": "text/html"})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers and "<form" in answer.text
    cookie = f"lora_studio_{PORT}={given[:9]}".encode()
    assert client.get("/", headers={"Cookie": cookie}).status_code == 401


@pytest.mark.scenario(29)
def test_guessing_is_slowed_down(monkeypatch: pytest.MonkeyPatch, figure: Say) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("studio.guard.asyncio.sleep", sleep)
    client = TestClient(Guard(_never, port=PORT, token=new_token()), base_url=OWN)
    for number in range(8):
        client.get(f"/?token=guess{number}")
    assert slept == [1.0, 1.0, 1.0]
    figure("after 5 wrong tokens every further one waits 1 s, one after the other")


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return False

    monkeypatch.setattr("studio.guard.hmac.compare_digest", compare)
    TestClient(Guard(_never, port=PORT, token="right"), base_url=OWN).get("/?token=wrong")
    assert compared == [(b"wrong", b"right")]


def test_beyond_loopback_addresses_pass_but_names_do_not() -> None:
    token = new_token()
    client = TestClient(
        Guard(_never, port=PORT, token=token, hosts=("gpu-box.local",)), base_url="http://192.168.0.2:7860"
    )
    for host in ("192.168.0.2:7860", "192.168.0.2:8080", "[fe80::1]:7860", "gpu-box.local:7860"):
        assert client.get("/", headers={"Host": host}).status_code == 401, host
    assert client.get(f"/?token={token}", headers={"Host": "evil.example:7860"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.0.0.5", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.2", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_failed_guess_takes_no_time_before_the_limit() -> None:
    client = TestClient(Guard(_never, port=PORT, token=new_token()), base_url=OWN)
    started = time.monotonic()
    for _ in range(5):
        client.get("/?token=typo")
    assert time.monotonic() - started < 1.0
