"""The studio's own web app, asked for everything that it must not give."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from studio.guard import SECURITY_HEADERS
from studio.service import Studio
from tests.scenarios.plugin import Say
from tests.security.served import Served, fill, paths_of, studio_app

PORT = 7860
OWN = f"http://127.0.0.1:{PORT}"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    made = Studio(tmp_path_factory.mktemp("routes") / "workspace")
    fill(made, ["secret-name"], tmp_path_factory.mktemp("files"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(studio: Studio) -> Any:
    return studio_app(studio, PORT)


@pytest.fixture(scope="module")
def client(app: Any) -> TestClient:
    return TestClient(app, base_url=OWN, follow_redirects=False)


@pytest.fixture(scope="module")
def served(studio: Studio) -> Iterator[Served]:
    made = Served(lambda port: studio_app(studio, port))
    yield made
    made.end()


def concrete(path: str) -> str:
    """A path with its parameters filled in."""
    return path.replace(":path", "").replace("{", "").replace("}", "") or "/"


@pytest.mark.scenario(26)
def test_a_rebound_name_gets_nothing(app: Any, client: TestClient, figure: Say) -> None:
    paths = [*map(concrete, paths_of(app)), "/gradio_api/queue/data?session_hash=x", "/static/img/logo.svg"]
    answers = [
        client.request(method, path, headers={"Host": f"evil.example:{PORT}"}) for path in paths for method in METHODS
    ]
    assert len(paths) > 100 and {answer.status_code for answer in answers} == {403}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/x", headers={"Host": "evil.example"}):
        pytest.fail("the handshake went through")
    figure(f"the studio: {len(paths)} routes x {len(METHODS)} methods and a websocket: all {len(answers):,} 403")


@pytest.mark.scenario(27)
def test_another_site_changes_nothing(app: Any, client: TestClient, figure: Say) -> None:
    foreign: list[dict[str, str]] = [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ]  # fmt: skip
    paths = [path for path in map(concrete, paths_of(app)) if not path.startswith("/zh")]
    tried = [("POST", path, headers) for path in paths for headers in foreign]
    tried += [(method, "/gradio_api/upload", headers) for method in ("PUT", "PATCH", "DELETE") for headers in foreign]
    answers = [client.request(method, path, headers=headers) for method, path, headers in tried]
    assert {answer.status_code for answer in answers} == {403}
    files = {"files": ("x.csv", b"text\nx\n")}
    uploads = [client.post("/gradio_api/upload", files=files, headers=headers).status_code for headers in foreign]
    assert set(uploads) == {403}
    own = client.post("/gradio_api/upload", files=files, headers={"Origin": OWN, "Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200
    figure(f"{len(answers) + len(uploads):,} requests of other sites: all 403; our own upload: 200")


@pytest.mark.scenario(28)
def test_every_answer_carries_the_headers(app: Any, client: TestClient, figure: Say) -> None:
    answers = [
        client.request(method, concrete(path), content=b"" if method == "POST" else None)
        for path in paths_of(app) for method in ("GET", "HEAD", "POST")
        if not path.endswith(("queue/data", "heartbeat/{session_hash}", "upload_progress"))  # these never end
    ]  # fmt: skip
    answers += [client.get("/", headers={"Host": "evil.example"}), client.get("/", headers={"Content-Length": "x"})]
    answers += [client.post("/", headers={"Content-Length": "9" * 12}), client.get("/assets/none.js")]
    for answer in answers:
        assert {name: answer.headers.get_list(name) for name in SECURITY_HEADERS} == {
            name: [value] for name, value in SECURITY_HEADERS.items()
        }, answer.request.url
    codes = sorted({answer.status_code for answer in answers})
    figure(f"{len(answers)} of {len(answers)} answers (codes {', '.join(map(str, codes))}) carry every header")


def test_streams_carry_the_headers_too(served: Served) -> None:
    path = "/gradio_api/queue/data?session_hash=abc"
    with httpx.stream("GET", served.url + path, timeout=10, trust_env=False) as answer:
        assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["X-Content-Type-Options"] == "nosniff"


# -- files


@pytest.mark.scenario(32)
def test_no_file_is_served_by_its_path(studio: Studio, client: TestClient, figure: Say) -> None:
    root = studio.workspace.root
    (root / "scheduler.log").write_text("secret-log")
    (root / "tmp" / "scratch.txt").write_text("secret-scratch")
    upload = client.post("/gradio_api/upload", files={"files": ("mine.csv", b"secret-upload")}).json()[0]
    assert Path(upload).is_relative_to(root / "tmp" / "uploads")
    files = [studio.workspace.database, root / "scheduler.log", root / "server.json", root / "tmp" / "scratch.txt"]
    targets = [*map(str, files), upload, "/etc/passwd", "/proc/self/environ", "pyproject.toml", "ui/main.py"]
    targets += ["http://127.0.0.1:1/", "https://example.com/", "file:///etc/passwd", "//example.com/"]
    forms = ["file={}", "file/{}", "proxy={}", "stream/{}", "custom_component/{}/x/y/z", "deep_link?path={}"]
    asked = [
        f"/{where}{form.format(quoted)}"
        for where in ("gradio_api/", "zh/gradio_api/")
        for form in forms for target in targets for quoted in (target, quote(target, safe=""), quote(quote(target)))
    ]  # fmt: skip
    answers = [client.get(path) for path in dict.fromkeys(asked)]
    assert {answer.status_code for answer in answers} == {404}
    assert not any(word in answer.text for answer in answers for word in ("secret-", "root:", "SQLite format"))
    figure(f"{len(answers):,} file addresses in {len(forms)} forms: 0 served")


@pytest.mark.scenario(32)
def test_a_path_in_an_event_is_refused(studio: Studio, served: Served, tmp_path: Path, figure: Say) -> None:
    """The page sends an uploaded file as a path; a forged one must lie in the folder of the uploads."""
    outside = tmp_path / "outside.csv"
    outside.write_text("text\nsecret-row\n")
    config = httpx.get(f"{served.url}/config", timeout=30, trust_env=False).json()
    boxes = [box["id"] for box in config["components"] if box["type"] == "file"]
    events = [event for event in config["dependencies"] if set(event["inputs"]) & set(boxes) and event["backend_fn"]]
    assert events
    before = len(studio.datasets())
    for number, path in enumerate((str(outside), str(studio.workspace.database), "/etc/passwd", "../studio.db")):
        forged = {"path": path, "orig_name": "x.csv", "meta": {"_type": "gradio.FileData"}}
        for event in events:
            said = _run_event(served, event, forged, boxes, f"forged{number}x{event['id']}")
            assert '"success": true' not in said and '"success":true' not in said and "secret-row" not in said, said
    assert len(studio.datasets()) == before
    figure(f"{len(events) * 4} events with a path of their own: 0 read")


def test_only_what_the_page_shows_live_is_called_without_the_queue(client: TestClient, figure: Say) -> None:
    events = [event for event in client.get("/config").json()["dependencies"] if event["backend_fn"]]
    direct = {event["id"] for event in events if event["queue"] is False}
    assert 0 < len(direct) < len(events) / 2
    answers = {
        event["id"]: client.post(
            f"/gradio_api/run/{event['api_name'] or 'predict'}",
            json={"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "direct"},
        ).status_code
        for event in events
    }
    assert {answers[event] for event in direct} == {200}
    assert {status for event, status in answers.items() if event not in direct} == {404}
    foreign = {"Origin": "http://evil.example"}
    assert client.post("/gradio_api/run/predict", json={"data": []}, headers=foreign).status_code == 403
    figure(f"{len(events)} events called past the queue: the {len(direct)} that show what is, no other")


def _run_event(served: Served, event: dict[str, Any], file: Any, boxes: list[int], session: str) -> str:
    """Queue an event as the page would, and return what its stream says until it completes."""
    data = [file if given in boxes else None for given in event["inputs"]]
    body = {"data": data, "fn_index": event["id"], "session_hash": session, "trigger_id": None, "event_data": None}
    with httpx.Client(base_url=served.url, timeout=20, trust_env=False) as client:
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
            lines = []
            for line in answer.iter_lines():
                lines.append(line)
                if "process_completed" in line:
                    break
    return "\n".join(lines)


# -- floods


@pytest.mark.scenario(41)
def test_floods_are_cut_off_and_the_page_answers(
    studio: Studio, served: Served, tmp_path: Path, figure: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = studio.workspace.tmp / "uploads"
    before = sorted(uploads.rglob("*"))
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % served.port
    declared = head + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 999999999999\r\n\r\n--b\r\n"
    said = []

    def flood() -> None:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(declared)
            said.append(connection.recv(100))

    floods = [threading.Thread(target=flood) for _ in range(50)]
    slow = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(head[:40])  # and never the rest
    for thread in floods:
        thread.start()
    started = time.monotonic()
    assert httpx.get(f"{served.url}/config", timeout=20, trust_env=False).status_code == 200
    waited = time.monotonic() - started
    for thread in floods:
        thread.join(30)
    for connection in slow:
        connection.close()
    assert len(said) == 50 and all(answer.startswith(b"HTTP/1.1 413 ") for answer in said)
    assert sorted(uploads.rglob("*")) == before
    assert waited < 5
    figure("50 bodies over the limit: 50 times 413, 0 files; with 50 slow senders beside, the page answers within 5 s")


# -- names


TRAVERSALS = (
    "../studio.db", "../../etc/passwd", "..\\studio.db", "..\\..\\etc\\passwd", "..%2fstudio.db", "%2e%2e/studio.db",
    "%252e%252e%252fstudio.db", "%c0%ae%c0%ae/studio.db", "....//studio.db", "..;/studio.db", "/etc/passwd",
    "//etc/passwd", "\\\\host\\share\\x", "C:\\Windows\\win.ini", "C:/Windows/win.ini", "file:///etc/passwd", "~",
    "~root/.ssh/id_rsa", "$HOME/x", "${HOME}", "`id`", "$(id)", "a\0b", "a%00b", "CON", "NUL.zip", "aux", "COM1",
    "a" * 300, "a/" * 200, ".", "..", "...", " ", "", "\t", "a\nb", "a\r\nSet-Cookie: x=1", "\u202egpj.exe",
    "e\u0301", "\u2025/\u2025/x", "\uff0e\uff0e\uff0fx", "a:b", "a*b?", "|id", "; rm -rf x", "& dir", "-rf",
    "--workspace=/tmp", "x.zip/../y", "x.zip%00", ".git/config", ".env", "studio.db-wal", "server.json", "<script>",
    "'; DROP TABLE jobs; --", "{{7*7}}", "%s%n", "\u0000", "😀",
)  # fmt: skip


@pytest.mark.scenario(30)
def test_hostile_names_read_and_write_nothing_outside(
    studio: Studio, client: TestClient, tmp_path: Path, figure: Say, opened_files: list[str]
) -> None:
    data = tmp_path / "good.jsonl"
    allowed = (str(studio.workspace.root), str(data))
    tried = 0
    for number, name in enumerate(TRAVERSALS):
        data.write_text(json.dumps({"text": f"row {number}"}) + "\n", encoding="utf-8")
        opened_files.clear()
        tried += _try_ids(studio, client, name)
        tried += _try_names(studio, data, name)
        strays = [path for path in opened_files if not path.startswith(allowed)]
        assert strays == [], (name, strays)
    assert len(TRAVERSALS) >= 60
    figure(f"{len(TRAVERSALS)} names in {tried:,} places: 0 paths opened, renamed or removed outside the workspace")


def _try_ids(studio: Studio, client: TestClient, name: str) -> int:
    """Use a name where an id belongs: each use is refused with a sentence."""
    from core.errors import StudioError

    uses = (
        studio.dataset, studio.model, studio.adapter, studio.job, studio.delete_dataset, studio.delete_model,
        studio.delete_adapter, studio.delete_job, studio.log_tail, studio.checkpoints, studio.job_spec_yaml,
        lambda value: studio.preview(value), lambda value: studio.export_path("adapter", value),
        lambda value: studio.export_path("model", value), lambda value: studio.export_path(value, value),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(StudioError) as refused:
            use(name)
        assert refused.value.what and refused.value.fix
    kept = "".join(char for char in name if ord(char) > 31)
    for quoted in {quote(kept, safe=""), quote(kept)}:
        for kind in ("model", "adapter", "portable", quoted):
            assert client.get(f"/files/{kind}/{quoted}.zip").status_code in (404, 403)
    return len(uses) + 4


def _try_names(studio: Studio, data: Path, name: str) -> int:
    """Use it as the name of something: it is kept as a word, and never becomes a path."""
    made = studio.add_dataset(data, name=name)
    stored = studio.dataset(made.id)
    assert stored.name == (name.strip() or data.stem)
    folder = studio.workspace.dataset_folder(made.id)
    assert {path.name.partition(".")[0] for path in folder.iterdir()} <= {"data", "dataset", "records"}
    studio.delete_dataset(made.id)
    assert not folder.exists()
    return 2


@pytest.fixture
def opened_files() -> Iterator[list[str]]:
    """The files that this process opens, renames or removes while the test runs, but for Python's own."""
    import sys
    import sysconfig

    seen: list[str] = []
    own = (
        *map(str, sysconfig.get_paths().values()),
        str(Path(__file__).resolve().parents[2]),
        "/proc/",
        "/sys/",
        "/dev/",
    )
    active = True
    watched = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate", "os.chmod")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in watched and isinstance(arguments[0], (str, bytes, Path)):
            path = str(Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]).absolute())
            if not path.startswith(own):
                seen.append(path)

    sys.addaudithook(note)
    yield seen
    active = False


@pytest.mark.scenario(31)
def test_links_are_neither_followed_out_nor_served(studio: Studio, tmp_path: Path, figure: Say) -> None:
    from core.errors import StudioError
    from studio.downloads import open_export

    secret = tmp_path / "secret"
    secret.write_text("secret")
    adapter = studio.adapters()[0]
    folder = studio.workspace.adapter_folder(adapter.id)
    refused = 0
    for kind in ("soft", "hard", "folder"):
        folder.mkdir()
        link = folder / "adapter_model.safetensors"
        if kind == "hard":
            link.hardlink_to(secret)
        else:
            link.symlink_to(secret if kind == "soft" else tmp_path, target_is_directory=kind == "folder")
        with pytest.raises(StudioError, match="link"):
            b"".join(open_export(studio, "adapter", adapter.id)[0].chunks())
        refused += 1
        link.unlink()
        folder.rmdir()
    folder.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(StudioError):
        open_export(studio, "adapter", adapter.id)
    studio.workspace.discard(folder)
    assert secret.read_text() == "secret"
    figure(f"{refused + 1} kinds of links in an export: 0 served; deleting one leaves what it points to")
