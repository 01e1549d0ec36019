"""The card that takes files in: what they are, which column is what, what is wrong with them, and adding them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from core.data.formats import formats
from core.data.problems import KINDS
from core.data.readers import ENCODINGS, UTF8, EncodingError
from core.data.recipe import Recipe
from core.errors import StudioError
from studio.service import Studio
from studio.views import DatasetView
from ui.dataset_cards import detect_card, problem_table, reading_card, usual_actions
from ui.fragments import DELEGATE, callout, download, heading
from ui.handlers import Updates, explain
from ui.i18n import Translator

FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".xlsx"]
AUTOMATIC = ""
FIELDS = 5  # columns that can be mapped: the most that a format has
REPORT_S = 0.5


class DatasetForm:
    """Files on their way in. `answers` are the components that its handlers renew."""

    def __init__(self, studio: Studio, t: Translator) -> None:
        self.studio = studio
        self.t = t

    def layout(self) -> None:
        """Make the components."""
        t = self.t
        gr.HTML(heading(t("datasets.add_title"), t("datasets.add_text")))
        self.file = gr.File(
            label=t("datasets.file"), file_types=FILE_TYPES, file_count="multiple", height=150, elem_id="dataset-file"
        )
        with gr.Accordion(t("datasets.hub"), open=False, elem_id="dataset-hub"):
            gr.HTML(f'<p class="caption">{t("datasets.hub_text")}</p>')
            with gr.Row():
                self.hub_id = gr.Textbox(label=t("datasets.hub_id"), elem_id="dataset-hub-id", max_length=200, scale=2)
                self.subset = gr.Textbox(label=t("datasets.subset"), elem_id="dataset-subset", max_length=200)
                self.split = gr.Textbox("train", label=t("datasets.split"), elem_id="dataset-split", max_length=200)
            self.fetch = gr.Button(t("datasets.fetch"), elem_id="dataset-fetch", size="sm")
        self.message = gr.HTML(elem_id="dataset-message")
        self.encoding = gr.Dropdown(
            [(name, encoding) for encoding, name in ENCODINGS.items()], value=UTF8, visible=False, filterable=False,
            label=t("datasets.encoding"), info=t("datasets.encoding_info"), elem_id="dataset-encoding",
        )  # fmt: skip
        self.detected = gr.HTML(elem_id="dataset-detected")
        with gr.Column(visible=False) as self.details:
            with gr.Row():
                self.name = gr.Textbox(label=t("datasets.name"), elem_id="dataset-name", max_length=120)
                self.format = gr.Dropdown(
                    self._formats(), value=AUTOMATIC, label=t("datasets.format"), elem_id="dataset-format",
                    filterable=False,
                )  # fmt: skip
            self._layout_columns()
            self.add = gr.Button(t("datasets.add"), variant="primary", elem_id="dataset-add")
        self.problems = gr.HTML(elem_id="dataset-problems", js_on_load=DELEGATE)
        self.bad_rows = gr.HTML(elem_id="dataset-bad-rows")
        self.actions = gr.State(usual_actions())
        self.recognised = gr.State(AUTOMATIC)  # the format that was detected last

    def _layout_columns(self) -> None:
        t = self.t
        with gr.Accordion(t("datasets.columns"), open=False, elem_id="dataset-columns") as self.columns:
            gr.HTML(f'<p class="caption">{t("datasets.columns_text")}</p>')
            with gr.Row():
                self.fields = [
                    gr.Dropdown(
                        [], value="", visible=False, min_width=220, elem_id=f"dataset-column-{number}",
                        label=str(number), allow_custom_value=True,
                    )
                    for number in range(FIELDS)
                ]  # fmt: skip

    def _formats(self) -> list[tuple[str, str]]:
        named = [(self.t.known(f"format.{name}", name), name) for name in self.studio.formats()]
        return [(self.t("datasets.automatic"), AUTOMATIC), *named]

    @property
    def answers(self) -> list[Any]:
        """What inspecting renews."""
        return [
            self.message, self.detected, self.problems, self.details, self.name, self.add, self.format, self.actions,
            self.bad_rows, self.columns, self.recognised, self.encoding, *self.fields,
        ]  # fmt: skip

    @property
    def choices(self) -> list[Any]:
        """What says how to read: files, encoding, format, actions, places of the columns."""
        return [self.file, self.encoding, self.format, self.actions, *self.fields]

    # -- handlers

    def upload(self, paths: list[str] | None) -> Iterator[Updates]:
        """New files; what was chosen for the last ones says nothing about these."""
        fresh = {
            self.format: AUTOMATIC, self.actions: usual_actions(), self.name: _name(paths),
            self.encoding: gr.Dropdown(value=UTF8, visible=False),
        }  # fmt: skip
        for updates in self.inspect(paths, UTF8, AUTOMATIC, usual_actions(), *[""] * FIELDS):
            yield {**fresh, **updates}

    def pick(
        self, paths: list[str] | None, encoding: str, format: str, actions: Mapping[str, str]
    ) -> Iterator[Updates]:
        """Another encoding, or another format than the detected one; it has other columns."""
        yield from self.inspect(paths, encoding, format, actions, *[""] * FIELDS)

    def remap(
        self,
        recognised: str,
        paths: list[str] | None,
        encoding: str,
        format: str,
        actions: Mapping[str, str],
        *fields: str,
    ) -> Iterator[Updates]:
        """Another place for a column, of the chosen format or else of the detected one."""
        for updates in self.inspect(paths, encoding, format or recognised, actions, *fields):
            yield {self.format: format or recognised, **updates}

    def decide(
        self,
        event: gr.EventData,
        paths: list[str] | None,
        encoding: str,
        format: str,
        actions: Mapping[str, str],
        *fields: str,
    ) -> Iterator[Updates]:
        """Another action for one kind of problem."""
        kind, action = str(event.id), str(event.action)
        if kind in KINDS and action in KINDS[kind].actions:
            actions = {**actions, kind: action}
        for updates in self.inspect(paths, encoding, format, actions, *fields):
            yield {self.actions: actions, **updates}

    def inspect(
        self, paths: list[str] | None, encoding: str, format: str, actions: Mapping[str, str], *fields: str
    ) -> Iterator[Updates]:
        """Read the files and tell what is in them; a file of no known format gets the form to say what it is."""
        if not paths:
            yield self.forget()
            return
        files: list[Path] = []
        try:
            files = self.uploaded(paths)
            yield from self._read(files, encoding, format, actions, fields)
        except StudioError as error:
            columns = self._mapping(files, encoding, format, fields) if files else {}
            asked = {self.encoding: gr.Dropdown(value=encoding, visible=True)}
            unreadable = {
                **(asked if isinstance(error, EncodingError) else {}),
                self.details: gr.Column(visible=bool(columns)),
                self.add: gr.Button(self.t("datasets.add"), interactive=False),
            }
            yield {
                **self._nothing_found(), **unreadable, **columns, self.message: explain(error, self.t),
                self.columns: gr.Accordion(visible=bool(columns and format), open=bool(format)),
            }  # fmt: skip

    def _read(
        self, files: list[Path], encoding: str, format: str, actions: Mapping[str, str], fields: tuple[str, ...]
    ) -> Iterator[Updates]:
        recipe = self.recipe(encoding, format, actions, *fields)
        bad_rows = self.studio.workspace.problems_folder(files[0].parent.name) / "rows.jsonl"
        bad_rows.parent.mkdir(mode=0o700, exist_ok=True)
        reading, reported = self.studio.dataset_shelf.inspecting(files, recipe, bad_rows), time.monotonic()
        while True:
            try:
                rows = next(reading)
            except StopIteration as end:
                found: DatasetView = end.value
                break
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                yield {self.detected: reading_card(rows, self.t)}
        one_format = "" if " + " in found.format else found.format
        yield {
            self.message: "",
            self.detected: detect_card(found, self.t),
            self.problems: problem_table(found, actions, self.t),
            self.details: gr.Column(visible=True),
            self.add: gr.Button(self._add_label(found), interactive=found.rows > 0),
            self.bad_rows: self._download(files) if found.counts else "",
            self.columns: gr.Accordion(visible=bool(one_format), open=any(fields)),
            self.recognised: one_format,
            **self._mapping(files, encoding, one_format, fields),
        }

    def uploaded(self, paths: list[str]) -> list[Path]:
        """The uploads; WorkspaceError for any other file, which a forged request might name."""
        return [self.studio.workspace.uploaded(Path(path)) for path in paths]

    def recipe(self, encoding: str, format: str, actions: Mapping[str, str], *fields: str) -> Recipe:
        """The choices on the page as a recipe; columns count only with the format that they belong to."""
        names = _field_names(format)
        columns = {name: path for name, path in zip(names, fields, strict=False) if path and path != name}
        return Recipe(format or None, columns, {**usual_actions(), **actions}, encoding)

    def start_fetching(self, hub_id: str, subset: str, split: str) -> Updates:
        """Queue the fetching of a dataset of the hub."""
        job = self.studio.fetch_dataset(hub_id or "", subset=subset or "", split=split or "")
        words = callout("info", self.t("datasets.fetching", name=job.name), self.t("datasets.fetching_next"), self.t)
        return {self.message: words, self.hub_id: ""}

    def forget(self) -> Updates:
        """No file is chosen any more."""
        hidden = {self.details: gr.Column(visible=False), self.encoding: gr.Dropdown(value=UTF8, visible=False)}
        return {**self._nothing_found(), **hidden, self.message: "", self.name: ""}

    def _nothing_found(self) -> Updates:
        return {self.detected: "", self.problems: "", self.bad_rows: ""}

    def _download(self, files: list[Path]) -> str:
        return f'<p class="links">{download(self.t("datasets.bad_rows"), "problems", files[0].parent.name)}</p>'

    def _add_label(self, found: DatasetView) -> str:
        if not found.bad_rows:
            return self.t("datasets.add_all", n=f"{found.rows:,}")
        return self.t("datasets.add_some", n=f"{found.rows:,}", left=f"{found.bad_rows:,}")

    def _mapping(self, files: list[Path], encoding: str, format: str, fields: tuple[str, ...]) -> Updates:
        """A field for each column of the format, offering every place in the rows with its first value."""
        try:
            found = self.studio.dataset_shelf.columns(files, encoding)
        except StudioError:
            return {}  # not even rows can be read
        offered = [
            (self.t("datasets.column_same"), ""),
            *((f"{path} · {value[:40]}", path) for path, value in found.items()),
        ]
        names = _field_names(format)
        updates: Updates = {}
        for number, field in enumerate(self.fields):
            if number >= len(names):
                updates[field] = gr.Dropdown(visible=False, value="")
                continue
            name = names[number]
            called = self.t.known(f"column.{name}", name)
            label = self.t(
                "datasets.column_needed" if name in _needed(format) else "datasets.column_optional", name=called
            )
            updates[field] = gr.Dropdown(offered, value=fields[number] if fields else "", label=label, visible=True)
        return updates


def _needed(format: str) -> list[str]:
    return [names[0] for names in formats.get(format).columns] if format else []


def _field_names(format: str) -> list[str]:
    return [*_needed(format), *formats.get(format).optional][:FIELDS] if format else []


def _name(paths: list[str] | None) -> str:
    return Path(paths[0]).stem.replace("_", " ") if paths else ""


def no_file(t: Translator) -> str:
    """What to say when there is nothing to add."""
    return callout("warning", t("datasets.no_file"), t("datasets.no_file_fix"), t)
