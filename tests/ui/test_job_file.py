"""A job file on its way into the Train form: what it sets, what the form has no field for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core.config import AdapterConfig, OptimConfig, TrainConfig
from core.errors import StudioError
from studio.service import Studio
from studio.spec import to_yaml
from ui.forms import config_from
from ui.i18n import Translator
from ui.job_file import draft_of_file, tell_loaded, without_field
from ui.tabs.train import TrainTab

CONFIG = TrainConfig(
    epochs=1.5, adapter=AdapterConfig(r=4, target_modules=["q_proj"]), optim=OptimConfig(learning_rate=3e-4)
)


def uploaded(studio: Studio, text: str) -> str:
    folder = studio.workspace.uploads / "ab12"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(text, encoding="utf-8")
    return str(folder / "job.yaml")


def test_what_the_page_writes_fills_the_form_again(studio: Studio, tmp_path: Path, t: Translator) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\ngood,1\nbad,0\n", encoding="utf-8")
    data = studio.add_dataset(rows, name="数据")
    for named in (data.id, data.name):
        draft, config = draft_of_file(studio, uploaded(studio, to_yaml("客服", "", named, CONFIG)), ("", "m1"), t)
        assert (draft["name"], draft["dataset"], draft["targets"]) == ("客服", data.id, ["q_proj"])
        assert draft["model"] == "m1", "what the file does not name stays"
        assert config == CONFIG == config_from(draft["values"], draft["targets"])
    with gr.Blocks():
        tab = TrainTab(studio, t)
        tab.layout()
    shown = tab.restored(draft)
    assert (shown[tab.inputs["epochs"]], shown[tab.name], shown[tab.dataset].value) == (1.5, "客服", data.id)


def test_settings_without_a_field_are_named(t: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_field(CONFIG) == without_field(TrainConfig()) == []
    odd = TrainConfig(adapter=AdapterConfig(target_modules=".*q_proj", rank_pattern={"q_proj": 4}))
    assert without_field(odd) == ["target_modules", "rank_pattern"]
    toasts: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("gradio.helpers.log_message", lambda words, **about: toasts.append((words, about)))
    tell_loaded(odd, t)
    tell_loaded(CONFIG, t)
    assert [about["level"] for _, about in toasts] == ["warning", "info"] and "rank_pattern" in toasts[0][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (to_yaml("x", "", "gone", CONFIG), "names the dataset “gone”, which is not here"),
        (to_yaml("x", "", "", CONFIG).replace("epochs: 1.5", "epochs: -1"), "epochs is -1"),
        ("a: [", "not valid YAML"),
        ("x" * 2**20 + "y", "too large"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(studio: Studio, text: str, said: str) -> None:
    with pytest.raises(StudioError, match=said):
        draft_of_file(studio, uploaded(studio, text), ("", ""), Translator("en"))


def test_only_uploads_are_loaded(studio: Studio, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(to_yaml("x", "", "", CONFIG), encoding="utf-8")
    with pytest.raises(StudioError, match="was not uploaded"):
        draft_of_file(studio, str(file), ("", ""), Translator("en"))
