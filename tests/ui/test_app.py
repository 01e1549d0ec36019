"""The page as it is served: both languages, nothing from elsewhere, labels on everything, errors as sentences."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio.context import LocalContext

from core.errors import ConfigError
from studio.service import Studio
from ui.app import SESSIONS, build, create_app
from ui.handlers import guarded, guarded_stream, only_changed
from ui.i18n import Translator
from ui.page import TAB_IDS

ROOT = Path(__file__).resolve().parents[2]
# Tests of a browser hold on to these.
ELEMENT_IDS = {
    "dataset-file", "dataset-add", "dataset-format", "dataset-name", "dataset-bad-rows", "datasets-table",
    "dataset-detected", "dataset-problems", "dataset-preview", "dataset-view", "dataset-model", "dataset-max-length",
    "train-dataset", "train-model", "train-name", "train-preset", "train-rank", "train-alpha", "train-learning-rate",
    "train-epochs", "train-targets", "train-all-linear", "train-attention-only", "train-plan", "train-start",
    "train-command", "train-yaml",
    "jobs-table", "job-curve", "job-progress", "job-pause", "job-resume", "job-stop", "job-cancel", "job-delete",
    "job-compare", "job-merge", "job-log", "job-checkpoints", "job-config", "job-outcome", "job-log-scale",
    "compare-model", "compare-adapters", "compare-prompt", "compare-send", "compare-stop", "compare-clear",
    "compare-pane-0", "compare-pane-1", "compare-pane-2", "compare-pane-3",
    "models-merge", "models-download", "models-adapter", "models-source", "models-add",
    "system-devices", "system-disk", "system-state", "home-board", "strip",
}  # fmt: skip


@pytest.fixture
def client(studio: Studio) -> TestClient:
    return TestClient(create_app(studio))


def config_of(page: str) -> dict[str, Any]:
    found = re.search(r"window\.gradio_config = (\{.*?\});</script>", page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_what_cannot_be_merged_yet_cannot_be_clicked(client: TestClient) -> None:
    components = config_of(client.get("/").text)["components"]
    (merge,) = [c["props"] for c in components if c["props"].get("elem_id") == "models-merge"]
    assert merge["interactive"] is False  # until the tab is filled, a moment after it is shown


@pytest.mark.parametrize(("path", "locale", "word"), [("/", "en", "Datasets"), ("/zh/", "zh-CN", "数据集")])
def test_each_language_has_its_page(client: TestClient, path: str, locale: str, word: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert f'lang="{locale}"' in page.text
    tabs = [c["props"]["label"] for c in config_of(page.text)["components"] if c["type"] == "tabitem"]
    assert len(tabs) == len(TAB_IDS) and word in tabs
    assert int(page.headers["content-length"]) == len(page.content)
    # The script that sets the language stands before Gradio's own.
    assert page.text.index("lora-studio-language") < page.text.index('type="module"')


def test_settings_of_the_served_page(client: TestClient) -> None:
    config = config_of(client.get("/").text)
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert config.get("run_history") in (False, None)
    assert config["show_error"] is False
    assert config["connect_heartbeat"] is False  # it would hold one of a browser's six connections for each open page
    assert config["stylesheets"] == []  # no font from elsewhere
    assert not re.findall(r"url\(\s*['\"]?(?!data:)", (ROOT / "ui/style.css").read_text("utf-8"))
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    assert all(d["show_progress"] in ("hidden", "minimal") for d in config["dependencies"])


def test_pages_long_gone_leave_memory(studio: Studio) -> None:
    mounted = [route.app for route in create_app(studio).routes if hasattr(getattr(route, "app", None), "state_holder")]
    assert len(mounted) == 2
    for app in mounted:
        for number in range(SESSIONS + 3):
            app.state_holder[f"page {number}"]
        assert len(app.state_holder.session_data) == SESSIONS
        assert f"page {SESSIONS + 2}" in app.state_holder and "page 0" not in app.state_holder


def test_no_event_tells_all_its_outputs_how_far_it_is(studio: Studio) -> None:
    # Gradio's page walks through all components for each one that it tells: that made half of what a reload cost.
    asked = [d for d in build(studio).config["dependencies"] if d["backend_fn"]]
    assert len(asked) > 50 and all(d["show_progress_on"] is not None for d in asked)
    assert len({target for d in asked for target in d["show_progress_on"]}) < 10


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_control_has_an_id_and_a_label(studio: Studio, language: str) -> None:
    components = build(studio, language).config["components"]
    ids = [c["props"]["elem_id"] for c in components if c["props"].get("elem_id")]
    assert len(ids) == len(set(ids))
    assert set(ids) >= ELEMENT_IDS
    controls = {"textbox", "number", "dropdown", "checkbox", "checkboxgroup", "radio", "slider", "file", "code"}
    for component in components:
        if component["type"] in controls:
            assert component["props"].get("elem_id") and component["props"].get("label"), component
        if component["type"] == "button":
            assert component["props"].get("elem_id") and component["props"].get("value"), component


def test_opening_the_page_imports_no_torch() -> None:
    script = (
        "import sys, tempfile, pathlib; from studio.service import Studio; from ui.app import create_app;"
        "s = Studio(pathlib.Path(tempfile.mkdtemp()) / 'w'); create_app(s); s.close();"
        "print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/tmp"})  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_both_logos_are_the_same_file() -> None:
    assert (ROOT / "ui/logo.svg").read_bytes() == (ROOT / "assets/logo.svg").read_bytes()


# -- handlers


@pytest.fixture
def message() -> gr.HTML:
    with gr.Blocks():
        return gr.HTML()


@pytest.fixture(autouse=True)
def silent_toasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gr, "Warning", lambda *_, **__: None)


def test_an_error_becomes_its_two_sentences(message: gr.HTML, t: Translator) -> None:
    def handler() -> dict[Any, Any]:
        raise ConfigError("No <b>rank</b> is given.", "Try 16.")

    shown = guarded(message, t)(handler)()[message]
    assert "No &lt;b&gt;rank&lt;/b&gt; is given." in shown and "Try 16." in shown and 'role="alert"' in shown


def test_a_fault_is_logged_and_shows_no_traceback(
    message: gr.HTML, t: Translator, caplog: pytest.LogCaptureFixture
) -> None:
    def handler() -> dict[Any, Any]:
        raise ZeroDivisionError("secret detail")

    shown = guarded(message, t)(handler)()[message]
    assert "secret detail" not in shown and "Traceback" not in shown and "ZeroDivisionError" not in shown
    assert "secret detail" in caplog.text


def test_success_clears_the_message_and_failure_may_change_more(message: gr.HTML, t: Translator) -> None:
    with gr.Blocks():
        other = gr.HTML()
    assert guarded(message, t)(lambda: {other: "x"})() == {message: "", other: "x"}

    def fails() -> dict[Any, Any]:
        raise ConfigError("No.")

    assert guarded(message, t, lambda: {other: "off"})(fails)()[other] == "off"


def test_a_stream_shows_what_it_had_before_it_failed(message: gr.HTML, t: Translator) -> None:
    def handler() -> Any:
        yield {message: "one"}
        raise ConfigError("No.", "Wait.")

    got = list(guarded_stream(message, t)(handler)())
    assert got[0] == {message: "one"} and "Wait." in got[1][message]


def test_only_changed_sends_nothing_twice() -> None:
    with gr.Blocks():
        first, second, seen = gr.HTML(), gr.HTML(), gr.State({})
    answer = only_changed({first: "a", second: "b"}, seen, {})
    assert answer[first] == "a" and answer[second] == "b"
    marks = answer[seen]
    assert "__type__" in only_changed({first: "a", second: "b"}, seen, marks)  # a skip
    changed = only_changed({first: "a", second: "c"}, seen, marks)
    assert second in changed and first not in changed


def test_a_button_that_is_told_the_same_is_not_sent_again() -> None:
    """Else every tick would close the question whether to delete a job."""
    with gr.Blocks():
        button, seen = gr.Button(), gr.State({})
    token = LocalContext.in_event_listener.set(True)
    try:
        marks = only_changed({button: gr.Button(visible=False)}, seen, {})[seen]
        assert "__type__" in only_changed({button: gr.Button(visible=False)}, seen, marks)
        assert button in only_changed({button: gr.Button(visible=True)}, seen, marks)
    finally:
        LocalContext.in_event_listener.reset(token)
