"""Datasets: upload files, see what they are and what is wrong, add them, and read rows as words or as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from core.errors import StudioError
from studio.views import DatasetView
from ui.dataset_cards import format_name, reading_card
from ui.dataset_form import DatasetForm, no_file
from ui.fragments import DELEGATE, Cell, Row, bubbles, callout, empty, esc, heading, table
from ui.handlers import QUIET, Updates, explain, guarded, guarded_stream, marks_of
from ui.page import Page, Tab, known_or_first, unchecked
from ui.quantities import bytes_text, day_text
from ui.token_cards import length_card, token_rows

PAGE_ROWS = 10
WORDS, TOKENS = "words", "tokens"


class DatasetsTab(Tab):
    """Left: add files. Right: the library. Below: the rows of the chosen dataset as the model will see them."""

    id = "datasets"

    def layout(self) -> None:
        """Make the three cards."""
        self.form = DatasetForm(self.studio, self.t)
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=6, min_width=340, elem_classes="card"):
                self.form.layout()
            with gr.Column(scale=6, min_width=340, elem_classes="card"):
                gr.HTML(heading(self.t("datasets.library"), self.t("datasets.library_text")))
                self.library = gr.HTML(elem_id="datasets-table", js_on_load=DELEGATE)
        with gr.Column(elem_classes="card"):
            self._layout_preview()
        self.chosen = gr.State("")
        self.start = gr.State(0)
        self.seen = gr.State({})  # marks of what `renewed` told the page

    def _layout_preview(self) -> None:
        t = self.t
        gr.HTML(heading(t("datasets.preview"), t("datasets.preview_text")))
        with gr.Row(elem_classes="view-choice"):
            shown = [(t("datasets.as_words"), WORDS), (t("datasets.as_tokens"), TOKENS)]
            self.shows = gr.Radio(shown, value=WORDS, label=t("datasets.shown_as"), elem_id="dataset-view", scale=3)
            self.model = unchecked(
                gr.Dropdown([], label=t("datasets.token_model"), elem_id="dataset-model", filterable=False, scale=2)
            )
            self.max_length = gr.Number(
                0, label=t("field.max_length"), info=t("tokens.automatic"), minimum=0, precision=0,
                elem_id="dataset-max-length", scale=1,
            )  # fmt: skip
        self.summary = gr.HTML(elem_id="dataset-summary")
        self.lengths = gr.HTML(elem_id="dataset-lengths")
        self.preview = gr.HTML(elem_id="dataset-preview")
        with gr.Row(elem_classes="buttons"):
            self.back = gr.Button(t("datasets.back"), elem_id="dataset-previous", size="sm")
            self.forward = gr.Button(t("datasets.forward"), elem_id="dataset-next", size="sm")
            self.train = gr.Button(t("datasets.train"), variant="primary", elem_id="dataset-train", size="sm")
            self.delete = gr.Button(t("datasets.delete"), elem_id="dataset-delete", size="sm")
            self.keep = gr.Button(t("confirm.keep"), visible=False, elem_id="dataset-keep", size="sm")
            self.sure = gr.Button(
                t("confirm.delete"), visible=False, variant="stop", elem_id="dataset-delete-sure", size="sm"
            )

    @property
    def view_outputs(self) -> list[Any]:
        """What choosing, paging, adding and deleting renew."""
        return [
            self.library, self.summary, self.preview, self.chosen, self.start, self.form.message, self.model,
            self.back, self.forward, self.train, self.delete, self.keep, self.sure, self.shows, self.lengths,
        ]  # fmt: skip

    def wire(self, page: Page) -> None:
        """Connect upload, library and preview."""
        self._wire_form()
        self._wire_library()
        self._wire_tokens()
        train = page.each.train

        def use(dataset_id: str, model_id: str | None) -> Updates:
            return {**page.go("train"), **train.refreshed(dataset_id, model_id)}

        outputs = [*page.go_outputs, train.dataset, train.model]
        self.listen(self.train.click, use, [self.chosen, train.model], outputs)

    def _wire_form(self) -> None:
        form = self.form
        stream = guarded_stream(form.message, self.t)
        outputs, working = form.answers, {"show_progress": "minimal", "show_progress_on": [form.detected]}
        self.listen(form.file.upload, stream(form.upload), [form.file], outputs, **working)
        for choice in (form.encoding, form.format):
            self.listen(choice.input, stream(form.pick), form.choices[:4], outputs, **working)
        self.listen(form.problems.click, stream(form.decide), form.choices, outputs, **working)
        for field in form.fields:
            self.listen(field.input, stream(form.remap), [form.recognised, *form.choices], outputs, **working)
        fetch = guarded(form.message, self.t)(form.start_fetching)
        self.listen(form.fetch.click, fetch, [form.hub_id, form.subset, form.split], [form.message, form.hub_id])
        self.listen(form.file.clear, guarded(form.message, self.t)(form.forget), [], outputs)
        self.listen(
            form.add.click, stream(self._add), [form.name, *form.choices], [*outputs, form.file, *self.view_outputs],
            show_progress="minimal", show_progress_on=[form.add],
        )  # fmt: skip

    def _wire_library(self) -> None:
        safe = guarded(self.form.message, self.t)
        outputs = self.view_outputs
        self._then_tokens(self.listen(self.library.click, safe(self._choose), [self.shows], outputs))
        for button, step in ((self.back, -PAGE_ROWS), (self.forward, PAGE_ROWS)):
            turn = safe(lambda dataset_id, start, shows, step=step: self.view(dataset_id, start + step, shows))
            self._then_tokens(self.listen(button.click, turn, [self.chosen, self.start, self.shows], outputs))
        self.listen(self.delete.click, lambda: self._asking(True), [], [self.delete, self.keep, self.sure])
        self.listen(self.keep.click, lambda: self._asking(False), [], [self.delete, self.keep, self.sure])
        self.listen(self.sure.click, safe(self._delete), [self.chosen], outputs)

    def _wire_tokens(self) -> None:
        outputs = [self.preview, self.lengths, self.model]
        for event in (self.shows.input, self.model.input, self.max_length.submit, self.max_length.blur):
            self.listen(event, self._rows_again, self._token_inputs, outputs, show_progress_on=[self.preview])

    @property
    def _token_inputs(self) -> list[Any]:
        return [self.chosen, self.start, self.shows, self.model, self.max_length]

    def _then_tokens(self, event: Any) -> None:
        """Once another page or dataset is there, show it as tokens, if that is how rows are shown."""
        event.then(self._tokens, self._token_inputs, [self.preview, self.lengths, self.model], **QUIET)

    # -- adding

    def _add(
        self, name: str, paths: list[str] | None, encoding: str, format: str, actions: dict[str, str], *fields: str
    ) -> Iterator[Updates]:
        if not paths:
            yield {self.form.message: no_file(self.t)}
            return
        recipe = self.form.recipe(encoding, format, actions, *fields)
        known = {dataset.id for dataset in self.studio.datasets()}
        adding = self.studio.dataset_shelf.adding(self.form.uploaded(paths), (name or "").strip(), recipe)
        while True:
            try:
                rows = next(adding)
                yield {self.form.detected: reading_card(rows, self.t)}
            except StopIteration as end:
                made: DatasetView = end.value
                break
        said = ("info", "datasets.known") if made.id in known else ("ok", "datasets.added")
        added = callout(said[0], self.t(said[1], name=made.name), self.t("datasets.added_next"), self.t)
        yield {**self.form.forget(), **self.shown(made.id), self.form.file: None, self.form.message: added}

    # -- tokens

    def _rows_again(
        self, dataset_id: str, start: int, shows: str, model_id: str | None, max_length: float | None
    ) -> Iterator[Updates]:
        """The same rows in the other way, or with another model or maximum length."""
        if shows == TOKENS:
            yield from self._tokens(dataset_id, start, shows, model_id, max_length)
            return
        chosen = self._dataset(dataset_id)
        yield {self.lengths: "", **({self.preview: self._rows(chosen, start)} if chosen else {})}

    def _tokens(
        self, dataset_id: str, start: int, shows: str, model_id: str | None, max_length: float | None
    ) -> Iterator[Updates]:
        """The rows as tokens, then the lengths of all rows; nothing where rows are shown as words."""
        if shows != TOKENS or self._dataset(dataset_id) is None:
            yield {self.lengths: ""}
            return
        if not model_id:
            yield {self.preview: callout("info", self.t("train.no_model"), self.t("train.no_model_fix"), self.t)}
            return
        limit = int(max_length or 0)
        yield {self.preview: callout("info", self.t("tokens.loading"), "", self.t), self.lengths: ""}
        try:
            found = self.studio.token_lengths(dataset_id, model_id, max_length=limit)
            yield {self.lengths: length_card(found, self.t)}
            rows = self.studio.token_rows(
                dataset_id, model_id, start=start, count=PAGE_ROWS, max_length=found.max_length
            )
            yield {self.preview: token_rows(rows, self.t)}
        except StudioError as error:
            yield {self.preview: explain(error, self.t)}

    def _dataset(self, dataset_id: str) -> DatasetView | None:
        return next((dataset for dataset in self.studio.datasets() if dataset.id == dataset_id), None)

    # -- library and preview

    def shown(self, dataset_id: str = "", start: int = 0) -> Updates:
        """The library with the chosen dataset opened, or the newest one; its rows as words."""
        datasets = self.studio.datasets()
        known = [dataset.id for dataset in datasets]
        opened = dataset_id if dataset_id in known else known[0] if known else ""
        bases_first = sorted(self.studio.models(), key=lambda model: model.kind != "base")
        models = [(model.name, model.id) for model in bases_first]
        return {
            **self.view(opened, start),
            self.shows: WORDS,
            self.lengths: "",
            self.model: gr.Dropdown(models, value=known_or_first(None, models)),
        }

    def opened(self, tab_id: str, seen: dict[str, str], dataset_id: str, start: int) -> Any:
        """What a page that just loaded shows here; another tab's page waits until this one is opened."""
        return self.renewed(seen, dataset_id, start) if tab_id == self.id else gr.skip()

    def renewed(self, seen: dict[str, str], dataset_id: str, start: int) -> Any:
        """`shown`, or nothing where that would be what it told the last time: then rows stay as they are looked at."""
        updates = self.shown(dataset_id, start)
        marks = marks_of(updates)
        return gr.skip() if marks == seen else {**updates, self.seen: marks}

    def _choose(self, event: gr.EventData, shows: str) -> Updates:
        return self.view(event.id, 0, shows)

    def _delete(self, dataset_id: str) -> Updates:
        self.studio.delete_dataset(dataset_id)
        return self.shown()

    def _asking(self, asking: bool) -> Updates:
        return {
            self.delete: gr.Button(visible=not asking),
            self.keep: gr.Button(visible=asking),
            self.sure: gr.Button(visible=asking),
        }

    def view(self, dataset_id: str, start: int, shows: str = WORDS) -> Updates:
        """The library with one dataset chosen, and ten of its rows from `start` (counted from 0)."""
        datasets = self.studio.datasets()
        chosen = next((dataset for dataset in datasets if dataset.id == dataset_id), None)
        if chosen is None:
            return self._nothing_chosen(datasets)
        start = min(max(0, start), max(0, (chosen.rows - 1) // PAGE_ROWS * PAGE_ROWS))
        return {
            self.library: self._library(datasets, chosen.id),
            self.summary: self._summary(chosen, start),
            **({self.preview: self._rows(chosen, start)} if shows == WORDS else {}),
            self.chosen: chosen.id,
            self.start: start,
            self.back: gr.Button(interactive=start > 0),
            self.forward: gr.Button(interactive=start + PAGE_ROWS < chosen.rows),
            self.train: gr.Button(interactive=True),
            **self._asking(False),
            self.delete: gr.Button(visible=True, interactive=True),
        }

    def _nothing_chosen(self, datasets: list[DatasetView]) -> Updates:
        off = gr.Button(interactive=False)
        nothing = empty(self.t("datasets.none_chosen"), self.t("datasets.none_chosen_text"))
        return {
            self.library: self._library(datasets, ""), self.summary: "", self.preview: nothing,
            self.chosen: "", self.start: 0, self.back: off, self.forward: off, self.train: off,
            **self._asking(False), self.delete: gr.Button(visible=True, interactive=False),
        }  # fmt: skip

    def _library(self, datasets: list[DatasetView], chosen: str) -> str:
        if not datasets:
            return empty(self.t("datasets.none"), self.t("datasets.none_text"))
        headers = [self.t(f"datasets.{name}") for name in ("name", "format", "rows", "size", "added_at")]
        rows = (
            Row(
                (
                    dataset.name,
                    format_name(dataset.format, self.t),
                    Cell.number(f"{dataset.rows:,}"),
                    Cell.number(bytes_text(dataset.size_bytes)),
                    Cell.number(day_text(dataset.created_at)),
                ),
                dataset.id,
                dataset.id == chosen,
            )
            for dataset in datasets
        )
        return table(headers, rows, self.t("datasets.library"))

    def _summary(self, dataset: DatasetView, start: int) -> str:
        last = min(start + PAGE_ROWS, dataset.rows)
        where = self.t("datasets.rows_shown", first=f"{start + 1:,}", last=f"{last:,}", all=f"{dataset.rows:,}")
        left_out = f" · {self.t('datasets.left_out', n=dataset.bad_rows)}" if dataset.bad_rows else ""
        version = dataset.records_sha256 or dataset.sha256
        return (
            f'<p class="caption"><b>{esc(dataset.name)}</b> · {esc(dataset.file_name)} · {esc(where)}{esc(left_out)} · '
            f'<code title="{esc(version)}">sha256 {esc(version[:12])}</code></p>'
        )

    def _rows(self, dataset: DatasetView, start: int) -> str:
        rows = self.studio.preview(dataset.id, start=start, count=PAGE_ROWS)
        cards = (f'<li><span class="row-number">{row.row:,}</span>{bubbles(row.turns, self.t)}</li>' for row in rows)
        return f'<ol class="preview">{"".join(cards)}</ol>'
