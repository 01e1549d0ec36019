"""Downloads: the zip against zipfile and unzip as oracles, its size, its determinism, and what it refuses to serve."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from core.errors import ModelError, StudioError
from studio.downloads import content_disposition, file_stem, files_route, write_zip
from studio.stored_zip import StoredZip

FILES = {
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    "model.safetensors": bytes(range(256)) * 9000,
    "sub/模型 é.json": b"{}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder with a nested, non-ASCII name and a hidden cache."""
    made = tmp_path / "model"
    for name, content in FILES.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (made / ".cache").mkdir()
    (made / ".cache" / "secret").write_text("hidden")
    return made


def _bytes(folder: Path, top: str = "my-model") -> bytes:
    return b"".join(StoredZip(folder, top).chunks())


def test_the_zip_unpacks_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    data = _bytes(folder)
    assert len(data) == StoredZip(folder, "my-model").size
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"my-model/{name}": content for name, content in FILES.items()
        }
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
        assert all(stat.S_ISREG(item.external_attr >> 16) for item in archive.infolist())


def test_the_same_folder_gives_the_same_bytes(folder: Path) -> None:
    first = _bytes(folder)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert _bytes(folder) == first


def test_a_file_larger_than_32_bits_can_say_uses_zip64(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.stored_zip._MAX32", 1000)  # as if 1,000 bytes were 4 GiB
    monkeypatch.setattr("studio.stored_zip._MAX16", 3)
    data = _bytes(folder)
    assert len(data) == StoredZip(folder, "my-model").size
    entry = next(item for item in StoredZip(folder, "t").members if item.size > 1000)
    assert entry.local_header()[4:6] == b"\x2d\x00"  # version 4.5


@pytest.mark.slow
def test_a_real_file_over_4_gib(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    with (folder / "a.safetensors").open("wb") as file:
        file.truncate(2**32 + 5)  # sparse
    (folder / "b.json").write_text("{}")
    out = write_zip(folder, tmp_path / "big.zip")
    assert out.stat().st_size == StoredZip(folder, "big").size
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("big/a.safetensors").file_size == 2**32 + 5


def test_an_empty_folder_is_an_empty_zip(tmp_path: Path) -> None:
    assert zipfile.ZipFile(io.BytesIO(_bytes(tmp_path))).namelist() == []


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "symlinked folder", "fifo"])
def test_links_are_refused_not_followed(folder: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    if kind == "symlink":
        (folder / "a.txt").symlink_to(secret)
    elif kind == "hardlink":
        os.link(secret, folder / "a.txt")
    elif kind == "fifo":
        os.mkfifo(folder / "a.txt")
    else:
        (folder / "a").symlink_to(tmp_path)
    with pytest.raises(StudioError, match="link"):
        _bytes(folder)


def test_a_file_swapped_for_a_link_after_the_listing_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = StoredZip(folder, "t")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match=r"symbolic|link"):
        b"".join(archive.chunks())


def test_a_file_that_shrinks_while_it_is_sent_breaks_the_download(folder: Path) -> None:
    archive = StoredZip(folder, "t")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(StudioError, match="shorter"):
        b"".join(archive.chunks())


def test_a_zip_on_disk_is_whole_or_not_there(folder: Path, tmp_path: Path) -> None:
    assert write_zip(folder, tmp_path / "my-model.zip").read_bytes() == _bytes(folder)
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(StudioError):
        write_zip(folder, tmp_path / "other.zip")
    assert [path.name for path in tmp_path.iterdir() if "zip" in path.name] == ["my-model.zip"]


class _Studio:
    """Knows one model and one adapter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []

    def export_path(self, kind: str, item_id: str) -> Path:
        self.asked.append((kind, item_id))
        if item_id != "1abc":
            raise ModelError("There is no model with this id.", "Take it from the list.")
        return self.folder

    def model(self, item_id: str) -> Any:
        return SimpleNamespace(name="My mödel: v1/2")

    adapter = model


@pytest.fixture
def client(folder: Path) -> TestClient:
    """The route in an app of its own, with a stand-in for the studio."""
    studio = _Studio(folder)
    made = TestClient(Starlette(routes=[files_route(studio)]))  # type: ignore[arg-type]
    made.studio = studio  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_the_download_is_whole_and_named(client: TestClient, kind: str) -> None:
    answer = client.get(f"/files/{kind}/1abc.zip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "My-m" in answer.headers["content-disposition"]
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert len(names) == len(FILES) and all(name.startswith("My-mödel-v1-2/") for name in names)


def test_head_tells_the_size_without_the_bytes(client: TestClient) -> None:
    size = len(client.get("/files/model/1abc.zip").content)
    answer = client.head("/files/model/1abc.zip")
    assert int(answer.headers["content-length"]) == size and answer.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "/files/model/../../etc/passwd.zip", "/files/model/..%2f..%2fetc%2fpasswd.zip", "/files/model/%2e%2e.zip",
        "/files/model/..%252f.zip", "/files/model/C:%5Cwindows.zip", "/files/model/~root.zip", "/files/model/a%00b.zip",
        "/files/model/file:%2f%2fetc.zip", "/files/model/CON.zip/x", "/files/dataset/1abc.zip", "/files/runs/1abc.zip",
        "/files//1abc.zip", "/files/model/1abc", "/files/model/.zip", f"/files/model/{'a' * 300}.zip",
        "/files/model/é.zip",
    ],
)  # fmt: skip
def test_only_ids_reach_the_library(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.studio.asked == []  # type: ignore[attr-defined]


def test_an_unknown_id_gets_a_sentence(client: TestClient) -> None:
    answer = client.get("/files/model/9zzz.zip")
    assert answer.status_code == 404 and "There is no model with this id." in answer.text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a b", "a-b"), ("../../etc", "etc"), ("模型", "模型"), ("...", ""), ('x"y\r\nz', "x-y-z"), ("a" * 200, "a" * 80)],
)
def test_file_stem(name: str, expected: str) -> None:
    assert file_stem(name) == expected


def test_the_header_holds_no_line_break_and_is_ascii() -> None:
    header = content_disposition(file_stem("é模 x"), "4f2a")
    assert header.isascii() and "\n" not in header and "filename*=UTF-8''" in header


@pytest.mark.parametrize(
    ("stem", "plain"), [("客服", "4f2a.zip"), ("客服-v2", "v2-4f2a.zip"), ("tickets-2", "tickets-2.zip")]
)
def test_a_name_of_other_letters_is_a_file_name_in_ascii_too(stem: str, plain: str) -> None:
    header = content_disposition(stem, "4f2a")
    assert f'filename="{plain}"' in header and header.endswith(f"{quote(stem)}.zip")
