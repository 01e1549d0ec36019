"""The main job in a real browser: upload, train, watch, reload, compare, merge, download."""

from __future__ import annotations

import json
import math
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error as PlaywrightError

from tests.e2e.conftest import REPOSITORY, RunningStudio
from tests.scenarios.plugin import Say

TRAIN_TIMEOUT_S = 600.0
ROWS = 72
SCREENSHOTS = REPOSITORY / "assets" / "screenshots"
TABS = ("Home", "Datasets", "Train", "Jobs", "Compare", "Models", "System")


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The first rows of the sample tickets, so that a run takes a minute; all of them for the screenshots."""
    source = REPOSITORY / "assets" / "datasets" / "support_tickets.jsonl"
    rows = source.read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("upload") / "my tickets.jsonl"
    kept = rows if request.config.getoption("--screenshots") else rows[:ROWS]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def until(happens: Callable[[], Any], timeout_s: float = 60.0, every_s: float = 0.25) -> Any:
    """Wait until `happens` gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := happens():
            return result
        time.sleep(every_s)
    raise AssertionError(f"nothing after {timeout_s:.0f} s")


def open_page(page: Any, url: str) -> None:
    """Open the page and wait until it has filled itself from the studio."""
    page.goto(url)
    page.wait_for_function("document.querySelector('#strip')?.innerText.includes('iB')")


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def fill(page: Any, elem_id: str, value: str) -> None:
    field = page.locator(f"#{elem_id} input, #{elem_id} textarea").first
    field.fill(value)
    field.blur()


@pytest.mark.timeout(1200)
@pytest.mark.scenario(23)
def test_upload_train_watch_compare_merge_download(
    page: Any, studio: RunningStudio, tickets: Path, tmp_path: Path, starter_folder: Path, figure: Say
) -> None:
    open_page(page, studio.url)

    # Upload: the format is recognised, the rows are shown, the file is added.
    open_tab(page, "Datasets")
    page.set_input_files("#dataset-file input[type=file]", str(tickets))
    page.wait_for_function("document.querySelector('#dataset-detected').innerText.includes('100')")
    rows = len(tickets.read_text(encoding="utf-8").splitlines())
    assert f"{rows}" in page.inner_text("#dataset-detected")
    page.click("#dataset-add")
    page.wait_for_function("document.querySelector('#datasets-table').innerText.includes('my tickets')")
    assert "Turn the customer's message" in page.inner_text("#dataset-preview")

    # Train: everything but the length of the run is left as it is found.
    page.click("#dataset-train")
    page.wait_for_selector("#train-start:not([disabled])")
    fill(page, "train-epochs", "1.5")
    steps = math.ceil(1.5 * math.ceil((rows - round(rows * 0.05)) / 8))
    page.wait_for_function(f"document.querySelector('#train-plan').innerText.includes('{steps}')")
    assert "210" in page.inner_text("#train-plan")  # layers that get an adapter
    page.dblclick("#train-start")  # an impatient user; still one job

    # Watch: the curve moves, and a reload in the middle loses nothing. The untrained model's loss is drawn before the
    # first step, and its answers, which come between, take long on a slow machine.
    page.wait_for_selector("#job-curve path.plot-train", state="attached", timeout=300_000)
    job = until(lambda: train_jobs(studio))[0]
    drawings: set[str] = set()

    def moved_three_times() -> bool:
        drawings.add(page.locator("#job-curve path.plot-train").first.get_attribute("d") or "")
        return len(drawings) >= 4

    until(moved_three_times, TRAIN_TIMEOUT_S)
    page.reload()
    page.wait_for_selector("#job-curve svg", timeout=60_000)
    assert studio.cli("jobs", "show", job["id"])["state"] == "running", "the run ended before it could be reloaded"
    until(lambda: studio.cli("jobs", "show", job["id"])["state"] != "running", TRAIN_TIMEOUT_S, 1.0)
    finished = studio.cli("jobs", "show", job["id"])
    assert finished["state"] == "succeeded", finished
    assert len(train_jobs(studio)) == 1
    figure("a double click on Start and a reload in the middle of training: 1 job, which succeeds")
    page.wait_for_selector("#job-compare:visible")

    # Compare: base and adapter answer the same prompt; only the adapter has learned the tickets.
    page.click("#job-compare")
    page.wait_for_selector("#compare-prompt:visible")
    page.click("#compare-settings button")
    fill(page, "compare-system", "Turn the customer's message into a support ticket.")
    fill(page, "compare-prompt", "My printer is on fire and I have to hand in my thesis in an hour!")
    page.click("#compare-send")
    answer = until(lambda: json_object(page.inner_text("#compare-pane-1")), 180.0)
    assert set(answer) == {"product", "problem", "urgency", "language"}
    base = page.inner_text("#compare-pane-0")
    assert json_object(base) is None or set(json_object(base) or {}) != set(answer)

    # Merge, verified, and one click to download it as one file.
    open_tab(page, "Models")
    page.click("#models-merge")
    link = page.wait_for_selector("#models-download a[href*='/files/model/']", timeout=180_000)
    with page.expect_download(timeout=120_000) as waiting:
        link.click()
    archive = tmp_path / "merged.zip"
    waiting.value.save_as(archive)
    model_id = next(one["id"] for one in studio.cli("models", "list")["models"] if one["kind"] == "merged")
    unpacked_equals_folder(archive, studio.workspace / "models" / model_id)


