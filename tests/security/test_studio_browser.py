"""The studio's own page in Chromium: it asks no other host, and hostile names on it are words, never code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from studio.guard import SECURITY_HEADERS
from studio.service import Studio
from tests.conftest import CHROMIUM_FLAGS
from tests.scenarios.plugin import Say
from tests.security.served import Served, fill, studio_app
from ui.head import PATHS
from ui.page import TAB_IDS

pytestmark = pytest.mark.browser
HOSTILE = [
    "<img src=x onerror=\"window.owned=1;alert('img')\">",
    "<script>window.owned=1;alert('script')</script>",
    "<svg onload=window.owned=1>",
    "</b><iframe src=javascript:parent.owned=1></iframe>",
    "[click](javascript:window.owned=1)",
    "![x](https://evil.example/x.png)",
    '" onmouseover="window.owned=1" x="',
    "{{constructor.constructor('window.owned=1')()}}",
    "${window.owned=1}",
    "'; DROP TABLE jobs; --",
    "=HYPERLINK(\"https://evil.example\",\"x\")",
    "@import url(https://evil.example/x.css)",
]  # fmt: skip

HOVER = "document.querySelectorAll('[title], [onmouseover]').forEach(e => e.dispatchEvent(new Event('mouseover')))"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    made = Studio(tmp_path_factory.mktemp("page") / "workspace")
    fill(made, HOSTILE, tmp_path_factory.mktemp("files"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(studio: Studio) -> Iterator[Served]:
    made = Served(lambda port: studio_app(studio, port))
    yield made
    made.end()


class Watch:
    """What a page asked for, what it was given, and what ran that should not have."""

    def __init__(self, page: Any, own: str) -> None:
        self.asked = 0
        self.foreign: list[str] = []
        self.bare: list[str] = []
        self.dialogs: list[str] = []
        self.own = own
        page.on("request", self.request)
        page.on("response", self.response)
        page.on("dialog", self.dialog)

    def request(self, request: Any) -> None:
        self.asked += 1
        if not request.url.startswith((self.own, "data:", "blob:")):
            self.foreign.append(request.url)

    def response(self, response: Any) -> None:
        wanted = [name.lower() for name in SECURITY_HEADERS]
        if response.url.startswith("http") and not all(name in response.headers for name in wanted):
            self.bare.append(response.url)

    def dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@pytest.mark.scenario(28, 33)
def test_hostile_names_are_shown_as_words_and_no_other_host_is_asked(
    playwright: Any, chromium: str, served: Served, studio: Studio, figure: Say
) -> None:
    browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    watch = Watch(page, served.url)
    seen = ""
    for path in PATHS.values():
        page.goto(served.url + path)
        page.wait_for_selector("#tabs button[role=tab]")
        for index in range(len(TAB_IDS)):
            page.locator("#tabs button[role=tab]").nth(index).click()
            page.wait_for_timeout(400)
            page.evaluate(HOVER)
            seen += page.locator("body").inner_text()
    owned = page.evaluate("window.owned")
    hooks = page.evaluate("document.querySelectorAll('[onerror], [onload], [onmouseover], iframe').length")
    browser.close()
    assert (watch.foreign, watch.dialogs, owned, hooks) == ([], [], None, 0)
    assert watch.bare == []
    flat = " ".join(seen.split())
    assert [name for name in HOSTILE if " ".join(name.split()) not in flat] == []
    assert {item.name for item in studio.datasets()} == {item.name for item in studio.models()} == set(HOSTILE)
    where = f"Chromium, {len(TAB_IDS)} tabs in {len(PATHS)} languages"
    figure(f"{where}: {watch.asked} requests, 0 to other hosts, every answer with every header", 28)
    figure(f"{where}: {len(HOSTILE)} names each of a dataset, model, adapter and job: shown literally, 0 scripts", 33)
