"""The Datasets tab without a browser: what it says of files, decisions by kind, columns by mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from core.data.problems import KINDS
from core.data.readers import UTF8
from core.data.recipe import Recipe
from core.errors import StudioError
from studio.downloads import open_export
from studio.service import Studio
from studio.views import DatasetView, LengthsView, ProblemView, TokenRow
from ui.dataset_cards import problem_table, usual_actions
from ui.dataset_form import FIELDS, DatasetForm
from ui.i18n import Translator
from ui.tabs.datasets import DatasetsTab
from ui.token_cards import length_card, token_rows

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # a toast outside of a page
GOOD = {"prompt": "p", "completion": "c"}


@pytest.fixture
def uploads(studio: Studio) -> Path:
    folder = studio.workspace.uploads / "ab12"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def form(studio: Studio, t: Translator) -> Iterator[DatasetForm]:
    made = DatasetForm(studio, t)
    with gr.Blocks():
        made.layout()
        yield made


def written(folder: Path, *rows: Any, name: str = "a.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def last(updates: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    *_, final = updates
    return final


def test_files_are_described_and_the_button_says_what_it_will_add(
    form: DatasetForm, uploads: Path, t: Translator
) -> None:
    shown = last(form.upload([written(uploads, GOOD, GOOD, "{broken <b>")]))
    assert t("format.prompt_completion") in shown[form.detected] and "67 %" in shown[form.detected]
    assert shown[form.add].value == t("datasets.add_some", n="2", left="1") and shown[form.add].interactive
    table = shown[form.problems]
    assert t("problem.bad_json") in table and t("problem.duplicate") in table
    assert "&lt;b&gt;" in table and "<b>" not in table.replace("<b>" + t("problem.line_number", row="3"), "").replace(
        "<b>" + t("problem.line_number", row="2"), ""
    )
    assert 'href="/files/problems/ab12.zip"' in shown[form.bad_rows]
    archive, name = open_export(form.studio, "problems", "ab12")
    with pytest.raises(StudioError, match="nothing to download"):
        open_export(form.studio, "problems", "gone")
    assert name == "rows-with-problems" and b"{broken <b>" in b"".join(archive.chunks())


def test_a_decision_changes_what_is_added(form: DatasetForm, uploads: Path, t: Translator) -> None:
    path = written(uploads, GOOD, GOOD, GOOD)
    click = SimpleNamespace(id="duplicate", action="skip")
    shown = last(form.decide(click, [path], UTF8, "", usual_actions(), *[""] * FIELDS))  # type: ignore[arg-type]
    assert shown[form.actions]["duplicate"] == "skip"
    assert shown[form.add].value == t("datasets.add_some", n="1", left="2")
    for forged in (SimpleNamespace(id="duplicate", action="fix"), SimpleNamespace(id="x", action="skip")):
        shown = last(form.decide(forged, [path], UTF8, "", usual_actions(), *[""] * FIELDS))  # type: ignore[arg-type]
        assert shown[form.actions] == usual_actions()


def test_unknown_columns_lead_to_the_mapping(form: DatasetForm, uploads: Path, t: Translator) -> None:
    path = written(uploads, {"item": {"q": "ask", "a": ["say"]}})
    shown = last(form.upload([path]))
    assert "item" in shown[form.message] and not shown[form.add].interactive
    assert shown[form.details].visible and not shown[form.columns].visible, "first the format, then its columns"
    shown = last(form.pick([path], UTF8, "prompt_completion", usual_actions()))
    assert shown[form.columns].visible and shown[form.columns].open
    first = shown[form.fields[0]]
    assert first.visible and first.label == t("datasets.column_needed", name=t("column.prompt"))
    assert ("item.a.0 · say", "item.a.0") in first.choices
    places = ["item.q", "item.a.0", "", "", ""]
    shown = last(form.remap("", [path], UTF8, "prompt_completion", usual_actions(), *places))
    assert shown[form.add].interactive and shown[form.message] == ""
    assert form.recipe(UTF8, "prompt_completion", {}, *places).columns == {"prompt": "item.q", "completion": "item.a.0"}


def test_what_cannot_be_read_offers_no_form(form: DatasetForm, uploads: Path) -> None:
    path = uploads / "a.csv"
    path.write_bytes(b"text\ncaf\xe9\n")
    shown = last(form.upload([str(path)]))
    assert "UTF-8" in shown[form.message] and shown[form.details].visible is False
    assert last(form.upload(None))[form.details].visible is False


def test_a_file_of_another_encoding_is_asked_for_it(form: DatasetForm, uploads: Path, t: Translator) -> None:
    path = uploads / "a.csv"
    path.write_bytes("问题,回答\n你好，世界,早上好\n".encode("gbk"))
    shown = last(form.upload([str(path)]))
    assert "UTF-8" in shown[form.message] and shown[form.encoding].visible and shown[form.encoding].value == UTF8
    assert not shown[form.add].interactive and shown[form.details].visible is False
    shown = last(form.pick([str(path)], "gb18030", "question_answer", usual_actions()))
    assert ("问题 · 你好，世界", "问题") in shown[form.fields[0]].choices
    shown = last(form.remap("", [str(path)], "gb18030", "question_answer", usual_actions(), "问题", "回答", "", "", ""))
    assert shown[form.add].interactive and shown[form.message] == ""
    recipe = form.recipe("gb18030", "question_answer", {}, "问题", "回答")
    view = form.studio.dataset_shelf.add([path], "早", recipe)
    assert form.studio.preview(view.id)[0].turns[-1][1] == "早上好"
    assert form.forget()[form.encoding].visible is False, "the next file is UTF-8 again"


def test_only_uploads_are_read(form: DatasetForm, tmp_path: Path) -> None:
    forged = last(form.upload([written(tmp_path, GOOD)]))
    assert "a.jsonl" in forged[form.message] and forged[form.detected] == "" and not forged[form.add].interactive


def test_problems_are_found_in_lines_of_a_text_and_in_rows_of_a_table(t: Translator) -> None:
    def shown(file_name: str) -> str:
        problem = ProblemView(7, "bad_json", "error", "No.", "x")
        found = DatasetView("", "a", file_name, "text", "", 1.0, 1, 1, "", 1, 0.0, (problem,), {"bad_json": 1})
        return problem_table(found, usual_actions(), t)

    line, row = (t(f"problem.{unit}_number", row="7") for unit in ("line", "row"))
    assert line in shown("a.jsonl") and row not in shown("a.jsonl")
    assert row in shown("a.parquet") and line not in shown("a.parquet")


def test_every_kind_has_words_and_every_action_a_button(studio: Studio, uploads: Path, t: Translator) -> None:
    path = written(uploads, GOOD)
    found = studio.dataset_shelf.inspect([Path(path)], Recipe())
    every = type(found)(**{**found.__dict__, "counts": dict.fromkeys(KINDS, 3)})
    table = problem_table(every, usual_actions(), t)
    for kind, about in KINDS.items():
        assert t(f"problem.{kind}") in table
        for action in about.actions:
            if action != "stop":
                assert f'data-id="{kind}" data-action="{action}"' in table
        if "fix" in about.actions:
            assert t(f"fix.{kind}") in table.replace("&#x27;", "'")


def test_several_files_become_one_dataset(studio: Studio, uploads: Path, t: Translator) -> None:
    tab = DatasetsTab(studio, t)
    with gr.Blocks():
        tab.layout()
    paths = [written(uploads, GOOD), written(uploads, {"question": "q", "answer": "a"}, name="b.jsonl")]
    shown = last(tab._add("both", paths, UTF8, "", usual_actions(), *[""] * FIELDS))
    assert t("datasets.added", name="both") in shown[tab.form.message]
    (made,) = studio.datasets()
    assert (made.rows, made.files) == (2, ("a.jsonl", "b.jsonl")) and shown[tab.chosen] == made.id
    assert t("format.question_answer") in shown[tab.library]
    again = last(tab._add("both", paths, UTF8, "", usual_actions(), *[""] * FIELDS))
    assert t("datasets.known", name="both") in again[tab.form.message] and len(studio.datasets()) == 1
    assert t("datasets.no_file") in last(tab._add("", None, UTF8, "", {}))[tab.form.message]


def test_a_page_is_told_what_it_shows_once(studio: Studio, uploads: Path, t: Translator) -> None:
    tab = DatasetsTab(studio, t)
    with gr.Blocks():
        tab.layout()
    last(tab._add("one", [written(uploads, GOOD)], UTF8, "", usual_actions(), *[""] * FIELDS))
    assert "__type__" in tab.opened("home", {}, "", 0), "nothing for a tab that is not open"
    told = tab.opened("datasets", {}, "", 0)
    assert "one" in told[tab.library] and told[tab.preview]
    seen, chosen = told[tab.seen], told[tab.chosen]
    assert "__type__" in tab.renewed(seen, "", 0) and "__type__" in tab.renewed(seen, chosen, 0)
    last(tab._add("two", [written(uploads, {"text": "x"}, name="b.jsonl")], UTF8, "", usual_actions(), *[""] * FIELDS))
    assert "two" in tab.renewed(seen, chosen, 0)[tab.library]


def test_tokens_are_shown_and_nothing_of_them_is_interpreted(t: Translator) -> None:
    rows = [
        TokenRow(7, (("<b>", "prompt"), ("Yes\n", "trained"), ("x", "cut")), 3, 1),
        TokenRow(8, (), 0, 0, "No.", "Do."),
    ]
    shown = token_rows(rows, t)
    assert "&lt;b&gt;" in shown and 'class="token token-trained">Yes<i>⏎</i>' in shown and "token-cut" in shown
    assert t("tokens.row", tokens="3", trained="1", share="33 %") in shown and "No." in shown


def test_lengths_are_a_picture_and_a_sentence(t: Translator) -> None:
    found = LengthsView(
        rows=100, of=1000, tokens=5000, trained=2000, max_length=64, cut_rows=3, lost_rows=1,
        percentiles={"50": 40, "95": 60, "99": 70, "100": 90}, edges=(0, 30, 60, 90), counts=(20, 70, 10), refused=2,
        refusal="The template refuses.",
    )  # fmt: skip
    card = length_card(found, t)
    assert card.count("<rect") == 3 and "length-limit" in card and "length-cut" not in card.split("length-bar")[1]
    assert t("tokens.sampled", rows="100", all="1,000") in card and t("tokens.refused", n="2") in card
    assert t("tokens.bar", low="60", high="90", rows="10") in card  # the last bin holds the longest row, too
    assert "49.0 k" in card  # of all rows, from those that were measured