def train_jobs(studio: RunningStudio) -> list[dict[str, Any]]:
    return [job for job in studio.cli("jobs", "list")["jobs"] if job["kind"] == "train"]


def json_object(text: str) -> dict[str, Any] | None:
    """The first whole JSON object in a pane's text."""
    found = re.search(r"\{[^{}]*\}", text)
    try:
        return dict(json.loads(found.group())) if found else None
    except ValueError:
        return None


def unpacked_equals_folder(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        inside = {Path(name).name: name for name in opened.namelist()}
        assert sorted(inside) == sorted(path.name for path in folder.iterdir())
        for name, member in inside.items():
            assert opened.read(member) == (folder / name).read_bytes(), name


def test_bad_uploads_get_a_sentence(page: Any, studio: RunningStudio, tmp_path: Path) -> None:
    files = {
        "broken.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prom',
        "empty.csv": b"",
        "latin.csv": "text,label\ncaf\xe9,good\n".encode("latin-1"),
        "columns.csv": b"colour,size\nred,9\nblue,8\n",
    }
    expected = {"broken.jsonl": "bad JSON", "empty.csv": "empty", "latin.csv": "UTF-8", "columns.csv": "colour"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        open_page(page, studio.url)
        open_tab(page, "Datasets")
        page.set_input_files("#dataset-file input[type=file]", str(tmp_path / name))
        said = until(lambda words=expected[name]: words in problem_text(page) and problem_text(page), 30.0)
        assert "Traceback" not in said and len(said) > 20, name


def problem_text(page: Any) -> str:
    message = page.inner_text("#dataset-message") if page.locator("#dataset-message").count() else ""
    problems = page.inner_text("#dataset-problems") if page.locator("#dataset-problems").count() else ""
    return f"{message} {problems}".strip()


def until_it_can_start(page: Any) -> None:
    """Wait for the start button; what stands in its way, where it never comes, is what the test says."""
    try:
        page.wait_for_selector("#train-start:not([disabled])")
    except PlaywrightError as error:
        seen = {part: page.locator(f"#train-{part}").all_inner_texts() for part in ("start", "plan", "message")}
        raise AssertionError(f"it cannot start: {seen}") from error


@pytest.mark.parametrize(("rank", "words"), [("0", "between 1"), ("9999", "must be"), ("500", "larger than layer")])
def test_impossible_ranks_cannot_start(page: Any, studio: RunningStudio, rank: str, words: str) -> None:
    open_page(page, studio.url)
    open_tab(page, "Train")
    page.wait_for_function("window.loraStudioRestored")
    until_it_can_start(page)
    fill(page, "train-rank", rank)
    page.wait_for_function("words => document.querySelector('#train-plan').innerText.includes(words)", arg=words)
    page.wait_for_selector("#train-start[disabled]")


def test_a_tab_that_is_opened_before_the_page_has_loaded_is_live(page: Any, studio: RunningStudio) -> None:
    held: list[Any] = []
    passes: list[bool] = []
    page.route("**/run/predict", lambda route: route.continue_() if passes else held.append(route))
    page.goto(studio.url, wait_until="commit")
    open_tab(page, "System")
    until(lambda: page.wait_for_timeout(50) or held)
    assert not page.evaluate("window.loraStudioOpened")
    passes.append(True)
    held[0].continue_()
    page.wait_for_function("document.querySelector('#system-state')?.innerText.includes('lora-studio')")


def test_chinese_page(page: Any, studio: RunningStudio) -> None:
    open_page(page, studio.url)
    page.click("[data-language=zh]")
    page.wait_for_url("**/zh/**")
    page.wait_for_function("document.querySelector('#strip')?.innerText.includes('iB')")
    open_tab(page, "训练")
    page.wait_for_selector("#train-start:not([disabled])")
    assert "开始训练" in page.inner_text("#train-start")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_fits(
    page: Any, studio: RunningStudio, theme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nothing is wider than the window, on a desk or on a phone; with `--screenshots` the pictures are kept."""
    folder = SCREENSHOTS if request.config.getoption("--screenshots") else tmp_path
    open_page(page, f"{studio.url}?__theme={theme}")
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 1000})
        for tab in TABS:
            show_tab(page, tab)
            page.wait_for_timeout(1500)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{tab} is clipped at {width} px"
            words = page.inner_text("body")
            assert "Traceback" not in words and "undefined" not in words and "[object" not in words, tab
            if width == 1440:
                page.screenshot(path=folder / f"{tab.lower()}-{theme}.png", full_page=True)


def show_tab(page: Any, name: str) -> None:
    """Open a tab, through the overflow menu where the window is too narrow for all of them."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
        return
    page.locator("#tabs .overflow-menu button").first.click()
    page.locator("#tabs .overflow-dropdown button", has_text=name).first.click()
