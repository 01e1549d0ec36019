"""What a browser may keep of the studio: the files named by their digest, and nothing else."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from studio.service import Studio
from ui.caching import KEPT, NEVER_KEPT
from ui.server import Address, make_app

PORT = 7860


@pytest.fixture
def client(studio: Studio) -> TestClient:
    return TestClient(make_app(studio, Address("127.0.0.1", PORT, "", ())), base_url=f"http://127.0.0.1:{PORT}")


@pytest.mark.parametrize("path", ["/", "/zh/"])
def test_files_by_digest_are_kept_and_pages_are_not(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.headers["Cache-Control"] == NEVER_KEPT
    files = re.findall(r'(?:src|href)="\.?/?((?:\w+/)?assets/[^"]+)"', page.text)
    assert len(files) == 2
    for file in files:
        answer = client.get(f"/{file}")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, KEPT), file
    theme = re.search(r'"theme_hash":"(\w+)"', page.text)
    assert theme is not None
    assert client.get(f"{path}theme.css?v={theme[1]}").headers["Cache-Control"] == KEPT


@pytest.mark.parametrize("path", ["/config", "/gradio_api/info", "/theme.css", "/theme.css?v=1", "/nothing",
                                  "/files/model/none.zip", "/assets/none-DphvyggB.js"])  # fmt: skip
def test_everything_else_is_asked_for_again(client: TestClient, path: str) -> None:
    assert client.get(path).headers["Cache-Control"] == NEVER_KEPT


def test_plain_files_are_kept_by_their_date(client: TestClient) -> None:
    answer = client.get("/static/img/api-logo.svg")
    assert answer.status_code == 200 and "Cache-Control" not in answer.headers and "Last-Modified" in answer.headers
