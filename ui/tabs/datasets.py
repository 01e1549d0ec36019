"""Datasets: upload a file, see at once what it is and what is wrong with it, add it, and read its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from core.data.recipe import Recipe
from studio.views import DatasetView, ProblemView
from ui.fragments import DELEGATE, Cell, Row, badge_level, bubbles, callout, empty, esc, heading, table
from ui.handlers import Updates, guarded
from ui.page import Page, Tab
from ui.quantities import bytes_text, moment_text, share_text

FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".xlsx"]
PAGE_ROWS = 10
_PROBLEMS_SHOWN = 50
AUTOMATIC = ""


class DatasetsTab(Tab):
    """Left: add a file. Right: the library. Below: the rows of the chosen dataset as the model will see them."""

    id = "datasets"

    def layout(self) -> None:
        """Make the three cards."""
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=5, min_width=340, elem_classes="card"):
                self._layout_upload()
            with gr.Column(scale=6, min_width=340, elem_classes="card"):
                gr.HTML(heading(self.t("datasets.library"), self.t("datasets.library_text")))
                self.library = gr.HTML(elem_id="datasets-table", js_on_load=DELEGATE)
        with gr.Column(elem_classes="card"):
            self._layout_preview()
        self.chosen = gr.State("")
        self.start = gr.State(0)

    def _layout_upload(self) -> None:
        t = self.t
        gr.HTML(heading(t("datasets.add_title"), t("datasets.add_text")))
        self.file = gr.File(
            label=t("datasets.file"), file_types=FILE_TYPES, file_count="single", height=150, elem_id="dataset-file"
        )
        self.message = gr.HTML(elem_id="dataset-message")
        self.detected = gr.HTML(elem_id="dataset-detected")
        with gr.Column(visible=False) as self.details:
            with gr.Row():
                self.name = gr.Textbox(label=t("datasets.name"), elem_id="dataset-name", max_length=120)
                self.format = gr.Dropdown(
                    self._formats(),
                    value=AUTOMATIC,
                    label=t("datasets.format"),
                    elem_id="dataset-format",
                    filterable=False,
                )
            self.skip = gr.Checkbox(
                label=t("datasets.skip"), info=t("datasets.skip_info"), elem_id="dataset-skip-bad-rows"
            )
            self.add = gr.Button(t("datasets.add"), variant="primary", elem_id="dataset-add")
        self.problems = gr.HTML(elem_id="dataset-problems")

    def _layout_preview(self) -> None:
        t = self.t
        gr.HTML(heading(t("datasets.preview"), t("datasets.preview_text")))
        self.summary = gr.HTML(elem_id="dataset-summary")
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
            self.library, self.summary, self.preview, self.chosen, self.start, self.message,
            self.back, self.forward, self.train, self.delete, self.keep, self.sure,
        ]  # fmt: skip

    def wire(self, page: Page) -> None:
        """Connect upload, library and preview."""
        self._wire_upload()
        self._wire_library(page)

    def _wire_upload(self) -> None:
        safe = guarded(self.message, self.t)
        found = [self.message, self.detected, self.problems, self.details, self.name, self.add]
        inspected = guarded(self.message, self.t, self._forget)(self._inspect_new)  # an unreadable file offers no form
        self.listen(
            self.file.upload,
            inspected,
            [self.file],
            [*found, self.format],
            show_progress="minimal",
            show_progress_on=[self.detected],
        )
        self.listen(self.format.input, safe(self._inspect), [self.file, self.format], found)
        self.listen(self.file.clear, safe(self._forget), [], found)
        self.listen(
            self.add.click, safe(self._add), [self.file, self.name, self.format, self.skip],
            [*found, self.file, *self.view_outputs], show_progress="minimal", show_progress_on=[self.add],
        )  # fmt: skip

    def _wire_library(self, page: Page) -> None:
        safe = guarded(self.message, self.t)
        outputs = self.view_outputs
        self.listen(self.library.click, safe(self._choose), [], outputs)
        self.listen(self.back.click, safe(lambda i, s: self.view(i, s - PAGE_ROWS)), [self.chosen, self.start], outputs)
        self.listen(
            self.forward.click, safe(lambda i, s: self.view(i, s + PAGE_ROWS)), [self.chosen, self.start], outputs
        )
        self.listen(self.delete.click, lambda: self._asking(True), [], [self.delete, self.keep, self.sure])
        self.listen(self.keep.click, lambda: self._asking(False), [], [self.delete, self.keep, self.sure])
        self.listen(self.sure.click, safe(self._delete), [self.chosen], outputs)
        train = page.each.train

        def use(dataset_id: str, model_id: str | None) -> Updates:
            return {**page.go("train"), **train.refreshed(dataset_id, model_id)}

        outputs = [*page.go_outputs, train.dataset, train.model]
        self.listen(self.train.click, use, [self.chosen, train.model], outputs)

    def _formats(self) -> list[tuple[str, str]]:
        named = [(self.t.known(f"format.{name}", name), name) for name in self.studio.formats()]
        return [(self.t("datasets.automatic"), AUTOMATIC), *named]

    # -- adding

    def _inspect_new(self, path: str | None) -> Updates:
        # The format chosen for the last file says nothing about this one.
        name = Path(path).stem.replace("_", " ") if path else ""
        return {self.format: AUTOMATIC, self.name: name, **self._inspect(path, AUTOMATIC)}

    def _inspect(self, path: str | None, format: str) -> Updates:
        if not path:
            return self._forget()
        found = self.studio.dataset_shelf.inspect([self._uploaded(path)], Recipe(format or None))
        return {
            self.detected: self._detect_card(found),
            self.problems: self._problem_table(found),
            self.details: gr.Column(visible=True),
            self.add: gr.Button(interactive=found.rows > 0),
        }

    def _uploaded(self, path: str) -> Path:
        return self.studio.workspace.uploaded(Path(path))

    def _forget(self) -> Updates:
        return {self.detected: "", self.problems: "", self.details: gr.Column(visible=False), self.name: ""}

    def _add(self, path: str | None, name: str, format: str, skip: bool) -> Updates:
        if not path:
            return {
                self.message: callout("warning", self.t("datasets.no_file"), self.t("datasets.no_file_fix"), self.t)
            }
        source, name = self._uploaded(path), (name or "").strip()
        made = self.studio.add_dataset(source, name=name, format=format or None, skip_bad_rows=skip)
        added = callout("ok", self.t("datasets.added", name=made.name), self.t("datasets.added_next"), self.t)
        return {**self._forget(), **self.view(made.id, 0), self.file: None, self.message: added}

    def _detect_card(self, found: DatasetView) -> str:
        total = found.rows + found.bad_rows
        kind = self.t.known(f"format.{found.format}", found.format)
        level = "ok" if found.bad_rows == 0 else "warning"
        title = self.t("datasets.looks_like", kind=kind, share=share_text(found.share), rows=f"{total:,}")
        return callout(level, title, self.t("datasets.rule", rule=self.t.sentence(found.rule).rstrip(".。")), self.t)

    def _problem_table(self, found: DatasetView) -> str:
        if not found.problems:
            return ""
        headers = [self.t(f"problem.{name}") for name in ("row", "kind", "detail")]
        rows = (Row(self._problem_cells(problem)) for problem in found.problems[:_PROBLEMS_SHOWN])
        title = heading(self.t("datasets.problems", n=len(found.problems)), self.t("datasets.problems_text"))
        return title + table(headers, rows, self.t("datasets.problems", n=len(found.problems)))

    def _problem_cells(self, problem: ProblemView) -> list[Cell | str]:
        kind = self.t.known(f"problem.{problem.kind}", problem.kind)
        words = esc(self.t.sentence(problem.detail))
        return [
            Cell.number(f"{problem.row:,}"),
            Cell(badge_level(problem.level, kind, self.t)),
            Cell(f'{words}<code class="excerpt">{esc(problem.excerpt)}</code>', wide=True),
        ]

    # -- library and preview

    def shown(self, dataset_id: str = "", start: int = 0) -> Updates:
        """The library with the chosen dataset opened, or the newest one."""
        datasets = self.studio.datasets()
        known = [dataset.id for dataset in datasets]
        return self.view(dataset_id if dataset_id in known else known[0] if known else "", start)

    def _choose(self, event: gr.EventData) -> Updates:
        return self.view(event.id, 0)

    def _delete(self, dataset_id: str) -> Updates:
        self.studio.delete_dataset(dataset_id)
        return self.shown()

    def _asking(self, asking: bool) -> Updates:
        return {
            self.delete: gr.Button(visible=not asking),
            self.keep: gr.Button(visible=asking),
            self.sure: gr.Button(visible=asking),
        }

    def view(self, dataset_id: str, start: int) -> Updates:
        """The library with one dataset chosen, and ten of its rows from `start` (counted from 0)."""
        datasets = self.studio.datasets()
        chosen = next((dataset for dataset in datasets if dataset.id == dataset_id), None)
        if chosen is None:
            return self._nothing_chosen(datasets)
        start = min(max(0, start), max(0, (chosen.rows - 1) // PAGE_ROWS * PAGE_ROWS))
        return {
            self.library: self._library(datasets, chosen.id),
            self.summary: self._summary(chosen, start),
            self.preview: self._rows(chosen, start),
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
                    self.t.known(f"format.{dataset.format}", dataset.format),
                    Cell.number(f"{dataset.rows:,}"),
                    Cell.number(bytes_text(dataset.size_bytes)),
                    Cell.number(moment_text(dataset.created_at)),
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
        return (
            f'<p class="caption"><b>{esc(dataset.name)}</b> · {esc(dataset.file_name)} · {esc(where)}{esc(left_out)} · '
            f'<code title="{esc(dataset.sha256)}">sha256 {esc(dataset.sha256[:12])}</code></p>'
        )

    def _rows(self, dataset: DatasetView, start: int) -> str:
        rows = self.studio.preview(dataset.id, start=start, count=PAGE_ROWS)
        cards = (f'<li><span class="row-number">{row.row:,}</span>{bubbles(row.turns, self.t)}</li>' for row in rows)
        return f'<ol class="preview">{"".join(cards)}</ol>'
